package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/torrelque/torrelque/benchmarks/go-load/gen/torrelque/v1"
)

// errTooManyFailed ends a run that would measure refusals.
var errTooManyFailed = errors.New("too many calls failed")

// load is one run.
type load struct {
	settings
	ctx      context.Context
	cancel   context.CancelFunc
	clients  []pb.TorrelqueServiceClient
	data     []byte
	counting atomic.Bool  // the measured time
	count    atomic.Int64 // items of the measured time
	done     atomic.Int64 // items, warm-up included
	errors   atomic.Int64
	mistake  atomic.Pointer[error] // the first
	emptied  chan struct{}         // the backlog is done
	took     time.Duration
	used     time.Duration

	mutex sync.Mutex
	lots  [][]time.Duration
}

func newLoad(ctx context.Context, cancel context.CancelFunc, s settings, clients []pb.TorrelqueServiceClient) *load {
	return &load{
		settings: s, ctx: ctx, cancel: cancel, clients: clients,
		data:    []byte(`"` + string(bytes.Repeat([]byte("x"), s.payload-2)) + `"`),
		emptied: make(chan struct{}),
	}
}

func (l *load) client(worker int) pb.TorrelqueServiceClient { return l.clients[worker%len(l.clients)] }

func (l *load) spec() *pb.TaskSpec { return &pb.TaskSpec{Payload: &pb.Payload{Data: l.data}} }

// tally is what one worker counts by itself.
type tally struct {
	load    *load
	samples []time.Duration
}

// add counts items that were done since began.
func (t *tally) add(items int, began time.Time) {
	if t.load.counting.Load() {
		t.load.count.Add(int64(items))
		t.samples = append(t.samples, time.Since(began))
	}
	done, backlog := t.load.done.Add(int64(items)), int64(t.load.backlog)
	if done-int64(items) < backlog && backlog <= done {
		close(t.load.emptied)
	}
}

func (l *load) samples() []time.Duration {
	var all []time.Duration
	for _, lot := range l.lots {
		all = append(all, lot...)
	}
	return all
}

func (l *load) failed(err error) {
	if l.ctx.Err() == nil {
		l.errors.Add(1)
		l.mistake.CompareAndSwap(nil, &err)
	}
}

// measured has workers do the same again and again, and counts for as long as it is to be measured.
func (l *load) measured(work func(worker int, tally *tally) error) error {
	var group sync.WaitGroup
	for worker := range l.concurrency {
		group.Go(func() {
			mine := &tally{load: l}
			for l.ctx.Err() == nil && l.errors.Load() < 100 {
				if err := work(worker, mine); err != nil {
					l.failed(err)
				}
			}
			l.mutex.Lock()
			defer l.mutex.Unlock()
			l.lots = append(l.lots, mine.samples)
		})
	}
	l.watchTheClock()
	l.cancel()
	group.Wait()
	if first := l.mistake.Load(); first != nil && l.errors.Load() >= 100 {
		return fmt.Errorf("%w, first with: %w", errTooManyFailed, *first)
	}
	return nil
}

func (l *load) watchTheClock() {
	l.wait(l.warmup)
	fmt.Fprintln(os.Stderr, "begin")
	used, began := processorTime(), time.Now()
	l.counting.Store(true)
	l.wait(l.seconds)
	l.counting.Store(false)
	l.took, l.used = time.Since(began), processorTime()-used
	fmt.Fprintln(os.Stderr, "end")
}

func (l *load) wait(seconds float64) {
	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	case <-l.emptied:
	}
}

func (l *load) enqueue() error {
	l.backlog = 0
	return l.measured(func(worker int, tally *tally) error {
		began := time.Now()
		_, err := l.client(worker).Enqueue(l.ctx, &pb.EnqueueRequest{Queue: l.queue, Task: l.spec()})
		if err == nil {
			tally.add(1, began)
		}
		return err
	})
}

func (l *load) batchEnqueue() error {
	l.backlog = 0
	return l.measured(func(worker int, tally *tally) error {
		request := l.batchOf(l.batch)
		began := time.Now()
		_, err := l.client(worker).BatchEnqueue(l.ctx, request)
		if err == nil {
			tally.add(l.batch, began)
		}
		return err
	})
}

func (l *load) batchOf(count int) *pb.BatchEnqueueRequest {
	request := &pb.BatchEnqueueRequest{Queue: l.queue}
	for range count {
		request.Tasks = append(request.Tasks, l.spec())
	}
	return request
}

// fill puts the backlog into the queue.
func (l *load) fill() error {
	for left := l.backlog; left > 0; left -= 500 {
		if _, err := l.client(0).BatchEnqueue(l.ctx, l.batchOf(min(left, 500))); err != nil {
			return err
		}
	}
	return nil
}

// unaryConsume leases one task and releases it, without a result.
func (l *load) unaryConsume() error {
	if err := l.fill(); err != nil {
		return err
	}
	return l.measured(func(worker int, tally *tally) error {
		began := time.Now()
		tasks, err := l.dequeue(worker, 5*time.Second)
		for _, task := range tasks {
			if err = l.release(worker, task, nil); err == nil {
				tally.add(1, began)
			}
		}
		return err
	})
}

func (l *load) dequeue(worker int, wait time.Duration) ([]*pb.Task, error) {
	request := &pb.DequeueRequest{Queue: l.queue, MaxTasks: 1, Timeout: durationpb.New(wait)}
	response, err := l.client(worker).Dequeue(l.ctx, request)
	return response.GetTasks(), err
}

func (l *load) release(worker int, task *pb.Task, result *pb.Payload) error {
	request := &pb.ReleaseRequest{
		Queue: l.queue, TaskId: task.TaskId, DequeueCount: &task.DequeueCount, Result: result,
	}
	_, err := l.client(worker).Release(l.ctx, request)
	return err
}

// took counts one latency.
func (t *tally) took(length time.Duration) {
	if t.load.counting.Load() {
		t.load.count.Add(1)
		t.samples = append(t.samples, length)
	}
}
