package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

const (
	// How long to wait before something is said again that the server could not carry out.
	againDelay = time.Second
	// How many settlements make one message.
	batchLimit = 500
)

// held is a task in hand: delivered, and not known to be settled.
type held struct {
	task     *pb.Task
	from     *link
	lease    *lease
	done     bool           // the work is; what is left to say is how it ended
	say      *pb.Settlement // next; nil if there is nothing
	extended chan<- error   // takes the answer to that if it is an extension
	busy     bool           // something is unsent or unanswered: the server hears one thing at a time of a task
	repeated bool           // the release was sent before, and nobody knows what came of it
}

// word is what was said of a task, until it is answered.
type word struct {
	held       *held
	settlement *pb.Settlement
	extended   chan<- error // takes the answer to an extension
}

type taskEvent struct {
	Event        string `json:"event"`
	TaskID       string `json:"task_id"`
	DequeueCount int32  `json:"dequeue_count,omitempty"`
	Reason       string `json:"reason,omitempty"`
}

// take begins to work on a task.
func (c *consumer) take(life context.Context, task *pb.Task) {
	if c.stopping {
		c.giveBack(life, task)
		return
	}
	h := &held{task: task, from: c.link, lease: newLease(task.GetTimeout().AsDuration(), time.Now())}
	c.out.print(taskEvent{Event: "delivered", TaskID: task.GetTaskId(), DequeueCount: task.GetDequeueCount()})
	c.held[h] = struct{}{}
	c.working++
	c.others.Go(func() { c.attend(life, h) })
}

// attend works on a task as long as its lease can be kept. The context of the work ends before the lease does.
func (c *consumer) attend(life context.Context, h *held) {
	ctx, stop := context.WithCancelCause(life)
	defer stop(nil)
	c.others.Go(func() {
		stop(h.lease.keep(ctx, func(trying context.Context, failed bool) error { return c.extend(trying, h, failed) }))
	})

	var action *pb.ReleaseAction
	select {
	case c.slots <- struct{}{}:
		action = c.work(ctx, h.task)
		<-c.slots
	case <-ctx.Done():
	}
	lost := context.Cause(ctx)
	c.post(life, func() {
		if lost != nil {
			c.lose(h, lost)
			return
		}
		c.finishWork(h)
		c.tell(h, &pb.Settlement{Action: &pb.Settlement_Release{Release: action}})
	})
}

// extend asks once for a whole lease from now: on the stream, whose server knows then that the task is still in hand.
// If that does not answer, by a call on a connection of its own, for the other one may have died without a word.
func (c *consumer) extend(ctx context.Context, h *held, failed bool) error {
	err := errNoStream
	if !failed {
		err = c.extendOnStream(ctx, h)
	}
	if failed || errors.Is(err, errNoStream) {
		err = c.extendApart(ctx, h.task)
	}
	if err == nil {
		c.out.print(taskEvent{Event: "extended", TaskID: h.task.GetTaskId()})
	}
	return err
}

