package main

import (
	"fmt"
	"time"

	pb "github.com/torrelque/torrelque/benchmarks/go-load/gen/torrelque/v1"
)

// settling is how long a call is given to be waiting at the server.
const settling = 10 * time.Millisecond

// answer is what a call gave, and when.
type answer struct {
	tasks []*pb.Task
	err   error
	at    time.Time
}

// wake measures from the sending of an Enqueue to the answer of a Dequeue that waits. Several workers, each with a
// queue of its own, would disturb each other's figures: -concurrency is meant to be 1.
func (l *load) wake() error {
	l.backlog = 0
	return l.measured(func(worker int, tally *tally) error {
		answers := make(chan answer, 1)
		go func() {
			tasks, err := l.dequeue(worker, 10*time.Second)
			answers <- answer{tasks, err, time.Now()}
		}()
		time.Sleep(settling)
		began := time.Now()
		request := &pb.EnqueueRequest{Queue: l.queue, Task: l.spec()}
		if _, err := l.client(worker+1).Enqueue(l.ctx, request); err != nil {
			return err
		}
		got := <-answers
		if got.err != nil || len(got.tasks) != 1 {
			return fmt.Errorf("waiting gave %d tasks: %w", len(got.tasks), got.err)
		}
		tally.took(got.at.Sub(began))
		return l.release(worker, got.tasks[0], nil)
	})
}

// watch measures from the sending of a Release to the final state on a Watch.
func (l *load) watch() error {
	l.backlog = 0
	return l.measured(func(worker int, tally *tally) error {
		request := &pb.EnqueueRequest{Queue: l.queue, Task: l.spec()}
		if _, err := l.client(worker).Enqueue(l.ctx, request); err != nil {
			return err
		}
		tasks, err := l.dequeue(worker, 10*time.Second)
		if err != nil || len(tasks) != 1 {
			return fmt.Errorf("a dequeue gave %d tasks: %w", len(tasks), err)
		}
		stream, err := l.client(worker+1).Watch(l.ctx, &pb.WatchRequest{Queue: l.queue, TaskId: tasks[0].TaskId})
		if err != nil {
			return err
		}
		if _, err := stream.Recv(); err != nil { // the snapshot
			return err
		}
		time.Sleep(settling)
		began := time.Now()
		releasing := make(chan error, 1)
		go func() { releasing <- l.release(worker, tasks[0], &pb.Payload{Data: []byte("1")}) }()
		response, err := stream.Recv()
		ended := time.Now()
		if err != nil {
			return err
		}
		if response.State.GetStatus() != pb.TaskStatus_TASK_STATUS_COMPLETED {
			return fmt.Errorf("the next state was %v", response.State.GetStatus())
		}
		tally.took(ended.Sub(began))
		if _, err := stream.Recv(); err == nil {
			return fmt.Errorf("a final state was followed by another")
		}
		return <-releasing
	})
}
