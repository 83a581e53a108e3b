package storeseed

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/distribution/registry/api/errcode"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
)

const (
	// worthwhile is how much must have come before an interruption counts as the first one again.
	worthwhile = 1 << 20
	// stallTimeout is how long a connection may bring nothing.
	stallTimeout = 60 * time.Second
	// answerTimeout is how long the library may take to get an answer: it waits up to five minutes for a registry
	// that says "too many requests".
	answerTimeout = 6 * time.Minute
)

var errStalled = errors.New("nothing came for too long")

// blobStream reads a blob from a registry and goes on where it was when a connection breaks. The library does so
// by itself, once or twice, where the registry answers at once; this is for all other cases.
type blobStream struct {
	ctx   context.Context
	r     *registrySource
	info  types.BlobInfo
	size  int64 // -1 if unknown
	off   int64 // of the next byte
	retry backoff

	body    io.ReadCloser
	skip    int64 // bytes of body that came before
	cancel  context.CancelFunc
	watch   *time.Timer
	stalled atomic.Bool // watch has fired
	stall   time.Duration
	mark    int64 // off at the last interruption that counted
}

func newBlobStream(ctx context.Context, r *registrySource, info types.BlobInfo, off int64) *blobStream {
	return &blobStream{ctx: ctx, r: r, info: info, size: info.Size, off: off, mark: off, stall: stallTimeout, retry: backoffOf(r.o)}
}

func (b *blobStream) Read(p []byte) (int, error) {
	for {
		n, err := b.once(p)
		if n > 0 {
			// A failure comes again with the next call.
			b.off += int64(n)
			if b.size >= 0 && b.off > b.size {
				return 0, fmt.Errorf("the blob goes on past the %d bytes that its manifest promises: %w", b.size, ErrDigestMismatch)
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			if b.size < 0 || b.off >= b.size {
				return 0, io.EOF
			}
			err = fmt.Errorf("the blob ends after %d of %d bytes: %w", b.off, b.size, io.ErrUnexpectedEOF)
		}
		b.drop()
		if cause := context.Cause(b.ctx); cause != nil {
			return 0, cause
		}
		if b.off-b.mark >= worthwhile {
			b.mark = b.off
			b.retry.reset()
		}
		err = fmt.Errorf("fetching blob %s from %s: %w", b.info.Digest, b.r.name, err)
		if err := b.retry.wait(b.ctx, err); err != nil {
			return 0, err
		}
	}
}

// once reads from the open connection, or from a new one.
func (b *blobStream) once(p []byte) (int, error) {
	if b.body == nil {
		if err := b.connect(); err != nil {
			return 0, b.cause(err)
		}
	}
	if b.skip > 0 {
		p = p[:min(int64(len(p)), b.skip)]
	}
	b.watch.Reset(b.stall)
	n, err := b.body.Read(p)
	b.watch.Stop()
	if b.skip > 0 {
		b.skip -= int64(n)
		n = 0
	}
	if n > 0 {
		err = nil
	}
	return n, b.cause(err)
}

func (b *blobStream) cause(err error) error {
	if err != nil && err != io.EOF && b.stalled.Load() {
		return errStalled
	}
	return err
}

func (b *blobStream) connect() error {
	ctx, cancel := context.WithCancel(b.ctx)
	b.cancel = cancel
	b.stalled.Store(false)
	b.watch = time.AfterFunc(answerTimeout, func() { b.stalled.Store(true); cancel() })
	defer b.watch.Stop()
	src, err := b.r.open(ctx)
	if err != nil {
		return err
	}
	if b.off > 0 && len(b.info.URLs) == 0 {
		if b.body, err = getBlobFrom(ctx, src, b.info, b.off); err == nil || onTheWay(err) {
			return err
		}
		b.r.o.Log.Debugf("blob %s cannot be gone on with at %d: %v", b.info.Digest, b.off, err)
	}
	b.body, _, err = src.GetBlob(ctx, b.info, none.NoCache)
	b.skip = b.off
	return err
}

func (b *blobStream) drop() {
	if b.cancel != nil {
		b.cancel()
		b.cancel = nil
	}
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	b.skip = 0
}

func (b *blobStream) Close() error {
	b.drop()
	return nil
}

// getBlobFrom asks for a blob's bytes from an offset on. The library's sources can do that for its own partial
// pulls, with an argument of a type that it keeps internal: hence reflection. Where that does not work the error
// is errors.ErrUnsupported.
func getBlobFrom(ctx context.Context, src types.ImageSource, info types.BlobInfo, off int64) (io.ReadCloser, error) {
	m := reflect.ValueOf(src).MethodByName("GetBlobAt")
	if !m.IsValid() {
		return nil, errors.ErrUnsupported
	}
	t := m.Type()
	if t.NumIn() != 3 || t.NumOut() != 3 || t.In(0) != reflect.TypeFor[context.Context]() || t.In(1) != reflect.TypeFor[types.BlobInfo]() ||
		t.In(2).Kind() != reflect.Slice || t.In(2).Elem().Kind() != reflect.Struct ||
		t.Out(0) != reflect.TypeFor[chan io.ReadCloser]() || t.Out(1) != reflect.TypeFor[chan error]() {
		return nil, errors.ErrUnsupported
	}
	chunk := reflect.New(t.In(2).Elem()).Elem()
	for name, v := range map[string]uint64{"Offset": uint64(off), "Length": math.MaxUint64} {
		f := chunk.FieldByName(name)
		if !f.IsValid() || f.Kind() != reflect.Uint64 {
			return nil, errors.ErrUnsupported
		}
		f.SetUint(v)
	}
	out := m.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(info), reflect.Append(reflect.MakeSlice(t.In(2), 0, 1), chunk)})
	if err, _ := out[2].Interface().(error); err != nil {
		return nil, err
	}
	// The goroutine behind the channels ends with ctx, so neither is left waiting.
	select {
	case body, ok := <-out[0].Interface().(chan io.ReadCloser):
		if ok {
			return body, nil
		}
	case err := <-out[1].Interface().(chan error):
		if err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the registry sent nothing")
}

