package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// watch prints each state of a task until the final one.
type watch struct {
	taskID  string
	timeout seconds
	states  int32 // 0: all
}

type stateEvent struct {
	Event        string          `json:"event"`
	TaskID       string          `json:"task_id"`
	Status       string          `json:"status"`
	DequeueCount int32           `json:"dequeue_count"`
	Result       json.RawMessage `json:"result"`
}

type cancelledEvent struct {
	Event string `json:"event"`
}

func (w *watch) declare(flags *flag.FlagSet) {
	flags.Var(&w.timeout, "timeout", "give up after `SECONDS`")
	flags.Var(count{&w.states, math.MaxInt32}, "states", "cancel the call after `N` states")
}

func (w *watch) accept(arguments []string) (err error) {
	w.taskID, err = one("TASK_ID", arguments)
	return err
}

func (w *watch) run(ctx context.Context, s *session) error {
	watcher := watcher{watch: w, session: s}
	if w.timeout.given {
		// The server ends the wait; the context is for when it cannot.
		watcher.deadline = time.Now().Add(w.timeout.Duration)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, watcher.deadline.Add(time.Second))
		defer cancel()
	}
	for {
		err := watcher.follow(ctx)
		if watcher.over {
			return nil
		} else if !isOverSoon(err) {
			return err
		}
		delay := watcher.delays.next()
		s.log.Printf("watching again in %v: %v", delay.Round(time.Millisecond), err)
		if err := watcher.pause(ctx, delay); err != nil {
			return err
		}
	}
}

// watcher is how far a watch has come, over all its streams.
type watcher struct {
	*watch
	*session
	deadline time.Time // zero: none
	delays   retryDelays
	cursor   *pb.WatchCursor // of the last message
	shown    int32
	over     bool // the final state was shown
}

// follow reads one stream to its end.
func (w *watcher) follow(ctx context.Context) error {
	ctx, watchdog, cancel := withWatchdog(ctx)
	defer cancel()

	stream, err := w.client.Watch(ctx, w.request())
	if err != nil {
		return streamError(ctx, err)
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return streamError(ctx, err)
		}
		watchdog.heard()
		w.delays.reset()
		if cursor := response.GetCursor(); cursor != nil {
			w.cursor = cursor
		}
		if state := response.GetState(); state != nil {
			w.show(state)
		}
		if w.states > 0 && w.shown == w.states {
			w.out.print(cancelledEvent{"cancelled"})
			return nil // which cancels the call
		}
	}
}

func (w *watcher) request() *pb.WatchRequest {
	request := &pb.WatchRequest{
		Queue:            w.queue,
		TaskId:           w.taskID,
		Cursor:           w.cursor,
		ProgressInterval: durationpb.New(progressInterval),
	}
	if w.timeout.given {
		request.Timeout = durationpb.New(max(time.Until(w.deadline), 0))
	}
	return request
}

func (w *watcher) show(state *pb.TaskState) {
	w.out.print(stateEvent{
		Event:        "state",
		TaskID:       w.taskID,
		Status:       strings.TrimPrefix(state.GetStatus().String(), "TASK_STATUS_"),
		DequeueCount: state.GetDequeueCount(),
		Result:       asJSON(state.GetResult()),
	})
	w.shown++
	w.over = isFinal(state.GetStatus())
}

func isFinal(s pb.TaskStatus) bool {
	return s == pb.TaskStatus_TASK_STATUS_COMPLETED || s == pb.TaskStatus_TASK_STATUS_REJECTED
}

// pause waits before the next stream, but not past the deadline.
func (w *watcher) pause(ctx context.Context, delay time.Duration) error {
	if w.deadline.IsZero() {
		return sleep(ctx, delay)
	}
	left := time.Until(w.deadline)
	if err := sleep(ctx, min(delay, left)); err != nil {
		return err
	}
	if left <= delay {
		return status.Error(codes.DeadlineExceeded, "the server was away when the time ran out")
	}
	return nil
}

// asJSON shows a result: what is not JSON as text, and none as null.
func asJSON(result *pb.Payload) json.RawMessage {
	data := result.GetData()
	switch {
	case result == nil:
		return json.RawMessage("null")
	case json.Valid(data):
		return data
	}
	text, _ := json.Marshal(string(data)) // a string can always be marshalled
	return text
}
