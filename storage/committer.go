package storage

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// batchUnits and batchBytes bound what is committed at once, so that one flush stays short.
	batchUnits = 1024
	batchBytes = 8 << 20
	// queueBytes bounds the memory of units waiting for the committer.
	queueBytes = 64 << 20
	// slowFlush is worth a line in the log.
	slowFlush = 2 * time.Second
)

// committer owns the one queue of writes, the goroutine that flushes it, and the goroutine that
// publishes what was flushed while the next flush is under way.
type committer struct {
	db          *DB
	limit       int
	log         logrus.FieldLogger
	subscribers []func(batch []Notice, head int64)
	watchers    []func(batch []Notice, head int64)

	mu      sync.Mutex
	space   sync.Cond // room in the queue, or closing; guards nothing beyond mu
	queue   []*Unit   // guarded by mu, as are the next three
	bytes   int
	closing bool
	spare   [][]*Unit // emptied batches, to be used again

	wake  chan struct{} // something was queued, or closing
	ended chan struct{} // flushing and publishing are over

	flushed    chan []*Unit // from the committer to the publisher
	publishing atomic.Int32 // batches handed to the publisher and not yet published
	notices    []Notice     // scratch of publish
}

func newCommitter(db *DB, opt Options) *committer {
	c := &committer{
		db: db, limit: opt.QueueUnits, log: opt.Log,
		wake:    make(chan struct{}, 1),
		ended:   make(chan struct{}),
		flushed: make(chan []*Unit, 1),
	}
	c.space.L = &c.mu
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
	if c.full() {
		c.waitForSpace(u.ctx)
	}
	if c.closing {
		c.mu.Unlock()
		u.finish(ErrClosed)
		return
	}
	c.queue = append(c.queue, u)
	c.bytes += u.bytes
	first := len(c.queue) == 1
	c.mu.Unlock()
	if first {
		c.signal()
	}
}

func (c *committer) full() bool { return len(c.queue) >= c.limit || c.bytes >= queueBytes }

// waitForSpace waits, holding mu, until the queue has room, the committer is closing, or ctx (which may
// be nil) ends. A unit whose context ended is queued all the same: it is dropped when its turn comes.
func (c *committer) waitForSpace(ctx context.Context) {
	over := false
	if ctx != nil {
		stop := context.AfterFunc(ctx, func() {
			c.mu.Lock()
			over = true
			c.mu.Unlock()
			c.space.Broadcast()
		})
		defer stop()
	}
	for c.full() && !c.closing && !over {
		c.space.Wait()
	}
}

func (c *committer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
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

// take returns the next batch, or nil if the queue is empty; more says whether units are left in it.
func (c *committer) take() (batch []*Unit, more, closing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, bytes := 0, 0
	for n < len(c.queue) && n < batchUnits {
		if bytes += c.queue[n].bytes; bytes > batchBytes && n > 0 {
			bytes -= c.queue[n].bytes
			break
		}
		n++
	}
	if n == 0 {
		return nil, false, c.closing
	}
	if last := len(c.spare) - 1; last >= 0 {
		batch, c.spare = c.spare[last], c.spare[:last]
	}
	batch = append(batch, c.queue[:n]...)
	rest := copy(c.queue, c.queue[n:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	c.bytes -= bytes
	c.space.Broadcast()
	return batch, rest > 0, c.closing
}

func (c *committer) recycle(batch []*Unit) {
	clear(batch)
	c.mu.Lock()
	if len(c.spare) < 4 {
		c.spare = append(c.spare, batch[:0])
	}
	c.mu.Unlock()
}

// run flushes batches until the committer is closed and the queue is empty.
func (c *committer) run() {
	published := make(chan struct{})
	go func() {
		defer close(published)
		for batch := range c.flushed {
			c.publish(batch)
			c.publishing.Add(-1)
		}
	}()
	defer func() {
		close(c.flushed)
		<-published
		close(c.ended)
	}()
	timer := time.NewTimer(time.Hour)
	for {
		batch, more, closing := c.take()
		if batch == nil {
			if closing {
				return
			}
			c.pause(timer)
			continue
		}
		batch = c.startable(batch)
		if len(batch) > 0 {
			c.flush(batch)
			for _, u := range batch {
				u.After = nil // decided; a chain of units must not keep all of them in memory
			}
			c.handOver(batch, more)
		}
		c.db.engine.maintain(false)
	}
}

// flush commits a batch, and tells the log if everybody had to wait long for it: one of its units runs too long, or
// the disk or the server is in trouble.
func (c *committer) flush(batch []*Unit) {
	start := time.Now()
	c.db.engine.flush(batch)
	if took := time.Since(start); took > slowFlush {
		c.log.WithFields(logrus.Fields{"units": len(batch), "took": took.Round(time.Millisecond).String()}).Warn("storage: slow flush")
	}
}

// pause waits for work; when none comes for a while, the engine may tidy up.
func (c *committer) pause(timer *time.Timer) {
	quiet := c.db.engine.quietDelay()
	if quiet == 0 {
		<-c.wake
		return
	}
	timer.Reset(quiet)
	select {
	case <-c.wake:
	case <-timer.C:
		c.db.engine.maintain(true)
	}
}

// startable drops the Writes whose context ended before their turn.
func (c *committer) startable(batch []*Unit) []*Unit {
	started := batch[:0]
	for _, u := range batch {
		if u.start() {
			started = append(started, u)
		} else {
			u.finish(u.ctx.Err())
		}
	}
	return started
}

// handOver publishes a batch: at once if nobody waits for the next flush, else on the publisher's
// goroutine, so that subscribers' work and the disk's overlap. Either way in the order of flushes.
func (c *committer) handOver(batch []*Unit, more bool) {
	if !more && c.publishing.Load() == 0 {
		c.publish(batch)
		return
	}
	c.publishing.Add(1)
	c.flushed <- batch
}

// publish tells the world about a flushed batch, in the order the package documentation promises.
func (c *committer) publish(batch []*Unit) {
	head := c.db.head.Load()
	c.notices = c.notices[:0]
	for _, u := range batch {
		if u.err != nil {
			continue
		}
		if u.Positions > 0 {
			head = max(head, u.base+int64(u.Positions))
		}
		if u.Apply != nil {
			u.Apply(u.base)
		}
		u.absolute()
		c.notices = append(c.notices, u.Notices...)
	}
	if len(c.notices) > 0 {
		for _, fn := range c.subscribers {
			fn(c.notices, head)
		}
	}
	c.db.head.Store(head)
	if len(c.notices) > 0 {
		for _, fn := range c.watchers {
			fn(c.notices, head)
		}
		clear(c.notices)
	}
	for _, u := range batch {
		u.finish(u.err)
	}
	c.recycle(batch)
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
	c.space.Broadcast()
	c.mu.Unlock()
	c.signal()
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
