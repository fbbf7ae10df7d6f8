package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// poll asks for tasks once. They stay leased.
type poll struct {
	timeout  seconds
	deadline seconds
	most     int32
}

type polledEvent struct {
	Event string       `json:"event"`
	Tasks []polledTask `json:"tasks"`
}

type polledTask struct {
	TaskID       string `json:"task_id"`
	DequeueCount int32  `json:"dequeue_count"`
	Bytes        int    `json:"bytes"`
	SHA256       string `json:"sha256"`
}

func (p *poll) declare(flags *flag.FlagSet) {
	p.timeout.Duration = 10 * time.Second
	p.most = 1
	flags.Var(&p.timeout, "timeout", "how many `SECONDS` the server shall wait")
	flags.Var(&p.deadline, "deadline", "how many `SECONDS` the call may take; without: the timeout and 5 more")
	flags.Var(count{&p.most, math.MaxInt32}, "max", "take up to `N` tasks")
}

func (p *poll) accept(arguments []string) error {
	if !p.deadline.given {
		p.deadline.Duration = p.timeout.Duration + 5*time.Second
	}
	return none(arguments)
}

func (p *poll) run(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, p.deadline.Duration)
	defer cancel()

	response, err := s.client.Dequeue(ctx, &pb.DequeueRequest{
		Queue:    s.queue,
		MaxTasks: p.most,
		Timeout:  durationpb.New(p.timeout.Duration),
		WorkerId: workerID(),
	})
	if err != nil {
		return err
	}
	polled := polledEvent{"polled", []polledTask{}}
	for _, task := range response.GetTasks() {
		data := task.GetPayload().GetData()
		sum := sha256.Sum256(data)
		polled.Tasks = append(polled.Tasks, polledTask{
			TaskID:       task.GetTaskId(),
			DequeueCount: task.GetDequeueCount(),
			Bytes:        len(data),
			SHA256:       hex.EncodeToString(sum[:]),
		})
	}
	s.out.print(polled)
	return nil
}
