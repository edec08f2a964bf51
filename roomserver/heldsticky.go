package roomserver

import (
	"context"
	"errors"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/storage"
)

// maxHeld bounds the sticky events of a room that the current state refuses. The oldest ones are not judged again.
const maxHeld = 500

// heldTable holds the sticky events that were soft-failed (MSC4354).
var heldTable = storage.DeclareTable("held_sticky_events", storage.Insert,
	storage.Key("room", storage.Int), storage.Key("event", storage.Int), storage.Col("expires", storage.Int))

// heldSticky are the sticky events that the current states of rooms refuse.
type heldSticky struct {
	rooms map[int64][]stickyEvent // in the order in which they came; positions are 0
	due   map[int64]struct{}      // rooms where the state has changed since they were judged
	wake  chan struct{}
}

// hold notes that the current state refuses an event. If it is sticky, it is judged again when the state changes, because
// all servers are to agree on what is sticky, whatever each of them heard of first.
//
// spec: MSC4354 "Soft-failure checks MUST be re-evaluated"
func (t *Turn) hold(e *Event) {
	now := t.s.now().UnixMilli()
	expires := e.StickyUntil(now)
	if expires <= now {
		return
	}
	t.unit.Add(heldTable, t.room.NID, e.NID, expires)
	t.AfterApply(func() { t.s.sticky.hold(t.room.NID, stickyEvent{0, e.NID, expires}, len(t.changes) > 0) })
}

// hold takes in an event that is on disk; due tells that the state may have changed since it was judged.
func (x *stickyIndex) hold(room int64, e stickyEvent, due bool) {
	x.mu.Lock()
	list := slices.Concat(x.held.rooms[room], []stickyEvent{e})
	x.held.rooms[room] = list[max(0, len(list)-maxHeld):]
	x.mu.Unlock()
	if due {
		x.judgeAgain(room)
	}
}

// judgeAgain sees to it that the events are judged again that were refused in a room.
func (x *stickyIndex) judgeAgain(room int64) {
	x.mu.Lock()
	_, some := x.held.rooms[room]
	if some {
		x.held.due[room] = struct{}{}
	}
	x.mu.Unlock()
	if some {
		select {
		case x.held.wake <- struct{}{}:
		default:
		}
	}
}

// takeDue returns the rooms in which to judge again.
func (x *stickyIndex) takeDue() (rooms []int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for room := range x.held.due {
		rooms = append(rooms, room)
	}
	clear(x.held.due)
	return rooms
}

// heldIn returns the events of a room that were refused and are still sticky.
func (x *stickyIndex) heldIn(room, now int64) (list []stickyEvent) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.held.rooms[room] {
		if e.expires > now {
			list = append(list, e)
		}
	}
	return list
}

// heldUntil tells whether an event was refused, and until when it is sticky.
func (x *stickyIndex) heldUntil(room, nid int64) (expires int64, held bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.held.rooms[room] {
		if e.nid == nid {
			return e.expires, true
		}
	}
	return 0, false
}

// release forgets an event that was refused, and is not any more.
func (x *stickyIndex) release(room, nid int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.held.rooms[room] = remaining(x.held.rooms[room], func(e stickyEvent) bool { return e.nid == nid })
	if len(x.held.rooms[room]) == 0 {
		delete(x.held.rooms, room)
	}
}

// releaseSticky judges sticky events again in the rooms whose states have changed.
func (s *Server) releaseSticky(ctx context.Context) {
	for _, nid := range s.sticky.takeDue() {
		room, err := s.RoomByNID(ctx, nid)
		if err == nil {
			_, err = s.Turn(ctx, room.ID, (*Turn).releaseHeld)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnknownRoom) {
			s.log.WithError(err).Warn("sticky events that were refused could not be judged again, until the state of their room changes next")
		}
	}
}

// releaseHeld lets those events into the timeline that the current state does not refuse any more. They arrive now.
func (t *Turn) releaseHeld() error {
	if anyPartial(t.head.Extremities) {
		return nil // their state says nothing yet
	}
	for _, held := range t.s.sticky.heldIn(t.room.NID, t.s.now().UnixMilli()) {
		e, err := t.event(held.nid)
		if errors.Is(err, ErrUnknownEvent) { // purged
			continue
		}
		if err != nil {
			return err
		}
		if _, sticky := e.Sticky(); !sticky || !e.SoftFailed() {
			continue // it was redacted, or a turn that is on its way to the disk has let it in
		}
		reason, err := verdict(authrules.Check(e.Event, authState{t, t.head.State}))
		if err != nil {
			return err
		}
		if reason == nil {
			if err := t.letIn(e.recast()); err != nil {
				return err
			}
		}
	}
	return nil
}

// letIn makes part of the timeline what was soft-failed.
func (t *Turn) letIn(e *Event) error {
	parents, err := t.parentsOf(e)
	if err != nil {
		return err
	}
	followed, err := t.followed(e)
	if err != nil {
		return err
	}
	e.flags &^= flagSoftFailed
	t.place(e)
	t.keep(e)
	if e.flags&flagGiven != 0 {
		t.gapped = append(t.gapped, e)
	}
	if err := t.redactReceived(e); err != nil {
		return err
	}
	if err := t.await(e); err != nil || followed {
		return err
	}
	return t.advance(e, parents)
}

// followed tells whether a forward extremity comes after an event. It looks at no more than maxRefit events between them.
func (t *Turn) followed(e *Event) (bool, error) {
	var front []string
	for _, x := range t.head.Extremities {
		front = append(front, x.PrevEventIDs()...)
	}
	seen := map[string]bool{}
	for len(front) > 0 && len(seen) < maxRefit {
		id := front[0]
		front = front[1:]
		if id == e.ID {
			return true, nil
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		p, err := t.find(id)
		if err != nil {
			return false, err
		}
		if p != nil && !p.Outlier() && p.Depth > e.Depth {
			front = append(front, p.PrevEventIDs()...)
		}
	}
	return false, nil
}
