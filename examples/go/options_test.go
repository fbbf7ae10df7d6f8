package main

import (
	"errors"
	"flag"
	"io"
	"reflect"
	"testing"
	"time"
)

func parseLine(arguments ...string) (command, options, error) {
	common := optionsFrom(func(name string) string {
		return map[string]string{"TORRELQUE_QUEUE": "from-environment"}[name]
	})
	command, err := parse(arguments, &common, io.Discard)
	return command, common, err
}

// Options stand before the verb, between its arguments and behind them; the last one wins.
func TestOptionsStandAnywhere(t *testing.T) {
	want := &watch{taskID: "task", timeout: seconds{1500 * time.Millisecond, true}, states: 2}
	for _, arguments := range [][]string{
		{"--queue", "q", "watch", "--timeout", "1.5", "--states=2", "task"},
		{"watch", "task", "--states", "2", "--timeout", "1.5", "--queue", "q"},
		{"--queue", "p", "watch", "--timeout=1.5", "--queue", "q", "task", "--states", "2"},
		{"watch", "--queue", "q", "--timeout=1.5", "--states", "2", "--", "task"},
	} {
		got, common, err := parseLine(arguments...)
		if err != nil || !reflect.DeepEqual(got, want) || common.queue != "q" {
			t.Errorf("%q: got %+v, queue %q, error %v", arguments, got, common.queue, err)
		}
	}
}

// What stands behind "--" is no option, even if it looks like one.
func TestTwoHyphensEndTheOptions(t *testing.T) {
	got, common, err := parseLine("release", "--", "--queue")
	if err != nil || got.(*release).taskID != "--queue" || common.queue != "from-environment" {
		t.Errorf("got %+v, queue %q, error %v", got, common.queue, err)
	}
}

// Arguments that cannot be used are told from a server that says no.
func TestWhatCannotBeUsed(t *testing.T) {
	for _, arguments := range [][]string{
		{}, {"nothing"}, {"watch"}, {"watch", "a", "b"}, {"poll", "a"}, {"poll", "--timeout", "-1"},
		{"poll", "--timeout", "nan"}, {"consume", "--credit", "0"}, {"consume", "--credit", "10001"},
		{"consume", "--policy", "lose"}, {"produce", "options_test.go"}, {"produce"},
		{"release", "a", "--result", "{"}, {"poll", "--until", "1"},
	} {
		_, _, err := parseLine(arguments...)
		if usage := new(usageError); !errors.As(err, &usage) {
			t.Errorf("%q: %v", arguments, err)
		}
	}
	if _, _, err := parseLine("consume", "--help"); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}
