package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// A room can be entered by an answer that leaves out nearly all memberships (MSC3706). Until the whole state at the entry
// has been fetched, the room is partial (MSC3902): events are judged by what is known and by what they cite, and each event
// whose state is computed from one without members is marked (Event.Partial). Then MakeWhole computes these states again.

// Partial says of a room that it was entered without most of its members. It is immutable.
type Partial struct {
	// RoomID is the room's id.
	RoomID string
	// Via is the server that let us in, Servers are those in the room before, as that one said; none once the state is whole.
	Via     string
	Servers []string
	// Since is the position of the entry, Until the one from which on the state is whole, 0 as long as it is not.
	Since, Until int64

	seen  []string      // servers that turned out to have been in the room since
	found []string      // those of them that are not among Servers; once the state is whole
	done  chan struct{} // closed when the state is whole, or will never be
}

// partialTable holds the rooms whose state is not whole, by number: who waits for one must find it also after the room was
// dropped from memory.
type partialTable struct {
	mu   sync.Mutex
	open map[int64]*Partial
}

func (t *partialTable) get(room int64) *Partial {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open[room]
}

// put replaces what is known of a room. Those who wait go on waiting until it is whole.
func (t *partialTable) put(room int64, p *Partial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.open[room]; old != nil {
		p.done = old.done
	}
	if p.done == nil {
		p.done = make(chan struct{})
	}
	if p.Until == 0 {
		t.open[room] = p
	} else {
		delete(t.open, room)
	}
}

// drop forgets a room that is gone.
func (t *partialTable) drop(room int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.open[room]; p != nil {
		delete(t.open, room)
		close(p.done)
	}
}

var (
	partialTableRows = storage.DeclareTable("partial_rooms", storage.Put,
		storage.Key("room", storage.Int), storage.Col("via", storage.Bytes), storage.Col("servers", storage.Bytes), storage.Col("seen", storage.Bytes),
		storage.Col("since", storage.Int), storage.Col("until", storage.Int), storage.Col("told", storage.Bool), storage.Col("found", storage.Bytes))
	givenTable = storage.DeclareTable("partial_given", storage.Put,
		storage.Key("room", storage.Int), storage.Key("event", storage.Int), storage.Key("n", storage.Int), storage.Col("root", storage.Int))
)

// loadPartials reads the rooms whose state is not whole.
func (s *Server) loadPartials(ctx context.Context) error {
	s.partials.open = map[int64]*Partial{}
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		clear(s.partials.open)
		rows := tx.Query(`SELECT p.room, r.room_id, p.via, p.servers, p.seen, p.since FROM partial_rooms p JOIN rooms r ON r.nid = p.room WHERE NOT p.told AND p.until = 0`)
		for rows.Next() {
			p := &Partial{done: make(chan struct{})}
			var room int64
			var servers, seen []byte
			rows.Scan(&room, &p.RoomID, &p.Via, &servers, &seen, &p.Since)
			p.Servers, p.seen = decodeServers(servers), decodeServers(seen)
			s.partials.open[room] = p
		}
		return rows.Close()
	})
	if err != nil {
		return fmt.Errorf("read rooms without members: %w", err)
	}
	return nil
}

// loadPartial finds out whether a room that is being loaded is partial, or was.
func (r *Room) loadPartial(tx *storage.Tx, s *Server) error {
	if p := s.partials.get(r.NID); p != nil {
		r.partial.Store(p)
		return nil
	}
	p := &Partial{RoomID: r.ID}
	var servers []byte
	found, err := tx.Get(`SELECT servers, since, until FROM partial_rooms WHERE room = $1 AND until > 0`, []any{r.NID}, &servers, &p.Since, &p.Until)
	if err == nil && found {
		p.Servers = decodeServers(servers)
		r.partial.Store(p)
	}
	return err
}

func encodeServers(servers []string) []byte {
	out, err := json.Marshal(servers)
	if err != nil {
		return []byte("[]") // no list of strings fails
	}
	return out
}

func decodeServers(b []byte) (servers []string) {
	if json.Unmarshal(b, &servers) != nil {
		return nil
	}
	return servers
}

// Partial tells of a room whose members are not all known yet; nil if they are.
func (r *Room) Partial() *Partial {
	if p := r.partial.Load(); p != nil && p.Until == 0 {
		return p
	}
	return nil
}

// PartialAt tells whether the members of the room were not all known at a position of the log.
func (r *Room) PartialAt(pos int64) bool {
	p := r.partial.Load()
	return p != nil && p.Since <= pos && (p.Until == 0 || pos < p.Until)
}

// WholeFrom is a position itself or, if the members of the room were not all known then, the one from which on they were;
// the position itself if they still are not.
func (r *Room) WholeFrom(pos int64) int64 {
	if p := r.partial.Load(); r.PartialAt(pos) {
		return max(pos, p.Until)
	}
	return pos
}

