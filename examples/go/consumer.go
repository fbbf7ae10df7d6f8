package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// settleLimit is how long a stopping consumer tries to have its last settlements confirmed.
const settleLimit = 10 * time.Second

// consumer takes tasks from a queue and settles them, over one stream after the other.
//
// Its fields belong to the goroutine of run, so there is no lock: the goroutines that it starts, and its timers, post
// functions for that goroutine to call.
type consumer struct {
	*consume
	*session
	inbox  chan func()
	others sync.WaitGroup // the goroutines that were started
	slots  chan struct{}  // one for each task that is worked on

	link      *link // nil between two streams
	delays    retryDelays
	held      map[*held]struct{} // the tasks in hand
	unsent    []*held            // those of which there is something to say to the server
	working   int                // those not done yet
	returning int                // tasks that came too late and are being given back
	released  int

	quiet    bool // connected and nothing in hand
	idling   *time.Timer
	stopping bool
	settling bool  // stopping, and only confirmations are missing
	trouble  error // the last that may pass, on the way to the server or in its storage
	err      error // the one that does not
}

type openedEvent struct {
	Event      string `json:"event"`
	ConsumerID string `json:"consumer_id"`
}

type reconnectingEvent struct {
	Event  string  `json:"event"`
	Code   string  `json:"code"`
	Reason *string `json:"reason"`
	Delay  float64 `json:"delay"`
}

func newConsumer(options *consume, s *session) *consumer {
	return &consumer{
		consume: options,
		session: s,
		inbox:   make(chan func()),
		slots:   make(chan struct{}, options.credit),
		held:    map[*held]struct{}{},
	}
}

// run returns when the consumer has stopped, in order or because the server refuses it. The end of ctx begins an
// orderly stop; what was started lives until the return.
func (c *consumer) run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer c.others.Wait()
	defer end()

	stop := ctx.Done()
	c.connect(life)
	for c.err == nil && !c.isDone() {
		c.advance(life)
		requests, next := c.link.outgoing()
		select {
		case <-stop:
			stop = nil
			c.stop()
		case do := <-c.inbox:
			do()
		case requests <- next:
			c.link.next = nil
		case response, more := <-c.link.incoming():
			if more {
				c.receive(life, response)
			} else {
				c.disconnected(life)
			}
		}
	}
	return c.err
}

// post lets the goroutine of run call a function.
func (c *consumer) post(ctx context.Context, do func()) {
	select {
	case c.inbox <- do:
	case <-ctx.Done():
	}
}

// after posts a function later.
func (c *consumer) after(ctx context.Context, delay time.Duration, do func()) *time.Timer {
	return time.AfterFunc(delay, func() { c.post(ctx, do) })
}

func (c *consumer) stop() { c.stopping = true }

func (c *consumer) isDone() bool {
	return c.stopping && c.link == nil && len(c.held) == 0 && c.returning == 0
}

// advance does what is due after any event.
func (c *consumer) advance(life context.Context) {
	c.watchIdle(life)
	if c.stopping && c.working == 0 && len(c.held) > 0 && !c.settling {
		c.settling = true
		c.after(life, settleLimit, c.giveUp)
	}
	if c.link == nil {
		return
	}
	if c.link.next == nil && !c.link.finishing {
		c.link.next = c.nextRequest()
	}
	if c.link.next == nil && (c.stopping || c.link.draining) && len(c.held) == 0 {
		c.link.finish()
	}
	c.link.closeWhenFinished()
}

func (c *consumer) watchIdle(life context.Context) {
	quiet := c.link != nil && c.link.opened && len(c.held) == 0 && !c.stopping
	if !c.idle.given || quiet == c.quiet {
		return
	}
	c.quiet = quiet
	if !quiet {
		c.idling.Stop()
		return
	}
	c.idling = c.after(life, c.idle.Duration, func() {
		if c.quiet {
			c.stop()
		}
	})
}

