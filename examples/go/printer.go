package main

import (
	"encoding/json"
	"io"
	"sync"
)

// printer writes one JSON object a line, each with one write, so a reader of a pipe sees whole lines at once.
// It may be used by several goroutines.
type printer struct {
	mutex   sync.Mutex
	encoder *json.Encoder
	err     error // the first one; nothing is written after it
}

func newPrinter(w io.Writer) *printer {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return &printer{encoder: encoder}
}

func (p *printer) print(event any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.err == nil {
		p.err = p.encoder.Encode(event)
	}
}
