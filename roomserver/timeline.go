package roomserver

import (
	"context"
	"math"
	"slices"
	"strconv"
)

// HistoryToken is a place between two events of a room's history order: just before the event of that
// (anchor, sub). The order is total, so paging neither skips nor repeats.
type HistoryToken struct{ Anchor, Sub int64 }

// Before compares two places.
func (t HistoryToken) Before(u HistoryToken) bool {
	return t.Anchor < u.Anchor || t.Anchor == u.Anchor && t.Sub < u.Sub
}

// String is the place as clients get it in tokens.
func (t HistoryToken) String() string {
	if t.Sub == math.MinInt64 {
		return "p" + strconv.FormatInt(t.Anchor, 10)
	}
	return "t" + strconv.FormatInt(t.Anchor, 10) + "_" + strconv.FormatInt(t.Sub, 10)
}

// AfterPosition is the place after all events up to a log position: where a sync token points.
func AfterPosition(pos int64) HistoryToken { return HistoryToken{pos + 1, math.MinInt64} }

// After is the place just after an event.
func (e *Event) After() HistoryToken { return HistoryToken{e.Anchor, e.Sub + 1} }

// Timeline returns the newest limit events that arrived in the room at positions in (after, upTo], oldest
// first, and whether there are more of them. Unknown events may lie between them: then only those after the gap are
// returned, and there are more.
func (s *Server) Timeline(ctx context.Context, room *Room, after, upTo int64, limit int) (events []*Event, more bool, err error) {
	if err := s.fillRecent(ctx, room); err != nil {
		return nil, false, err
	}
	if events, err = s.arrived(ctx, room, after, upTo, limit+1); err != nil {
		return nil, false, err
	}
	events, more = newest(events, limit)
	events, cut := room.Contiguous(events)
	return events, more || cut, nil
}

// arrived returns the newest n events that arrived at positions in (after, upTo], oldest first, from memory if they are
// there: then there may be more than n.
func (s *Server) arrived(ctx context.Context, room *Room, after, upTo int64, n int) (events []*Event, err error) {
	if after == 0 {
		if events, covered := room.recent.last(n, upTo); covered {
			return events, nil
		}
		events, err = s.HistoryBefore(ctx, room, AfterPosition(upTo), n)
	} else {
		if events, covered := room.recent.since(after, upTo); covered {
			return events, nil
		}
		events, err = s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events
			WHERE room = $1 AND anchor IS NOT NULL AND anchor > $2 AND anchor <= $3 AND sub = 0
			ORDER BY anchor DESC LIMIT $4`, room.NID, after, upTo, int64(n))
	}
	slices.Reverse(events)
	return events, err
}

// newest returns the last n events and whether it left any out.
func newest(events []*Event, n int) ([]*Event, bool) {
	if len(events) > n {
		return events[len(events)-n:], true
	}
	return events, false
}

// fillRecent loads the newest events of a room that was just loaded.
func (s *Server) fillRecent(ctx context.Context, room *Room) error {
	room.recent.mu.RLock()
	loaded := room.recent.loaded
	room.recent.mu.RUnlock()
	if loaded {
		return nil
	}
	defer s.rooms.shed()
	return room.recent.load(func() ([]*Event, error) {
		events, err := s.HistoryBefore(ctx, room, AfterPosition(math.MaxInt64-1), ringSize)
		slices.Reverse(events)
		return events, err
	})
}

// HistoryBefore returns up to limit events before a place, newest first.
func (s *Server) HistoryBefore(ctx context.Context, room *Room, t HistoryToken, limit int) ([]*Event, error) {
	return s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events
		WHERE room = $1 AND anchor IS NOT NULL AND (anchor, sub) < ($2, $3)
		ORDER BY anchor DESC, sub DESC LIMIT $4`, room.NID, t.Anchor, t.Sub, int64(limit))
}

// HistoryAfter returns up to limit events at or after a place, oldest first, none with a position beyond upTo.
func (s *Server) HistoryAfter(ctx context.Context, room *Room, t HistoryToken, upTo int64, limit int) ([]*Event, error) {
	return s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events
		WHERE room = $1 AND anchor IS NOT NULL AND (anchor, sub) >= ($2, $3) AND anchor <= $4
		ORDER BY anchor, sub LIMIT $5`, room.NID, t.Anchor, t.Sub, upTo, int64(limit))
}

// EventNear returns the timeline event closest to a time: the first at or after ts (milliseconds) going
// forward, the last at or before it going backward; nil if there is none. Events whose clocks lie are
// found where they claim to be.
func (s *Server) EventNear(ctx context.Context, room *Room, ts int64, forward bool) (*Event, error) {
	query := `SELECT ` + eventColumns + ` FROM events WHERE room = $1 AND anchor IS NOT NULL AND ts <= $2 ORDER BY ts DESC, anchor DESC, sub DESC LIMIT 1`
	if forward {
		query = `SELECT ` + eventColumns + ` FROM events WHERE room = $1 AND anchor IS NOT NULL AND ts >= $2 ORDER BY ts, anchor, sub LIMIT 1`
	}
	events, err := s.queryEvents(ctx, room, query, room.NID, ts)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	return events[0], nil
}
