package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// produce makes one task for each file below a folder.
type produce struct {
	folder string
	limit  int32 // 0: none
	batch  int32
}

type enqueuedEvent struct {
	Event        string `json:"event"`
	TaskID       string `json:"task_id"`
	Path         string `json:"path"`
	Deduplicated bool   `json:"deduplicated"`
}

type producedEvent struct {
	Event string `json:"event"`
	Tasks int    `json:"tasks"`
}

// payload is what a task of the examples carries, whatever the language.
type payload struct {
	Path string `json:"path"`
}

func (p *produce) declare(flags *flag.FlagSet) {
	p.batch = 1
	flags.Var(count{&p.limit, math.MaxInt32}, "limit", "stop after `N` files")
	flags.Var(count{&p.batch, 1000}, "batch", "send `N` tasks with one call")
}

func (p *produce) accept(arguments []string) error {
	folder, err := one("FOLDER", arguments)
	if err != nil {
		return err
	}
	if p.folder, err = filepath.Abs(folder); err != nil {
		return &usageError{err}
	}
	if info, err := os.Stat(p.folder); err != nil {
		return &usageError{err}
	} else if !info.IsDir() {
		return usagef("not a folder: %s", folder)
	}
	return nil
}

func (p *produce) run(ctx context.Context, s *session) error {
	made := 0
	var batch []string
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		results, err := enqueue(ctx, s, batch)
		if err != nil {
			return err
		}
		for i, result := range results {
			s.out.print(enqueuedEvent{"enqueued", result.GetTaskId(), batch[i], result.GetDeduplicated()})
		}
		made += len(results)
		batch = nil
		return nil
	}

	err := p.eachFile(s, func(path string) error {
		batch = append(batch, path)
		if last := p.limit > 0 && made+len(batch) == int(p.limit); last {
			return fs.SkipAll
		}
		if len(batch) == int(p.batch) {
			return send()
		}
		return nil
	})
	if err == nil {
		err = send()
	}
	if err != nil {
		return err
	}
	s.out.print(producedEvent{"produced", made})
	return nil
}

// eachFile goes through the regular files in the order of their paths. What cannot be read is passed over.
func (p *produce) eachFile(s *session, visit func(path string) error) error {
	return fs.WalkDir(os.DirFS(p.folder), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			s.log.Print(err)
			return nil
		case !entry.Type().IsRegular():
			return nil
		}
		return visit(filepath.Join(p.folder, filepath.FromSlash(name)))
	})
}

// enqueue makes one task for each path. Each has a request id, so that the channel may repeat the call.
func enqueue(ctx context.Context, s *session, paths []string) ([]*pb.EnqueueResponse, error) {
	tasks := make([]*pb.TaskSpec, len(paths))
	for i, path := range paths {
		data, err := json.Marshal(payload{path})
		if err != nil {
			return nil, err
		}
		tasks[i] = &pb.TaskSpec{Payload: &pb.Payload{Data: data}, RequestId: uuid.NewString()}
	}

	if len(tasks) == 1 {
		response, err := s.client.Enqueue(ctx, &pb.EnqueueRequest{Queue: s.queue, Task: tasks[0]})
		return []*pb.EnqueueResponse{response}, err
	}
	response, err := s.client.BatchEnqueue(ctx, &pb.BatchEnqueueRequest{Queue: s.queue, Tasks: tasks})
	if err == nil && len(response.GetResults()) != len(tasks) {
		err = fmt.Errorf("%d results for %d tasks", len(response.GetResults()), len(tasks))
	}
	return response.GetResults(), err
}
