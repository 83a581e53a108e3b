package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	digest "github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// PayloadType is an in-toto statement's in an envelope.
const PayloadType = "application/vnd.in-toto+json"

var (
	// ErrKey says that a file holds no private key that can sign here.
	ErrKey = errors.New("unusable signing key")
	// ErrPassword says that a key's password is missing or wrong.
	ErrPassword = errors.New("the signing key's password is missing or wrong")
	// ErrWhole says that a key signs messages and no digests, so that a disk would have to be in memory as a whole.
	ErrWhole = errors.New("an Ed25519 key signs no disk, only statements about it; use an ECDSA or RSA key")
)

// MaxKey bounds a key file in bytes.
const MaxKey = 64 << 10

// minRSA and maxRSA bound the size of an RSA key in bits: less is unsafe, more takes minutes.
const (
	minRSA = 2048
	maxRSA = 16384
)

// Key is a private key. It is safe for concurrent use.
type Key struct{ signer crypto.Signer }

// ParseKey reads a private key in PEM: one of `cosign generate-key-pair` ("ENCRYPTED SIGSTORE PRIVATE KEY", or
// "ENCRYPTED COSIGN PRIVATE KEY" of older ones), which password opens, or a plain one (PKCS #8, SEC 1, PKCS #1) of
// ECDSA on P-256, P-384 or P-521, RSA of 2048 bits and more, or Ed25519. A nil password is none, which is not the
// same as an empty one. Errors match ErrKey or ErrPassword.
func ParseKey(text, password []byte) (*Key, error) {
	if len(text) > MaxKey {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrKey, MaxKey)
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, fmt.Errorf("%w: there is no private key in PEM in it", ErrKey)
		}
		if block.Type == "EC PARAMETERS" {
			// What `openssl ecparam -genkey` writes before the key, which names its curve itself.
			continue
		}
		return parseBlock(block, password)
	}
}

func parseBlock(block *pem.Block, password []byte) (*Key, error) {
	var key any
	var err error
	switch block.Type {
	case "ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY":
		if password == nil {
			return nil, fmt.Errorf("%w: it is encrypted, and no password is given", ErrPassword)
		}
		plain, err := encrypted.Decrypt(block.Bytes, password)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPassword, err)
		}
		if key, err = x509.ParsePKCS8PrivateKey(plain); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		err = errors.New("an encrypted PKCS #8 key; `cosign import-key-pair` makes one of its own of it")
	default:
		err = fmt.Errorf("it holds a %q", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		if c := key.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return nil, fmt.Errorf("%w: its curve is %s; use P-256", ErrKey, c.Params().Name)
		}
		return &Key{key}, nil
	case *rsa.PrivateKey:
		if n := key.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Errorf("%w: an RSA key of %d bits; use %d to %d", ErrKey, n, minRSA, maxRSA)
		}
		return &Key{key}, nil
	case ed25519.PrivateKey:
		return &Key{key}, nil
	}
	return nil, fmt.Errorf("%w: a key of type %T", ErrKey, key)
}

// PublicKey is the public half in PEM, as cosign and openssl read it.
func (k *Key) PublicKey() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.signer.Public())
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// SignsDisks says whether SignDigest works with the key.
func (k *Key) SignsDisks() bool {
	_, ed := k.signer.(ed25519.PrivateKey)
	return !ed
}

// SignDigest signs content by its SHA-256 digest: the base64 that `cosign verify-blob --signature` takes, of an ECDSA
// (ASN.1) or RSA (PKCS #1 v1.5) signature. An Ed25519 key gives ErrWhole.
func (k *Key) SignDigest(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("signing: %q is no SHA-256 digest", d)
	}
	if !k.SignsDisks() {
		return nil, ErrWhole
	}
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return nil, err
	}
	// Without a source of randomness: see the package's documentation.
	sig, err := k.signer.Sign(nil, sum, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return []byte(base64.StdEncoding.EncodeToString(sig)), nil
}

// Envelope signs a payload, an in-toto statement for PayloadType: a DSSE envelope as JSON in one line.
func (k *Key) Envelope(payloadType string, payload []byte) ([]byte, error) {
	message := dsse.PAE(payloadType, payload)
	var sig []byte
	var err error
	if k.SignsDisks() {
		sum := sha256.Sum256(message)
		sig, err = k.signer.Sign(nil, sum[:], crypto.SHA256)
	} else {
		sig, err = k.signer.Sign(nil, message, crypto.Hash(0))
	}
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err = e.Encode(dsse.Envelope{PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []dsse.Signature{{Sig: base64.StdEncoding.EncodeToString(sig)}}})
	return out.Bytes(), err
}
