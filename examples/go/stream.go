package main

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// stream is one Consume stream, with one goroutine that reads and one that writes: gRPC allows no more than one of
// each, and either side may block the other if a single one did both.
type stream struct {
	requests  chan *pb.ConsumeRequest  // closed by the owner to half-close
	responses chan *pb.ConsumeResponse // closed at the end of the stream
	err       error                    // why it ended; valid once responses is closed, nil if the server said OK
}

func newStream() *stream {
	return &stream{
		requests:  make(chan *pb.ConsumeRequest),
		responses: make(chan *pb.ConsumeResponse),
	}
}

// run opens the stream and serves both channels until it has ended.
func (s *stream) run(ctx context.Context, client pb.TorrelqueServiceClient, open *pb.ConsumeOpen) {
	defer close(s.responses)
	ctx, watchdog, cancel := withWatchdog(ctx)
	defer cancel()

	call, err := client.Consume(ctx)
	if err != nil {
		s.err = streamError(ctx, err)
		return
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.write(groupCtx, call, open) })
	group.Go(func() error { return s.read(groupCtx, call, watchdog) })
	if err := group.Wait(); !errors.Is(err, io.EOF) {
		s.err = streamError(ctx, err)
	}
}

// write returns no error of its own: when Send fails the stream has ended, and Recv tells why.
func (s *stream) write(ctx context.Context, call pb.TorrelqueService_ConsumeClient, open *pb.ConsumeOpen) error {
	if call.Send(&pb.ConsumeRequest{Request: &pb.ConsumeRequest_Open{Open: open}}) != nil {
		return nil
	}
	for {
		select {
		case request, more := <-s.requests:
			if !more {
				return call.CloseSend()
			}
			if call.Send(request) != nil {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// read ends with an error always, io.EOF for OK, and thereby ends the writer.
func (s *stream) read(ctx context.Context, call pb.TorrelqueService_ConsumeClient, watchdog *watchdog) error {
	for {
		response, err := call.Recv()
		if err != nil {
			return err
		}
		watchdog.heard()
		select {
		case s.responses <- response:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
