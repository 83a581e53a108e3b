package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
)

// checkTag refuses a tag that the registry has. Where it cannot tell, the push will.
func checkTag(ctx context.Context, d Dest, o *Options) error {
	if o.Force {
		return nil
	}
	if dig, err := docker.GetDigest(ctx, o.System, d.ref); err == nil {
		return fmt.Errorf("%s: %w, as %s; --force moves the tag", d, ErrExists, dig)
	}
	return ctx.Err()
}

// push uploads layer, config and manifest, in this order.
func push(ctx context.Context, d Dest, disk io.Reader, size int64, o *Options) (Result, error) {
	dest, err := d.ref.NewImageDestination(ctx, o.System)
	if err != nil {
		return Result{}, err
	}
	defer dest.Close()
	type written struct {
		l   layer
		err error
	}
	r, w := io.Pipe()
	done := make(chan written, 1)
	go func() {
		l, err := writeLayer(ctx, w, disk, size, o)
		w.CloseWithError(err)
		done <- written{l, err}
	}()
	info, err := dest.PutBlob(ctx, r, types.BlobInfo{Size: -1}, none.NoCache, false)
	r.CloseWithError(errUpload)
	got := <-done
	if got.err != nil && !errors.Is(got.err, errUpload) {
		return Result{}, got.err
	}
	if err != nil {
		return Result{}, err
	}
	if got.err != nil || info.Digest != got.l.blob {
		return Result{}, fmt.Errorf("the registry took %s for the layer, which is %s", info.Digest, got.l.blob)
	}
	config, manifest, err := describe(&got.l, o)
	if err != nil {
		return Result{}, err
	}
	if _, err := dest.PutBlob(ctx, bytes.NewReader(config.data), types.BlobInfo{Digest: config.desc.Digest, Size: config.desc.Size}, none.NoCache, true); err != nil {
		return Result{}, fmt.Errorf("the config: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	if err := dest.PutManifest(ctx, manifest.data, nil); err != nil {
		return Result{}, fmt.Errorf("the manifest: %w", err)
	}
	return resultOf(&got.l, config, manifest), dest.Commit(ctx, nil)
}

// errUpload ends the layer's writer where the upload has ended before.
var errUpload = errors.New("the upload ended")
