package main

import (
	"context"
	"time"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// lingerLimit is how long a half-closed stream is given to end.
const lingerLimit = 3 * time.Second

// link is the present stream and what is known of it.
type link struct {
	*stream
	cancel    context.CancelFunc
	next      *pb.ConsumeRequest // what the writer shall take next
	sequence  uint64
	sent      map[uint64][]word // by sequence, not answered yet
	credit    int               // as the server was told
	carried   int               // tasks from earlier streams that are still worked on
	opened    bool
	draining  bool
	finishing bool // there is nothing more to say
	closed    bool // the server knows
}

func newLink(cancel context.CancelFunc, carried int) *link {
	return &link{stream: newStream(), cancel: cancel, sent: map[uint64][]word{}, carried: carried}
}

// outgoing is what to send on, and what; as nothing can be sent on a nil channel, that means not now.
func (l *link) outgoing() (chan<- *pb.ConsumeRequest, *pb.ConsumeRequest) {
	if l == nil || l.next == nil {
		return nil, nil
	}
	return l.requests, l.next
}

func (l *link) incoming() <-chan *pb.ConsumeResponse {
	if l == nil {
		return nil
	}
	return l.responses
}

func (l *link) remember(words []word) uint64 {
	l.sequence++
	l.sent[l.sequence] = words
	return l.sequence
}

// finish lets the stream be half-closed, and cancelled if the server does not end it then.
func (l *link) finish() {
	if !l.finishing {
		l.finishing = true
		time.AfterFunc(lingerLimit, l.cancel)
	}
}

func (l *link) closeWhenFinished() {
	if l.finishing && l.next == nil && !l.closed {
		l.closed = true
		close(l.requests)
	}
}