// backoff counts failures in a row and waits longer after each.
type backoff struct {
	o     *PullOptions
	n     int
	delay time.Duration
}

func backoffOf(o *PullOptions) backoff {
	b := backoff{o: o}
	b.reset()
	return b
}

func (b *backoff) reset() {
	b.n, b.delay = 0, b.o.RetryDelay
	if b.delay == 0 {
		b.delay = time.Second
	}
}

// maxDelay bounds the pause between two tries.
const maxDelay = time.Minute

// wait pauses before the next try, or returns err if there is to be none.
func (b *backoff) wait(ctx context.Context, err error) error {
	if b.n >= b.o.Retries || !mayRetry(ctx, err) {
		return err
	}
	b.n++
	b.o.Log.Warnf("%v; trying again in %s", err, b.delay)
	t := time.NewTimer(b.delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
	}
	b.delay = min(2*b.delay, maxDelay)
	return nil
}

// refusedByRegistry tells an answer that will be the same the next time from a fault on the way.
func refusedByRegistry(err error) bool {
	var unauthorized docker.ErrUnauthorizedForCredentials
	if errors.As(err, &unauthorized) {
		return true
	}
	var status docker.UnexpectedHTTPStatusError
	if errors.As(err, &status) {
		return status.StatusCode >= 400 && status.StatusCode < 500 && !again(status.StatusCode)
	}
	var coded errcode.ErrorCoder
	if errors.As(err, &coded) {
		code := coded.ErrorCode()
		return code != errcode.ErrorCodeUnknown && code != errcode.ErrorCodeUnavailable && code != errcode.ErrorCodeTooManyRequests
	}
	// Credentials that cannot be read, which has no type either.
	if strings.Contains(err.Error(), "getting username and password") {
		return true
	}
	// What the library makes of a 4xx answer without a JSON body has no exported type.
	if _, rest, ok := strings.Cut(err.Error(), "StatusCode: 4"); ok && len(rest) > 2 {
		code := 400 + int(rest[0]-'0')*10 + int(rest[1]-'0')
		return !again(code)
	}
	var ca x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var dns *net.DNSError
	return errors.As(err, &ca) || errors.As(err, &host) || errors.As(err, &invalid) || (errors.As(err, &dns) && dns.IsNotFound)
}

// onTheWay tells a fault that says nothing of whether the registry would do what it was asked for.
func onTheWay(err error) bool {
	var status docker.UnexpectedHTTPStatusError
	var net net.Error
	return (errors.As(err, &status) && status.StatusCode >= 500) || errors.As(err, &net) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.Canceled)
}

func again(status int) bool {
	return status == http.StatusRequestTimeout || status == http.StatusTooEarly || status == http.StatusTooManyRequests
}
