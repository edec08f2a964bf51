package roomserver

import (
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// recasting computes the states around partial events again.
type recasting struct {
	t     *Turn
	asIs  bool                     // they stay as they are, but are no longer called partial
	given map[int64][]snapshot.Ref // states after unknown parents

	raised  []*Event // were refused and are not any more
	refused bool     // some were not refused and are now
}

// recast is e as it will be judged again.
func (e *Event) recast() *Event {
	return &Event{
		Event: e.Event, NID: e.NID, RoomNID: e.RoomNID, Anchor: e.Anchor, Sub: e.Sub, StateBefore: e.StateBefore, StateAfter: e.StateAfter,
		TxnDevice: e.TxnDevice, TxnID: e.TxnID, DelayID: e.DelayID, flags: e.flags &^ flagPartial,
		redaction: e.redaction, relation: e.relation, stored: true,
	}
}

// event judges one event again, whose parents have been.
func (r *recasting) event(old *Event) error {
	t, e := r.t, old.recast()
	auth, err := t.authEvents(old.Event)
	if err != nil {
		return err
	}
	for _, a := range auth {
		e.auth = append(e.auth, a.NID)
	}
	before, err := r.before(old)
	if err != nil {
		return err
	}
	if r.asIs || len(before) == 0 { // of the parents nothing is left
		r.keep(e)
		return nil
	}
	if e.StateBefore, err = t.resolve(before); err != nil {
		return err
	}
	e.StateAfter = e.StateBefore
	reason, err := t.refusal(e, auth)
	switch {
	case err != nil:
		return err
	case reason != nil:
		return r.refuse(old, e)
	case old.Rejected():
		return r.raise(e)
	}
	if err := r.after(e); err != nil {
		return err
	}
	r.keep(e)
	return nil
}

// before are the states that the parents of an event left behind.
func (r *recasting) before(e *Event) ([]snapshot.Ref, error) {
	parents, err := r.t.parentsOf(e)
	return append(statesAfter(parents), r.given[e.NID]...), err
}

// after computes the state after an event that counts.
func (r *recasting) after(e *Event) error {
	if !e.IsState() {
		return nil
	}
	pack, err := r.t.s.nids.Next(r.t.ctx)
	if err != nil {
		return fmt.Errorf("take a number: %w", err)
	}
	return r.t.setAfterIn(e, pack)
}

// keep makes what an event has become part of the unit.
func (r *recasting) keep(e *Event) {
	t := r.t
	t.room.mu.Lock()
	t.room.pending.add(e)
	t.room.mu.Unlock()
	t.recasts = append(t.recasts, e)
}

// refuse takes an event out of the timeline, if it was in it.
func (r *recasting) refuse(old, e *Event) error {
	e.flags = e.flags&^flagSoftFailed | flagRejected
	e.Anchor, e.Sub = 0, 0
	r.refused = r.refused || !old.Rejected()
	r.keep(e)
	if old.Anchor == 0 {
		return nil
	}
	if err := r.restore(old); err != nil {
		return err
	}
	t := r.t
	for _, link := range indexedOf(old.Event) {
		t.unit.Exec(`DELETE FROM relations WHERE room = $1 AND target = $2 AND anchor = $3 AND sub = $4`,
			t.room.NID, eventKey(link.Target), old.Anchor, old.Sub)
		t.after = append(t.after, func() { t.s.relations.remove(t.room.NID, link.Target, old.NID) })
	}
	if e.flags&flagGiven != 0 {
		t.closed = append(t.closed, Gap{old.Token(), old.NID})
	}
	return nil
}

// restore undoes a redaction, if the event was one that applied.
func (r *recasting) restore(by *Event) error {
	target, t := by.Redacts(), r.t
	if by.Type != "m.room.redaction" || target == "" {
		return nil
	}
	var row eventRow
	undone := false
	err := t.s.db.Read(t.ctx, func(tx *storage.Tx) error {
		args := []any{t.room.NID, eventKey(target), by.NID}
		undone = false
		applied, err := tx.Get(`SELECT redaction FROM redactions WHERE room = $1 AND target = $2 AND redaction = $3 AND applied`, args, new(int64))
		if err != nil || !applied {
			return err
		}
		others, err := tx.Get(`SELECT redaction FROM redactions WHERE room = $1 AND target = $2 AND redaction <> $3 AND applied`, args, new(int64))
		if err != nil || others {
			return err
		}
		undone, err = tx.Get(`SELECT `+eventColumns+` FROM events WHERE room = $1 AND event_id = $2`, args[:2], row.dest()...)
		return err
	})
	if err != nil {
		return fmt.Errorf("what %s redacted: %w", by.ID, err)
	}
	t.unit.Exec(`UPDATE redactions SET applied = $1 WHERE room = $2 AND target = $3 AND redaction = $4`, false, t.room.NID, eventKey(target), by.NID)
	if !undone {
		return nil
	}
	plain, err := row.event(t.room)
	if err != nil {
		return err
	}
	e, err := t.event(plain.NID)
	if err != nil {
		return err
	}
	if !slices.Contains(t.recasts, e) {
		flags := e.flags
		e = e.recast()
		e.flags = flags // it may have to be judged again itself
		r.keep(e)
	}
	e.Event, e.redaction, e.relation = plain.Event, nil, nil
	e.flags &^= flagRedacted
	return nil
}

// raise takes an event into the timeline that should not have been refused. It arrives now.
func (r *recasting) raise(e *Event) error {
	t := r.t
	e.flags &^= flagRejected
	if err := r.after(e); err != nil {
		return err
	}
	if e.IsState() {
		indexed, err := t.s.db.Get(t.ctx, `SELECT nid FROM events WHERE nid = $1 AND chain_order IS NOT NULL`, []any{e.NID}, new(int64))
		if err != nil {
			return err
		}
		if !indexed {
			if err := t.index(e); err != nil {
				return err
			}
		}
	}
	t.place(e)
	t.keep(e)
	r.raised = append(r.raised, e)
	if e.flags&flagGiven != 0 {
		t.gapped = append(t.gapped, e)
	}
	if err := t.redactReceived(e); err != nil {
		return err
	}
	return t.await(e)
}

// refit finds the forward extremities again: as the events are now and, where some count that did not or the reverse,
// those that nothing which counts follows.
func (r *recasting) refit() error {
	t := r.t
	head := &Head{State: t.head.State, Pos: t.head.Pos}
	var last []*Event // if nothing counts any more, the room goes on from these
	for _, x := range t.head.Extremities {
		now, err := t.event(x.NID)
		if err != nil {
			return err
		}
		if !now.Rejected() {
			head.Extremities = append(head.Extremities, now)
			continue
		}
		last = append(last, now)
		behind, err := r.counting(now)
		if err != nil {
			return err
		}
		head.Extremities = append(head.Extremities, behind...)
	}
	head.Extremities = append(head.Extremities, r.raised...)
	if r.refused || len(r.raised) > 0 {
		t.place(&Event{}) // so that the new ends are written
		var err error
		if head.Extremities, err = r.ends(head.Extremities); err != nil {
			return err
		}
	}
	if len(head.Extremities) == 0 {
		head.Extremities = last
	}
	t.head = head
	return nil
}

// counting finds the nearest ancestors of an event that count.
func (r *recasting) counting(e *Event) ([]*Event, error) {
	var found []*Event
	seen := map[string]bool{}
	for front := e.PrevEventIDs(); len(front) > 0 && len(seen) < maxRefit; {
		id := front[0]
		front = front[1:]
		if seen[id] {
			continue
		}
		seen[id] = true
		p, err := r.t.find(id)
		switch {
		case err != nil:
			return nil, err
		case p == nil || p.Outlier():
		case p.Rejected() || p.SoftFailed():
			front = append(front, p.PrevEventIDs()...)
		default:
			found = append(found, p)
		}
	}
	return found, nil
}

// ends leaves out of a list, and keeps once, the events that others of it follow.
func (r *recasting) ends(list []*Event) ([]*Event, error) {
	followed := map[string]bool{}
	var front []string
	for _, e := range list {
		front = append(front, e.PrevEventIDs()...)
	}
	for len(front) > 0 && len(followed) < maxRefit {
		id := front[0]
		front = front[1:]
		if followed[id] {
			continue
		}
		followed[id] = true
		p, err := r.t.find(id)
		if err != nil {
			return nil, err
		}
		if p != nil && !p.Outlier() {
			front = append(front, p.PrevEventIDs()...)
		}
	}
	var out []*Event
	for _, e := range list {
		if !followed[e.ID] {
			followed[e.ID] = true
			out = append(out, e)
		}
	}
	return out, nil
}

// writeRecasts changes the rows of events whose states were computed again.
func (t *Turn) writeRecasts() {
	for _, e := range t.recasts {
		t.writeEvent(e)
	}
}

// applyRecasts replaces events in memory whose states were computed again; they are durable.
func (t *Turn) applyRecasts() {
	for _, e := range t.recasts {
		e.auth, e.chain = nil, authchain.Row{}
		t.s.events.Put(e.NID, e, e.cost())
		if e.Rejected() {
			t.room.recent.remove(map[int64]bool{e.NID: true})
		} else {
			t.room.recent.replace(e.NID, func(*Event) *Event { return e })
		}
	}
}
