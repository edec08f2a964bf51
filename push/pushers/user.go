package pushers

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// page is how many events of a room are judged at a time.
	page = 256
	// maxWaiting bounds the events that wait for a gateway: an older one tells nobody anything any more.
	maxWaiting = 100
)

// user is somebody with pushers.
type user struct {
	id string

	// These are guarded by API.mu.
	queued  bool
	changed bool           // the pushers have to be read again
	all     bool           // all rooms have to be looked at
	dirty   map[int64]bool // rooms where something happened
	outside bool           // an invite to a room that this server is not in may have come

	work    sync.Mutex // held by the worker who looks at the user
	judged  int64      // up to which position of the log; guarded by work
	counts  map[int64]int64
	counted bool // counts has all rooms with something unread; guarded by work

	mu     sync.Mutex
	queues map[key]*queue // guarded by mu
	badge  int64          // what is unread in all rooms or, until that is counted, what a gateway was told; guarded by mu
}

// note is something to tell a gateway. Without an event it is the number of unread messages alone.
type note struct {
	pos     int64
	room    *roomserver.Room // nil for an invite to a room that this server is not in
	event   *roomserver.Event
	outside *roomserver.Outside
	actions *rules.Actions
	since   time.Time // when it came into the queue
}

// look judges what arrived for a user, and hands out what notifies.
func (a *API) look(ctx context.Context, u *user) error {
	u.work.Lock()
	defer u.work.Unlock()
	a.mu.Lock()
	t := task{changed: u.changed, all: u.all, outside: u.outside, rooms: u.dirty}
	u.queued, u.changed, u.all, u.outside, u.dirty = false, false, false, false, map[int64]bool{}
	a.mu.Unlock()
	err := a.lookAt(ctx, u, t)
	if err != nil { // all of it is done again
		a.mu.Lock()
		u.changed, u.all = u.changed || t.changed, true
		a.mu.Unlock()
	}
	return err
}

// task is what a look is about.
type task struct {
	changed, all, outside bool
	rooms                 map[int64]bool
}

func (a *API) lookAt(ctx context.Context, u *user, t task) error {
	head := a.db.Head()
	if t.changed {
		again, err := a.reload(ctx, u)
		if err != nil {
			return err
		}
		t.all = t.all || again
	}
	u.mu.Lock()
	none := len(u.queues) == 0
	u.mu.Unlock()
	if none {
		return nil
	}
	rooms, err := a.roomsOf(ctx, u, t)
	if err != nil {
		return err
	}
	var notes []note
	for _, r := range rooms {
		more, err := a.judge(ctx, u, r, head)
		if err != nil {
			return err
		}
		notes = append(notes, more...)
	}
	if t.outside || t.all {
		invites, err := a.invites(ctx, u, head)
		if err != nil {
			return err
		}
		notes = append(notes, invites...)
	}
	badge, fell, err := a.count(ctx, u, rooms, head)
	if err != nil {
		return err
	}
	slices.SortFunc(notes, func(x, y note) int { return int(x.pos - y.pos) })
	u.judged = head
	if fell { // whom the notes of events tell will know the number already
		notes = append(notes, note{pos: head})
	}
	a.handOut(ctx, u, notes, head, badge)
	return nil
}

// roomsOf returns the rooms to look at: those where something happened, or all where it may have.
func (a *API) roomsOf(ctx context.Context, u *user, t task) ([]*roomserver.Room, error) {
	var nids []int64
	if !t.all {
		for nid := range t.rooms {
			nids = append(nids, nid)
		}
	} else {
		list, err := a.rooms.UserRooms(ctx, u.id)
		if err != nil {
			return nil, err
		}
		active, err := a.rooms.Activity(ctx, u.id, list, nil)
		if err != nil {
			return nil, err
		}
		for i, r := range list {
			if t.rooms[r.NID] || active[i] > u.judged || r.Pos > u.judged {
				nids = append(nids, r.NID)
			}
		}
	}
	rooms := make([]*roomserver.Room, 0, len(nids))
	for _, nid := range nids {
		room, err := a.rooms.RoomByNID(ctx, nid)
		if isGone(err) {
			delete(u.counts, nid)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("room %d: %w", nid, err)
		}
		rooms = append(rooms, room)
	}
	return rooms, nil
}

