// Command torrelque-example-go puts tasks into a Torrelque queue, works them off and watches them, over gRPC.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// Exit codes.
const (
	exitDone    = 0
	exitRefused = 1
	exitUsage   = 2
)

// session is what a verb has to work with.
type session struct {
	client pb.TorrelqueServiceClient
	queue  string
	dial   func() (*grpc.ClientConn, error) // makes another connection
	out    *printer
	log    *log.Logger
}

func main() {
	// The first signal ends the context: a call is given up, a consumer stops in order. The second one kills.
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, restore)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

func run(ctx context.Context, arguments []string, getenv func(string) string, stdout, stderr io.Writer) int {
	logger := log.New(stderr, "torrelque-example-go: ", 0)
	out := newPrinter(stdout)

	err := perform(ctx, arguments, getenv, out, logger)
	if err == nil {
		err = out.err
	}
	switch usage := new(usageError); {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return exitDone
	case errors.As(err, &usage):
		logger.Print(err)
		return exitUsage
	default:
		logger.Print(err)
		out.print(errorEvent(err))
		return exitRefused
	}
}

func perform(
	ctx context.Context, arguments []string, getenv func(string) string, out *printer, logger *log.Logger,
) error {
	options := optionsFrom(getenv)
	command, err := parse(arguments, &options, logger.Writer())
	if err != nil {
		return err
	}
	connection, err := dial(options)
	if err != nil {
		return &usageError{fmt.Errorf("no channel to the server can be made: %w", err)}
	}
	defer connection.Close()

	return command.run(ctx, &session{
		client: pb.NewTorrelqueServiceClient(connection),
		queue:  options.queue,
		dial:   func() (*grpc.ClientConn, error) { return dial(options) },
		out:    out,
		log:    logger,
	})
}
