package roomserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

const (
	// outlierBatch is how many events of a state that another server described one turn takes in.
	outlierBatch = 500
	// recastBatch is of how many events one turn computes the states again.
	recastBatch = 200
	// maxRefit bounds how far back the graph is searched for what other events follow.
	maxRefit = 1000
)

// ErrUnfetched says that a state is still to be asked for before a room can be completed.
var ErrUnfetched = errors.New("the state at the entry is not known")

// Unfetched is an event with which a room was entered without most members, and those of its parents after which the
// state is to be asked for.
type Unfetched struct {
	Event   *Event
	Parents []string
}

// Unfetched returns what is still to be asked for of a room.
func (s *Server) Unfetched(ctx context.Context, room *Room) ([]Unfetched, error) {
	nids, err := storage.ReadList[int64](ctx, s.db, `SELECT event FROM partial_given WHERE room = $1 AND root IS NULL ORDER BY event`, room.NID)
	if err != nil {
		return nil, fmt.Errorf("what is missing of %s: %w", room.ID, err)
	}
	out := make([]Unfetched, len(nids))
	for i, nid := range nids {
		if out[i].Event, out[i].Parents, err = s.GapParents(ctx, room, Gap{NID: nid}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// PutFetched keeps the states after the unknown parents of an event with which a room was entered, as another server
// described them. With lenient, what is not known of them is left out; otherwise it is a *MissingError.
func (s *Server) PutFetched(ctx context.Context, roomID string, event *Event, g *Given, lenient bool) error {
	events := authFirst(g.Events)
	err := errEpoch
	for errors.Is(err, errEpoch) { // then some is known already
		err = s.putOutliers(ctx, roomID, events)
	}
	if err == nil {
		_, err = s.Turn(ctx, roomID, func(t *Turn) error { return t.putFetched(event, g, lenient) })
	}
	if err != nil {
		return fmt.Errorf("state of %s: %w", roomID, err)
	}
	return nil
}

// putOutliers keeps events, of which those that others cite come first, as outliers. Each batch is judged while the one before it
// is on its way to the disk.
func (s *Server) putOutliers(ctx context.Context, roomID string, events []*pdu.Event) error {
	room, err := s.Room(ctx, roomID)
	if err != nil {
		return err
	}
	wait := func() error { return nil }
	for batch := range slices.Chunk(events, outlierBatch) {
		_, next, err := s.turn(ctx, room, false, func(t *Turn) error {
			if err := t.look(cited(t.room, batch)); err != nil {
				return err
			}
			return t.outliers(batch)
		})
		if err = errors.Join(wait(), err); err != nil {
			return err
		}
		wait = next
	}
	return wait()
}

// putFetched is PutFetched once all events are known.
func (t *Turn) putFetched(event *Event, g *Given, lenient bool) error {
	p := t.room.Partial()
	if p == nil {
		return nil
	}
	next := *p
	var roots []snapshot.Ref
	for _, ids := range g.States {
		root, err := t.given(event.ID, ids, lenient)
		if err != nil {
			return err
		}
		roots = append(roots, root)
		t.givens = append(t.givens, givenState{event, root, true})
		members, err := t.stateOfType(root, pdu.TypeMember)
		if err != nil {
			return err
		}
		next.seen = union(next.seen, joinedServers(members))
	}
	if err := t.checkEntry(event, roots); err != nil {
		return err
	}
	t.unit.Exec(`DELETE FROM partial_given WHERE room = $1 AND event = $2`, t.room.NID, event.NID)
	t.partial = &next
	return nil
}

// checkEntry checks that states, together with those after the known parents, allow the event with which the room was
// entered: other servers have accepted it, so that a state which does not is not the one before it.
func (t *Turn) checkEntry(event *Event, given []snapshot.Ref) error {
	parents, err := t.parentsOf(event)
	if err != nil || anyPartial(parents) || len(given) == 0 {
		return err
	}
	before, err := t.resolve(append(statesAfter(parents), given...))
	if err != nil {
		return err
	}
	reason, err := verdict(authrules.Check(event.Event, authState{t, before}))
	if err == nil && reason != nil {
		err = fmt.Errorf("the state does not allow %s: %w", event.ID, reason)
	}
	return err
}

// parentsOf returns the parents of an event that have a state here.
func (t *Turn) parentsOf(e *Event) (parents []*Event, err error) {
	for _, id := range e.PrevEventIDs() {
		p, err := t.find(id)
		if err != nil {
			return nil, err
		}
		if p != nil && !p.Outlier() {
			parents = append(parents, p)
		}
	}
	return parents, nil
}

// stateOfType returns the state events of a type at a root.
func (t *Turn) stateOfType(root snapshot.Ref, typ string) ([]*Event, error) {
	var nids []int64
	if err := t.s.tree(t.room, root).WalkType(t.ctx, typ, func(nid int64) error { nids = append(nids, nid); return nil }); err != nil {
		return nil, err
	}
	return t.load(nids)
}

// joinedServers are the servers of those who are joined by these events, each once.
func joinedServers(events []*Event) []string {
	set := map[string]bool{}
	for _, e := range events {
		if e.Type == pdu.TypeMember && e.IsState() && !e.Rejected() && e.Membership() == Join {
			set[pdu.ServerOf(*e.StateKey)] = true
		}
	}
	return slices.Collect(maps.Keys(set))
}

// cited are the ids of events and of their auth events, among them the one that the room's id names.
func cited(room *Room, events []*pdu.Event) []string {
	set := make(map[string]bool, 2*len(events))
	if room.Version.RoomIDIsCreateHash {
		set["$"+room.ID[1:]] = true
	}
	for _, p := range events {
		set[p.ID] = true
		for _, id := range p.AuthEventIDs() {
			set[id] = true
		}
	}
	return slices.Collect(maps.Keys(set))
}

// authFirst sorts events so that auth events come before those that cite them and nothing else changes its order.
func authFirst(events []*pdu.Event) []*pdu.Event {
	return ordered(events, func(p *pdu.Event) string { return p.ID }, (*pdu.Event).AuthEventIDs)
}

// ordered sorts a list so that what an element refers to comes before it and nothing else changes its order.
func ordered[E any](list []E, id func(E) string, refersTo func(E) []string) []E {
	byID := make(map[string]E, len(list))
	for _, e := range list {
		byID[id(e)] = e
	}
	out := make([]E, 0, len(list))
	done := make(map[string]bool, len(list))
	var visit func(e E)
	visit = func(e E) {
		if done[id(e)] {
			return // or a loop, which no hash allows
		}
		done[id(e)] = true
		for _, other := range refersTo(e) {
			if o, ok := byID[other]; ok {
				visit(o)
			}
		}
		out = append(out, e)
	}
	for _, e := range list {
		visit(e)
	}
	return out
}

// MakeWhole makes the state of a partial room whole, once the states have been kept that were to be asked for: it computes
// the states around all partial events again, parents first, and applies the rules to each of them anew. Events that are now
// refused leave the timeline; those that were refused and should not have been come into it now. At the end, what has changed
// in the current state is logged. It returns ErrUnfetched where a state is still missing.
func (s *Server) MakeWhole(ctx context.Context, roomID string) error {
	return s.finishPartial(ctx, roomID, false)
}

// Abandon ends a room's being partial although nobody tells its members any more, because no local user is in it.
func (s *Server) Abandon(ctx context.Context, roomID string) error {
	return s.finishPartial(ctx, roomID, true)
}

func (s *Server) finishPartial(ctx context.Context, roomID string, asIs bool) error {
	for {
		whole := false
		_, err := s.Turn(ctx, roomID, func(t *Turn) (err error) {
			whole, err = t.complete(asIs)
			return err
		})
		if err != nil {
			return fmt.Errorf("complete the state of %s: %w", roomID, err)
		}
		if whole {
			return nil
		}
	}
}

// complete takes the next step of MakeWhole or, with asIs, of Abandon.
func (t *Turn) complete(asIs bool) (whole bool, err error) {
	p := t.room.Partial()
	if p == nil {
		return true, nil
	}
	// Events get their places when they are on disk, and only then can their rows be changed.
	wait, err := t.settle()
	if err == nil {
		err = wait()
	}
	if err != nil {
		return false, err
	}
	if asIs && t.room.Resident() { // somebody has come back meanwhile
		return true, nil
	}
	list, err := t.partialEvents()
	if err != nil {
		return false, err
	}
	given, err := t.storedGiven()
	if err != nil || given == nil && !asIs {
		return false, errors.Join(err, ErrUnfetched)
	}
	next := *p
	r := recasting{t: t, asIs: asIs, given: given}
	for _, e := range list[:min(len(list), recastBatch)] {
		if err := r.event(e); err != nil {
			return false, fmt.Errorf("state around %s: %w", e.ID, err)
		}
	}
	if err := r.refit(); err != nil {
		return false, err
	}
	next.seen = union(next.seen, joinedServers(t.recasts))
	t.partial = &next
	if len(list) > recastBatch {
		return false, nil
	}
	if !asIs {
		next.Servers, next.found = nil, without(next.seen, next.Servers)
	}
	return true, t.becomeWhole(&next)
}

// becomeWhole ends the room's being partial: the state at its ends is the current one.
func (t *Turn) becomeWhole(p *Partial) error {
	state, err := t.resolve(statesAfter(t.head.Extremities))
	if err != nil {
		return fmt.Errorf("current state: %w", err)
	}
	if err := t.setCurrent(state); err != nil {
		return err
	}
	t.unit.Exec(`DELETE FROM partial_given WHERE room = $1`, t.room.NID)
	p.Until = int64(t.placed)
	return nil
}

// partialEvents lists the partial events of the room, parents first. All of them are on disk.
func (t *Turn) partialEvents() (list []*Event, err error) {
	nids, err := storage.ReadList[int64](t.ctx, t.s.db, `SELECT nid FROM events WHERE room = $1 AND flags & 128 <> 0 ORDER BY nid`, t.room.NID)
	if err != nil {
		return nil, fmt.Errorf("events to look at again: %w", err)
	}
	if list, err = t.load(nids); err != nil {
		return nil, err
	}
	return ordered(list, func(e *Event) string { return e.ID }, func(e *Event) []string { return e.PrevEventIDs() }), nil
}

// storedGiven returns the states after unknown parents of partial events, nil if one of them is still to be asked for.
func (t *Turn) storedGiven() (given map[int64][]snapshot.Ref, err error) {
	err = t.s.db.Read(t.ctx, func(tx *storage.Tx) error {
		given = map[int64][]snapshot.Ref{}
		rows := tx.Query(`SELECT event, root FROM partial_given WHERE room = $1 ORDER BY event, n`, t.room.NID)
		var event int64
		var root *int64
		unfetched := false
		for rows.Next() {
			root = nil
			if rows.Scan(&event, &root); root == nil {
				unfetched = true
				continue
			}
			given[event] = append(given[event], snapshot.Ref(*root))
		}
		if unfetched {
			given = nil
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("states that were given: %w", err)
	}
	return given, nil
}

// Completion is a room that has become whole, of which others have not been told.
type Completion struct {
	RoomID string
	// Since is the position at which it was entered, Until the one from which on it is whole.
	Since, Until int64
	// Servers are those that were in the room at some time since, Found those of them of which that was not known before.
	Servers, Found []string
}

// Completions returns the rooms that have become whole and for which CompletionTold was not called.
func (s *Server) Completions(ctx context.Context) (list []Completion, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		list = list[:0]
		rows := tx.Query(`SELECT r.room_id, p.since, p.until, p.seen, p.found FROM partial_rooms p JOIN rooms r ON r.nid = p.room WHERE NOT p.told AND p.until > 0`)
		for rows.Next() {
			var c Completion
			var seen, found []byte
			rows.Scan(&c.RoomID, &c.Since, &c.Until, &seen, &found)
			c.Servers, c.Found = decodeServers(seen), decodeServers(found)
			list = append(list, c)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("rooms that have become whole: %w", err)
	}
	return list, nil
}

// CompletionTold notes that all others know that a room is whole.
func (s *Server) CompletionTold(ctx context.Context, roomID string) error {
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE partial_rooms SET told = $1, seen = $2, found = $2 WHERE until > 0 AND room = (SELECT nid FROM rooms WHERE room_id = $3)`,
			true, encodeServers(nil), roomID)
		return err
	})
	if err != nil {
		return fmt.Errorf("note that %s is whole: %w", roomID, err)
	}
	return nil
}
