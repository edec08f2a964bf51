package mediaapi

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
)

// TestPanic has the work of a flight panic: who waits gets an error, and the next flight starts anew.
func TestPanic(t *testing.T) {
	var f flights[string, int]
	ctx := context.Background()
	_, err := f.do(ctx, ctx, "key", func(context.Context) (int, error) { panic("a decoder's mistake") })
	if err == nil || !strings.Contains(err.Error(), "a decoder's mistake") {
		t.Errorf("error %v", err)
	}
	if n, err := f.do(ctx, ctx, "key", func(context.Context) (int, error) { return 7, nil }); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestSlots(t *testing.T) {
	s, ctx := newSlots(1, 1), context.Background()
	if ok, err := s.enter(ctx); !ok || err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithCancel(ctx)
	given := make(chan error)
	go func() {
		_, err := s.enter(waiting)
		given <- err
	}()
	for len(s.queue) < 2 { // until it waits
		runtime.Gosched()
	}
	if ok, err := s.enter(ctx); ok || err != nil {
		t.Errorf("a third one: %v, %v", ok, err)
	}
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	s.leave()
	if ok, err := s.enter(ctx); !ok || err != nil {
		t.Errorf("afterwards: %v, %v", ok, err)
	}
}
