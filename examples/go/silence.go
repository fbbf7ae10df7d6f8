package main

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	progressInterval = 10 * time.Second
	silenceLimit     = 3 * progressInterval
)

// watchdog ends a stream on which the server has gone silent although it promised a message each progressInterval:
// a connection may live while what is behind it, a proxy's other side or a server's loop, does not.
type watchdog struct{ timer *time.Timer }

// withWatchdog returns a context for the stream. Its cause, once it has ended, is a status error.
func withWatchdog(parent context.Context) (context.Context, *watchdog, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	timer := time.AfterFunc(silenceLimit, func() {
		cancel(status.Errorf(codes.Unavailable, "nothing was heard for %v", silenceLimit))
	})
	return ctx, &watchdog{timer}, func() {
		timer.Stop()
		cancel(context.Canceled)
	}
}

// heard is called for each message.
func (w *watchdog) heard() { w.timer.Reset(silenceLimit) }

// streamError says why a stream ended: the watchdog's word, if it was that, and otherwise what gRPC said.
func streamError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if _, ok := status.FromError(cause); ok {
			return cause
		}
	}
	return err
}
