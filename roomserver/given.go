package roomserver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// Given is a state of a room as another server described it.
type Given struct {
	// Events are events of the state and of its auth chains. Those that are not known yet become outliers.
	Events []*pdu.Event
	// States are states by the ids of their events, for example those after several parents; they get resolved. Of two
	// events for the same type and state key in one of them, the later counts.
	States [][]string
	// Partial says that States are without most members, which have to be asked for.
	Partial bool
	// Via is then the server that described the state, Servers are those that it says are in the room.
	Via     string
	Servers []string
}

// given is the root of a state by the ids of its events, all of which must be known; it is built as a difference to
// the current state. What its own auth events refuse is in nobody's state. With lenient, neither is what is unknown.
func (t *Turn) given(event string, ids []string, lenient bool) (snapshot.Ref, error) {
	if err := t.look(ids); err != nil {
		return 0, err
	}
	missing := &MissingError{Event: event}
	wanted := map[authrules.StateKeyTuple]int64{}
	for _, id := range ids {
		e, err := t.find(id)
		if err != nil {
			return 0, err
		}
		if e == nil {
			missing.Auth = append(missing.Auth, id)
		} else if e.IsState() && !e.Rejected() {
			wanted[authrules.StateKeyTuple{Type: e.Type, StateKey: *e.StateKey}] = e.NID
		}
	}
	if len(missing.Auth) > 0 && !lenient {
		return 0, missing
	}
	pack, err := t.s.nids.Next(t.ctx)
	if err != nil {
		return 0, fmt.Errorf("take a number: %w", err)
	}
	edit := t.s.tree(t.room, t.head.State).Edit(pack)
	surplus := map[int64]bool{}
	if err := t.s.tree(t.room, t.head.State).Walk(t.ctx, func(nid int64) error { surplus[nid] = true; return nil }); err != nil {
		return 0, err
	}
	for k, nid := range wanted {
		if !surplus[nid] {
			edit.Set(k.Type, k.StateKey, nid)
		}
		delete(surplus, nid)
	}
	rest, err := t.load(slices.Collect(maps.Keys(surplus)))
	if err != nil {
		return 0, err
	}
	for _, e := range rest {
		if _, ok := wanted[authrules.StateKeyTuple{Type: e.Type, StateKey: *e.StateKey}]; !ok {
			edit.Delete(e.Type, *e.StateKey)
		}
	}
	return t.commit(edit, pack)
}

