package roomserver

import "context"

// EventsNear returns timeline events by their distance from a time: those at or after ts (milliseconds) going forward,
// those at or before it going backward, the closest first, at most limit of them after the first skip. Events whose clocks
// lie are found where they claim to be.
func (s *Server) EventsNear(ctx context.Context, room *Room, ts int64, forward bool, skip, limit int) ([]*Event, error) {
	query := `SELECT ` + eventColumns + ` FROM events WHERE room = $1 AND anchor IS NOT NULL AND ts <= $2 ORDER BY ts DESC, anchor DESC, sub DESC LIMIT $3 OFFSET $4`
	if forward {
		query = `SELECT ` + eventColumns + ` FROM events WHERE room = $1 AND anchor IS NOT NULL AND ts >= $2 ORDER BY ts, anchor, sub LIMIT $3 OFFSET $4`
	}
	return s.queryEvents(ctx, room, query, room.NID, ts, int64(limit), int64(skip))
}
