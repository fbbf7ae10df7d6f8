package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

const usage = `usage: torrelque-example-go [OPTIONS] VERB [ARGUMENT] [OPTIONS]

  produce FOLDER   one task for each file below the folder
  consume          takes tasks as they come, digests each file and releases the task with the result
  watch TASK_ID    prints each state until the last
  poll             asks for tasks once, by a long poll
  release TASK_ID  ends one task
`

// usageError says that the arguments cannot be used.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, values ...any) error {
	return &usageError{fmt.Errorf(format, values...)}
}

// options are those of every verb.
type options struct {
	address, queue, ca string
	token              string
}

func optionsFrom(getenv func(string) string) options {
	return options{
		address: cmp.Or(getenv("TORRELQUE_ADDRESS"), "127.0.0.1:50051"),
		queue:   getenv("TORRELQUE_QUEUE"),
		ca:      getenv("TORRELQUE_CA"),
		token:   getenv("TORRELQUE_TOKEN"),
	}
}

// declare adds the options to those that flags knows; what they have now is the default.
func (o *options) declare(flags *flag.FlagSet) {
	flags.StringVar(&o.address, "address", o.address, "the server's `HOST:PORT`")
	flags.StringVar(&o.queue, "queue", o.queue, "the queue's `NAME`; empty is the server's default one")
	flags.StringVar(&o.ca, "ca", o.ca, "speak TLS and trust the certificates in this PEM `FILE`")
}

// parse finds the verb, its arguments and all options, which may stand on either side of them.
func parse(arguments []string, common *options, help io.Writer) (command, error) {
	before := newFlagSet("", common, help)
	if err := parseFlags(before, arguments); err != nil {
		return nil, err
	}
	if before.NArg() == 0 {
		before.Usage()
		return nil, usagef("a verb is missing")
	}
	verb, arguments := before.Arg(0), before.Args()[1:]
	command := commandNamed(verb)
	if command == nil {
		return nil, usagef("no such verb: %s", verb)
	}

	flags := newFlagSet(verb, common, help)
	command.declare(flags)
	positional, err := parseInterspersed(flags, arguments)
	if err != nil {
		return nil, err
	}
	return command, command.accept(positional)
}

func newFlagSet(name string, common *options, help io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(help)
	flags.Usage = func() {
		fmt.Fprintf(help, "%s\noptions of %s:\n", usage, cmp.Or(name, "every verb"))
		flags.PrintDefaults()
	}
	common.declare(flags)
	return flags
}

// parseInterspersed goes on behind each argument, where package flag stops. After "--" there are no more options.
func parseInterspersed(flags *flag.FlagSet, arguments []string) (positional []string, err error) {
	for {
		if err := parseFlags(flags, arguments); err != nil {
			return nil, err
		}
		rest := flags.Args()
		if read := len(arguments) - len(rest); read > 0 && arguments[read-1] == "--" {
			return append(positional, rest...), nil
		}
		if len(rest) == 0 {
			return positional, nil
		}
		positional, arguments = append(positional, rest[0]), rest[1:]
	}
}

func parseFlags(flags *flag.FlagSet, arguments []string) error {
	err := flags.Parse(arguments)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return err
	}
	return &usageError{err}
}

// one takes the only argument of a verb.
func one(name string, arguments []string) (string, error) {
	if len(arguments) != 1 {
		return "", usagef("takes one %s, not %d arguments", name, len(arguments))
	}
	return arguments[0], nil
}

func none(arguments []string) error {
	if len(arguments) > 0 {
		return usagef("unexpected argument: %s", arguments[0])
	}
	return nil
}

// count is the value of an option that takes a whole number between 1 and a maximum.
type count struct {
	value   *int32
	maximum int32
}

func (c count) String() string {
	if c.value == nil || *c.value == 0 {
		return ""
	}
	return strconv.Itoa(int(*c.value))
}

func (c count) Set(text string) error {
	value, err := strconv.ParseInt(text, 10, 32)
	if err != nil || value < 1 || value > int64(c.maximum) {
		return fmt.Errorf("not a whole number from 1 to %d", c.maximum)
	}
	*c.value = int32(value)
	return nil
}

// seconds is the value of an option that takes a time, and tells not given from zero.
type seconds struct {
	time.Duration
	given bool
}

func (s *seconds) String() string {
	if s.Duration == 0 {
		return ""
	}
	return strconv.FormatFloat(s.Seconds(), 'f', -1, 64)
}

func (s *seconds) Set(text string) error {
	const most = 1e9 // three decades
	value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || math.IsNaN(value) || value < 0 || value > most {
		return fmt.Errorf("not a number of seconds from 0 to %.0f", most)
	}
	*s = seconds{time.Duration(value * float64(time.Second)), true}
	return nil
}
