package roomserver

import (
	"context"

	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// History visibilities (client-server API v1.19, "Room history visibility").
const (
	WorldReadable = "world_readable"
	Shared        = "shared"
	Invited       = "invited"
	Joined        = "joined"
)

// visibilityOf returns what an m.room.history_visibility event sets; nil and unknown values mean shared.
func visibilityOf(e *Event) string {
	if e != nil {
		switch v := contentString(e, "history_visibility"); v {
		case WorldReadable, Invited, Joined:
			return v
		}
	}
	return Shared
}

// Viewer decides which events of one room one user may see. It remembers the last state that it looked
// at, since neighbours in a timeline mostly share it. It is not safe for concurrent use.
type Viewer struct {
	s    *Server
	room *Room
	user string
	// joinedUntil is the last position at which the user was joined (MaxInt64: still is); 0: never.
	joinedUntil int64
	// horizon is the origin_server_ts before which messages have expired.
	horizon int64

	root       snapshot.Ref
	known      bool
	visibility string
	membership string
	// after is the membership at afterRoot; "" before it was asked for.
	afterRoot snapshot.Ref
	after     string
}

// Viewer returns the view of a user on a room, from what the user is and was at position upTo.
func (s *Server) Viewer(ctx context.Context, room *Room, user string, upTo int64) (*Viewer, error) {
	v := &Viewer{s: s, room: room, user: user}
	root, err := s.StateAt(ctx, room, upTo)
	if err != nil {
		return nil, err
	}
	if v.horizon, err = s.Horizon(ctx, room); err != nil {
		return nil, err
	}
	// Walk the user's membership events back to the last time they were joined.
	until := int64(maxPosition)
	for range maxMembershipWalk {
		e, err := s.StateEvent(ctx, room, root, "m.room.member", user)
		if err != nil {
			return nil, err
		}
		if e == nil {
			break
		}
		if e.Membership() == Join {
			v.joinedUntil = until
			break
		}
		until, root = e.Anchor, e.StateBefore
	}
	return v, nil
}

// JoinedUntil is the position of the event that ended the user's last stay in the room, MaxInt64 while it lasts, and 0
// for someone who was never joined.
func (v *Viewer) JoinedUntil() int64 { return v.joinedUntil }

// maxMembershipWalk bounds how many membership events of one user Viewer looks through.
const maxMembershipWalk = 100

const maxPosition = 1<<63 - 1

// look reads visibility and membership at a root.
func (v *Viewer) look(ctx context.Context, root snapshot.Ref) error {
	if v.known && v.root == root {
		return nil
	}
	e, err := v.s.StateEvent(ctx, v.room, root, "m.room.history_visibility", "")
	if err != nil {
		return err
	}
	v.visibility = visibilityOf(e)
	if v.membership, err = v.s.MembershipAt(ctx, v.room, root, v.user); err != nil {
		return err
	}
	v.root, v.known = root, true
	return nil
}

// Sees tells whether the user may see an event.
func (v *Viewer) Sees(ctx context.Context, e *Event) (bool, error) {
	if e.Rejected() || e.SoftFailed() || e.Outlier() || e.Type == dummyType || e.OriginServerTS < v.horizon && !e.IsState() {
		return false, nil
	}
	if err := v.look(ctx, e.StateBefore); err != nil {
		return false, err
	}
	if v.allows(e.Anchor) || e.StateAfter == e.StateBefore {
		return v.allows(e.Anchor), nil
	}
	// A change of visibility or of the user's own membership is judged before and after.
	if e.Type != "m.room.history_visibility" && (e.Type != "m.room.member" || *e.StateKey != v.user) {
		return false, nil
	}
	if err := v.look(ctx, e.StateAfter); err != nil {
		return false, err
	}
	return v.allows(e.Anchor), nil
}

// SeesChild tells whether the user may see an event of which only its place and the state before it are at hand. A
// state event that lets the user in is judged by what was before. Without an OriginServerTS, it is not asked whether the
// event has expired.
func (v *Viewer) SeesChild(ctx context.Context, c *Child) (bool, error) {
	if c.OriginServerTS < v.horizon && c.OriginServerTS != 0 {
		return false, nil
	}
	if err := v.look(ctx, c.StateBefore); err != nil {
		return false, err
	}
	return v.allows(c.Anchor), nil
}

// allows applies the rules to the visibility and membership last looked at.
func (v *Viewer) allows(anchor int64) bool {
	if v.membership == Join || v.visibility == WorldReadable {
		return true
	}
	switch v.visibility {
	case Shared:
		return anchor <= v.joinedUntil
	case Invited:
		return v.membership == Invite
	}
	return false
}

// membershipAfter is the user's membership right after an event (MSC4115, unsigned.membership).
func (v *Viewer) membershipAfter(ctx context.Context, e *Event) (string, error) {
	if v.known && v.root == e.StateAfter {
		return v.membership, nil
	}
	if v.after == "" || v.afterRoot != e.StateAfter {
		m, err := v.s.MembershipAt(ctx, v.room, e.StateAfter, v.user)
		if err != nil {
			return "", err
		}
		v.afterRoot, v.after = e.StateAfter, m
	}
	return v.after, nil
}

// Filter returns the events that the user may see, in the same order.
func (v *Viewer) Filter(ctx context.Context, events []*Event) ([]*Event, error) {
	for i, e := range events {
		ok, err := v.Sees(ctx, e)
		if err != nil {
			return nil, err
		}
		if ok {
			continue
		}
		kept := append(make([]*Event, 0, len(events)), events[:i]...)
		for _, e := range events[i+1:] {
			if ok, err = v.Sees(ctx, e); err != nil {
				return nil, err
			} else if ok {
				kept = append(kept, e)
			}
		}
		return kept, nil
	}
	return events, nil
}

// HistoryVisibility returns the room's history visibility at a root.
func (s *Server) HistoryVisibility(ctx context.Context, room *Room, root snapshot.Ref) (string, error) {
	e, err := s.StateEvent(ctx, room, root, "m.room.history_visibility", "")
	if err != nil {
		return "", err
	}
	return visibilityOf(e), nil
}
