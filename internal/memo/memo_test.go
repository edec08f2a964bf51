package memo

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestGet(t *testing.T) {
	ctx, reads := context.Background(), 0
	var fail error
	m := New(10, func(_ context.Context, key string) (int, error) { reads++; return reads, fail })
	get := func(want int) {
		t.Helper()
		if got, err := m.Get(ctx, "a"); got != want || !errors.Is(err, fail) {
			t.Errorf("got %d, %v; want %d", got, err, want)
		}
	}
	m.Changed("a") // of something that nobody asked about
	get(1)
	get(1)
	m.Changed("b")
	get(1)
	m.Changed("a")
	m.Changed("a")
	fail = errors.New("no")
	get(2)
	fail = nil
	get(3)
	get(3)
}

// TestChangeDuringLoad changes a value while it is being read: who asks afterwards must not get what was read before.
func TestChangeDuringLoad(t *testing.T) {
	var value atomic.Int64
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m := New(10, func(context.Context, string) (int64, error) {
		v := value.Load()
		once.Do(func() {
			close(begun)
			<-goOn
		})
		return v, nil
	})
	first := make(chan int64)
	go func() {
		v, _ := m.Get(context.Background(), "a")
		first <- v
	}()
	<-begun
	value.Store(1)
	m.Changed("a")
	close(goOn)
	if v := <-first; v != 0 {
		t.Errorf("the first reader got %d", v)
	}
	if v, _ := m.Get(context.Background(), "a"); v != 1 {
		t.Errorf("after the change: %d", v)
	}
}

func TestConcurrentReaders(t *testing.T) {
	var value atomic.Int64
	m := New(100, func(context.Context, int) (int64, error) { return value.Load(), nil })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 2000 {
				if i%10 == 0 {
					value.Add(1)
					m.Changed(1)
				}
				if _, err := m.Get(context.Background(), 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if v, _ := m.Get(context.Background(), 1); v != value.Load() {
		t.Errorf("%d at last, want %d", v, value.Load())
	}
}
