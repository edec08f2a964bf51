package roomserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// Detached judges events of a room that another server told of and that have no place in its history here, with the auth
// events that came with them. The caller has checked the signatures of all. It returns those of the events that are
// allowed by their auth events, and stores nothing: they have no number, state or place, and are outliers in this sense. It
// remembers their room for a while (RoomOfDetached).
func (s *Server) Detached(ctx context.Context, room *Room, events, auth []*pdu.Event) ([]*Event, error) {
	d := detaching{s: s, room: room, given: make(map[string]*pdu.Event, len(auth)), judged: map[string]*Event{}}
	for _, p := range auth {
		if p.RoomID == room.ID {
			d.given[p.ID] = p
		}
	}
	if room.Version.RoomIDIsCreateHash {
		var err error
		if d.create, err = d.find(ctx, "$"+room.ID[1:]); err != nil {
			return nil, err
		}
	}
	var out []*Event
	for _, p := range events {
		if p.RoomID != room.ID {
			continue
		}
		e, err := d.judge(ctx, p)
		if err != nil {
			return nil, err
		}
		if e != nil && !e.Rejected() {
			out = append(out, e)
			s.detached.Put(e.ID, room.NID, 1)
		}
	}
	return out, nil
}

// maxDetached is of how many detached events the room is remembered.
const maxDetached = 50_000

// RoomOfDetached returns the number of the room of a detached event, as long as that is remembered.
func (s *Server) RoomOfDetached(id string) (nid int64, ok bool) { return s.detached.Get(id) }

// detaching is what Detached knows meanwhile.
type detaching struct {
	s      *Server
	room   *Room
	create *Event // where the room's id names it
	given  map[string]*pdu.Event
	judged map[string]*Event // by id; nil for what cannot be judged, or is being judged
}

// find returns an auth event that this server has, or one of those given; nil if it cannot be judged.
func (d *detaching) find(ctx context.Context, id string) (*Event, error) {
	if e, ok := d.judged[id]; ok {
		return e, nil
	}
	e, err := d.s.Event(ctx, d.room, id)
	if err == nil {
		d.judged[id] = e
		return e, nil
	}
	if !errors.Is(err, ErrUnknownEvent) {
		return nil, fmt.Errorf("look for %s: %w", id, err)
	}
	p := d.given[id]
	if p == nil {
		d.judged[id] = nil
		return nil, nil
	}
	return d.judge(ctx, p)
}

// judge applies the rules to an event with its auth events; nil if one of those is missing.
func (d *detaching) judge(ctx context.Context, p *pdu.Event) (*Event, error) {
	d.judged[p.ID] = nil // what comes back to it on the way is a loop
	var auth []*Event
	for _, id := range p.AuthEventIDs() {
		a, err := d.find(ctx, id)
		if err != nil || a == nil {
			return nil, err
		}
		auth = append(auth, a)
	}
	reason, err := refusedBy(p, auth, d.create)
	if err != nil {
		return nil, fmt.Errorf("judge %s: %w", p.ID, err)
	}
	e := &Event{Event: p, RoomNID: d.room.NID, flags: flagOutlier}
	if reason != nil {
		e.flags |= flagRejected
	}
	d.judged[p.ID] = e
	return e, nil
}

// RedactDetached returns a detached event as readers see it now: redacted, if a redaction has come that waits for it.
func (s *Server) RedactDetached(ctx context.Context, room *Room, e *Event) (*Event, error) {
	nids, err := storage.ReadList[int64](ctx, s.db, `SELECT redaction FROM redactions WHERE room = $1 AND target = $2 ORDER BY redaction`, room.NID, eventKey(e.ID))
	if err != nil {
		return nil, fmt.Errorf("redactions of %s: %w", e.ID, err)
	}
	if len(nids) == 0 || e.Type == "m.room.create" {
		return e, nil
	}
	redactions, err := s.eventsByNID(ctx, room, nids)
	if err != nil {
		return nil, err
	}
	for _, by := range redactions {
		if by.Rejected() || by.SoftFailed() {
			continue
		}
		levels, err := s.LevelsAt(ctx, room, by.StateBefore)
		if err != nil {
			return nil, fmt.Errorf("power levels at %s: %w", by.ID, err)
		}
		if authrules.CanRedact(by.Event, e.Event, levels) {
			return e.redactedBy(by), nil
		}
	}
	return e, nil
}

// SeesDetached tells whether the user may see an event whose state is not known here, which goes by what is certain: the
// user is joined, and has been since before the event, or all members have seen history since before it; messages have
// not expired, and were not purged. Before means a lower depth, as the event's sender had it.
func (v *Viewer) SeesDetached(ctx context.Context, e *Event) (bool, error) {
	if e.Rejected() || v.joinedUntil != maxPosition || e.Type == dummyType {
		return false, nil
	}
	if !e.IsState() {
		purged, err := v.s.Purged(ctx, v.room)
		if err != nil || e.OriginServerTS < max(v.horizon, purged.Before) {
			return false, err
		}
	}
	root := v.room.Head().State
	member, err := v.s.StateEvent(ctx, v.room, root, "m.room.member", v.user)
	if err != nil || member != nil && member.Membership() == Join && member.Depth < e.Depth {
		return err == nil, err
	}
	visibility, err := v.s.StateEvent(ctx, v.room, root, "m.room.history_visibility", "")
	if err != nil {
		return false, err
	}
	open := visibilityOf(visibility)
	return (open == Shared || open == WorldReadable) && (visibility == nil || visibility.Depth < e.Depth), nil
}
