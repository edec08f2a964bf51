package roomserver

import (
	"context"
	"maps"
	"slices"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// ServersAt returns the servers that have a joined member in the state of a root, in no order. It costs what that state
// differs from the current one.
func (s *Server) ServersAt(ctx context.Context, room *Room, root snapshot.Ref) ([]string, error) {
	m := &room.members
	m.mu.RLock()
	at, counts := m.root, m.servers
	if at != root {
		counts = maps.Clone(counts)
	}
	if at == root {
		defer m.mu.RUnlock()
		return slices.Collect(maps.Keys(counts)), nil
	}
	m.mu.RUnlock()
	changed, err := s.StateDiff(ctx, room, at, root)
	if err != nil {
		return nil, err
	}
	count := func(e *Event, d int) {
		if e != nil && e.Type == pdu.TypeMember && e.Membership() == Join {
			counts[pdu.ServerOf(*e.StateKey)] += d
		}
	}
	for _, c := range changed {
		count(c.Old, -1)
		count(c.New, 1)
	}
	servers := make([]string, 0, len(counts))
	for name, n := range counts {
		if n > 0 {
			servers = append(servers, name)
		}
	}
	return servers, nil
}

// Recipients returns the servers that are to be sent an event: those that had a joined member before it and, where it
// ends an invite or a knock, that of the user concerned. Our own is not among them. While the members are not all known,
// those that were in the room when it was entered count as well.
//
// spec: server-server-api v1.19 "PDUs"
func (s *Server) Recipients(ctx context.Context, room *Room, e *Event) ([]string, error) {
	partial := room.Partial()
	if e.Partial() && partial == nil { // the members have become known since it was read
		var err error
		if e, err = s.eventByNID(ctx, room, e.NID); err != nil {
			return nil, err
		}
	}
	servers, err := s.ServersAt(ctx, room, e.StateBefore)
	if err != nil {
		return nil, err
	}
	if e.Partial() {
		servers = partial.serversAnd(servers)
	}
	if m := e.Membership(); (m == Leave || m == Ban) && !s.IsLocal(*e.StateKey) {
		before, err := s.MembershipAt(ctx, room, e.StateBefore, *e.StateKey)
		if err != nil {
			return nil, err
		}
		server := pdu.ServerOf(*e.StateKey)
		if (before == Invite || before == Knock) && !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return slices.DeleteFunc(servers, func(name string) bool { return name == s.name }), nil
}
