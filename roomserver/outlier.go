package roomserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// Entry is a room that another server gave us: the answer to a join.
type Entry struct {
	RoomID  string
	Version *pdu.Version
	// Auth are the auth chains of State and Event, State the room's state before Event.
	Auth, State []*pdu.Event
	// Event is the event with which this server enters the room.
	Event *pdu.Event
	// Partial says that State is without most members (MSC3706). Via is then the server that let us in, Servers are those in
	// the room before, as that one says.
	Partial bool
	Via     string
	Servers []string
}

// Enter takes over a room that this server does not know, or that its last user has left. Auth chain and state become
// outliers: they are in no timeline and no push, and get a place only if they are received as events later. It fails
// where the room's rules refuse the event against the given state.
func (s *Server) Enter(ctx context.Context, entry Entry) (*Event, error) {
	unlock := sync.OnceFunc(s.rooms.load.lock(entry.RoomID))
	defer unlock()
	known := s.rooms.get(entry.RoomID) != nil
	if !known {
		var err error
		if known, err = s.stored(ctx, entry.RoomID); err != nil {
			return nil, fmt.Errorf("enter %s: %w", entry.RoomID, err)
		}
	}
	if known {
		unlock() // which loading the room takes
		return s.reenter(ctx, entry)
	}
	t, err := s.emptyRoom(ctx, entry.Version)
	if err != nil {
		return nil, err
	}
	t.room.ID = entry.RoomID
	e, err := t.enter(entry)
	if err != nil {
		t.drop()
		return nil, fmt.Errorf("enter %s: %w", entry.RoomID, err)
	}
	wait, err := t.submit()
	if err != nil {
		return nil, err
	}
	return e, wait()
}

// stored tells whether the database has a room.
func (s *Server) stored(ctx context.Context, roomID string) (found bool, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		var nid int64
		found, err = tx.Get(`SELECT nid FROM rooms WHERE room_id = $1`, []any{roomID}, &nid)
		return err
	})
	return found, err
}

// emptyRoom is the turn of a room that nobody else knows yet.
func (s *Server) emptyRoom(ctx context.Context, v *pdu.Version) (*Turn, error) {
	room := &Room{Version: v, pending: newPending(), next: &Head{}}
	room.durable.Store(room.next)
	room.members.local, room.members.servers = map[string]struct{}{}, map[string]int{}
	room.recent.loaded, room.recent.whole = true, true
	room.gaps.Store(new([]Gap))
	if _, err := rand.Read(room.seed[:]); err != nil {
		return nil, fmt.Errorf("make a room's seed: %w", err)
	}
	var err error
	if room.NID, err = s.nids.Next(ctx); err != nil {
		return nil, fmt.Errorf("take a room number: %w", err)
	}
	room.chains = authchain.New(chainLoader{s.db}, room.NID)
	return &Turn{ctx: ctx, s: s, room: room, head: room.next, unit: &storage.Unit{}, created: true}, nil
}

// enter builds the room from what the other server said.
func (t *Turn) enter(entry Entry) (*Event, error) {
	t.unit.Add(roomsTable, t.room.NID, t.room.ID, t.room.Version.ID, t.room.seed[:])
	all := append(append([]*pdu.Event(nil), entry.Auth...), entry.State...)
	if err := t.outliers(all); err != nil {
		return nil, err
	}
	auth, err := t.authEvents(entry.Event)
	if err != nil {
		return nil, err
	}
	e, err := t.newEvent(entry.Event, nil, auth)
	if err != nil {
		return nil, err
	}
	roots, err := t.takeGiven(e, entry.given())
	if err != nil {
		return nil, err
	}
	e.StateBefore, e.StateAfter = roots[0], roots[0]
	reason, err := t.refusal(e, auth)
	if err == nil {
		err = reason
	}
	if err != nil {
		return nil, err
	}
	if e.IsState() { // what the user had from outside has become the membership
		t.unit.Exec(`DELETE FROM outside_memberships WHERE user_id = $1 AND room_id = $2`, *e.StateKey, t.room.ID)
	}
	t.head, t.entered = &Head{}, true
	if _, err = t.admitFirst(e); err != nil {
		return nil, err
	}
	return e, nil
}

// admitFirst makes e the first event of a room that this server has just entered.
func (t *Turn) admitFirst(e *Event) (Received, error) {
	if !e.IsState() {
		return Received{}, errors.New("a room is entered by a state event")
	}
	if len(e.PrevEventIDs()) > 0 {
		t.gapped = append(t.gapped, e)
	}
	return Received{Outcome: Accepted}, t.merge(e, nil)
}

// authEvents finds the auth events of an event; all must be known.
func (t *Turn) authEvents(p *pdu.Event) ([]*Event, error) {
	var auth []*Event
	missing := &MissingError{Event: p.ID}
	for _, id := range p.AuthEventIDs() {
		e, err := t.find(id)
		if err != nil {
			return nil, err
		}
		if e == nil {
			missing.Auth = append(missing.Auth, id)
			continue
		}
		auth = append(auth, e)
	}
	if len(missing.Auth) > 0 {
		return nil, missing
	}
	return auth, nil
}

// outliers keeps events of which only the auth events are known, in any order. Those with unknown auth events are
// left out.
func (t *Turn) outliers(events []*pdu.Event) error {
	byID := map[string]*pdu.Event{}
	for _, p := range events {
		if p.RoomID == t.room.ID {
			byID[p.ID] = p
		}
	}
	visiting := map[string]bool{}
	var visit func(p *pdu.Event) error
	visit = func(p *pdu.Event) error {
		if visiting[p.ID] {
			return nil // done, or a loop, which then lacks its auth events
		}
		visiting[p.ID] = true
		for _, id := range p.AuthEventIDs() {
			if a := byID[id]; a != nil {
				if err := visit(a); err != nil {
					return err
				}
			}
		}
		return t.outlier(p)
	}
	if t.room.Version.RoomIDIsCreateHash {
		if create := byID["$"+t.room.ID[1:]]; create != nil {
			if err := visit(create); err != nil {
				return err
			}
		}
	}
	for _, p := range events {
		if byID[p.ID] == nil {
			continue
		}
		if err := visit(p); err != nil {
			return err
		}
	}
	return nil
}

// outlier keeps one event whose auth events are known, rejected if they refuse it.
func (t *Turn) outlier(p *pdu.Event) error {
	known, err := t.find(p.ID)
	if err != nil || known != nil {
		return err
	}
	auth, err := t.authEvents(p)
	var missing *MissingError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := t.newEvent(p, nil, auth)
	if err != nil {
		return err
	}
	e.flags |= flagOutlier
	reason, err := t.refusedByAuthEvents(e, auth)
	if err != nil {
		return err
	}
	if reason != nil {
		e.flags |= flagRejected
	} else if e.IsState() {
		if err := t.index(e); err != nil {
			return err
		}
	}
	t.keep(e)
	return nil
}
