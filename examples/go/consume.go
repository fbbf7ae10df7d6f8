package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// consume works off the queue through a Consume stream.
type consume struct {
	credit int32
	policy policy
	hold   seconds
	until  int32 // 0: no end
	idle   seconds
}

type consumedEvent struct {
	Event string `json:"event"`
	Tasks int    `json:"tasks"`
}

func (c *consume) declare(flags *flag.FlagSet) {
	c.credit = 4
	c.policy = policy(pb.DisconnectPolicy_DISCONNECT_POLICY_KEEP_LEASE)
	flags.Var(count{&c.credit, 10000}, "credit", "have up to `N` tasks in hand")
	flags.Var(&c.policy, "policy", "what becomes of the tasks in hand when the stream is lost: `keep or requeue`")
	flags.Var(&c.hold, "hold", "take `SECONDS` longer over each task")
	flags.Var(count{&c.until, math.MaxInt32}, "until", "stop after `N` tasks were released")
	flags.Var(&c.idle, "idle", "stop after `SECONDS` without a task")
}

func (c *consume) accept(arguments []string) error { return none(arguments) }

func (c *consume) run(ctx context.Context, s *session) error {
	consumer := newConsumer(c, s)
	if err := consumer.run(ctx); err != nil {
		return err
	}
	s.out.print(consumedEvent{"consumed", consumer.released})
	return nil
}

// policy is the value of --policy.
type policy pb.DisconnectPolicy

func (p *policy) String() string {
	if *p == policy(pb.DisconnectPolicy_DISCONNECT_POLICY_REQUEUE) {
		return "requeue"
	}
	return "keep"
}

func (p *policy) Set(text string) error {
	switch text {
	case "keep":
		*p = policy(pb.DisconnectPolicy_DISCONNECT_POLICY_KEEP_LEASE)
	case "requeue":
		*p = policy(pb.DisconnectPolicy_DISCONNECT_POLICY_REQUEUE)
	default:
		return fmt.Errorf("neither keep nor requeue")
	}
	return nil
}

// workerID names this process in the logs of the server.
func workerID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("go-%s-%d", host, os.Getpid())
}
