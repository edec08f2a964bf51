package roomserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/myelin-im/myelin/storage"
)

const (
	// duePage is how many stored events are looked through at once, duePause how long the others then have the database.
	duePage  = 2000
	duePause = 50 * time.Millisecond
)

// indexRelationships gives rows to the relationships (MSC2836) of events that were stored before there were such rows. It goes
// on where it was when the server stopped.
func (s *Server) indexRelationships(ctx context.Context) {
	for {
		more, err := s.indexDue(ctx, duePage)
		if err != nil && ctx.Err() == nil {
			s.log.WithError(err).Warn("the relationships of older events could not be indexed; the next start goes on with it")
		}
		if err != nil || !more {
			return
		}
		select {
		case <-time.After(duePause):
		case <-ctx.Done():
			return
		}
	}
}

// dueRelation is an event with its relationship.
type dueRelation struct {
	event *Event
	indexed
}

// indexDue looks through some of the events, and tells whether there are more.
func (s *Server) indexDue(ctx context.Context, page int) (more bool, err error) {
	var after, upTo int64
	found, err := s.db.Get(ctx, `SELECT after, up_to FROM relationships_due WHERE id = 1`, nil, &after, &upTo)
	if err != nil || !found {
		return false, err
	}
	byRoom, last, err := s.mentionRelationships(ctx, after, upTo, page)
	if err != nil {
		return false, err
	}
	var due []dueRelation
	for nid, nids := range byRoom {
		some, err := s.relationshipsDue(ctx, nid, nids)
		if err != nil {
			return false, err
		}
		due = append(due, some...)
	}
	err = s.db.Write(ctx, func(tx *storage.Tx) error {
		for i := range due {
			if err := due[i].write(tx); err != nil {
				return err
			}
		}
		sql, args := `UPDATE relationships_due SET after = $1 WHERE id = 1`, []any{last}
		if last == upTo {
			sql, args = `DELETE FROM relationships_due WHERE id = 1`, nil
		}
		_, err := tx.Exec(sql, args...)
		return err
	})
	return last < upTo, err
}

// mentionRelationships finds the stored events that may have a relationship among a page of those with numbers in
// (after, upTo], by room. last is the number up to which it has looked.
func (s *Server) mentionRelationships(ctx context.Context, after, upTo int64, page int) (byRoom map[int64][]int64, last int64, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		byRoom, last = map[int64][]int64{}, upTo
		rows := tx.Query(`SELECT nid, room, json FROM events WHERE nid > $1 AND nid <= $2 ORDER BY nid LIMIT $3`, after, upTo, int64(page))
		var nid, room int64
		var json []byte
		n := 0
		for ; rows.Next(); n++ {
			rows.Scan(&nid, &room, &json)
			if bytes.Contains(json, []byte(`"m.relationship"`)) {
				byRoom[room] = append(byRoom[room], nid)
			}
		}
		if n == page {
			last = nid
		}
		return rows.Close()
	})
	if err != nil {
		return nil, 0, fmt.Errorf("look for relationships: %w", err)
	}
	return byRoom, last, nil
}

// relationshipsDue reads what some events of a room say in m.relationship alone.
func (s *Server) relationshipsDue(ctx context.Context, nid int64, nids []int64) (due []dueRelation, err error) {
	room, err := s.RoomByNID(ctx, nid)
	if errors.Is(err, ErrUnknownRoom) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	events, err := s.eventsByNID(ctx, room, nids)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		for _, r := range indexedOf(e.Event) {
			if r.kind == InThread {
				due = append(due, dueRelation{e, r})
			}
		}
	}
	return due, nil
}

// write adds the row, unless the event has been redacted or has no place in the timeline.
func (d *dueRelation) write(tx *storage.Tx) error {
	var anchor *int64
	var sub, flags int64
	found, err := tx.Get(`SELECT anchor, sub, flags FROM events WHERE nid = $1`, []any{d.event.NID}, &anchor, &sub, &flags)
	if err != nil || !found || anchor == nil || flags&flagRedacted != 0 {
		return err
	}
	_, err = tx.Exec(`INSERT INTO relations (room, target, anchor, sub, child, event_id, kind, rel_type, type, sender)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (room, target, anchor, sub) DO NOTHING`,
		d.event.RoomNID, eventKey(d.Target), *anchor, sub, d.event.NID, eventKey(d.event.ID), int64(d.kind), d.Type, d.event.Type, d.event.Sender)
	return err
}
