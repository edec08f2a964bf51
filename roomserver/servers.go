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
	return s.Audience(room).at(ctx, root)
}

// Audience finds out who is to be sent the events of a room. Asked about one after the other, it costs what the states before
// them differ from each other, however far they are from the current one. It is for one goroutine.
type Audience struct {
	s    *Server
	room *Room
	// root is the last state that was not the current one, servers how many joined members of each it has; nil before.
	root    snapshot.Ref
	servers map[string]int
}

// Audience begins to ask about the events of a room.
func (s *Server) Audience(room *Room) *Audience { return &Audience{s: s, room: room} }

// at returns the servers that have a joined member in the state of a root.
func (a *Audience) at(ctx context.Context, root snapshot.Ref) ([]string, error) {
	m := &a.room.members
	m.mu.RLock()
	if m.root == root {
		defer m.mu.RUnlock()
		return slices.Collect(maps.Keys(m.servers)), nil
	}
	if a.servers == nil {
		a.root, a.servers = m.root, maps.Clone(m.servers)
	}
	m.mu.RUnlock()
	changed, err := a.s.StateDiff(ctx, a.room, a.root, root)
	if err != nil {
		return nil, err
	}
	for _, c := range changed {
		a.count(c.Old, -1)
		a.count(c.New, 1)
	}
	a.root = root
	servers := make([]string, 0, len(a.servers))
	for name, n := range a.servers {
		if n > 0 {
			servers = append(servers, name)
		}
	}
	return servers, nil
}

// count adds n members to the server of a join.
func (a *Audience) count(e *Event, n int) {
	if e == nil || e.Type != pdu.TypeMember || e.Membership() != Join {
		return
	}
	name := pdu.ServerOf(*e.StateKey)
	if a.servers[name] += n; a.servers[name] == 0 {
		delete(a.servers, name)
	}
}

// Recipients returns the servers that are to be sent an event, as an Audience does for one of many.
func (s *Server) Recipients(ctx context.Context, room *Room, e *Event) ([]string, error) {
	return s.Audience(room).Of(ctx, e)
}

// Of returns the servers that are to be sent an event: those that had a joined member before it and, where it
// ends an invite or a knock, that of the user concerned. Our own is not among them. While the members are not all known,
// those that were in the room when it was entered count as well.
//
// spec: server-server-api v1.19 "PDUs"
func (a *Audience) Of(ctx context.Context, e *Event) ([]string, error) {
	s, room := a.s, a.room
	partial := room.Partial()
	if e.Partial() && partial == nil { // the members have become known since it was read
		var err error
		if e, err = s.eventByNID(ctx, room, e.NID); err != nil {
			return nil, err
		}
	}
	servers, err := a.at(ctx, e.StateBefore)
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
