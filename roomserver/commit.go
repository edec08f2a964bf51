package roomserver

import (
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// submit hands the turn's unit to the group commit and makes its head what the next turn builds on.
// The returned function waits until the unit is on disk and published.
func (t *Turn) submit() (wait func() error, err error) {
	r := t.room
	t.writeRows()
	t.unit.Positions = t.placed
	t.unit.Fresh = t.made > 0 && t.made == len(t.events)
	for _, e := range t.events {
		if e.offset > 0 {
			t.unit.Notices = append(t.unit.Notices, storage.Notice{Pos: int64(e.offset), Kind: storage.Event, Room: r.NID})
		}
	}
	for _, c := range t.members {
		if t.s.IsLocal(c.user) {
			t.unit.Notices = append(t.unit.Notices, storage.Notice{Pos: int64(c.offset), Kind: storage.Membership, Room: r.NID, User: c.user})
		}
	}
	done := make(chan error, 1)
	t.unit.Apply = t.apply
	t.unit.Done = func(_ int64, err error) { done <- t.done(err) }
	r.mu.Lock()
	if r.epoch != t.epoch {
		r.mu.Unlock()
		t.drop()
		return nil, errEpoch
	}
	t.unit.After, r.last = r.last, t.unit
	r.next = t.head
	r.flying++
	r.mu.Unlock()
	if !t.hurried {
		t.s.db.Append(t.unit)
		return func() error { return <-done }, nil
	}
	flush := t.s.db.Submit(t.unit)
	return func() error {
		flush()
		return <-done
	}, nil
}

// settle is submit for a turn that appended nothing: its outcome holds once the units are on disk whose effects it saw.
func (t *Turn) settle() (wait func() error, err error) {
	r := t.room
	r.mu.Lock()
	last, epoch := r.last, r.epoch
	r.mu.Unlock()
	if epoch != t.epoch {
		return nil, errEpoch
	}
	if last == nil {
		return func() error { return nil }, nil
	}
	done := make(chan error, 1)
	t.s.db.Append(&storage.Unit{After: last, Done: func(_ int64, err error) { done <- err }})
	return func() error {
		err := <-done
		if errors.Is(err, storage.ErrAfter) {
			err = errEpoch
		}
		return err
	}, nil
}

// done ends the flight of the turn's unit. After a failure the room goes on from what is durable, and
// so do the turns whose units were built on this one.
func (t *Turn) done(err error) error {
	r := t.room
	r.mu.Lock()
	r.flying--
	if r.last == t.unit {
		r.last = nil
	}
	if err != nil && r.epoch == t.epoch {
		r.epoch++
		r.next = r.durable.Load()
		r.last = nil
		// What is pending was built on this unit and fails with it; the next turn must not see it.
		r.pending = newPending()
	}
	r.mu.Unlock()
	if err == nil {
		if t.partial != nil && t.partial.Until != 0 {
			close(t.partial.done)
		}
		return nil
	}
	t.drop()
	if errors.Is(err, storage.ErrAfter) {
		return errEpoch
	}
	return fmt.Errorf("write to room %s: %w", r.ID, err)
}

// writeRows adds the rows of what the turn appended to its unit.
func (t *Turn) writeRows() {
	r := t.room
	for _, e := range t.events {
		t.writeEvent(e)
	}
	t.writeRelations()
	t.writeSticky()
	for _, c := range t.changes {
		t.unit.Add(stateLogTable, r.NID, storage.Pos(c.pos), int64(c.old), int64(c.new))
	}
	for _, c := range t.members {
		t.unit.Add(membersTable, r.NID, c.user, c.new, c.event.NID, storage.Pos(c.offset), t.s.IsLocal(c.user), false)
	}
	if t.txn != nil {
		t.writeTxn()
	}
	for _, x := range t.redacts {
		t.unit.Add(redactionsTable, r.NID, eventKey(x.target.ID), x.by.NID, true)
		t.unit.Exec(`UPDATE events SET flags = flags | $1 WHERE nid = $2`, int64(flagRedacted), x.target.NID)
	}
	t.writeGaps()
	t.tellBackfilled()
	t.writeRecasts()
	t.writePartial()
	if t.placed > 0 {
		t.unit.Add(headsTable, r.NID, encodeNIDs(t.head.Extremities), int64(t.head.State), storage.Pos(t.placed))
	}
}

// writeEvent adds the row of an event, or changes it where the event was an outlier until now.
func (t *Turn) writeEvent(e *Event) {
	var anchor, before, after, order, chain any
	if e.offset > 0 || e.Anchor > 0 {
		anchor = e.anchorValue()
	}
	if !e.Outlier() {
		before = int64(e.StateBefore)
		if e.StateAfter != e.StateBefore {
			after = int64(e.StateAfter)
		}
	}
	if e.chain.Data != nil {
		order, chain = e.chain.Order, e.chain.Data
	}
	if e.stored {
		t.unit.Exec(`UPDATE events SET flags = $1, anchor = $2, sub = $3, state_before = $4, state_after = $5, txn = $6 WHERE nid = $7`,
			e.flags, anchor, e.Sub, before, after, e.localTxn(), e.NID)
		if e.chain.Data != nil {
			t.unit.Exec(`UPDATE events SET chain_order = $1, chain = $2 WHERE nid = $3`, order, chain, e.NID)
		}
		return
	}
	t.unit.Add(eventsTable, e.NID, t.room.NID, eventKey(e.ID), e.flags, anchor, e.Sub,
		before, e.OriginServerTS, after, order, chain, e.localTxn(), e.JSON())
}

// apply advances everything that readers see in memory; the unit is on disk and base is the position
// before its first one. It runs in position order.
func (t *Turn) apply(base int64) {
	s, r := t.s, t.room
	for _, e := range t.events {
		if e.offset > 0 {
			e.Anchor = base + int64(e.offset)
		}
		if e.chain.Data != nil {
			r.chains.Durable(e.NID)
			e.auth, e.chain = nil, authchain.Row{}
		}
		s.events.Put(e.NID, e, e.cost())
	}
	t.applyRecasts()
	for _, p := range t.packs {
		s.states.Durable(r.NID, p)
	}
	head := *t.head
	head.Pos = r.durable.Load().Pos
	if t.placed > 0 {
		head.Pos = base + int64(t.placed)
	}
	t.markPrivate()
	r.members.apply(s, t.members, head.State)
	for _, c := range t.changes {
		r.changes.push(stateChange{base + c.pos, c.old, c.new})
	}
	t.applyRelations()
	t.applySticky(base)
	t.applyGaps()
	for _, x := range t.redacts {
		s.applyRedaction(r, x)
	}
	for _, e := range t.events {
		if e.offset > 0 {
			r.recent.push(s.current(e))
		}
	}
	r.durable.Store(&head)
	t.applyPartial(base)
	if t.created {
		if t.entered { // what is before the first event comes by backfill
			r.recent.beginAt(base + 1)
		}
		r.changes.reset(0)
		for _, c := range t.changes {
			r.changes.push(stateChange{base + c.pos, c.old, c.new})
		}
		s.rooms.add(r)
	}
	for _, c := range t.members {
		if s.IsLocal(c.user) {
			s.applyUser(c.user, UserRoom{NID: r.NID, RoomID: r.ID, Membership: c.new, EventNID: c.event.NID, Pos: base + int64(c.offset)})
		}
	}
	r.mu.Lock()
	for _, e := range t.events {
		r.pending.remove(e)
	}
	for _, e := range t.recasts {
		r.pending.remove(e)
	}
	r.mu.Unlock()
	for _, fn := range t.after {
		fn()
	}
}

// markPrivate says of the turn's events if no other server is sent them (Audience): all members of the durable state, which is
// still that before the turn, are ours, and each event follows on it, by one of our users and about no others. Of an event on
// some of the forward extremities that is not certain: before it there may be other members.
func (t *Turn) markPrivate() {
	s, r := t.s, t.room
	if r.Partial() != nil || r.shared(s.name) {
		return
	}
	state := r.durable.Load().State
	for _, e := range t.events {
		if e.offset == 0 || e.StateBefore != state || !s.IsLocal(e.Sender) || e.Type == pdu.TypeMember && e.IsState() && !s.IsLocal(*e.StateKey) {
			return
		}
		state = e.StateAfter
	}
	for i := range t.unit.Notices {
		n := &t.unit.Notices[i]
		n.Private = n.Kind == storage.Event
	}
}

// current is the cached form of an event, which differs from e if it was redacted in the same unit.
func (s *Server) current(e *Event) *Event {
	if c, ok := s.events.Get(e.NID); ok {
		return c
	}
	return e
}

// applyRedaction replaces the target wherever memory holds it.
func (s *Server) applyRedaction(r *Room, x redaction) {
	s.redactionLock.Lock()
	s.redactionEpoch.Add(1)
	if e, ok := s.events.Get(x.target.NID); ok {
		redacted := e.redactedBy(x.by)
		s.events.Put(redacted.NID, redacted, redacted.cost())
	}
	s.redactionLock.Unlock()
	// Not under the lock: a load of the ring takes it while it holds the ring.
	r.recent.replace(x.target.NID, func(e *Event) *Event { return e.redactedBy(x.by) })
}

// replace puts another value in an event's place; slices handed out before keep the old one.
func (t *timelineRing) replace(nid int64, with func(*Event) *Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.events, func(e *Event) bool { return e.NID == nid })
	if i < 0 {
		return
	}
	t.events = slices.Clone(t.events)
	t.events[i] = with(t.events[i])
	t.account()
}
