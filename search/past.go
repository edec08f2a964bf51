package search

import (
	"context"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

var pastTable = storage.DeclareTable("search_past", storage.Put,
	storage.Key("event", storage.Int), storage.Col("room", storage.Int))

// maxPast is how many events of the past are read at once.
const maxPast = 256

// note adds to the unit that writes them what of a room's past has to come into the index.
func (x *index) note(unit *storage.Unit, room int64, events []*roomserver.Event) (written func()) {
	for _, e := range events {
		if _, searched := partOf(e); searched || e.Type == "m.room.redaction" {
			unit.Add(pastTable, e.NID, room)
		}
	}
	return x.expect
}

// expect makes the next pass look for what the log does not tell of.
func (x *index) expect() {
	x.mu.Lock()
	x.past++
	x.mu.Unlock()
	signal(x.wake)
}

// visitPast brings into the index what took a place in the past of rooms, if there is any, and the end of rooms that have
// been removed.
func (x *index) visitPast(ctx context.Context) (any bool, err error) {
	x.mu.Lock()
	upTo, done := x.past, x.pastDone
	x.mu.Unlock()
	if upTo == done {
		return false, nil
	}
	if err := x.visitRemovals(ctx); err != nil {
		return false, err
	}
	for {
		rooms, n, err := x.readPast(ctx)
		if err != nil {
			return false, fmt.Errorf("read what came into the past of rooms: %w", err)
		}
		for nid, events := range rooms {
			any = true
			if err := x.putPast(ctx, nid, events); err != nil {
				return false, err
			}
		}
		if n < maxPast {
			break
		}
	}
	x.mu.Lock()
	x.pastDone = upTo
	x.mu.Unlock()
	return any, nil
}

// readPast reads which events of rooms are to come into the index, and how many that are.
func (x *index) readPast(ctx context.Context) (rooms map[int64][]int64, n int, err error) {
	err = x.db.Read(ctx, func(tx *storage.Tx) error {
		rooms, n = map[int64][]int64{}, 0
		rows := tx.Query(`SELECT event, room FROM search_past ORDER BY event LIMIT $1`, int64(maxPast))
		var event, room int64
		for ; rows.Next(); n++ {
			rows.Scan(&event, &room)
			rooms[room] = append(rooms[room], event)
		}
		return rows.Close()
	})
	return rooms, n, err
}

// putPast brings events of one room into the index and notes that they are there. Those that are gone have been purged.
func (x *index) putPast(ctx context.Context, nid int64, nids []int64) error {
	b := &batch{x: x, purges: x.purges.ended.Load(), doubt: true}
	room, err := x.rooms.RoomByNID(ctx, nid)
	for i := 0; err == nil && i < len(nids); i++ {
		var found []*roomserver.Event
		if found, err = x.rooms.EventsByNID(ctx, room, nids[i:i+1]); err == nil {
			err = x.put(ctx, b, room, found)
		} else if errors.Is(err, roomserver.ErrUnknownEvent) {
			err = nil
		}
	}
	switch {
	case err == nil || errors.Is(err, roomserver.ErrUnknownRoom):
	case ctx.Err() != nil || b.failed != nil:
		return errors.Join(ctx.Err(), b.failed)
	default:
		x.log.WithError(err).WithField("room", nid).Error("Older events of a room could not be brought into the search index")
	}
	unit := &storage.Unit{}
	for _, event := range nids {
		unit.Delete(pastTable, event)
	}
	return b.flush(ctx, unit)
}
