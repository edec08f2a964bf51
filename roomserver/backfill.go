package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/storage"
)

// Backfilled hears of events that take a place in the past of a room, of which no position in the log tells. What it adds
// to the unit is written with the events; written is called when they are on disk and must not block.
type Backfilled func(unit *storage.Unit, room int64, events []*Event) (written func())

// SetBackfilled tells who hears of such events. It must be called before the first one comes.
func (s *Server) SetBackfilled(fn Backfilled) { s.backfilled = fn }

// tellBackfilled tells of the events of the turn that take a place in the past.
func (t *Turn) tellBackfilled() {
	if t.s.backfilled == nil {
		return
	}
	var past []*Event
	for _, e := range t.events {
		if e.Sub != 0 {
			past = append(past, e)
		}
	}
	if len(past) > 0 {
		t.AfterApply(t.s.backfilled(t.unit, t.room.NID, past))
	}
}

// Backfill puts older events into the history of a room: right before the event at a gap, in the order given, parents
// before children. They neither arrive nor change the current state. Events that cannot be judged are left out, and
// those whose parents are not all known are gaps of their own. It returns what got a place, oldest first.
func (s *Server) Backfill(ctx context.Context, roomID string, gap Gap, in []Incoming) ([]*Event, error) {
	// One at a time, so that no two take the same places.
	defer s.backfills.lock(roomID)()
	var placed []*Event
	_, err := s.Turn(ctx, roomID, func(t *Turn) (err error) {
		placed, err = t.backfill(gap, in)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("backfill %s: %w", roomID, err)
	}
	return placed, nil
}

// backfill is Backfill in the room's turn.
func (t *Turn) backfill(gap Gap, in []Incoming) ([]*Event, error) {
	var placed []*Event
	for i := range in {
		if in[i].Event.RoomID != t.room.ID {
			continue
		}
		e, _, got, err := t.judge(&in[i])
		var missing *MissingError
		if errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if got.Outcome != 0 {
			continue
		}
		if e.IsState() {
			if err := t.setAfter(e); err != nil {
				return nil, err
			}
		}
		t.keep(e)
		placed = append(placed, e)
	}
	return placed, t.insert(gap, placed)
}

// insert gives events that the turn keeps places before a gap, in their order.
func (t *Turn) insert(gap Gap, list []*Event) error {
	if err := t.takePlaces(gap.Place.Anchor, list); err != nil {
		return err
	}
	for _, e := range list {
		if e.flags&flagGiven != 0 {
			t.gapped = append(t.gapped, e)
		}
		if err := t.redactReceived(e); err != nil {
			return err
		}
		if err := t.await(e); err != nil {
			return fmt.Errorf("relations of %s: %w", e.ID, err)
		}
	}
	return t.closeGaps(gap, list)
}

// takePlaces gives events the places before all that the room has at an anchor.
func (t *Turn) takePlaces(anchor int64, list []*Event) error {
	if len(list) == 0 {
		return nil
	}
	var first int64
	err := t.s.db.Read(t.ctx, func(tx *storage.Tx) error {
		_, err := tx.Get(`SELECT sub FROM events WHERE room = $1 AND anchor = $2 ORDER BY sub LIMIT 1`, []any{t.room.NID, anchor}, &first)
		return err
	})
	if err != nil {
		return fmt.Errorf("places before %d: %w", anchor, err)
	}
	if t.room.firsts == nil {
		t.room.firsts = map[int64]int64{}
	}
	// What is on its way to the database has places, too.
	first = min(first, t.room.firsts[anchor])
	for i, e := range slices.Backward(list) {
		e.Anchor, e.Sub = anchor, first-int64(len(list)-i)
	}
	t.room.firsts[anchor] = first - int64(len(list))
	return nil
}

// citedAtGap tells whether an event is among the unknown parents before a gap. gap is the zero Gap where the one that
// cites it is not durable yet.
func (t *Turn) citedAtGap(id string) (gap Gap, cited bool, err error) {
	for _, g := range slices.Backward(*t.room.gaps.Load()) {
		e, err := t.event(g.NID)
		if err != nil {
			return gap, false, err
		}
		if slices.Contains(e.PrevEventIDs(), id) {
			return g, true, nil
		}
	}
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	for _, e := range t.room.pending.byNID {
		if e.flags&flagGiven != 0 && e.offset > 0 && slices.Contains(e.PrevEventIDs(), id) {
			return gap, true, nil
		}
	}
	return gap, false, nil
}

// pastEvents are those of a list of received events that belong before an event at a gap.
type pastEvents struct {
	gaps  map[string]Gap // by the events' ids; the zero Gap as in citedAtGap
	order []Gap
	taken map[Gap][]*Event // what is to be inserted before a gap, parents before children
}

// beforeGaps finds the events of a list, parents before children, that an event at a gap follows, directly or by others of
// the list.
func (t *Turn) beforeGaps(in []Incoming) (*pastEvents, error) {
	past := &pastEvents{gaps: map[string]Gap{}, taken: map[Gap][]*Event{}}
	for i := range slices.Backward(in) {
		p := in[i].Event
		gap, older := past.gaps[p.ID]
		if !older {
			var err error
			if gap, older, err = t.citedAtGap(p.ID); err != nil {
				return nil, err
			}
		}
		if !older {
			continue
		}
		past.gaps[p.ID] = gap
		for _, id := range p.PrevEventIDs() {
			if _, known := past.gaps[id]; !known {
				past.gaps[id] = gap
			}
		}
	}
	return past, nil
}

// add notes an event that is to be inserted before a gap.
func (p *pastEvents) add(e *Event, gap Gap) {
	if p.taken[gap] == nil {
		p.order = append(p.order, gap)
	}
	p.taken[gap] = append(p.taken[gap], e)
}

// insert gives the events their places.
func (p *pastEvents) insert(t *Turn) error {
	for _, gap := range p.order {
		if err := t.insert(gap, p.taken[gap]); err != nil {
			return err
		}
	}
	return nil
}

// slip takes in an event that came after one that follows it: it belongs before that one and is no end of the graph.
func (t *Turn) slip(e *Event, gap Gap, past *pastEvents) (Received, error) {
	if e.IsState() {
		if err := t.setAfter(e); err != nil {
			return Received{}, err
		}
	}
	if gap != (Gap{}) {
		t.keep(e)
		past.add(e, gap)
		return Received{Outcome: Accepted}, nil
	}
	t.place(e)
	t.keep(e)
	if e.flags&flagGiven != 0 {
		t.gapped = append(t.gapped, e)
	}
	if err := t.redactReceived(e); err != nil {
		return Received{}, err
	}
	return Received{Outcome: Accepted}, t.await(e)
}

// closeGaps finds the gaps before which nothing is unknown any more: the given one, and others that the new events
// fill.
func (t *Turn) closeGaps(gap Gap, placed []*Event) error {
	fresh := make(map[string]bool, len(placed))
	for _, e := range placed {
		fresh[e.ID] = true
	}
	for _, g := range *t.room.gaps.Load() {
		e, err := t.event(g.NID)
		if err != nil {
			return err
		}
		parents := e.PrevEventIDs()
		if g != gap && !slices.ContainsFunc(parents, func(id string) bool { return fresh[id] }) {
			continue
		}
		closed := true
		for _, id := range parents {
			p, err := t.find(id)
			if err != nil {
				return err
			}
			if p == nil || p.Outlier() {
				closed = false
				break
			}
		}
		if closed {
			t.closed = append(t.closed, g)
		}
	}
	return nil
}
