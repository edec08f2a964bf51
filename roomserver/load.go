package roomserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// ErrUnknownEvent says that this server does not have the event.
var ErrUnknownEvent = errors.New("unknown event")

const eventColumns = `nid, event_id, flags, anchor, sub, state_before, state_after, txn, json`

// eventRow is one row of events as eventColumns names it.
type eventRow struct {
	nid, flags, sub       int64
	anchor, before, after sql.NullInt64
	eventID, txn, json    []byte
}

func (r *eventRow) dest() []any {
	return []any{&r.nid, &r.eventID, &r.flags, &r.anchor, &r.sub, &r.before, &r.after, &r.txn, &r.json}
}

// event makes the Event of a row in a room.
func (r *eventRow) event(room *Room) (*Event, error) {
	p, err := pdu.FromStore(room.Version, r.json, eventIDFromKey(room.Version, r.eventID), r.flags&flagHashRedacted != 0)
	if err != nil {
		return nil, fmt.Errorf("stored event %d: %w", r.nid, err)
	}
	e := &Event{
		Event: p, NID: r.nid, RoomNID: room.NID, Anchor: r.anchor.Int64, Sub: r.sub, flags: r.flags,
		StateBefore: snapshot.Ref(r.before.Int64), StateAfter: snapshot.Ref(r.after.Int64),
	}
	if !r.after.Valid {
		e.StateAfter = e.StateBefore
	}
	if device, txn, ok := bytes.Cut(r.txn, []byte{0}); ok {
		e.TxnDevice, e.TxnID = string(device), string(txn)
	} else {
		e.DelayID = string(r.txn)
	}
	return e, nil
}

// queryEvents runs a query that selects eventColumns and returns the events in its order, cached
// ones from the cache.
func (s *Server) queryEvents(ctx context.Context, room *Room, query string, args ...any) ([]*Event, error) {
	var events []*Event
	epoch := s.redactionEpoch.Load()
	fresh := 0
	err := s.db.ReadOne(ctx, func(tx *storage.Tx) error {
		events, fresh = nil, 0
		var r eventRow
		dest := r.dest()
		rows := tx.Query(query, args...)
		for rows.Next() {
			rows.Scan(dest...)
			e, ok := s.events.Get(r.nid)
			if !ok {
				var err error
				if e, err = r.event(room); err != nil {
					return errors.Join(err, rows.Close())
				}
				fresh++
			}
			events = append(events, e)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read events of %s: %w", room.ID, err)
	}
	if fresh == 0 {
		return events, nil
	}
	return events, s.settle(ctx, room, events, epoch)
}

// settle gives events that were read from rows their redactions, and keeps them in memory unless an event has been redacted
// since epoch, before which the reading began: that might be missed by what is cached here.
func (s *Server) settle(ctx context.Context, room *Room, events []*Event, epoch uint64) (err error) {
	for i, e := range events {
		if e.flags&flagRedacted != 0 && e.redaction == nil {
			if events[i], err = s.withRedaction(ctx, room, e); err != nil {
				return err
			}
		}
	}
	s.redactionLock.RLock()
	defer s.redactionLock.RUnlock()
	if s.redactionEpoch.Load() == epoch {
		for _, e := range events {
			s.events.GetOrPut(e.NID, e, e.cost())
		}
	}
	return nil
}

// withRedaction returns an event, whose row says that it is redacted, together with its redaction.
func (s *Server) withRedaction(ctx context.Context, room *Room, e *Event) (*Event, error) {
	var nid int64
	_, err := s.db.Get(ctx, `SELECT redaction FROM redactions WHERE room = $1 AND target = $2 AND applied ORDER BY redaction LIMIT 1`,
		[]any{room.NID, eventKey(e.ID)}, &nid)
	if err != nil {
		return nil, fmt.Errorf("redaction of %s: %w", e.ID, err)
	}
	if nid == 0 {
		return e.redactedBy(nil), nil
	}
	by, err := s.redactionByNID(ctx, room, nid)
	if err != nil {
		return nil, fmt.Errorf("redaction of %s: %w", e.ID, err)
	}
	return e.redactedBy(by), nil
}

// redactionByNID returns a redaction, which may be redacted itself, but does not say by what: in the first room versions
// servers choose the ids of events, so that redactions may form loops.
func (s *Server) redactionByNID(ctx context.Context, room *Room, nid int64) (*Event, error) {
	if e, ok := s.events.Get(nid); ok {
		return e, nil
	}
	var e *Event
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		var r eventRow
		found, err := tx.Get(`SELECT `+eventColumns+` FROM events WHERE nid = $1`, []any{nid}, r.dest()...)
		if err == nil && !found {
			err = ErrUnknownEvent
		}
		if err == nil {
			e, err = r.event(room)
		}
		return err
	})
	if err == nil && e.flags&flagRedacted != 0 {
		e = e.redactedBy(nil)
	}
	return e, err
}

// eventByNID returns one event by its number.
func (s *Server) eventByNID(ctx context.Context, room *Room, nid int64) (*Event, error) {
	if e, ok := s.events.Get(nid); ok {
		return e, nil
	}
	events, err := s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events WHERE nid = $1`, nid)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 {
		return nil, fmt.Errorf("event %d of %s: %w", nid, room.ID, ErrUnknownEvent)
	}
	return events[0], nil
}

// eventBatch is how many events one query asks for by number.
const eventBatch = 64

// eventsByNID returns events by their numbers, in the same order.
func (s *Server) eventsByNID(ctx context.Context, room *Room, nids []int64) ([]*Event, error) {
	out := make([]*Event, len(nids))
	var missing []int64
	for i, nid := range nids {
		if e, ok := s.events.Get(nid); ok {
			out[i] = e
		} else {
			missing = append(missing, nid)
		}
	}
	if len(missing) == 0 {
		return out, nil
	}
	if len(missing) == 1 {
		e, err := s.eventByNID(ctx, room, missing[0])
		out[slices.Index(out, nil)] = e
		return out, err
	}
	found := make(map[int64]*Event, len(missing))
	args := make([]any, eventBatch)
	for len(missing) > 0 {
		// Always the same number of parameters, so that one prepared statement serves all.
		for i := range args {
			args[i] = missing[min(i, len(missing)-1)]
		}
		missing = missing[min(eventBatch, len(missing)):]
		events, err := s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events WHERE nid IN `+storage.In(eventBatch, 1), args...)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			found[e.NID] = e
		}
	}
	for i, nid := range nids {
		if out[i] == nil {
			if out[i] = found[nid]; out[i] == nil {
				return nil, fmt.Errorf("event %d of %s: %w", nid, room.ID, ErrUnknownEvent)
			}
		}
	}
	return out, nil
}

// Event returns an event of a room by its id, whatever its state (outlier, rejected, …).
func (s *Server) Event(ctx context.Context, room *Room, id string) (*Event, error) {
	if e := room.recent.byID(id); e != nil {
		return e, nil
	}
	events, err := s.queryEvents(ctx, room, `SELECT `+eventColumns+` FROM events WHERE event_id = $1 AND room = $2`, eventKey(id), room.NID)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 || events[0].ID != id {
		return nil, ErrUnknownEvent
	}
	return events[0], nil
}