// AwaitWhole waits until all members of a room are known, or ctx ends.
func (s *Server) AwaitWhole(ctx context.Context, room *Room) error {
	p := room.partial.Load()
	if p == nil || p.Until != 0 && p.Until <= s.db.Head() { // else readers of the log do not see it yet
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// PartialRooms returns the rooms whose members are not all known, in no order.
func (s *Server) PartialRooms() []*Partial {
	s.partials.mu.Lock()
	defer s.partials.mu.Unlock()
	list := make([]*Partial, 0, len(s.partials.open))
	for _, p := range s.partials.open {
		list = append(list, p)
	}
	return list
}

// MayShare tells whether users of a server may be in a room with local users without it being known.
func (s *Server) MayShare(server string) bool {
	return slices.ContainsFunc(s.PartialRooms(), func(p *Partial) bool { return slices.Contains(p.Servers, server) })
}

// givenState is a state after unknown parents of a partial event; without one it is still to be asked for.
type givenState struct {
	event *Event
	root  snapshot.Ref
	known bool
}

// enterPartial notes that e, with which the room is entered, was given without most members.
func (t *Turn) enterPartial(e *Event, via string, servers []string) {
	e.flags |= flagPartial
	t.givens = append(t.givens, givenState{event: e})
	t.partial = &Partial{RoomID: t.room.ID, Via: via, Servers: servers}
	if old := t.room.Partial(); old != nil {
		t.partial.Since, t.partial.seen = old.Since, old.seen
		t.partial.Servers = union(old.Servers, servers)
	}
}

// without is a list without what another has.
func without(list, others []string) (out []string) {
	known := make(map[string]bool, len(others))
	for _, s := range others {
		known[s] = true
	}
	for _, s := range list {
		if !known[s] {
			out = append(out, s)
		}
	}
	return out
}

// union is a list with what another has beside it.
func union(list, others []string) []string {
	known := make(map[string]bool, len(list))
	for _, s := range list {
		known[s] = true
	}
	out := slices.Clip(list)
	for _, s := range others {
		if !known[s] {
			known[s] = true
			out = append(out, s)
		}
	}
	return out
}

// writePartial adds the rows about an entry without members to the unit.
func (t *Turn) writePartial() {
	n := map[int64]int64{}
	for _, g := range t.givens {
		var root any
		if g.known {
			root = int64(g.root)
		}
		t.unit.Add(givenTable, t.room.NID, g.event.NID, n[g.event.NID], root)
		n[g.event.NID]++
	}
	p := t.partial
	if p == nil {
		return
	}
	var since any = p.Since
	if since == int64(0) {
		since = storage.Pos(t.givens[len(t.givens)-1].event.offset)
	}
	var until any = p.Until
	if p.Until != 0 {
		until = storage.Pos(p.Until)
	}
	t.unit.Add(partialTableRows, t.room.NID, p.Via, encodeServers(p.Servers), encodeServers(p.seen), since, until, false, encodeServers(p.found))
}

// applyPartial advances what memory knows of an entry without members; base is as for apply.
func (t *Turn) applyPartial(base int64) {
	p := t.partial
	if p == nil {
		return
	}
	if p.Since == 0 {
		p.Since = base + int64(t.givens[len(t.givens)-1].event.offset)
	}
	if p.Until != 0 {
		p.Until += base
	}
	t.s.partials.put(t.room.NID, p)
	t.room.partial.Store(p)
}

// Partial tells that the states around the event were computed from one without most members.
func (e *Event) Partial() bool { return e.flags&flagPartial != 0 }

// anyPartial tells whether one of the events is partial.
func anyPartial(events []*Event) bool { return slices.ContainsFunc(events, (*Event).Partial) }

// CitedMember returns the membership event of its sender that an event cites, or nil.
func (s *Server) CitedMember(ctx context.Context, room *Room, e *Event) (*Event, error) {
	for _, id := range e.AuthEventIDs() {
		a, err := s.Event(ctx, room, id)
		if errors.Is(err, ErrUnknownEvent) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if a.Is(pdu.TypeMember, e.Sender) {
			return a, nil
		}
	}
	return nil, nil
}

// MayBeIn tells whether a user of another server is joined to a room or, while the members are not all known, may be.
func (s *Server) MayBeIn(ctx context.Context, room *Room, user string) (bool, error) {
	e, err := s.StateEvent(ctx, room, room.Head().State, pdu.TypeMember, user)
	if err != nil || e != nil {
		return err == nil && e.Membership() == Join, err
	}
	p := room.Partial()
	return p != nil && slices.Contains(p.Servers, pdu.ServerOf(user)), nil
}

// populated tells that a room has members who are not known.
func (p *Partial) populated() bool { return p != nil && len(p.Servers) > 0 }

// serversAnd appends to the servers of a room's known members those that were in it when it was entered without the others.
func (p *Partial) serversAnd(known []string) []string {
	if p == nil {
		return known
	}
	return union(known, p.Servers)
}
