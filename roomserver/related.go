package roomserver

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
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
	var nids []int64
	err := s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if q.Depth <= 1 {
			nids, err = q.direct(tx, room)
		} else {
			nids, err = q.recursive(tx, room)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("relations of %s: %w", q.Target, err)
	}
	return s.eventsByNID(ctx, room, nids)
}

// wanted appends the conditions on the relation and its event.
func (q *RelationQuery) wanted(sql string, args []any) (string, []any) {
	for _, c := range []struct{ column, value string }{{"rel_type", q.RelType}, {"type", q.EventType}} {
		if c.value != "" {
			args = append(args, c.value)
			sql += " AND " + c.column + " = $" + strconv.Itoa(len(args))
		}
	}
	return sql, args
}

// direct reads the numbers of the events that relate to the target itself.
func (q *RelationQuery) direct(tx *storage.Tx, room *Room) (nids []int64, err error) {
	sql, args := q.wanted(`SELECT child FROM relations WHERE room = $1 AND target = $2 AND kind <> 5 AND (anchor, sub) >= ($3, $4) AND (anchor, sub) < ($5, $6)`,
		[]any{room.NID, eventKey(q.Target), q.Low.Anchor, q.Low.Sub, q.High.Anchor, q.High.Sub})
	if args = append(args, int64(q.Limit)); q.Forward {
		sql += " ORDER BY anchor, sub LIMIT $" + strconv.Itoa(len(args))
	} else {
		sql += " ORDER BY anchor DESC, sub DESC LIMIT $" + strconv.Itoa(len(args))
	}
	return storage.List[int64](tx, sql, args...)
}

const (
	// maxDescendants bounds how many relations one recursive query follows.
	maxDescendants = 50_000
	// relationBatch is how many events of one level are asked about at once, if there are more than eventBatch.
	relationBatch = 512
)

// descendant is an event found by following relations.
type descendant struct {
	key []byte
	nid int64
	at  HistoryToken
}

// recursive reads the numbers of the events that relate to the target over up to Depth levels. It goes level by level: the
// planners of both databases make a recursive query walk all relations of the room.
func (q *RelationQuery) recursive(tx *storage.Tx, room *Room) (nids []int64, err error) {
	var found []descendant
	// Servers choose the event ids of the first room versions, so relations may form loops.
	seen := map[int64]bool{}
	level := [][]byte{eventKey(q.Target)}
	for depth := 0; depth < q.Depth && len(level) > 0; depth++ {
		first := len(found)
		for len(level) > 0 {
			batch := eventBatch
			if len(level) > eventBatch {
				batch = relationBatch
			}
			if found, err = q.below(tx, room, level[:min(batch, len(level))], batch, found, seen); err != nil {
				return nil, err
			}
			level = level[min(batch, len(level)):]
		}
		for _, d := range found[first:] {
			level = append(level, d.key)
		}
	}
	found = slices.DeleteFunc(found, func(d descendant) bool { return d.at.Before(q.Low) || !d.at.Before(q.High) })
	slices.SortFunc(found, func(a, b descendant) int {
		if !q.Forward {
			a, b = b, a
		}
		return cmp.Or(cmp.Compare(a.at.Anchor, b.at.Anchor), cmp.Compare(a.at.Sub, b.at.Sub))
	})
	for _, d := range found[:min(q.Limit, len(found))] {
		nids = append(nids, d.nid)
	}
	return nids, nil
}

// below appends what relates directly to one of some events and was not seen yet.
func (q *RelationQuery) below(tx *storage.Tx, room *Room, keys [][]byte, batch int, found []descendant, seen map[int64]bool) ([]descendant, error) {
	// Always one of two numbers of parameters, so that two prepared statements serve all.
	args := make([]any, 1, batch+3)
	args[0] = room.NID
	for i := range batch {
		args = append(args, keys[min(i, len(keys)-1)])
	}
	sql, args := q.wanted(`SELECT event_id, child, anchor, sub FROM relations WHERE room = $1 AND kind <> 5 AND target IN `+storage.In(batch, 2), args)
	rows := tx.Query(sql, args...)
	for rows.Next() {
		var d descendant
		rows.Scan(&d.key, &d.nid, &d.at.Anchor, &d.at.Sub)
		if !seen[d.nid] && len(found) < maxDescendants {
			seen[d.nid] = true
			found = append(found, d)
		}
	}
	return found, rows.Close()
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
		sql.WriteString(`SELECT DISTINCT target FROM relations WHERE room = $1 AND kind <> 5`)
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