// takeGiven makes the states that another server described after parents of e that are unknown here.
func (t *Turn) takeGiven(e *Event, g *Given) (roots []snapshot.Ref, err error) {
	for _, ids := range g.States {
		root, err := t.given(e.ID, ids, t.created)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	e.flags |= flagGiven
	switch {
	case g.Partial:
		t.enterPartial(e, g.Via, g.Servers)
	case e.Partial(): // the states will be needed again
		for _, root := range roots {
			t.givens = append(t.givens, givenState{e, root, true})
		}
	}
	return roots, nil
}

// lookBatch is how many events by id one query looks up.
const lookBatch = 64

// look looks up many events by id at once, so that find does not have to ask for each.
func (t *Turn) look(ids []string) error {
	if t.created {
		return nil
	}
	if t.looked == nil {
		t.looked = make(map[string]*Event, len(ids))
	}
	// What is on its way to the database is found there by find, and not here.
	var stored []string
	t.room.mu.Lock()
	for _, id := range ids {
		if _, ok := t.looked[id]; !ok && t.room.pending.byID[id] == nil {
			stored = append(stored, id)
		}
	}
	t.room.mu.Unlock()
	for batch := range slices.Chunk(stored, lookBatch) {
		events, err := t.s.queryEvents(t.ctx, t.room, `SELECT `+eventColumns+` FROM events WHERE room = $1 AND event_id IN `+storage.In(lookBatch, 2), lookArgs(t.room, batch)...)
		if err != nil {
			return err
		}
		for _, id := range batch {
			t.looked[id] = nil
		}
		for _, e := range events {
			t.looked[e.ID] = e
		}
	}
	return nil
}

// given is the state before the event with which a room is entered.
func (n *Entry) given() *Given {
	state := make([]string, 0, len(n.State))
	g := &Given{Events: append(append(make([]*pdu.Event, 0, len(n.Auth)+len(n.State)), n.Auth...), n.State...)}
	for _, p := range n.State {
		state = append(state, p.ID)
	}
	g.States = [][]string{state}
	g.Partial, g.Via, g.Servers = n.Partial, n.Via, n.Servers
	return g
}

// reenter enters a room of which this server has a past, or in which another of its users is.
func (s *Server) reenter(ctx context.Context, entry Entry) (e *Event, err error) {
	_, err = s.Turn(ctx, entry.RoomID, func(t *Turn) error {
		in := &Incoming{Event: entry.Event, Before: entry.given(), Brought: true}
		known, err := t.continues(entry.Event)
		if err != nil {
			return err
		}
		if known || t.room.Resident() {
			e, err = t.join(in)
		} else {
			e, err = t.comeBack(in)
		}
		if err == nil && e.IsState() {
			t.unit.Exec(`DELETE FROM outside_memberships WHERE user_id = $1 AND room_id = $2`, *e.StateKey, t.room.ID)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", entry.RoomID, err)
	}
	return e, nil
}

// continues tells whether an event goes on from what is known of a room whose members are still being asked for, so that
// its state need not be asked for as well.
func (t *Turn) continues(p *pdu.Event) (bool, error) {
	if t.room.Partial() == nil {
		return false, nil
	}
	for _, id := range p.PrevEventIDs() {
		e, err := t.find(id)
		if err != nil || e == nil || e.Outlier() {
			return false, err
		}
	}
	return true, nil
}

// join receives an event that must be accepted.
func (t *Turn) join(in *Incoming) (*Event, error) {
	past, err := t.beforeGaps([]Incoming{*in})
	if err != nil {
		return nil, err
	}
	got, err := t.receive(in, past)
	if err == nil {
		err = past.insert(t)
	}
	if err != nil {
		return nil, err
	}
	if got.Outcome == Rejected || got.Outcome == SoftFailed {
		return nil, mxerr.Forbidden("The room does not allow the event: " + got.Reason.Error()).With(got.Reason)
	}
	e, err := t.find(in.Event.ID)
	if err == nil && (e.Rejected() || e.SoftFailed()) { // it came before
		err = mxerr.Forbidden("The room does not allow the event")
	}
	return e, err
}

// comeBack makes an event the only forward extremity of a room whose last user had left: what happened
// meanwhile is unknown, and the state before the event is what the other server says.
func (t *Turn) comeBack(in *Incoming) (*Event, error) {
	known, err := t.find(in.Event.ID)
	if err != nil {
		return nil, err
	}
	if known != nil && !known.Outlier() {
		return known, nil
	}
	if err := t.outliers(in.Before.Events); err != nil {
		return nil, err
	}
	auth, err := t.authEvents(in.Event)
	if err != nil {
		return nil, err
	}
	e, err := t.newEvent(in.Event, known, auth)
	if err != nil {
		return nil, err
	}
	roots, err := t.takeGiven(e, in.Before)
	if err != nil {
		return nil, err
	}
	e.StateBefore = roots[0]
	e.StateAfter = e.StateBefore
	reason, err := t.refusal(e, auth)
	if err == nil {
		err = reason
	}
	if err != nil {
		return nil, err
	}
	if e.IsState() {
		if err := t.setAfter(e); err != nil {
			return nil, err
		}
	}
	t.place(e)
	t.gapped = append(t.gapped, e)
	t.keep(e)
	if err := t.logState(e, t.head.State, e.StateAfter); err != nil {
		return nil, err
	}
	t.head = &Head{Extremities: []*Event{e}, State: e.StateAfter}
	return e, nil
}
