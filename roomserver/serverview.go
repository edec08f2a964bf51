package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// ServerViewer decides which events of a room another server may see: those that one of its users may. It remembers
// the states that it looked at last, and is not safe for concurrent use.
type ServerViewer struct {
	s      *Server
	room   *Room
	server string
	known  map[snapshot.Ref]bool
}

// maxServerViews bounds ServerViewer.known.
const maxServerViews = 1000

// ServerViewer returns the view of a server on a room.
func (s *Server) ServerViewer(room *Room, server string) *ServerViewer {
	return &ServerViewer{s: s, room: room, server: server, known: map[snapshot.Ref]bool{}}
}

// Sees tells whether the server may see an event by the history visibility before or after it. Nobody sees messages that
// have expired.
func (v *ServerViewer) Sees(ctx context.Context, e *Event) (bool, error) {
	if e.Outlier() {
		return false, nil
	}
	if !e.IsState() {
		if expired, err := v.s.Expired(ctx, v.room, e.OriginServerTS); err != nil || expired {
			return false, err
		}
	}
	if pdu.ServerOf(e.Sender) == v.server {
		return true, nil
	}
	if e.Partial() && v.room.HasServer(v.server) { // whether it had a member is not known any better
		return true, nil
	}
	ok, err := v.allows(ctx, e.StateBefore)
	if err != nil || ok || e.StateAfter == e.StateBefore {
		return ok, err
	}
	if e.Type != "m.room.history_visibility" && (e.Type != "m.room.member" || pdu.ServerOf(*e.StateKey) != v.server) {
		return false, nil
	}
	return v.allows(ctx, e.StateAfter)
}

// SeesChild is Sees for a message of which only its place and the state before it are at hand; a state event is judged by
// what was before.
func (v *ServerViewer) SeesChild(ctx context.Context, c *Child) (bool, error) {
	if expired, err := v.s.Expired(ctx, v.room, c.OriginServerTS); err != nil || expired {
		return false, err
	}
	if pdu.ServerOf(c.Sender) == v.server {
		return true, nil
	}
	return v.allows(ctx, c.StateBefore)
}

// allows applies the history visibility of a state.
func (v *ServerViewer) allows(ctx context.Context, root snapshot.Ref) (ok bool, err error) {
	if ok, known := v.known[root]; known {
		return ok, nil
	}
	e, err := v.s.StateEvent(ctx, v.room, root, "m.room.history_visibility", "")
	if err != nil {
		return false, err
	}
	visibility := visibilityOf(e)
	if ok = visibility == WorldReadable || visibility == Shared; !ok {
		members, err := v.s.StateEventsOfType(ctx, v.room, root, "m.room.member")
		if err != nil {
			return false, err
		}
		ok = slices.ContainsFunc(members, func(m *Event) bool {
			is := m.Membership()
			return (is == Join || is == Invite && visibility == Invited) && pdu.ServerOf(*m.StateKey) == v.server
		})
	}
	if len(v.known) >= maxServerViews {
		clear(v.known)
	}
	v.known[root] = ok
	return ok, nil
}

// FindEvent returns an event by its id alone, and its room. It returns ErrUnknownEvent where there is none.
func (s *Server) FindEvent(ctx context.Context, id string) (*Room, *Event, error) {
	nids, err := storage.ReadList[int64](ctx, s.db, `SELECT room FROM events WHERE event_id = $1 LIMIT 8`, eventKey(id))
	if err != nil {
		return nil, nil, fmt.Errorf("find %s: %w", id, err)
	}
	for _, nid := range nids {
		room, err := s.RoomByNID(ctx, nid)
		if errors.Is(err, ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		e, err := s.Event(ctx, room, id)
		if errors.Is(err, ErrUnknownEvent) {
			continue
		}
		return room, e, err
	}
	return nil, nil, ErrUnknownEvent
}

// Ancestors walks back from events of a room over their parents, the latest by depth first, and returns up to limit
// events that have a state, in that order: those that it starts from only if with is set, none of those in stop, and
// nothing that is only behind these. Rejected events are passed through and not returned.
func (s *Server) Ancestors(ctx context.Context, room *Room, from, stop []string, with bool, limit int) ([]*Event, error) {
	w := walkBack{s: s, room: room, seen: map[string]bool{}}
	for _, id := range stop {
		w.seen[id] = true
	}
	start := map[string]bool{}
	for _, id := range from {
		start[id] = true
		if with {
			if err := w.push(ctx, id); err != nil {
				return nil, err
			}
			continue
		}
		w.seen[id] = true
		e, err := s.Event(ctx, room, id)
		if errors.Is(err, ErrUnknownEvent) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := w.push(ctx, e.PrevEventIDs()...); err != nil {
			return nil, err
		}
	}
	var out []*Event
	for looked := 0; len(w.queue) > 0 && len(out) < limit && looked < 10*limit; looked++ {
		e := w.pop()
		if !e.Rejected() {
			out = append(out, e)
		}
		if err := w.push(ctx, e.PrevEventIDs()...); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// walkBack is the front of Ancestors.
type walkBack struct {
	s     *Server
	room  *Room
	seen  map[string]bool
	queue []*Event
}

func (w *walkBack) push(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if w.seen[id] {
			continue
		}
		w.seen[id] = true
		e, err := w.s.Event(ctx, w.room, id)
		if errors.Is(err, ErrUnknownEvent) || err == nil && e.Outlier() {
			continue
		}
		if err != nil {
			return err
		}
		w.queue = append(w.queue, e)
	}
	return nil
}

// pop takes the deepest event. The queue is short: the width of the graph.
func (w *walkBack) pop() *Event {
	best := 0
	for i, e := range w.queue {
		if b := w.queue[best]; e.Depth > b.Depth || e.Depth == b.Depth && b.Token().Before(e.Token()) {
			best = i
		}
	}
	e := w.queue[best]
	w.queue = slices.Delete(w.queue, best, best+1)
	return e
}