func (c *consumer) extendOnStream(ctx context.Context, h *held) error {
	answer := make(chan error, 1)
	c.post(ctx, func() {
		if c.link == nil || !c.link.opened {
			answer <- errNoStream
			return
		}
		h.extended = answer
		c.tell(h, &pb.Settlement{Action: &pb.Settlement_Extend{Extend: &pb.ExtendAction{}}})
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *consumer) extendApart(ctx context.Context, task *pb.Task) error {
	connection, err := c.dial()
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = pb.NewTorrelqueServiceClient(connection).ExtendLease(ctx, &pb.ExtendLeaseRequest{
		Queue:        c.queue,
		TaskId:       task.GetTaskId(),
		DequeueCount: proto.Int32(task.GetDequeueCount()),
	})
	return err
}

// lose is for a task whose work was stopped, because its lease is lost or may soon be: there is nothing to settle.
func (c *consumer) lose(h *held, why error) {
	if !c.hasInHand(h) {
		return
	}
	if isLost(why) {
		c.refuse(h, why)
		return
	}
	c.forget(h)
	c.out.print(taskEvent{Event: "lost", TaskID: h.task.GetTaskId(), DequeueCount: h.task.GetDequeueCount()})
}

// work does the work and returns how the task ends. Nothing is done with it if ctx has ended.
func (c *consumer) work(ctx context.Context, task *pb.Task) *pb.ReleaseAction {
	result, err := work(ctx, task.GetPayload().GetData())
	var data []byte
	if err == nil {
		data, err = json.Marshal(result)
	}
	ends := pb.TaskStatus_TASK_STATUS_COMPLETED
	if err != nil {
		ends = pb.TaskStatus_TASK_STATUS_REJECTED
		data, _ = json.Marshal(map[string]string{"error": err.Error()}) // strings can always be marshalled
	}
	_ = sleep(ctx, c.hold.Duration)
	return &pb.ReleaseAction{Status: ends, Result: &pb.Payload{Data: data}}
}

// finishWork counts a task as one that is not worked on any more.
func (c *consumer) finishWork(h *held) {
	if h.done {
		return
	}
	h.done = true
	c.working--
	if c.link != nil && c.link != h.from {
		c.link.carried--
	}
}

func (c *consumer) forget(h *held) {
	c.finishWork(h)
	delete(c.held, h)
}

// tell notes what the server shall hear of a task. A release takes the place of a heartbeat, but not the reverse.
func (c *consumer) tell(h *held, settlement *pb.Settlement) {
	if !c.hasInHand(h) {
		return
	}
	if h.say == nil || settlement.GetRelease() != nil {
		settlement.TaskId = h.task.GetTaskId()
		settlement.DequeueCount = proto.Int32(h.task.GetDequeueCount())
		h.say = settlement
	}
	if !h.busy {
		h.busy = true
		c.unsent = append(c.unsent, h)
	}
}

func (c *consumer) hasInHand(h *held) bool {
	_, inHand := c.held[h]
	return inHand
}

// takeUnsent takes what the next message shall say.
func (c *consumer) takeUnsent() []word {
	count := min(len(c.unsent), batchLimit)
	words := make([]word, count)
	for i, h := range c.unsent[:count] {
		words[i] = word{h, h.say, h.extended}
		h.say, h.extended = nil, nil
	}
	c.unsent = c.unsent[count:]
	return words
}

// takeBack lets what a lost stream left unanswered be said again. A repeat is harmless, as dequeue_count fences it.
func (c *consumer) takeBack(sent map[uint64][]word) {
	for _, words := range sent {
		for _, w := range words {
			if w.settlement.GetRelease() == nil {
				c.answerExtension(w, errNoStream)
				continue
			}
			w.held.repeated = true
			c.sayAgain(w)
		}
	}
}

func (c *consumer) sayAgain(w word) {
	w.held.busy = false
	c.tell(w.held, w.settlement)
}

// settled reads an answer: what is not listed in it was carried out.
func (c *consumer) settled(life context.Context, answer *pb.ConsumeSettled) {
	words := c.link.sent[answer.GetSequence()]
	delete(c.link.sent, answer.GetSequence())
	failed := map[int]*pb.ItemError{}
	for _, item := range answer.GetErrors() {
		failed[int(item.GetIndex())] = item
	}
	for i, w := range words {
		if c.hasInHand(w.held) {
			c.answered(life, w, failed[i])
		}
	}
}

func (c *consumer) answered(life context.Context, w word, failed *pb.ItemError) {
	h := w.held
	switch {
	case w.settlement.GetRelease() == nil:
		c.answerExtension(w, itemError(failed))
	case failed == nil:
		c.confirm(h)
	case isPassing(codes.Code(failed.GetCode())):
		c.trouble = itemError(failed)
		h.repeated = h.repeated || !isUntouched(failed)
		c.after(life, jitter(againDelay), func() { c.sayAgain(w) })
	case h.repeated && failed.GetReason() == reasonTaskNotFound:
		c.confirm(h)
	case h.repeated && isFinal(failed.GetStatus()) && failed.GetDequeueCount() == h.task.GetDequeueCount():
		c.confirm(h) // a result keeps the state for a while: it ended with our delivery, so by our first attempt
	default:
		c.refuse(h, itemError(failed))
	}
}

// answerExtension tells who waits for it, who may have gone to ask elsewhere, and goes on with what has come up while
// the server was busy with the task.
func (c *consumer) answerExtension(w word, err error) {
	w.extended <- err // there is room for it, whether somebody waits or not
	w.held.busy = false
	if w.held.say != nil {
		c.tell(w.held, w.held.say)
	}
}

// confirm is for a task that the server has released.
func (c *consumer) confirm(h *held) {
	c.forget(h)
	c.out.print(taskEvent{Event: "released", TaskID: h.task.GetTaskId(), DequeueCount: h.task.GetDequeueCount()})
	c.released++
	if c.released == int(c.until) {
		c.stop()
	}
}

// refuse is for a task that was lost, as the server says: its work was stopped, or the result is dropped.
func (c *consumer) refuse(h *held, why error) {
	c.forget(h)
	said := describe(why)
	c.out.print(taskEvent{Event: "refused", TaskID: h.task.GetTaskId(), Reason: *cmp.Or(said.Reason, &said.Code)})
}

// giveBack returns a task that was on its way while the consumer stopped. The stream may be half-closed by now, so this
// is a call of its own.
func (c *consumer) giveBack(life context.Context, task *pb.Task) {
	c.returning++
	c.others.Go(func() {
		ctx, cancel := context.WithTimeout(life, settleLimit)
		defer cancel()
		_, err := c.client.Requeue(ctx, &pb.RequeueRequest{
			Queue:        c.queue,
			TaskId:       task.GetTaskId(),
			DequeueCount: proto.Int32(task.GetDequeueCount()),
		})
		c.post(life, func() {
			c.returning--
			if err != nil {
				c.log.Printf("%s stays leased: %v", task.GetTaskId(), err)
			}
		})
	})
}

// isPassing tells whether the server could not carry out a settlement now, but may do so later.
func isPassing(c codes.Code) bool {
	return c == codes.Unavailable || c == codes.Unknown || c == codes.ResourceExhausted
}

// isUntouched tells whether a settlement that failed has surely changed nothing.
func isUntouched(failed *pb.ItemError) bool {
	return codes.Code(failed.GetCode()) != codes.Unknown && failed.GetReason() != reasonOutcomeUnknown
}
