package main

import (
	"cmp"
	"context"
	"encoding/json"
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
	drop     context.CancelFunc // ends its work
	done     bool               // the work is; what is left to say is how it ended
	say      *pb.Settlement     // next; nil if there is nothing
	busy     bool               // something is unsent or unanswered: the server hears one thing at a time of a task
	repeated bool               // the release was sent before, and nobody knows what came of it
}

// word is what was said of a task, until it is answered.
type word struct {
	held       *held
	settlement *pb.Settlement
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
	c.out.print(taskEvent{Event: "delivered", TaskID: task.GetTaskId(), DequeueCount: task.GetDequeueCount()})
	ctx, cancel := context.WithCancel(life)
	h := &held{task: task, from: c.link, drop: cancel}
	c.held[h] = struct{}{}
	c.working++
	c.others.Go(func() { c.attend(ctx, h) })
}

// attend works on a task, and lets its lease be extended at every half of it meanwhile.
func (c *consumer) attend(ctx context.Context, h *held) {
	beating, still := context.WithCancel(ctx)
	defer still()
	c.others.Go(func() { c.beat(beating, h) })

	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	action := c.work(ctx, h.task)
	<-c.slots
	c.post(ctx, func() {
		c.finishWork(h)
		c.tell(h, &pb.Settlement{Action: &pb.Settlement_Release{Release: action}})
	})
}

func (c *consumer) beat(ctx context.Context, h *held) {
	half := h.task.GetTimeout().AsDuration() / 2
	if half <= 0 {
		return
	}
	ticker := time.NewTicker(half)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.post(ctx, func() {
				if !h.done {
					c.tell(h, extension())
				}
			})
		case <-ctx.Done():
			return
		}
	}
}

func extension() *pb.Settlement {
	return &pb.Settlement{Action: &pb.Settlement_Extend{Extend: &pb.ExtendAction{}}}
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
	h.drop()
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
		words[i] = word{h, h.say}
		h.say = nil
	}
	c.unsent = c.unsent[count:]
	return words
}

// takeBack lets what a lost stream left unanswered be said again. A repeat is harmless, as dequeue_count fences it.
func (c *consumer) takeBack(sent map[uint64][]word) {
	for _, words := range sent {
		for _, w := range words {
			w.held.repeated = w.held.repeated || w.settlement.GetRelease() != nil
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
	h, isRelease := w.held, w.settlement.GetRelease() != nil
	switch {
	case failed == nil && isRelease:
		c.confirm(h)
	case failed == nil:
		c.out.print(taskEvent{Event: "extended", TaskID: h.task.GetTaskId()})
		c.next(h)
	case isPassing(codes.Code(failed.GetCode())):
		c.trouble = itemError(failed)
		h.repeated = h.repeated || isRelease && !isUntouched(failed)
		c.after(life, jitter(againDelay), func() { c.sayAgain(w) })
	case isRelease && h.repeated && failed.GetReason() == reasonTaskNotFound:
		c.confirm(h)
	case isRelease && h.repeated && isFinal(failed.GetStatus()) && failed.GetDequeueCount() == h.task.GetDequeueCount():
		c.confirm(h) // a result keeps the state for a while: it ended with our delivery, so by our first attempt
	default:
		c.refuse(h, failed)
	}
}

// next goes on with what has come up while the server was busy with the task.
func (c *consumer) next(h *held) {
	h.busy = false
	if h.say != nil {
		c.tell(h, h.say)
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

// refuse is for a task that was lost: its work is stopped, or the result is dropped.
func (c *consumer) refuse(h *held, failed *pb.ItemError) {
	c.forget(h)
	reason := cmp.Or(failed.GetReason(), codeName(codes.Code(failed.GetCode())))
	c.out.print(taskEvent{Event: "refused", TaskID: h.task.GetTaskId(), Reason: reason})
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
