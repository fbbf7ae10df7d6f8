package main

import (
	"context"
	"encoding/json"
	"flag"
	"math"

	"google.golang.org/protobuf/proto"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// release ends one task.
type release struct {
	taskID       string
	dequeueCount int32 // 0: none given
	result       string
}

type doneEvent struct {
	Event  string `json:"event"`
	TaskID string `json:"task_id"`
}

func (r *release) declare(flags *flag.FlagSet) {
	flags.Var(count{&r.dequeueCount, math.MaxInt32}, "dequeue-count", "only if delivery `N` is the current one")
	flags.StringVar(&r.result, "result", "", "keep this `JSON` as the result")
}

func (r *release) accept(arguments []string) (err error) {
	if r.result != "" && !json.Valid([]byte(r.result)) {
		return usagef("the result is not JSON: %s", r.result)
	}
	r.taskID, err = one("TASK_ID", arguments)
	return err
}

func (r *release) run(ctx context.Context, s *session) error {
	request := &pb.ReleaseRequest{Queue: s.queue, TaskId: r.taskID}
	if r.dequeueCount > 0 {
		request.DequeueCount = proto.Int32(r.dequeueCount)
	}
	if r.result != "" {
		request.Result = &pb.Payload{Data: []byte(r.result)}
	}
	if _, err := s.client.Release(ctx, request); err != nil {
		return err
	}
	s.out.print(doneEvent{"done", r.taskID})
	return nil
}
