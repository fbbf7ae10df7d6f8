package main

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/status"
)

const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = 5 * time.Second
)

// retryDelays are the waits between attempts: each is twice the one before, and none is exact, so that many clients
// that lost a server together do not come back together. The zero value is ready for use.
type retryDelays struct{ last time.Duration }

func (r *retryDelays) next() time.Duration {
	r.last = min(max(2*r.last, firstDelay), lastDelay)
	return jitter(r.last)
}

// reset is for when an attempt went well.
func (r *retryDelays) reset() { r.last = 0 }

// jitter moves a delay by up to a fifth.
func jitter(delay time.Duration) time.Duration {
	return time.Duration(float64(delay) * (0.8 + 0.4*rand.Float64()))
}

// sleep waits, and returns early with a status error when ctx ends.
func sleep(ctx context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}
