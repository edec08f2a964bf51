package queue

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// ref is the place of an event in the log.
type ref struct{ room, pos int64 }

// destination is a server to which something is to be sent, or that did not answer. Its fields are guarded by Queue.mu.
type destination struct {
	name string

	pending []ref              // to be sent, in order; the first ones may be under way
	lossy   bool               // pending is not all of it: the rows of federation_owed are
	owed    map[int64]int64    // last event by room, to be written to those rows
	rows    bool               // there may be rows
	passed  map[int64]struct{} // rooms with sticky events of which only the last event was sent
	writing sync.Mutex         // held while the rows are written or deleted; taken before Queue.mu
	edus    []volatileEDU      // to be sent

	due      int64 // the Source may have something up to here; 0: nothing
	split    []EDU // of the Source: what did not fit into the transaction before
	splitEnd int64 // how far that goes

	flight  *transaction // under way
	kept    bool         // federation_unreached has a row
	running bool         // it has a worker

	failures int // in a row
	tried    time.Time
	retry    time.Time // not before
	contact  bool      // it was heard of since it failed
	timer    *time.Timer
}

// volatileEDU is an EDU that is in memory only.
type volatileEDU struct {
	EDU
	key      string
	fleeting bool
}

// destination returns the record of a server, nil for one that is sent nothing. q.mu is held.
func (q *Queue) destination(name string) *destination {
	d := q.servers[name]
	if d == nil && name != q.cfg.Name && (q.cfg.Allowed == nil || q.cfg.Allowed(name)) {
		d = &destination{name: strings.Clone(name)}
		q.servers[d.name] = d
	}
	return d
}

// forget drops the record of a server to which nothing is to be sent. q.mu is held.
func (q *Queue) forget(d *destination) {
	if d.idle() && !d.running && d.failures == 0 {
		delete(q.servers, d.name)
	}
}

// idle tells whether there is nothing to send.
func (d *destination) idle() bool {
	return len(d.pending) == 0 && !d.lossy && len(d.edus) == 0 && d.due == 0 && len(d.split) == 0 && !d.kept
}

// add puts an event on a server's list. q.mu is held.
func (q *Queue) add(name string, r ref) {
	d := q.destination(name)
	if d == nil {
		return
	}
	switch {
	case d.lossy:
		d.owe(r)
	case len(d.pending) >= maxPending:
		for _, p := range d.pending {
			d.owe(p)
		}
		d.owe(r)
		d.pending, d.lossy = nil, true
	default:
		d.pending = append(d.pending, r)
		if d.failures > 0 {
			d.owe(r)
		}
	}
	q.kick(d)
}

// owe notes an event for federation_owed.
func (d *destination) owe(r ref) {
	if d.owed == nil {
		d.owed = map[int64]int64{}
	}
	d.owed[r.room] = max(d.owed[r.room], r.pos)
}

// volatile takes an EDU that is in memory only.
func (d *destination) volatile(key string, e EDU, fleeting bool) {
	for i := range d.edus {
		if d.edus[i].key == key {
			d.edus[i].EDU = e
			return
		}
	}
	if fleeting && d.failures > 0 {
		return
	}
	if len(d.edus) >= maxVolatile {
		if !d.drop(true) && (fleeting || !d.drop(false)) {
			return
		}
	}
	d.edus = append(d.edus, volatileEDU{e, key, fleeting})
}

// drop makes room by dropping the oldest EDU, fleeting or not.
func (d *destination) drop(fleeting bool) bool {
	for i := range d.edus {
		if d.edus[i].fleeting == fleeting {
			d.edus = append(d.edus[:i], d.edus[i+1:]...)
			return true
		}
	}
	return false
}

// kick starts a worker for a server if there is something to send and the server may be tried now; otherwise it sees to
// it that this happens later. q.mu is held.
func (q *Queue) kick(d *destination) {
	if d.running || q.ctx == nil || d.idle() {
		return
	}
	wait := d.retry.Sub(q.cfg.Now())
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.start(d)
		})
		return
	}
	q.start(d)
}

// start starts the worker of a server. q.mu is held.
func (q *Queue) start(d *destination) {
	if d.running || q.ctx == nil || d.idle() {
		return
	}
	d.running = true
	slots := q.fast
	if d.failures > 0 && !d.contact {
		slots = q.slow
	}
	ctx := q.ctx
	q.workers.Go(func() {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			q.work(ctx, d)
		case <-ctx.Done():
		}
	})
}

// work sends to a server until there is nothing left or it fails.
func (q *Queue) work(ctx context.Context, d *destination) {
	for ctx.Err() == nil {
		t, err := q.next(ctx, d)
		if err == nil && t == nil {
			if q.rest(d) {
				return
			}
			continue
		}
		if err == nil {
			if err = q.send(ctx, d.name, t); err == nil {
				q.succeeded(ctx, d, t)
				continue
			}
		}
		if ctx.Err() == nil {
			q.failed(ctx, d, t, err)
		}
		return
	}
}

