package storage

import (
	"context"
	"fmt"
	"runtime/debug"
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

// flusher says who flushes the queue. Nobody else takes from it or touches the engine's writer.
type flusher uint8

const (
	nobody flusher = iota // the queue is empty
	loop                  // the committer's goroutine
	leader                // the goroutine of a writer that found nobody flushing
)

// committer owns the one queue of writes, the goroutine that flushes it, and the goroutine that
// publishes what was flushed while the next flush is under way.
type committer struct {
	db          *DB
	limit       int
	led         bool // writers may flush by themselves
	log         logrus.FieldLogger
	subscribers []func(batch []Notice, head int64)
	watchers    []func(batch []Notice, head int64)

	mu      sync.Mutex
	space   sync.Cond // room in the queue, or closing; guards nothing beyond mu
	queue   []*Unit   // guarded by mu, as are the next four
	bytes   int
	flusher flusher
	closing bool
	spare   [][]*Unit // emptied batches, to be used again

	wake  chan struct{} // it is the goroutine's turn to flush, or closing
	ended chan struct{} // flushing and publishing are over

	flushed    chan []*Unit // from the committer to the publisher
	publishing atomic.Int32 // batches handed to the publisher and not yet published
	notices    []Notice     // scratch of publish
}

func newCommitter(db *DB, opt Options) *committer {
	c := &committer{
		db: db, limit: opt.QueueUnits, log: opt.Log, led: db.engine.led(),
		wake:    make(chan struct{}, 1),
		ended:   make(chan struct{}),
		flushed: make(chan []*Unit, 1),
	}
	c.space.L = &c.mu
	go c.run()
	return c
}

// append queues a unit, waiting while the queue is full. If the caller offers to lead and is taken at its word, nobody
// flushes before it calls lead.
func (c *committer) append(u *Unit, offer bool) (leads bool) {
	u.checkPositions()
	if u.err != nil {
		u.finish(u.err)
		return false
	}
	c.mu.Lock()
	if c.full() {
		c.waitForSpace(u.ctx)
	}
	if c.closing {
		c.mu.Unlock()
		u.finish(ErrClosed)
		return false
	}
	c.queue = append(c.queue, u)
	c.bytes += u.bytes
	idle := c.flusher == nobody
	if leads = idle && offer && c.led; leads {
		c.flusher = leader
	} else if idle {
		c.flusher = loop
	}
	c.mu.Unlock()
	if idle && !leads {
		c.signal()
	}
	return leads
}

// lead flushes what is queued, on the goroutine of one who waits for it: that saves waking another, which is a good part of a
// lone write's time. What was queued meanwhile is left to the loop, so that nobody works for others for long.
func (c *committer) lead() {
	batch, more := c.take()
	c.round(batch, more)
	c.mu.Lock()
	if len(c.queue) > 0 || c.closing {
		c.flusher = loop
		c.signal()
	} else {
		c.flusher = nobody
	}
	c.mu.Unlock()
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
	if c.append(u, true) {
		c.lead()
	}
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
func (c *committer) take() (batch []*Unit, more bool) {
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
		return nil, false
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
	return batch, rest > 0
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
	for c.turn(timer) {
		for {
			batch, more := c.take()
			if batch == nil {
				break
			}
			c.round(batch, more)
			c.db.engine.maintain(false)
		}
	}
}

// round flushes a batch and publishes it.
func (c *committer) round(batch []*Unit, more bool) {
	whole := false
	defer func() {
		if !whole {
			die(recover())
		}
	}()
	if batch = c.startable(batch); len(batch) > 0 {
		c.flush(batch)
		for _, u := range batch {
			u.After = nil // decided; a chain of units must not keep all of them in memory
		}
		c.handOver(batch, more)
	}
	whole = true
}

// die ends the process because of a panic, or because somebody's function has ended the goroutine. Whoever leads may
// recover, or be the only one that ends, and others would go on in a process that never writes again.
func die(cause any) {
	if cause == nil {
		cause = "a function of a unit has ended its goroutine"
	}
	go panic(fmt.Sprintf("storage: %v, while committing\n%s", cause, debug.Stack()))
	select {}
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

// turn waits until it is for the loop to flush. It returns false once the committer is closed and all is flushed.
func (c *committer) turn(timer *time.Timer) bool {
	quiet := c.db.engine.quietDelay()
	ours, over := c.rest()
	for !ours && !over {
		if quiet == 0 {
			<-c.wake
		} else {
			timer.Reset(quiet)
			select {
			case <-c.wake:
			case <-timer.C:
				c.db.engine.maintain(true) // nobody leads where this is needed
				quiet = c.db.engine.quietDelay()
			}
		}
		ours, over = c.mine()
	}
	return !over
}

// rest ends the turn of the loop if the queue is empty.
func (c *committer) rest() (ours, over bool) {
	c.mu.Lock()
	if c.flusher == loop && len(c.queue) == 0 {
		c.flusher = nobody
	}
	c.mu.Unlock()
	return c.mine()
}

// mine tells whether it is for the loop to flush, or all is over.
func (c *committer) mine() (ours, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flusher == loop, c.flusher == nobody && c.closing
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
