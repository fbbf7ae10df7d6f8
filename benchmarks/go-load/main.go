// go-load puts one kind of load on a Torrelque server and prints one line of JSON about it.
//
// Calls that began or ended outside of the measured time do not count. "begin" and "end" on standard error tell an
// observer when to look at the processor time of other processes.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/torrelque/torrelque/benchmarks/go-load/gen/torrelque/v1"
)

// settings is what the command line says.
type settings struct {
	address     string
	mode        string
	queue       string
	concurrency int
	connections int
	seconds     float64
	warmup      float64
	payload     int
	batch       int
	credit      int
	backlog     int
}

// report is what is printed.
type report struct {
	Mode       string  `json:"mode"`
	Count      int64   `json:"count"`       // items: tasks, or latencies
	Seconds    float64 `json:"seconds"`     // of the measured time
	P50        float64 `json:"p50"`         // seconds
	P99        float64 `json:"p99"`         // seconds
	CPUSeconds float64 `json:"cpu_seconds"` // of this process, in the measured time
	Errors     int64   `json:"errors"`
}

// modes are the kinds of load.
var modes = map[string]func(*load) error{
	"enqueue":       (*load).enqueue,
	"echo":          (*load).enqueue, // the same calls, for a server that stores nothing
	"batch":         (*load).batchEnqueue,
	"unary-consume": (*load).unaryConsume,
	"consume":       (*load).consume,
	"wake":          (*load).wake,
	"watch":         (*load).watch,
}

func parse() settings {
	var s settings
	flag.StringVar(&s.address, "address", "127.0.0.1:50051", "`host:port` of the server, which speaks plaintext")
	flag.StringVar(&s.mode, "mode", "enqueue",
		"enqueue, echo: one task a call; batch: -batch tasks a call;\n"+
			"unary-consume: Dequeue, then Release; consume: streams that settle in batches;\n"+
			"wake: from Enqueue to the answer of a Dequeue that waits;\n"+
			"watch: from Release to the message of a Watch")
	flag.StringVar(&s.queue, "queue", "", "name of the queue; better one that nobody else uses")
	flag.IntVar(&s.concurrency, "concurrency", 64, "calls in flight; streams in consume")
	flag.IntVar(&s.connections, "connections", 4, "TCP connections")
	flag.Float64Var(&s.seconds, "seconds", 2, "how long to measure")
	flag.Float64Var(&s.warmup, "warmup", 0.3, "seconds of the same load before")
	flag.IntVar(&s.payload, "payload", 200, "bytes of a payload")
	flag.IntVar(&s.batch, "batch", 100, "tasks of a BatchEnqueue")
	flag.IntVar(&s.credit, "credit", 250, "tasks that a stream may have outstanding")
	flag.IntVar(&s.backlog, "backlog", 50_000, "tasks put into the queue before, in the modes that consume;\n"+
		"the measured time ends with the last of them")
	flag.Parse()
	if modes[s.mode] == nil || flag.NArg() > 0 || s.concurrency < 1 || s.connections < 1 || s.payload < 2 {
		flag.Usage()
		os.Exit(2)
	}
	return s
}

// connect opens the connections of all workers.
func connect(s settings) ([]pb.TorrelqueServiceClient, error) {
	var clients []pb.TorrelqueServiceClient
	for range s.connections {
		conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		clients = append(clients, pb.NewTorrelqueServiceClient(conn))
	}
	return clients, nil
}

func processorTime() time.Duration {
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func percentile(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))].Seconds()
}

func run(s settings) error {
	clients, err := connect(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l := newLoad(ctx, cancel, s, clients)
	if err := modes[s.mode](l); err != nil {
		return err
	}
	samples := l.samples()
	slices.Sort(samples)
	return json.NewEncoder(os.Stdout).Encode(report{
		s.mode, l.count.Load(), l.took.Seconds(), percentile(samples, 0.5), percentile(samples, 0.99),
		l.used.Seconds(), l.errors.Load(),
	})
}

func main() {
	if err := run(parse()); err != nil {
		fmt.Fprintln(os.Stderr, "go-load:", err)
		os.Exit(1)
	}
}
