package roomserver

import (
	"context"
	"errors"
)

// AuthChain returns the events that authorise some events of a room, and those that authorise them, and so on: the
// events themselves only where others of them cite them. Auth events that this server does not know are left out.
func (s *Server) AuthChain(ctx context.Context, room *Room, events []*Event) ([]*Event, error) {
	seen := map[int64]bool{}
	var nids, next []int64
	visit := func(nid int64) {
		if !seen[nid] {
			seen[nid] = true
			next = append(next, nid)
		}
	}
	if err := s.eachAuthEvent(ctx, room, events, visit); err != nil {
		return nil, err
	}
	if room.Version.RoomIDIsCreateHash { // which every event cites by its room_id
		create, err := s.Event(ctx, room, "$"+room.ID[1:])
		if err != nil {
			return nil, err
		}
		visit(create.NID)
	}
	for len(next) > 0 {
		level := next
		next = nil
		nids = append(nids, level...)
		found, err := s.eventsByNID(ctx, room, level)
		if err != nil {
			return nil, err
		}
		if err := s.eachAuthEvent(ctx, room, found, visit); err != nil {
			return nil, err
		}
	}
	return s.eventsByNID(ctx, room, nids)
}

// eachAuthEvent visits the auth events of some events. The index of auth chains has them for state events.
func (s *Server) eachAuthEvent(ctx context.Context, room *Room, events []*Event, visit func(nid int64)) error {
	var ids []string
	for _, e := range events {
		if e.IsState() && !e.Rejected() {
			nids, err := room.chains.AuthEvents(ctx, e.NID)
			if err != nil {
				return err
			}
			for _, nid := range nids {
				visit(nid)
			}
			continue
		}
		ids = append(ids, e.AuthEventIDs()...)
	}
	for _, id := range ids {
		e, err := s.Event(ctx, room, id)
		if errors.Is(err, ErrUnknownEvent) {
			continue
		}
		if err != nil {
			return err
		}
		visit(e.NID)
	}
	return nil
}
