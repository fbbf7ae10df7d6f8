package main

import (
	"testing"
	"time"
)

// Each wait is about twice the one before, from 0.1 s to 5 s, and starts anew after a reset.
func TestRetryDelays(t *testing.T) {
	var delays retryDelays
	for range 2 {
		for _, milliseconds := range []int{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
			about := time.Duration(milliseconds) * time.Millisecond
			if got := delays.next(); got < about*8/10 || got > about*12/10 {
				t.Errorf("got %v, not about %v", got, about)
			}
		}
		delays.reset()
	}
}
