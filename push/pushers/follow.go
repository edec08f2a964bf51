package pushers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// workers is how many users are looked at at a time.
	workers = 4
	// retryLook is how long a user rests who could not be looked at.
	retryLook = 5 * time.Second
	// savePause is how often it is written down how far gateways were told.
	savePause = 10 * time.Second
	// lastSave is how long writing it down may take when the server ends.
	lastSave = 3 * time.Second
)

func isGone(err error) bool { return errors.Is(err, roomserver.ErrUnknownRoom) }

// published marks the users whom a batch may concern.
func (a *API) published(batch []storage.Notice, _ int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var last int64
	for i := range batch {
		switch n := &batch[i]; n.Kind {
		case storage.Pushers:
			a.mark(n.User, true).changed = true
		case storage.Event:
			if n.Room != last && len(a.users) > 0 {
				a.markRoom(n.Room)
				last = n.Room
			}
		case storage.Receipt, storage.PrivateReceipt:
			if u := a.mark(n.User, false); u != nil {
				u.dirty[n.Room] = true
			}
		case storage.Membership:
			if u := a.mark(n.User, false); u != nil && n.Room == 0 {
				u.outside = true
			} else if u != nil {
				u.dirty[n.Room] = true
			}
		}
	}
}

// markRoom marks the members of a room that have pushers.
func (a *API) markRoom(nid int64) {
	room := a.rooms.ActiveRoom(nid)
	if room == nil { // it has left memory already
		for id := range a.users {
			a.mark(id, false).all = true
		}
		return
	}
	a.names = room.LocalMembers(a.names[:0])
	for _, id := range a.names {
		if u := a.mark(id, false); u != nil {
			u.dirty[nid] = true
		}
	}
}

// mark puts a user into the queue to be looked at. It is called with a.mu held.
func (a *API) mark(id string, create bool) *user {
	u := a.users[id]
	if u == nil {
		if !create {
			return nil
		}
		u = &user{id: id, dirty: map[int64]bool{}, counts: map[int64]int64{}, queues: map[key]*queue{}}
		a.users[id] = u
	}
	if !u.queued {
		u.queued = true
		a.queue = append(a.queue, u)
		a.kick()
	}
	return u
}

func (a *API) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// next takes a user from the queue.
func (a *API) next() *user {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return nil
	}
	u := a.queue[0]
	if a.queue = a.queue[1:]; len(a.queue) > 0 {
		a.kick() // another worker
	}
	return u
}

// Run tells gateways until ctx ends.
func (a *API) Run(ctx context.Context) {
	for a.load(ctx) != nil {
		if !pause(ctx, retryLook) {
			return
		}
	}
	var group sync.WaitGroup
	for range workers {
		group.Go(func() { a.work(ctx) })
	}
	group.Go(func() {
		for pause(ctx, savePause) {
			a.save(ctx)
		}
	})
	group.Wait()
	a.deliveries.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSave)
	a.save(last)
	cancel()
}

// load marks all users with pushers: something may have come while the server was away.
func (a *API) load(ctx context.Context) error {
	users, err := storage.ReadList[string](ctx, a.db, `SELECT DISTINCT user_id FROM pushers`)
	if err != nil {
		if ctx.Err() == nil {
			a.log.WithError(err).Error("cannot read the pushers; trying again")
		}
		return fmt.Errorf("read users with pushers: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range users {
		u := a.mark(id, true)
		u.changed, u.all = true, true
	}
	return nil
}

// work looks at users until ctx ends.
func (a *API) work(ctx context.Context) {
	for {
		u := a.next()
		if u == nil {
			select {
			case <-ctx.Done():
				return
			case <-a.wake:
			}
			continue
		}
		if err := a.look(ctx, u); err != nil && ctx.Err() == nil {
			a.log.WithError(err).WithField("user_id", u.id).Warn("cannot find out what to tell push gateways; trying again")
			time.AfterFunc(retryLook, func() {
				a.mu.Lock()
				defer a.mu.Unlock()
				a.mark(u.id, true)
			})
		}
	}
}

// save writes down how far gateways were told, where that has changed.
func (a *API) save(ctx context.Context) {
	a.mu.Lock()
	users := make([]*user, 0, len(a.users))
	for _, u := range a.users {
		users = append(users, u)
	}
	a.mu.Unlock()
	var places []pusher
	flush := func() {
		if len(places) == 0 {
			return
		}
		if err := a.savePlace(ctx, places); err != nil && ctx.Err() == nil {
			a.log.WithError(err).Warn("push gateways may be told again after a restart")
		}
		places = places[:0]
	}
	for _, u := range users {
		u.mu.Lock()
		for _, q := range u.queues {
			if p, changed := q.place(); changed {
				places = append(places, p)
			}
		}
		u.mu.Unlock()
		if len(places) >= 200 {
			flush()
		}
	}
	flush()
}

// pause waits and tells whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
