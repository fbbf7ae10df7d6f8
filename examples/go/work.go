package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// digest is the result of a task.
type digest struct {
	SHA256   string `json:"sha256"`
	Bytes    int64  `json:"bytes"`
	Lines    int64  `json:"lines"`
	Language string `json:"language"`
}

// work does one task and returns its result. This is the place for the work of a service of your own: it may take
// longer than the lease, which is extended meanwhile, and should end soon after ctx has, as the task is lost then.
func work(ctx context.Context, data []byte) (any, error) {
	var task payload
	if err := json.Unmarshal(data, &task); err != nil {
		return nil, fmt.Errorf("the payload cannot be read: %w", err)
	}
	return digestFile(ctx, task.Path)
}

func digestFile(ctx context.Context, path string) (*digest, error) {
	// Opening a pipe would wait for somebody to write to it.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file: %s", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return digestOf(ctx, file)
}

func digestOf(ctx context.Context, file io.Reader) (*digest, error) {
	sum, made := sha256.New(), &digest{Language: "go"}
	for piece := make([]byte, 64<<10); ctx.Err() == nil; {
		n, err := file.Read(piece)
		sum.Write(piece[:n])
		made.Bytes += int64(n)
		made.Lines += int64(bytes.Count(piece[:n], []byte{'\n'}))
		if errors.Is(err, io.EOF) {
			made.SHA256 = hex.EncodeToString(sum.Sum(nil))
			return made, nil
		} else if err != nil {
			return nil, err
		}
	}
	return nil, ctx.Err()
}
