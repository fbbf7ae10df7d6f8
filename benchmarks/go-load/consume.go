package main

import (
	"time"

	"google.golang.org/grpc"

	pb "github.com/torrelque/torrelque/benchmarks/go-load/gen/torrelque/v1"
)

// mostSettlements is what the server takes in one message.
const mostSettlements = 1000

// sent is a message of settlements that was not answered yet.
type sent struct {
	tasks int
	at    time.Time
}

// consumer is one stream, whose tasks are released as soon as they have come.
type consumer struct {
	stream  grpc.BidiStreamingClient[pb.ConsumeRequest, pb.ConsumeResponse]
	tasks   chan []*pb.Task
	settled chan sent // in the order of their sequence numbers
}

func (l *load) consume() error {
	if err := l.fill(); err != nil {
		return err
	}
	return l.measured(func(worker int, tally *tally) error {
		stream, err := l.client(worker).Consume(l.ctx)
		if err != nil {
			return err
		}
		// As each task that is outstanding takes a place at most, neither of the two ever is full.
		one := &consumer{stream, make(chan []*pb.Task, l.credit), make(chan sent, l.credit)}
		defer close(one.tasks)
		opening := &pb.ConsumeOpen{Queue: l.queue, MaxOutstandingTasks: int32(l.credit)}
		if err := stream.Send(&pb.ConsumeRequest{Request: &pb.ConsumeRequest_Open{Open: opening}}); err != nil {
			return err
		}
		go one.settle()
		return one.receive(l, tally)
	})
}

func (c *consumer) receive(l *load, tally *tally) error {
	for {
		response, err := c.stream.Recv()
		if err != nil {
			return err
		}
		switch one := response.Response.(type) {
		case *pb.ConsumeResponse_Delivery:
			c.tasks <- one.Delivery.Tasks
		case *pb.ConsumeResponse_Settled:
			message := <-c.settled
			l.errors.Add(int64(len(one.Settled.Errors)))
			tally.add(message.tasks-len(one.Settled.Errors), message.at)
		}
	}
}

// settle releases what has come, in as few messages as it can.
func (c *consumer) settle() {
	var sequence uint64
	for tasks := range c.tasks {
		for more := true; more && len(tasks) < mostSettlements-len(tasks); {
			select {
			case another := <-c.tasks:
				tasks = append(tasks, another...)
				more = len(another) > 0
			default:
				more = false
			}
		}
		sequence++
		c.settled <- sent{len(tasks), time.Now()}
		settle := &pb.ConsumeSettle{Sequence: sequence, Settlements: released(tasks)}
		if c.stream.Send(&pb.ConsumeRequest{Request: &pb.ConsumeRequest_Settle{Settle: settle}}) != nil {
			return // the receiver knows why
		}
	}
}

func released(tasks []*pb.Task) []*pb.Settlement {
	settlements := make([]*pb.Settlement, len(tasks))
	for i, task := range tasks {
		settlements[i] = &pb.Settlement{
			TaskId: task.TaskId, DequeueCount: &task.DequeueCount,
			Action: &pb.Settlement_Release{Release: &pb.ReleaseAction{}},
		}
	}
	return settlements
}