// rest ends the work for a server if there is really nothing left.
func (q *Queue) rest(d *destination) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !d.idle() {
		return false
	}
	d.running = false
	q.forget(d)
	return true
}

// maxBackoff is the longest time for which a server is left alone.
const maxBackoff = time.Hour

// backoff is how long a server is left alone after so many failures: with jitter, so that servers that failed together
// are not tried together.
func (q *Queue) backoff(failures int) time.Duration {
	wait := min(q.cfg.Backoff<<min(failures-1, 20), maxBackoff)
	return wait*3/4 + rand.N(wait/2+1)
}

// failed notes that a transaction was not taken, or that none could be made (t is nil).
func (q *Queue) failed(ctx context.Context, d *destination, t *transaction, err error) {
	q.mu.Lock()
	d.failures++
	d.contact, d.tried = false, q.cfg.Now()
	d.retry = d.tried.Add(max(q.backoff(d.failures), min(retryAfter(err), maxBackoff)))
	d.edus = d.edus[:compact(d.edus)]
	keep := t != nil && t.lasting()
	if t != nil && !keep { // receipts are tried again, in whatever transaction is next
		for _, e := range t.volatile {
			if !e.fleeting && len(d.edus) < maxVolatile && !d.has(e.key) {
				d.edus = append(d.edus, e)
			}
		}
	}
	for _, r := range d.pending {
		d.owe(r)
	}
	row := unreached{failures: d.failures, retry: d.retry.UnixMilli()}
	q.mu.Unlock()

	q.cfg.Log.WithError(err).WithFields(logrus.Fields{"server": d.name, "failures": row.failures}).Debug("a server was not reached")
	var saveErr error
	if keep && !t.saved {
		if saveErr = q.keep(ctx, d.name, row, t); saveErr != nil {
			q.cfg.Log.WithError(saveErr).Warn("a transaction that was not answered could not be written down")
		}
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	if keep && saveErr == nil {
		d.kept, d.flight = true, nil
		q.drop(d, t) // what it holds comes with it
	} else if ctx.Err() == nil || !keep { // else it is written down at the end
		d.flight = nil
		if t != nil && t.covers.EDUs { // the Source still has them
			d.split, d.due = nil, max(d.due, q.pos)
		}
	}
	d.running = false
	q.kick(d)
}

// compact moves the EDUs that are not fleeting to the front and returns their number.
func compact(edus []volatileEDU) int {
	n := 0
	for _, e := range edus {
		if !e.fleeting {
			edus[n] = e
			n++
		}
	}
	return n
}

func (d *destination) has(key string) bool {
	for _, e := range d.edus {
		if e.key == key {
			return true
		}
	}
	return false
}

// drop takes the events of a transaction off the list of pending ones. q.mu is held.
func (q *Queue) drop(d *destination, t *transaction) {
	if !d.lossy && t.taken > 0 {
		d.pending = d.pending[min(t.taken, len(d.pending)):]
		if len(d.pending) == 0 {
			d.pending = nil
		}
	}
	t.taken = 0
}

// notePatience bounds how long it may take to note that a transaction was taken.
const notePatience = 5 * time.Second

// succeeded notes that a server has taken a transaction, even if this one ends just now, which would send it again later.
func (q *Queue) succeeded(ctx context.Context, d *destination, t *transaction) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), notePatience)
	defer cancel()
	q.mu.Lock()
	q.drop(d, t)
	for room, pos := range t.covers.Rooms {
		if d.owed[room] <= pos {
			delete(d.owed, room)
		}
	}
	if d.lossy {
		q.passOver(d, t.covers.Rooms)
	}
	d.failures, d.retry, d.contact = 0, time.Time{}, false
	clean := d.kept || d.rows
	d.kept, d.flight = false, nil
	q.mu.Unlock()
	if clean {
		d.writing.Lock()
		left, err := q.clean(ctx, d.name, t.covers.Rooms)
		d.writing.Unlock()
		if err != nil {
			q.cfg.Log.WithError(err).Warn("what was delivered is still written down, and may be delivered again")
		}
		q.mu.Lock()
		d.rows = left || err != nil || len(d.owed) > 0
		q.mu.Unlock()
	}
	if t.covers.Source > 0 && q.cfg.Source != nil {
		if err := q.cfg.Source.Delivered(ctx, d.name, t.covers.Source); err != nil {
			q.cfg.Log.WithError(err).Warn("EDUs that were delivered are still written down, and may be delivered again")
		}
	}
}
