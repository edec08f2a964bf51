package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/storage"
)

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
	first, err := t.firstAt(gap.Place.Anchor)
	if err != nil {
		return nil, err
	}
	for i, e := range slices.Backward(placed) {
		e.Anchor, e.Sub = gap.Place.Anchor, first-int64(len(placed)-i)
		if e.flags&flagGiven != 0 {
			t.gapped = append(t.gapped, e)
		}
	}
	for _, e := range placed {
		if err := t.redactReceived(e); err != nil {
			return nil, err
		}
		if err := t.await(e); err != nil {
			return nil, fmt.Errorf("relations of %s: %w", e.ID, err)
		}
	}
	return placed, t.closeGaps(gap, placed)
}

// firstAt is the lowest sub that an event of the room has at an anchor.
func (t *Turn) firstAt(anchor int64) (sub int64, err error) {
	err = t.s.db.Read(t.ctx, func(tx *storage.Tx) error {
		_, err := tx.Get(`SELECT sub FROM events WHERE room = $1 AND anchor = $2 ORDER BY sub LIMIT 1`, []any{t.room.NID, anchor}, &sub)
		return err
	})
	return sub, err
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
