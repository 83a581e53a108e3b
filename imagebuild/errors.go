package imagebuild

import "errors"

// ErrUsage is matched by errors in what the caller asked for, as against in what was found.
var ErrUsage = errors.New("wrong use")

// ErrVerify is matched when a disk is not what it claims to be.
var ErrVerify = errors.New("verification failed")
