package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/storage"
)

// Gap is a place in a room's history with unknown events before it: the event at Place has parents that this server
// does not know.
type Gap struct {
	Place HistoryToken
	// NID is the event's number.
	NID int64
}

// maxGaps bounds the gaps of one room that are known in memory. Of more, the newest count.
const maxGaps = 1000

var gapsTable = storage.DeclareTable("room_gaps", storage.Put,
	storage.Key("room", storage.Int), storage.Key("anchor", storage.Int), storage.Key("sub", storage.Int), storage.Col("event", storage.Int))

// loadGaps reads the newest gaps of a room that is being loaded.
func (r *Room) loadGaps(tx *storage.Tx) error {
	gaps := []Gap{}
	rows := tx.Query(`SELECT anchor, sub, event FROM room_gaps WHERE room = $1 ORDER BY anchor DESC, sub DESC LIMIT $2`, r.NID, int64(maxGaps))
	var g Gap
	for rows.Next() {
		rows.Scan(&g.Place.Anchor, &g.Place.Sub, &g.NID)
		gaps = append(gaps, g)
	}
	slices.Reverse(gaps)
	r.gaps.Store(&gaps)
	return rows.Close()
}

// anchorValue is the event's anchor for a row of its unit.
func (e *Event) anchorValue() any {
	if e.offset > 0 {
		return storage.Pos(e.offset)
	}
	return e.Anchor
}

// writeGaps adds the rows of gaps to the unit, and deletes those of closed ones.
func (t *Turn) writeGaps() {
	for _, e := range t.gapped {
		t.unit.Add(gapsTable, t.room.NID, e.anchorValue(), e.Sub, e.NID)
	}
	for _, g := range t.closed {
		t.unit.Delete(gapsTable, t.room.NID, g.Place.Anchor, g.Place.Sub)
	}
}

// applyGaps advances what memory knows of the room's gaps; the events have their places.
func (t *Turn) applyGaps() {
	for _, e := range t.events {
		if e.Sub != 0 {
			t.room.recent.beginAt(e.Anchor)
			break
		}
	}
	if len(t.gapped)+len(t.closed) == 0 {
		return
	}
	gaps := slices.DeleteFunc(slices.Clone(*t.room.gaps.Load()), func(g Gap) bool { return slices.Contains(t.closed, g) })
	for _, e := range t.gapped {
		gaps = append(gaps, Gap{e.Token(), e.NID})
	}
	slices.SortFunc(gaps, func(a, b Gap) int {
		if a.Place.Before(b.Place) {
			return -1
		}
		return 1
	})
	gaps = gaps[max(0, len(gaps)-maxGaps):]
	t.room.gaps.Store(&gaps)
	for _, e := range t.gapped {
		if e.Sub == 0 {
			t.room.recent.beginAt(e.Anchor)
		}
	}
}

// GapBefore returns the newest gap among the events before a place: reading backward from there comes to it first.
func (r *Room) GapBefore(t HistoryToken) (g Gap, ok bool) {
	for _, g := range slices.Backward(*r.gaps.Load()) {
		if g.Place.Before(t) {
			return g, true
		}
	}
	return Gap{}, false
}

// GapAfter returns the oldest gap among the events after a place: reading forward from there comes to it first.
func (r *Room) GapAfter(t HistoryToken) (g Gap, ok bool) {
	for _, g := range *r.gaps.Load() {
		if t.Before(g.Place) {
			return g, true
		}
	}
	return Gap{}, false
}

// Contiguous cuts a piece of the timeline, oldest first, so that no gap lies within it: what is before the newest gap
// does not belong to it. gap tells that there is one right before what is left.
func (r *Room) Contiguous(events []*Event) (rest []*Event, gap bool) {
	if len(events) == 0 {
		return events, false
	}
	g, ok := r.GapBefore(events[len(events)-1].After())
	if !ok || g.Place.Before(events[0].Token()) {
		return events, false
	}
	i := slices.IndexFunc(events, func(e *Event) bool { return !e.Token().Before(g.Place) })
	return events[max(i, 0):], i >= 0
}

// Unknown returns those of the ids that are of no event of the room that this server has, whatever its state.
func (s *Server) Unknown(ctx context.Context, room *Room, ids []string) ([]string, error) {
	known := make(map[string]bool, len(ids))
	for rest := ids; len(rest) > 0; {
		args := make([]any, 1, eventBatch+1)
		args[0] = room.NID
		for i := range eventBatch {
			args = append(args, eventKey(rest[min(i, len(rest)-1)]))
		}
		rest = rest[min(eventBatch, len(rest)):]
		err := s.db.Read(ctx, func(tx *storage.Tx) error {
			rows := tx.Query(`SELECT event_id FROM events WHERE room = $1 AND event_id IN `+storage.In(eventBatch, 2), args...)
			var key []byte
			for rows.Next() {
				rows.Scan(&key)
				known[eventIDFromKey(room.Version, key)] = true
			}
			return rows.Close()
		})
		if err != nil {
			return nil, fmt.Errorf("look for events of %s: %w", room.ID, err)
		}
	}
	var unknown []string
	for _, id := range ids {
		if !known[id] {
			known[id] = true // once is enough
			unknown = append(unknown, id)
		}
	}
	return unknown, nil
}

// GapParents returns the parents that an event at a gap has, and of them those without a state here.
func (s *Server) GapParents(ctx context.Context, room *Room, g Gap) (e *Event, missing []string, err error) {
	if e, err = s.eventByNID(ctx, room, g.NID); err != nil {
		return nil, nil, err
	}
	for _, id := range e.PrevEventIDs() {
		p, err := s.Event(ctx, room, id)
		if err != nil && !errors.Is(err, ErrUnknownEvent) {
			return nil, nil, err
		}
		if err != nil || p.Outlier() {
			missing = append(missing, id)
		}
	}
	return e, missing, nil
}
