package pushers

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/storage"
)

const (
	// firstRetry and lastRetry bound the pauses between attempts to reach a gateway.
	firstRetry = time.Second
	lastRetry  = time.Hour
	// giveUp is how long a gateway may fail before what waits for it is dropped.
	giveUp = 24 * time.Hour
	// maxRequests bounds the requests to all gateways at a time.
	maxRequests = 64
)

// queue is what a gateway has to be told for one pusher.
type queue struct {
	user *user
	kick chan struct{} // has an element if something has changed

	mu      sync.Mutex
	pusher  pusher
	seen    int64 // up to which position notes were put in
	saved   pusher
	notes   []note
	running bool
	ended   bool
}

func newQueue(u *user, p pusher) *queue {
	return &queue{user: u, kick: make(chan struct{}, 1), pusher: p, saved: p, seen: p.Told}
}

// change takes what has been set anew.
func (q *queue) change(p pusher) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p.Told, p.FailingSince, p.Badge = max(p.Told, q.pusher.Told), q.pusher.FailingSince, q.pusher.Badge
	if p.url() != q.pusher.url() {
		p.FailingSince, p.Badge = 0, -1
	}
	q.pusher = p
	q.signal()
}

// end stops deliveries: the pusher is gone.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended, q.notes = true, nil
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// add appends notes of up to a position, except for those that are in it or told already.
func (q *queue) add(notes []note, upTo int64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range notes {
		if n.pos <= q.seen || n.silent() && (q.pusher.noBadge() || q.pusher.Kind == kindEmail) {
			continue
		}
		if n.silent() { // one number is enough, behind what may be on its way with another one
			q.notes = slices.DeleteFunc(q.notes, func(n note) bool { return n.silent() })
		}
		n.since = now
		q.notes = append(q.notes, n)
	}
	if over := len(q.notes) - maxWaiting; over > 0 {
		q.notes = append([]note(nil), q.notes[over:]...)
	}
	q.seen = max(q.seen, upTo)
	if len(q.notes) == 0 {
		q.pusher.Told = q.seen
	}
}

// place returns the row of the pusher if it should be written.
func (q *queue) place() (p pusher, changed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now, was := &q.pusher, &q.saved
	if q.ended || now.Told == was.Told && now.FailingSince == was.FailingSince && now.Badge == was.Badge {
		return p, false
	}
	q.saved = q.pusher
	return q.pusher, true
}

// deliver lets a goroutine tell the gateway what is in the queue, if none does.
func (q *queue) deliver(ctx context.Context, a *API) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running || q.ended || len(q.notes) == 0 || q.pusher.Kind == kindEmail && a.cfg.Mails == nil {
		return
	}
	q.running = true
	select {
	case <-q.kick: // what has changed until now, the goroutine sees
	default:
	}
	if q.pusher.Kind == kindEmail {
		a.deliveries.Go(func() { q.runMails(ctx, a) })
		return
	}
	a.deliveries.Go(func() { q.run(ctx, a) })
}

// first returns what is next to tell. The goroutine ends if there is nothing.
func (q *queue) first() (n note, p pusher, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.notes) == 0 || q.ended {
		q.running = false
		return n, p, false
	}
	return q.notes[0], q.pusher, true
}

// run delivers in order until nothing is left.
func (q *queue) run(ctx context.Context, a *API) {
	wait := firstRetry
	for {
		n, p, ok := q.first()
		if !ok {
			return
		}
		rejected, err := a.send(ctx, q, &p, &n)
		if err == nil {
			q.done(n)
			wait = firstRetry
			if rejected {
				a.reject(ctx, &p)
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log := a.log.WithError(err).WithFields(logrus.Fields{"user_id": p.User, "app_id": p.AppID})
		if q.failed(a.now()) {
			log.Warn("a push gateway has failed for a day; what waited for it is dropped")
			continue
		}
		log.Debug("a push gateway failed and will be tried again")
		if !q.rest(ctx, wait) {
			return
		}
		wait = min(2*wait, lastRetry)
	}
}

// rest waits before the next attempt, not exactly as long as others, or until the pusher is set anew.
func (q *queue) rest(ctx context.Context, wait time.Duration) bool {
	t := time.NewTimer(wait + rand.N(wait/4+1)) //nolint:gosec // nothing depends on who can guess this
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-q.kick:
	case <-t.C:
	}
	return true
}

// number returns what is unread, and whether the gateway knows that already.
func (q *queue) number() (badge int64, known bool) {
	q.user.mu.Lock()
	badge = q.user.badge
	q.user.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	return badge, badge == q.pusher.Badge
}

// numbered takes note of the number that the gateway was told.
func (q *queue) numbered(badge int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pusher.Badge = badge
}

// done takes a note away that was delivered.
func (q *queue) done(n note) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pusher.FailingSince = 0
	for len(q.notes) > 0 && q.notes[0].pos <= n.pos {
		q.notes = q.notes[1:]
	}
	if q.pusher.Told = n.pos; len(q.notes) == 0 {
		q.pusher.Told, q.notes = q.seen, nil
	}
}

// failed takes note of a failure and tells whether the gateway was given up on.
func (q *queue) failed(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch since := q.pusher.FailingSince; {
	case since == 0:
		q.pusher.FailingSince = now.UnixMilli()
	case now.Sub(time.UnixMilli(since)) > giveUp:
		q.pusher.FailingSince = now.UnixMilli()
		q.pusher.Told, q.notes = q.seen, nil
		return true
	}
	return false
}

// reject removes a pusher whose key the gateway says is void.
func (a *API) reject(ctx context.Context, p *pusher) {
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := remove(tx, p.User, p.key())
		return err
	})
	log := a.log.WithFields(logrus.Fields{"user_id": p.User, "app_id": p.AppID})
	if err == nil {
		log.Info("removed a pusher that its gateway rejects")
	} else if !errors.Is(err, context.Canceled) {
		log.WithError(err).Warn("cannot remove a pusher that its gateway rejects")
	}
}
