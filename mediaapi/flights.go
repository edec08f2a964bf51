package mediaapi

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// flights lets requests for the same thing share the work. The work goes on when the requests that wait for it end.
type flights[K comparable, V any] struct {
	mu   sync.Mutex
	list map[K]*flight[V]
}

type flight[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// do waits for the work of a key, which starts if it is not under way. life ends the work, ctx the waiting.
func (f *flights[K, V]) do(life, ctx context.Context, key K, work func(ctx context.Context) (V, error)) (V, error) {
	f.mu.Lock()
	if f.list == nil {
		f.list = map[K]*flight[V]{}
	}
	one := f.list[key]
	if one == nil {
		one = &flight[V]{done: make(chan struct{})}
		f.list[key] = one
		go func() {
			defer func() {
				// The work reads what strangers made, with decoders that others wrote, outside of any request that would
				// catch a panic.
				if p := recover(); p != nil {
					one.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				}
				f.mu.Lock()
				delete(f.list, key)
				f.mu.Unlock()
				close(one.done)
			}()
			one.value, one.err = work(life)
		}()
	}
	f.mu.Unlock()
	select {
	case <-one.done:
		return one.value, one.err
	case <-ctx.Done():
		return *new(V), ctx.Err()
	}
}

// slots bounds how much is done at the same time, and how much waits for that.
type slots struct {
	running, queue chan struct{}
}

func newSlots(running, waiting int) slots {
	return slots{make(chan struct{}, running), make(chan struct{}, running+waiting)}
}

// enter waits for a slot. It fails at once, without an error, if too many wait already.
func (s slots) enter(ctx context.Context) (entered bool, err error) {
	select {
	case s.queue <- struct{}{}:
	default:
		return false, nil
	}
	select {
	case s.running <- struct{}{}:
		return true, nil
	case <-ctx.Done():
		<-s.queue
		return false, ctx.Err()
	}
}

func (s slots) leave() {
	<-s.running
	<-s.queue
}