// judge finds what notifies the user of what arrived in a room, the newest if it is a lot.
func (a *API) judge(ctx context.Context, u *user, room *roomserver.Room, head int64) (notes []note, err error) {
	for after := u.judged; after < head; {
		var list []unread.Notification
		if list, after, err = a.unread.Notifications(ctx, room, u.id, after, head, page); err != nil {
			return nil, err
		}
		for _, n := range list {
			notes = append(notes, note{pos: n.Event.Anchor, room: room, event: n.Event, actions: n.Actions})
		}
		if len(notes) > maxWaiting {
			notes = slices.Clone(notes[len(notes)-maxWaiting:])
		}
	}
	return notes, nil
}

// invites finds invites to rooms that this server is not in.
func (a *API) invites(ctx context.Context, u *user, head int64) (notes []note, err error) {
	list, err := a.rooms.OutsideOf(ctx, u.id)
	if err != nil {
		return nil, fmt.Errorf("invites of %s: %w", u.id, err)
	}
	for i := range list {
		o := &list[i]
		if o.Membership != roomserver.Invite || o.Pos <= u.judged || o.Pos > head {
			continue
		}
		actions, err := a.unread.JudgeInvite(ctx, o)
		if err != nil {
			return nil, err
		}
		if actions.Notify {
			notes = append(notes, note{pos: o.Pos, outside: o, actions: actions})
		}
	}
	return notes, nil
}

// count brings the number of unread messages up to date and tells whether it has fallen. What is unread of the rooms
// given has changed.
func (a *API) count(ctx context.Context, u *user, rooms []*roomserver.Room, head int64) (badge int64, fell bool, err error) {
	if !u.counted {
		if rooms, err = a.joined(ctx, u.id); err != nil {
			return 0, false, err
		}
	}
	for _, room := range rooms {
		counts, err := a.unread.Unread(ctx, room, u.id, head)
		if err != nil {
			return 0, false, err
		}
		if n := counts.Total().Notifications; n > 0 {
			u.counts[room.NID] = n
		} else {
			delete(u.counts, room.NID)
		}
	}
	for _, n := range u.counts {
		badge += n
	}
	u.mu.Lock()
	fell = badge < u.badge
	u.mu.Unlock()
	u.counted = true
	return badge, fell, nil
}

// joined are the rooms that a user is in.
func (a *API) joined(ctx context.Context, id string) (rooms []*roomserver.Room, err error) {
	list, err := a.rooms.UserRooms(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.Membership != roomserver.Join {
			continue
		}
		room, err := a.rooms.RoomByNID(ctx, r.NID)
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("room %s: %w", r.RoomID, err)
		}
		rooms = append(rooms, room)
	}
	return rooms, nil
}

// reload reads a user's pushers again, and tells whether events have to be judged for the first time or once more: one
// that is new is told of what came since it was set, and after a restart each of what came meanwhile.
func (a *API) reload(ctx context.Context, u *user) (again bool, err error) {
	var list []pusher
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		list, err = ofUser(tx, u.id)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("pushers of %s: %w", u.id, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.queues) == 0 { // nobody has kept the counts up to date
		u.judged, u.counts, u.counted, u.badge = a.db.Head(), map[int64]int64{}, false, 0
	}
	gone := u.queues
	u.queues = map[key]*queue{}
	for _, p := range list {
		k := p.key()
		q := gone[k]
		delete(gone, k)
		if q == nil {
			q = newQueue(u, p)
			u.badge = max(u.badge, p.Badge) // it may have fallen meanwhile
			if p.Told < u.judged {
				u.judged, again = p.Told, true
			}
		}
		q.change(p)
		u.queues[k] = q
	}
	for _, q := range gone {
		q.end()
	}
	return again, nil
}

// handOut puts notes into the queues of the user's pushers.
func (a *API) handOut(ctx context.Context, u *user, notes []note, head, badge int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.badge = badge
	for _, q := range u.queues {
		q.add(notes, head, a.now())
		q.deliver(ctx, a)
	}
}
