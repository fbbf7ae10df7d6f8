package main

import (
	"context"
	"flag"
)

// command is one verb of the command line.
type command interface {
	// declare adds the verb's own options.
	declare(flags *flag.FlagSet)
	// accept takes what stands on the line beside the options, which have been read.
	accept(arguments []string) error
	// run does it. When ctx ends, so does the command.
	run(ctx context.Context, s *session) error
}

func commandNamed(verb string) command {
	switch verb {
	case "produce":
		return &produce{}
	case "consume":
		return &consume{}
	case "watch":
		return &watch{}
	case "poll":
		return &poll{}
	case "release":
		return &release{}
	}
	return nil
}
