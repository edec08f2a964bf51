package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// StateAt returns the root of the room's current resolved state as of a log position, 0 (the empty state)
// before the room's first event.
func (s *Server) StateAt(ctx context.Context, room *Room, pos int64) (snapshot.Ref, error) {
	head := room.Head()
	if root, ok := room.changes.at(pos, head.State); ok {
		return root, nil
	}
	var root int64
	_, err := s.db.Get(ctx, `SELECT new_root FROM state_log WHERE room = $1 AND pos <= $2 ORDER BY pos DESC LIMIT 1`, []any{room.NID, pos}, &root)
	if err != nil {
		return 0, fmt.Errorf("state of %s at %d: %w", room.ID, pos, err)
	}
	return snapshot.Ref(root), nil
}

// StateEvent returns the state event of a type and key at a root, or nil where there is none.
func (s *Server) StateEvent(ctx context.Context, room *Room, root snapshot.Ref, typ, key string) (*Event, error) {
	nid, err := s.tree(room, root).Get(ctx, typ, key)
	if err != nil || nid == 0 {
		return nil, err
	}
	return s.eventByNID(ctx, room, nid)
}

// StateEvents returns all state events at a root, in no particular order.
func (s *Server) StateEvents(ctx context.Context, room *Room, root snapshot.Ref) ([]*Event, error) {
	var nids []int64
	err := s.tree(room, root).Walk(ctx, func(nid int64) error { nids = append(nids, nid); return nil })
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", room.ID, err)
	}
	return s.eventsByNID(ctx, room, nids)
}

// StateEventsOfType returns the state events of one type at a root, in no particular order.
func (s *Server) StateEventsOfType(ctx context.Context, room *Room, root snapshot.Ref, typ string) ([]*Event, error) {
	var nids []int64
	err := s.tree(room, root).WalkType(ctx, typ, func(nid int64) error { nids = append(nids, nid); return nil })
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", room.ID, err)
	}
	return s.eventsByNID(ctx, room, nids)
}

// StateEventsBut returns the state events at a root of all types but one, in no particular order. Of a large room, all but
// m.room.member are few.
func (s *Server) StateEventsBut(ctx context.Context, room *Room, root snapshot.Ref, typ string) ([]*Event, error) {
	var nids []int64
	err := s.tree(room, root).WalkOthers(ctx, typ, func(nid int64) error { nids = append(nids, nid); return nil })
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", room.ID, err)
	}
	return s.eventsByNID(ctx, room, nids)
}

// StateDelta is one key in which two states differ: Old is nil where the key is new, New is nil
// where it is gone (which only state resolution does).
type StateDelta struct{ Old, New *Event }

// StateDiff returns what changed from one state of a room to another. The cost grows with the
// difference and not with the room.
func (s *Server) StateDiff(ctx context.Context, room *Room, from, to snapshot.Ref) ([]StateDelta, error) {
	if from == to {
		return nil, nil
	}
	var pairs [][2]int64
	err := s.tree(room, from).Diff(ctx, to, func(old, new int64) error {
		pairs = append(pairs, [2]int64{old, new})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare states of %s: %w", room.ID, err)
	}
	nids := make([]int64, 0, 2*len(pairs))
	for _, p := range pairs {
		for _, nid := range p {
			if nid != 0 {
				nids = append(nids, nid)
			}
		}
	}
	events, err := s.eventsByNID(ctx, room, nids)
	if err != nil {
		return nil, err
	}
	out := make([]StateDelta, len(pairs))
	for i, p := range pairs {
		if p[0] != 0 {
			out[i].Old, events = events[0], events[1:]
		}
		if p[1] != 0 {
			out[i].New, events = events[0], events[1:]
		}
	}
	return out, nil
}

// MembershipAt returns a user's membership at a root, Leave where there is no membership event.
func (s *Server) MembershipAt(ctx context.Context, room *Room, root snapshot.Ref, user string) (string, error) {
	e, err := s.StateEvent(ctx, room, root, "m.room.member", user)
	if err != nil || e == nil {
		return Leave, err
	}
	return e.Membership(), nil
}
