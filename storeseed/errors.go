package storeseed

import "errors"

// Errors that callers tell apart with errors.Is.
var (
	// ErrDigestMismatch is content that is not what its digest says.
	ErrDigestMismatch = errors.New("digest does not match")
	// ErrHostileLayer is a layer that would write outside of itself, or that the engine could not
	// rebuild.
	ErrHostileLayer = errors.New("layer refused")
	// ErrUnsupportedImage is a source that is not a container image of a kind that a store can hold.
	ErrUnsupportedImage = errors.New("unsupported image")
	// ErrCorruptStore is a store whose own records contradict each other or its files.
	ErrCorruptStore = errors.New("corrupt store")
	// ErrPlatform is an image for another operating system or architecture.
	ErrPlatform = errors.New("no image for the platform")
	// ErrUnsupportedTransport is a reference of a kind that images are not read from.
	ErrUnsupportedTransport = errors.New("unsupported transport")
	// ErrSourceChanged is a source that gave another image the second time it was asked.
	ErrSourceChanged = errors.New("the source changed while it was read")
	// ErrNotCached is something of an image that only a registry has, while none may be asked.
	ErrNotCached = errors.New("not in the cache")
)

var errBlocked = errors.New("no image may come from it")

// errHalfWritten keeps a store whose layer could not be taken away again from being committed.
var errHalfWritten = errors.New("a layer was left half written")
