package roomserver

import (
	"context"
	"errors"
	"slices"

	"github.com/tidwall/gjson"
)

// Arrived returns up to limit events that arrived in the room at positions in (after, upTo], oldest first. What was
// backfilled did not arrive and is not among them.
func (s *Server) Arrived(ctx context.Context, room *Room, after, upTo int64, limit int) ([]*Event, error) {
	if err := s.fillRecent(ctx, room); err != nil {
		return nil, err
	}
	if events, covered := room.recent.since(after, upTo); covered {
		return events[:min(limit, len(events))], nil
	}
	return s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events
		WHERE room = $1 AND anchor IS NOT NULL AND anchor > $2 AND anchor <= $3 AND sub = 0
		ORDER BY anchor LIMIT $4`, room.NID, after, upTo, int64(limit))
}

// Latest returns the event that arrived at a position, if the room has it at hand, else nil. It never reads from
// the database.
func (r *Room) Latest(pos int64) *Event {
	r.recent.mu.RLock()
	defer r.recent.mu.RUnlock()
	for _, e := range slices.Backward(r.recent.events) {
		if e.Anchor <= pos {
			if e.Anchor == pos {
				return e
			}
			break
		}
	}
	return nil
}

// byID returns an event of the ring, or nil.
func (t *timelineRing) byID(id string) *Event {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, e := range slices.Backward(t.events) {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// RedactionTarget returns the event that a redaction redacts, or nil if e is no redaction or has no effect (yet).
func (s *Server) RedactionTarget(ctx context.Context, room *Room, e *Event) (*Event, error) {
	id := e.Redacts()
	if id == "" {
		return nil, nil
	}
	target, err := s.Event(ctx, room, id)
	if errors.Is(err, ErrUnknownEvent) {
		return nil, nil
	}
	if err != nil || target.redaction == nil || target.redaction.NID != e.NID {
		return nil, err
	}
	return target, nil
}

// Relation is the m.relates_to of an event: rel_type and event_id, empty where they are missing or no strings.
type Relation struct{ Type, EventID string }

// Relation is how the event relates to another one. A redacted event keeps the relation that it had while this server
// remembers it: where a conversation was read does not change with what was said there.
func (e *Event) Relation() Relation {
	if e.relation != nil {
		return *e.relation
	}
	r := gjson.ParseBytes(e.ContentField("m.relates_to"))
	if !r.IsObject() {
		return Relation{}
	}
	text := func(name string) string {
		if v := r.Get(name); v.Type == gjson.String {
			return v.Str
		}
		return ""
	}
	return Relation{text("rel_type"), text("event_id")}
}

// maxHops is how far relations are followed to find a thread: "a maximum of 3 hops".
const maxHops = 3

// ThreadRoot returns the event ID of the root of the thread to which an event belongs, or "" for the main timeline.
// Thread roots, and what relates to a root in other ways than by m.thread, are part of the main timeline.
//
// Spec: client-server API v1.19, "Threaded read receipts".
func (s *Server) ThreadRoot(ctx context.Context, room *Room, e *Event) (string, error) {
	for hops := 0; ; hops++ {
		r := e.Relation()
		switch {
		case r.Type == "" || r.EventID == "":
			return "", nil
		case r.Type == "m.thread":
			return r.EventID, nil
		case hops == maxHops:
			return "", nil
		}
		parent, err := s.Event(ctx, room, r.EventID)
		if errors.Is(err, ErrUnknownEvent) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		e = parent
	}
}