// giveUp ends a stop that takes too long: the leases run out, and others will do the tasks again.
func (c *consumer) giveUp() {
	if len(c.held) > 0 {
		silent := status.Error(codes.DeadlineExceeded, "no answer")
		c.err = fmt.Errorf("%d tasks could not be settled: %w", len(c.held), cmp.Or(c.trouble, silent))
	}
}

// connect opens the next stream. Tasks in hand stay there: they are settled on the stream of the day.
func (c *consumer) connect(life context.Context) {
	ctx, cancel := context.WithCancel(life)
	c.link = newLink(cancel, c.working)
	c.link.credit = max(1, c.wantedCredit()) // a stream cannot be opened with less
	open := &pb.ConsumeOpen{
		Queue:               c.queue,
		WorkerId:            workerID(),
		MaxOutstandingTasks: int32(c.link.credit),
		DisconnectPolicy:    pb.DisconnectPolicy(c.policy),
		ProgressInterval:    durationpb.New(progressInterval),
	}
	opening := c.link.stream
	c.others.Go(func() { opening.run(ctx, c.client, open) })
}

// disconnected is called once the stream has ended, for whatever reason.
func (c *consumer) disconnected(life context.Context) {
	lost := c.link
	c.link = nil
	lost.cancel()
	c.takeBack(lost.sent)

	err := lost.err
	if err == nil && lost.draining {
		err = failureError(codes.Unavailable, reasonServerDraining, "the server is draining")
	}
	c.trouble = err
	if isPermanent(err) {
		c.err = err
		return
	}
	if c.isDone() {
		return
	}
	delay := c.delays.next()
	said := describe(err)
	c.out.print(reconnectingEvent{"reconnecting", said.Code, said.Reason, math.Round(delay.Seconds()*1e3) / 1e3})
	c.log.Printf("connecting again: %v", cmp.Or(err, io.EOF))
	c.after(life, delay, func() { c.connect(life) })
}

func (c *consumer) receive(life context.Context, response *pb.ConsumeResponse) {
	if response.GetOpened() == nil {
		c.delays.reset() // only now: a server that opens streams to drop them is not to be asked ten times a second
	}
	switch said := response.GetResponse().(type) {
	case *pb.ConsumeResponse_Opened:
		c.link.opened = true
		c.out.print(openedEvent{"opened", said.Opened.GetConsumerId()})
	case *pb.ConsumeResponse_Delivery:
		for _, task := range said.Delivery.GetTasks() {
			c.take(life, task)
		}
	case *pb.ConsumeResponse_Settled:
		c.settled(life, said.Settled)
	case *pb.ConsumeResponse_Draining:
		draining := c.link
		draining.draining = true
		c.after(life, said.Draining.GetGrace().AsDuration(), draining.finish)
	}
}

// wantedCredit is how many tasks the server may have delivered on this stream and not settled. Fewer than --credit
// while tasks of earlier streams are worked on, and near the end of --until.
func (c *consumer) wantedCredit() int {
	if c.stopping {
		return 0
	}
	credit := int(c.credit)
	if c.until > 0 {
		done := c.released + len(c.held) - c.working
		credit = min(credit, int(c.until)-done)
	}
	return max(0, credit-c.link.carried)
}

// nextRequest is what there is to say to the server; nil if there is nothing.
func (c *consumer) nextRequest() *pb.ConsumeRequest {
	if wanted := c.wantedCredit(); wanted != c.link.credit && !c.link.draining {
		c.link.credit = wanted
		return &pb.ConsumeRequest{Request: &pb.ConsumeRequest_Credit{
			Credit: &pb.ConsumeCredit{MaxOutstandingTasks: int32(wanted)},
		}}
	}
	words := c.takeUnsent()
	if len(words) == 0 {
		return nil
	}
	settle := &pb.ConsumeSettle{Sequence: c.link.remember(words)}
	for _, word := range words {
		settle.Settlements = append(settle.Settlements, word.settlement)
	}
	return &pb.ConsumeRequest{Request: &pb.ConsumeRequest_Settle{Settle: settle}}
}
