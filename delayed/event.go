package delayed

import (
	"encoding/json"
	"time"

	"github.com/myelin-im/myelin/storage"
)

// event is a delayed event as it is stored. Times are in milliseconds.
type event struct {
	id, user, room, typ string
	stateKey            *string
	content             json.RawMessage
	originTS            int64
	sticky              *int64 // milliseconds

	delay, scheduled, due int64

	finalised *int64
	eventID   *string
	error     json.RawMessage
}

const eventColumns = `delay_id, user_id, room_id, type, state_key, content, origin_ts, sticky_ms, delay_ms, scheduled_ts, due_ts, finalised_ts, event_id, error`

func (e *event) dest() []any {
	return []any{
		&e.id, &e.user, &e.room, &e.typ, &e.stateKey, (*[]byte)(&e.content), &e.originTS, &e.sticky,
		&e.delay, &e.scheduled, &e.due, &e.finalised, &e.eventID, (*[]byte)(&e.error),
	}
}

// query runs a query that selects eventColumns.
func query(tx *storage.Tx, sql string, args ...any) (events []*event, err error) {
	rows := tx.Query(sql, args...)
	for rows.Next() {
		e := new(event)
		rows.Scan(e.dest()...)
		events = append(events, e)
	}
	return events, rows.Close()
}

// find returns a delayed event, nil if there is none.
func find(tx *storage.Tx, id string) (*event, error) {
	events, err := query(tx, `SELECT `+eventColumns+` FROM delayed_events WHERE delay_id = $1`, id)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	return events[0], nil
}

// sent tells whether the event was finalised by being sent.
func (e *event) sent() bool { return e.finalised != nil && e.eventID != nil }

// cancelled tells whether the event was finalised in another way.
func (e *event) cancelled() bool { return e.finalised != nil && e.eventID == nil }

// How long finalised events are kept: so long, and so many of each user.
const (
	finalisedLife = 7 * 24 * time.Hour
	maxFinalised  = 200
)
