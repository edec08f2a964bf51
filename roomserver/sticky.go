package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/storage"
)

// stickyTable holds the events that are sticky (MSC4354).
var stickyTable = storage.DeclareTable("sticky_events", storage.Insert,
	storage.Col("room", storage.Int), storage.Col("pos", storage.Int), storage.Col("event", storage.Int), storage.Col("expires", storage.Int))

// stickyEvent is an event that is sticky until a time in milliseconds.
type stickyEvent struct{ pos, nid, expires int64 }

// stickyIndex knows the sticky events of all rooms, in the order of their positions. No event is sticky for longer than
// an hour, so there are few.
type stickyIndex struct {
	mu    sync.RWMutex
	rooms map[int64][]stickyEvent
	last  int64 // the position of the newest one there ever was
	held  heldSticky
}

// load reads what is sticky when the server starts.
func (x *stickyIndex) load(ctx context.Context, db *storage.DB, now int64) error {
	x.rooms = map[int64][]stickyEvent{}
	x.held = heldSticky{rooms: map[int64][]stickyEvent{}, due: map[int64]struct{}{}, wake: make(chan struct{}, 1)}
	err := db.Read(ctx, func(tx *storage.Tx) error {
		clear(x.rooms)
		clear(x.held.rooms)
		err := readSticky(tx, x.rooms, `SELECT room, pos, event, expires FROM sticky_events WHERE expires > $1 ORDER BY room, pos`, now)
		if err == nil {
			err = readSticky(tx, x.held.rooms, `SELECT room, 0, event, expires FROM held_sticky_events WHERE expires > $1 ORDER BY room, event`, now)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read sticky events: %w", err)
	}
	for _, events := range x.rooms {
		x.last = max(x.last, events[len(events)-1].pos)
	}
	for room := range x.held.rooms { // the state may have changed just before the end
		x.judgeAgain(room)
	}
	return nil
}

// readSticky reads sticky events into a map by room.
func readSticky(tx *storage.Tx, into map[int64][]stickyEvent, sql string, now int64) error {
	rows := tx.Query(sql, now)
	var room int64
	var e stickyEvent
	for rows.Next() {
		rows.Scan(&room, &e.pos, &e.nid, &e.expires)
		into[room] = append(into[room], e)
	}
	return rows.Close()
}

// writeSticky adds the rows of a unit's sticky events. One that takes a place in the past of the room gets a position for
// this alone, since clients are to hear of it all the same.
func (t *Turn) writeSticky() {
	now := t.s.now().UnixMilli()
	for _, e := range t.events {
		expires := e.StickyUntil(now)
		if expires <= now || e.offset == 0 && e.Anchor == 0 {
			continue
		}
		if until, held := t.s.sticky.heldUntil(t.room.NID, e.NID); held {
			expires = min(expires, until)
			t.unit.Exec(`DELETE FROM held_sticky_events WHERE room = $1 AND event = $2`, t.room.NID, e.NID)
			t.AfterApply(func() { t.s.sticky.release(t.room.NID, e.NID) })
		}
		offset := e.offset
		if offset == 0 {
			t.placed++
			offset = t.placed
			t.unit.Notices = append(t.unit.Notices, storage.Notice{Pos: int64(offset), Kind: storage.State, Room: t.room.NID})
		}
		t.unit.Add(stickyTable, t.room.NID, storage.Pos(offset), e.NID, expires)
		t.sticky = append(t.sticky, stickyEvent{int64(offset), e.NID, expires})
	}
}

// applySticky lets readers know of a unit's sticky events, which are on disk at positions after base.
func (t *Turn) applySticky(base int64) {
	x := &t.s.sticky
	if len(t.changes) > 0 {
		x.judgeAgain(t.room.NID)
	}
	if len(t.sticky) == 0 {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range t.sticky {
		e.pos += base
		x.rooms[t.room.NID] = append(x.rooms[t.room.NID], e)
		x.last = max(x.last, e.pos)
	}
}

// forgetSticky drops the events that are sticky no more.
func (s *Server) forgetSticky(ctx context.Context) error {
	now := s.now().UnixMilli()
	s.sticky.mu.Lock()
	for _, rooms := range []map[int64][]stickyEvent{s.sticky.rooms, s.sticky.held.rooms} {
		for room, events := range rooms {
			rooms[room] = remaining(events, func(e stickyEvent) bool { return e.expires <= now })
			if len(rooms[room]) == 0 {
				delete(rooms, room)
			}
		}
	}
	s.sticky.mu.Unlock()
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM sticky_events WHERE expires <= $1`, now)
		if err == nil {
			_, err = tx.Exec(`DELETE FROM held_sticky_events WHERE expires <= $1`, now)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("forget sticky events: %w", err)
	}
	return nil
}

// remaining returns those events that are not gone. Readers may hold the slice that it gets.
func remaining(events []stickyEvent, gone func(stickyEvent) bool) []stickyEvent {
	return slices.DeleteFunc(slices.Clone(events), gone)
}

// between returns the events of a room at positions in (after, upTo] that are sticky at a time.
func (x *stickyIndex) between(room, after, upTo, now int64) []stickyEvent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	events := x.rooms[room]
	if len(events) == 0 {
		return nil
	}
	var found []stickyEvent
	for _, e := range events {
		if e.pos > after && e.pos <= upTo && e.expires > now {
			found = append(found, e)
		}
	}
	return found
}

// StickySince tells whether there may be a sticky event at a later position, in any room.
func (s *Server) StickySince(after int64) bool {
	s.sticky.mu.RLock()
	defer s.sticky.mu.RUnlock()
	return s.sticky.last > after
}

// StickyPositions appends to dst the positions of the events of a room, by its number, in (after, upTo] that are sticky
// at a time in milliseconds (MSC4354). It asks memory only.
func (s *Server) StickyPositions(dst []int64, room, after, upTo, now int64) []int64 {
	for _, e := range s.sticky.between(room, after, upTo, now) {
		dst = append(dst, e.pos)
	}
	return dst
}

// StickyEvents returns those events, in the order of their arrival. Redacted ones are sticky no more.
func (s *Server) StickyEvents(ctx context.Context, room *Room, after, upTo, now int64) (events []*Event, err error) {
	for _, x := range s.sticky.between(room.NID, after, upTo, now) {
		e, err := s.eventByNID(ctx, room, x.nid)
		if errors.Is(err, ErrUnknownEvent) { // purged
			continue
		}
		if err != nil {
			return nil, err
		}
		if _, sticky := e.Sticky(); sticky {
			events = append(events, e)
		}
	}
	return events, nil
}
