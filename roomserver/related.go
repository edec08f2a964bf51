package roomserver

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/storage"
)

// RelationQuery asks for the events that relate to another one.
type RelationQuery struct {
	// Target is the id of the event to which they relate.
	Target string
	// RelType and EventType, if set, are the only ones wanted, on every level.
	RelType, EventType string
	// Low and High are the ends of the history asked about: at or after Low, before High.
	Low, High HistoryToken
	// Forward asks for the oldest first.
	Forward bool
	// Depth is how many levels of relations to follow, at least 1.
	Depth int
	// Limit is the most to return.
	Limit int
}

// EndOfHistory is the place after all events.
var EndOfHistory = HistoryToken{math.MaxInt64, math.MinInt64}

// RelatedEvents returns events that relate to another one, in history order or the reverse. Redacted ones relate to
// nothing any more.
func (s *Server) RelatedEvents(ctx context.Context, room *Room, q RelationQuery) ([]*Event, error) {
	args := []any{room.NID, eventKey(q.Target), q.Low.Anchor, q.Low.Sub, q.High.Anchor, q.High.Sub}
	wanted := ""
	add := func(column, value string) {
		if value != "" {
			args = append(args, value)
			wanted += " AND r." + column + " = $" + strconv.Itoa(len(args))
		}
	}
	add("rel_type", q.RelType)
	add("type", q.EventType)
	const between = `(r.anchor, r.sub) >= ($3, $4) AND (r.anchor, r.sub) < ($5, $6)`
	order := ` ORDER BY r.anchor DESC, r.sub DESC`
	if q.Forward {
		order = ` ORDER BY r.anchor, r.sub`
	}
	var sql string
	if q.Depth <= 1 {
		sql = `SELECT r.child FROM relations r WHERE r.room = $1 AND r.target = $2 AND ` + between + wanted + order
	} else {
		// Event ids of the first room versions are chosen by servers, so that relations may form loops: depth ends them.
		args = append(args, int64(q.Depth))
		depth := "$" + strconv.Itoa(len(args))
		sql = `WITH RECURSIVE tree (event_id, child, anchor, sub, depth) AS (
				SELECT r.event_id, r.child, r.anchor, r.sub, 1 FROM relations r WHERE r.room = $1 AND r.target = $2` + wanted + `
				UNION ALL
				SELECT r.event_id, r.child, r.anchor, r.sub, t.depth + 1 FROM tree t
				JOIN relations r ON r.room = $1 AND r.target = t.event_id WHERE t.depth < ` + depth + wanted + `
			) SELECT DISTINCT r.child, r.anchor, r.sub FROM tree r WHERE ` + between + order
	}
	args = append(args, int64(q.Limit))
	sql += " LIMIT $" + strconv.Itoa(len(args))
	var nids []int64
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		nids = nids[:0]
		rows := tx.Query(sql, args...)
		var nid, anchor, sub int64
		dest := []any{&nid, &anchor, &sub}
		if q.Depth <= 1 {
			dest = dest[:1]
		}
		for rows.Next() {
			rows.Scan(dest...)
			nids = append(nids, nid)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("relations of %s: %w", q.Target, err)
	}
	return s.eventsByNID(ctx, room, nids)
}

// ThreadReplyAt is the place of a reply and the root of its thread.
type ThreadReplyAt struct {
	Root  string
	Token HistoryToken
}

// ThreadReplies returns up to limit replies in threads of a room before a place, newest first.
func (s *Server) ThreadReplies(ctx context.Context, room *Room, before HistoryToken, limit int) ([]ThreadReplyAt, error) {
	var out []ThreadReplyAt
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		out = nil
		names := map[string]string{}
		rows := tx.Query(`SELECT target, anchor, sub FROM relations WHERE room = $1 AND kind = 2 AND (anchor, sub) < ($2, $3)
			ORDER BY anchor DESC, sub DESC LIMIT $4`, room.NID, before.Anchor, before.Sub, int64(limit))
		var target []byte
		for rows.Next() {
			var r ThreadReplyAt
			rows.Scan(&target, &r.Token.Anchor, &r.Token.Sub)
			id, ok := names[string(target)]
			if !ok {
				id = eventIDFromKey(room.Version, target)
				names[string(target)] = id
			}
			r.Root = id
			out = append(out, r)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("threads of %s: %w", room.ID, err)
	}
	return out, nil
}

// EventsByID returns those of the events of a room with these ids that this server has, whatever their state.
func (s *Server) EventsByID(ctx context.Context, room *Room, ids []string) (map[string]*Event, error) {
	out := make(map[string]*Event, len(ids))
	for len(ids) > 0 {
		args := make([]any, 1, eventBatch+1)
		args[0] = room.NID
		for i := range eventBatch {
			args = append(args, eventKey(ids[min(i, len(ids)-1)]))
		}
		ids = ids[min(eventBatch, len(ids)):]
		events, err := s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events WHERE room = $1 AND event_id IN `+storage.In(eventBatch, 2), args...)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			out[e.ID] = e
		}
	}
	return out, nil
}

// EventsByNID returns events of a room by their numbers, in the same order.
func (s *Server) EventsByNID(ctx context.Context, room *Room, nids []int64) ([]*Event, error) {
	return s.eventsByNID(ctx, room, nids)
}

// RelatedBy returns the ids of those among events to which an event relates that has one of these senders and one of
// these relation types; nil stands for any.
func (s *Server) RelatedBy(ctx context.Context, room *Room, events []*Event, senders, relTypes []string) (map[string]bool, error) {
	out := map[string]bool{}
	if senders != nil && len(senders) == 0 || relTypes != nil && len(relTypes) == 0 {
		return out, nil
	}
	for len(events) > 0 {
		batch := events[:min(eventBatch, len(events))]
		events = events[len(batch):]
		args := []any{room.NID}
		var sql strings.Builder
		sql.WriteString(`SELECT DISTINCT target FROM relations WHERE room = $1`)
		in := func(column string, n int, value func(i int) any) {
			sql.WriteString(" AND " + column + " IN " + storage.In(n, len(args)+1))
			for i := range n {
				args = append(args, value(i))
			}
		}
		in("target", len(batch), func(i int) any { return eventKey(batch[i].ID) })
		if senders != nil {
			in("sender", len(senders), func(i int) any { return senders[i] })
		}
		if relTypes != nil {
			in("rel_type", len(relTypes), func(i int) any { return relTypes[i] })
		}
		err := s.db.Read(ctx, func(tx *storage.Tx) error {
			rows := tx.Query(sql.String(), args...)
			var target []byte
			for rows.Next() {
				rows.Scan(&target)
				out[eventIDFromKey(room.Version, target)] = true
			}
			return rows.Close()
		})
		if err != nil {
			return nil, fmt.Errorf("relations of %s: %w", room.ID, err)
		}
	}
	return out, nil
}

// AsRedacted is the event as readers would see it if it were redacted.
func (e *Event) AsRedacted() *Event {
	if e.Redacted {
		return e
	}
	return e.redactedBy(nil)
}
