package main

import (
	"context"
	"errors"
	"time"
)

const (
	// The work is stopped before the lease ends, by this part of it and at most by so long: it needs time to stop, and
	// two clocks do not run at quite the same rate.
	marginPart    = 20
	longestMargin = time.Second
)

// errLeaseEnds says that the lease could not be extended and is about to end: somebody else may have the task soon.
var errLeaseEnds = errors.New("the lease is about to end")

// lease is what is known of the lease of a task: until when it lasts for sure, by the monotonic clock of this process.
type lease struct {
	length time.Duration
	margin time.Duration
	ends   time.Time
}

// newLease makes one of a task that was asked for at some moment: before the call of a Dequeue; of a stream, when the
// delivery came, which is as near as one can know.
func newLease(length time.Duration, asked time.Time) *lease {
	return &lease{length, min(length/marginPart, longestMargin), asked.Add(length)}
}

// keep extends the lease at half of what is left, again and again, and returns why that cannot go on; it runs beside
// the work. extend asks once, and is told whether the last try had failed: then a new connection is worth its price.
func (l *lease) keep(ctx context.Context, extend func(ctx context.Context, failed bool) error) error {
	failed := false
	due := l.ends.Add(-l.length / 2)
	for {
		if err := sleep(ctx, time.Until(due)); err != nil {
			return err
		}
		asked := time.Now()
		left := l.ends.Sub(asked)
		if left <= l.margin {
			return errLeaseEnds
		}
		// A try that hangs must not take all the time: the next one begins when half of what is left has passed.
		due = asked.Add(min(left/2, left-l.margin))
		trying, cancel := context.WithDeadline(ctx, due)
		err := extend(trying, failed)
		cancel()
		if err == nil {
			// The server counts from some moment after it was asked, so this is on the safe side.
			l.ends = asked.Add(l.length)
			due = asked.Add(l.length / 2)
		} else if isLost(err) {
			return err
		}
		failed = err != nil
	}
}
