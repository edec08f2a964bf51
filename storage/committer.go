package storage

import (
	"context"
	"sync"
)

const (
	// batchUnits and batchBytes bound what is committed at once, so that one flush stays short.
	batchUnits = 1024
	batchBytes = 8 << 20
)

// committer owns the one queue of writes and the goroutine that flushes it.
type committer struct {
	db          *DB
	limit       int
	subscribers []func(batch []Notice, head int64)

	mu      sync.Mutex
	space   sync.Cond // room in the queue
	wake    sync.Cond // something in the queue, or closing
	queue   []*Unit
	closing bool
	ended   chan struct{}
}

func newCommitter(db *DB, limit int) *committer {
	c := &committer{db: db, limit: limit, ended: make(chan struct{})}
	c.space.L, c.wake.L = &c.mu, &c.mu
	go c.run()
	return c
}

// append queues a unit, waiting while the queue is full.
func (c *committer) append(u *Unit) {
	u.checkPositions()
	if u.err != nil {
		u.finish(u.err)
		return
	}
	c.mu.Lock()
	for len(c.queue) >= c.limit && !c.closing {
		c.space.Wait()
	}
	if c.closing {
		c.mu.Unlock()
		u.finish(ErrClosed)
		return
	}
	c.queue = append(c.queue, u)
	if len(c.queue) == 1 {
		c.wake.Signal()
	}
	c.mu.Unlock()
}

// write queues a function and waits for its outcome.
func (c *committer) write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	answer := make(chan error, 1)
	u := &Unit{fn: fn, ctx: ctx, Done: func(_ int64, err error) { answer <- err }}
	c.append(u)
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		if u.state.CompareAndSwap(unitQueued, unitDropped) {
			return ctx.Err()
		}
		// It has started: it will complete, and the caller learns how.
		return <-answer
	}
}

// take waits for work and returns the next batch; nil when closing and empty. busy says whether more
// is waiting.
func (c *committer) take() (batch []*Unit, busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.closing {
		c.wake.Wait()
	}
	n, bytes := 0, 0
	for n < len(c.queue) && n < batchUnits {
		if bytes += c.queue[n].bytes; bytes > batchBytes && n > 0 {
			break
		}
		n++
	}
	batch = append(batch, c.queue[:n]...)
	rest := copy(c.queue, c.queue[n:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	c.space.Broadcast()
	return batch, rest > 0
}

func (c *committer) run() {
	defer close(c.ended)
	for {
		batch, busy := c.take()
		if len(batch) == 0 {
			return
		}
		started := batch[:0]
		for _, u := range batch {
			if u.start() {
				started = append(started, u)
			} else if u.ctx != nil {
				u.finish(u.ctx.Err())
			}
		}
		c.db.engine.flush(started)
		c.publish(started)
		c.db.engine.idle(busy)
	}
}

// publish tells the world about a flushed batch, in the order the package documentation promises.
func (c *committer) publish(batch []*Unit) {
	head := c.db.head.Load()
	var notices []Notice
	for _, u := range batch {
		if u.err != nil {
			continue
		}
		if u.Apply != nil {
			u.Apply(u.base)
		}
		u.absolute()
		notices = append(notices, u.Notices...)
		if u.Positions > 0 {
			head = max(head, u.base+int64(u.Positions))
		}
	}
	if len(notices) > 0 {
		for _, fn := range c.subscribers {
			fn(notices, head)
		}
	}
	c.db.head.Store(head)
	for _, u := range batch {
		u.After = nil // decided; a chain of units must not keep all of them in memory
		u.finish(u.err)
	}
}

func (u *Unit) finish(err error) {
	if u.Done == nil {
		return
	}
	if err != nil {
		u.Done(0, err)
	} else {
		u.Done(u.base, nil)
	}
}

// close lets the queue drain.
func (c *committer) close(ctx context.Context) error {
	c.mu.Lock()
	c.closing = true
	c.wake.Broadcast()
	c.space.Broadcast()
	c.mu.Unlock()
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
