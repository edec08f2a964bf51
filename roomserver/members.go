package roomserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// Memberships of a room, as in m.room.member content.
const (
	Join   = "join"
	Invite = "invite"
	Knock  = "knock"
	Leave  = "leave"
	Ban    = "ban"
)

// memberChange is one membership that a unit changes.
type memberChange struct {
	user     string
	old, new string // "" where there was no membership event
	event    *Event
	offset   int // position within the unit
}

// memberIndex is what a room knows of its current members without looking at its state: counts, the
// local joined users (whom a commit wakes) and the servers (whom federation tells).
type memberIndex struct {
	mu      sync.RWMutex
	root    snapshot.Ref // of the state that all of this is true of
	joined  int
	invited int
	gone    int // left or banned
	local   map[string]struct{}
	servers map[string]int
}

// begin makes the index that of a state with the given root, whose members are yet to be counted.
func (m *memberIndex) begin(root snapshot.Ref) {
	m.root = root
	m.local, m.servers = map[string]struct{}{}, map[string]int{}
}

// count adds d users of a membership.
func (m *memberIndex) count(s *Server, user, membership string, d int) {
	switch membership {
	case Invite:
		m.invited += d
	case Leave, Ban:
		m.gone += d
	case Join:
		m.joined += d
		_, server, _ := strings.Cut(user, ":")
		if m.servers[server] += d; m.servers[server] == 0 {
			delete(m.servers, server)
		}
		if server != s.name {
			return
		}
		if d > 0 {
			m.local[user] = struct{}{}
		} else {
			delete(m.local, user)
		}
	}
}

// apply advances the index by what a unit changed, after which the state has the given root.
func (m *memberIndex) apply(s *Server, changes []memberChange, root snapshot.Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.root = root
	for _, c := range changes {
		m.count(s, c.user, c.old, -1)
		m.count(s, c.user, c.new, 1)
	}
}

// MemberCounts are the numbers of joined and invited members of the durable state.
func (r *Room) MemberCounts() (joined, invited int) {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	return r.members.joined, r.members.invited
}

// JoinedAt is the number of joined members, and the root of the state in which there are so many.
func (r *Room) JoinedAt() (joined int, root snapshot.Ref) {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	return r.members.joined, r.members.root
}

// MemberCountsAt are the numbers of joined and invited members of the state with a root. The cost grows with how many
// memberships differ from those of now.
func (s *Server) MemberCountsAt(ctx context.Context, room *Room, root snapshot.Ref) (joined, invited int, err error) {
	room.members.mu.RLock()
	joined, invited = room.members.joined, room.members.invited
	now := room.members.root
	room.members.mu.RUnlock()
	if now == root {
		return joined, invited, nil
	}
	var there, here []int64
	err = s.tree(room, root).DiffType(ctx, now, "m.room.member", func(old, new int64) error {
		if old != 0 {
			there = append(there, old)
		}
		if new != 0 {
			here = append(here, new)
		}
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("compare members of %s: %w", room.ID, err)
	}
	count := func(nids []int64, d int) error {
		events, err := s.eventsByNID(ctx, room, nids)
		for _, e := range events {
			switch e.Membership() {
			case Join:
				joined += d
			case Invite:
				invited += d
			}
		}
		return err
	}
	if err := count(there, 1); err != nil {
		return 0, 0, err
	}
	return joined, invited, count(here, -1)
}

// LocalMembers appends the local joined users to dst, in no order.
func (r *Room) LocalMembers(dst []string) []string {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	dst = slices.Grow(dst, len(r.members.local))
	for u := range r.members.local {
		dst = append(dst, u)
	}
	return dst
}

// HasLocalMember tells whether a local user is joined to the room, by its durable state.
func (r *Room) HasLocalMember(user string) bool {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	_, ok := r.members.local[user]
	return ok
}

// Servers returns the names of the servers with a joined member, in no order. While the members are not all known, those
// that were in the room when it was entered are among them.
func (r *Room) Servers() []string {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	out := make([]string, 0, len(r.members.servers))
	for name := range r.members.servers {
		out = append(out, name)
	}
	return r.Partial().serversAnd(out)
}

// heroCount is how many members a room without a name is named after.
const heroCount = 5

// Heroes returns the users after whom a room without a name is named: the first joined or invited members except
// the reader, else those who left (client-server API v1.19, "Calculating the display name for a room").
func (s *Server) Heroes(ctx context.Context, room *Room, reader string) ([]string, error) {
	heroes, classes := []string{}, room.heroClasses(reader)
	if len(classes) == 0 {
		return heroes, nil
	}
	err := s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		for _, pair := range classes {
			heroes, err = storage.List[string](tx, `SELECT user_id FROM room_members
				WHERE room = $1 AND user_id <> $2 AND (membership = $3 OR membership = $4) ORDER BY event LIMIT $5`,
				room.NID, reader, pair[0], pair[1], int64(heroCount))
			if err != nil || len(heroes) > 0 {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("heroes of %s: %w", room.ID, err)
	}
	return heroes, nil
}

// heroClasses are the pairs of memberships among which Heroes looks: none that nobody but the reader has.
func (r *Room) heroClasses(reader string) (classes [][2]string) {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	others := r.members.joined + r.members.invited
	if _, joined := r.members.local[reader]; joined {
		others--
	}
	if others > 0 {
		classes = append(classes, [2]string{Join, Invite})
	}
	if r.members.gone > 0 {
		classes = append(classes, [2]string{Leave, Ban})
	}
	return classes
}

// Resident tells whether this server takes part in the room, so that it hears of what happens there: a local user is
// joined, or nobody is any more, as far as is known. Of other rooms it only knows a past.
func (r *Room) Resident() bool {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	return len(r.members.local) > 0 || len(r.members.servers) == 0 && !r.partial.Load().populated()
}

// HasServer tells whether a server is one of Servers.
func (r *Room) HasServer(name string) bool {
	if p := r.Partial(); p != nil && slices.Contains(p.Servers, name) {
		return true
	}
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	return r.members.servers[name] > 0
}

// shared tells whether there are joined members of other servers than ours.
func (r *Room) shared(ours string) bool {
	r.members.mu.RLock()
	defer r.members.mu.RUnlock()
	return len(r.members.servers) > 1 || len(r.members.servers) == 1 && r.members.servers[ours] == 0
}
