// Package attest says where a disk comes from, and signs what is said: in-toto statements (SLSA provenance, and bills
// of materials bound to their disk), DSSE envelopes around them, and detached signatures of the disk, each as cosign
// and other verifiers of these formats take them.
//
// Nothing here reads a clock or a source of randomness: the same inputs and the same key give the same bytes. ECDSA
// signatures are those of RFC 6979.
//
// Sources: "in-toto Attestation Framework" v1, "SLSA Provenance" v1, "DSSE: Dead Simple Signing Envelope" v1.
package attest
