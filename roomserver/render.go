package roomserver

import (
	"context"
	"slices"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// rendering is the client form of an event that all readers share; what differs per reader is spliced in.
type rendering struct {
	// body is the event object without unsigned and room_id and without the closing brace.
	body []byte
	// unsigned are the members of unsigned that do not depend on the reader, without braces.
	unsigned []byte
	// epoch is the redaction epoch in which it was made, if unsigned quotes another event: that one may
	// be redacted later. 0 otherwise.
	epoch uint64
}

// Reader says for whom events are rendered.
type Reader struct {
	// User and Device decide on transaction_id.
	User, Device string
	// RoomID includes room_id, which /sync leaves out.
	RoomID bool
	// Now is the time to which age refers, in milliseconds.
	Now int64
	// Membership, if set, gives unsigned.membership.
	Membership *Viewer
	// Erased, if set, tells which senders asked for erasure: where Membership says that the reader was not in the room
	// then, their events are shown redacted (client-server API v1.19, "Account deactivation").
	Erased func(ctx context.Context, user string) (bool, error)
	// Relations, if set, gives the m.relations member of unsigned for an event, or nil.
	Relations func(*Event) []byte
	// Unsigned, if set, gives more members of unsigned, each with a comma before it.
	Unsigned func(*Event) []byte
}

// AppendClientEvent appends the client form of an event to dst (client-server API v1.19, "Room event format").
func (s *Server) AppendClientEvent(ctx context.Context, dst []byte, room *Room, e *Event, r *Reader) ([]byte, error) {
	shared, err := s.render(ctx, room, e)
	if err != nil {
		return dst, err
	}
	hidden, err := r.hides(ctx, e)
	if err != nil {
		return dst, err
	}
	if hidden {
		dst = e.Redact().AppendClient(dst)
	} else {
		dst = append(dst, shared.body...)
	}
	if r.RoomID {
		dst = append(dst, `,"room_id":`...)
		dst = canonicaljson.AppendString(dst, room.ID)
	}
	dst = append(dst, `,"unsigned":{"age":`...)
	dst = strconv.AppendInt(dst, r.Now-e.OriginServerTS, 10)
	dst = append(dst, shared.unsigned...)
	if e.TxnID != "" && r.Device == e.TxnDevice && r.User == e.Sender {
		dst = append(dst, `,"transaction_id":`...)
		dst = canonicaljson.AppendString(dst, e.TxnID)
	}
	if e.DelayID != "" && r.User == e.Sender {
		dst = append(dst, `,"org.matrix.msc4140.delay_id":`...)
		dst = canonicaljson.AppendString(dst, e.DelayID)
	}
	if ttl := e.StickyUntil(r.Now) - r.Now; ttl > 0 {
		dst = append(dst, `,"msc4354_sticky_duration_ttl_ms":`...)
		dst = strconv.AppendInt(dst, ttl, 10)
	}
	if r.Membership != nil {
		m, err := r.Membership.membershipAfter(ctx, e)
		if err != nil {
			return dst, err
		}
		dst = append(dst, `,"membership":`...)
		dst = canonicaljson.AppendString(dst, m)
	}
	if r.Relations != nil && !hidden {
		if rel := r.Relations(e); rel != nil {
			dst = append(append(dst, `,"m.relations":`...), rel...)
		}
	}
	if r.Unsigned != nil {
		dst = append(dst, r.Unsigned(e)...)
	}
	return append(dst, "}}"...), nil
}

// hides tells whether the reader is shown only the redacted form of an event, because its sender asked for erasure.
func (r *Reader) hides(ctx context.Context, e *Event) (bool, error) {
	if r.Erased == nil || r.Membership == nil || e.IsState() {
		return false, nil
	}
	if erased, err := r.Erased(ctx, e.Sender); !erased || err != nil {
		return false, err
	}
	m, err := r.Membership.membershipAfter(ctx, e)
	return m != Join, err
}

// perReader is about how many bytes AppendClientEvent adds to what all readers are shown alike.
const perReader = 160

// AppendClientEvents appends a JSON array of events.
func (s *Server) AppendClientEvents(ctx context.Context, dst []byte, room *Room, events []*Event, r *Reader) ([]byte, error) {
	size := 2
	for _, e := range events {
		shared, err := s.render(ctx, room, e)
		if err != nil {
			return dst, err
		}
		size += len(shared.body) + len(shared.unsigned) + perReader
	}
	dst = append(slices.Grow(dst, size), '[')
	for i, e := range events {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = s.AppendClientEvent(ctx, dst, room, e, r); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

// render returns the shared rendering of an event, making it at the first time.
func (s *Server) render(ctx context.Context, room *Room, e *Event) (*rendering, error) {
	epoch := s.redactionEpoch.Load() + 1
	if r := e.rendered.Load(); r != nil && (r.epoch == 0 || r.epoch == epoch) {
		return r, nil
	}
	r := &rendering{body: e.AppendClient(nil)}
	if e.IsState() {
		if err := s.renderPrevious(ctx, room, e, r); err != nil {
			return nil, err
		}
		if len(r.unsigned) > 0 {
			r.epoch = epoch
		}
	}
	if e.redaction != nil {
		because, err := s.render(ctx, room, e.redaction)
		if err != nil {
			return nil, err
		}
		r.unsigned = append(r.unsigned, `,"redacted_because":`...)
		r.unsigned = append(append(r.unsigned, because.body...), `,"room_id":`...)
		r.unsigned = append(canonicaljson.AppendString(r.unsigned, room.ID), `},"redacted_by":`...)
		r.unsigned = canonicaljson.AppendString(r.unsigned, e.redaction.ID)
	}
	e.rendered.Store(r)
	return r, nil
}

// renderPrevious adds what a state event replaced.
func (s *Server) renderPrevious(ctx context.Context, room *Room, e *Event, r *rendering) error {
	if e.Outlier() {
		return nil
	}
	old, err := s.StateEvent(ctx, room, e.StateBefore, e.Type, *e.StateKey)
	if err != nil || old == nil {
		return err
	}
	r.unsigned = append(append(r.unsigned, `,"prev_content":`...), old.Content()...)
	r.unsigned = append(r.unsigned, `,"prev_sender":`...)
	r.unsigned = canonicaljson.AppendString(r.unsigned, old.Sender)
	r.unsigned = append(r.unsigned, `,"replaces_state":`...)
	r.unsigned = canonicaljson.AppendString(r.unsigned, old.ID)
	return nil
}

// strippedTypes are the state events that an invited or knocking user is shown
// (client-server API v1.19, "Stripped state").
var strippedTypes = []string{
	"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules",
	"m.room.canonical_alias", "m.room.encryption",
}

// Stripped returns the state that a user who is invited to the room or knocks on it is shown: the
// usual types, the user's own membership event and the member event of who sent that.
func (s *Server) Stripped(ctx context.Context, room *Room, membership *Event) ([]*Event, error) {
	root := membership.StateBefore
	if membership.Outlier() { // known only as part of the state with which this server entered the room
		root = room.Head().State
	}
	var out []*Event
	add := func(typ, key string) error {
		e, err := s.StateEvent(ctx, room, root, typ, key)
		if err == nil && e != nil {
			out = append(out, e)
		}
		return err
	}
	for _, typ := range strippedTypes {
		if err := add(typ, ""); err != nil {
			return nil, err
		}
	}
	if membership.Sender != *membership.StateKey {
		if err := add("m.room.member", membership.Sender); err != nil {
			return nil, err
		}
	}
	return append(out, membership), nil
}

// contentString returns a string member of an event's content, or "".
func contentString(e *Event, key string) string {
	if e == nil {
		return ""
	}
	v, _ := e.ContentString(key)
	return v
}
