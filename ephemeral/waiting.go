package ephemeral

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Receive takes a public receipt that another server sent for one of its users (server-server API v1.19,
// "Receipts"). One for an event that is not known yet waits for it, and if the user has none yet that it could move back,
// readers are told of it meanwhile. One of somebody who is not in the room is dropped. Whether the server may speak for
// the user, the caller has checked.
func (a *API) Receive(ctx context.Context, roomID, user, thread, eventID string, ts int64) error {
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil
	}
	if err != nil {
		return err
	}
	in, err := a.rooms.MayBeIn(ctx, room, user)
	if err != nil || !in || len(thread) > maxThread || eventID == "" || len(eventID) > maxThread {
		return err
	}
	r := Receipt{User: user, Kind: Read, Thread: thread, EventID: eventID, TS: ts}
	known, err := a.locate(ctx, room, &r)
	if err != nil {
		return err
	}
	if !known {
		return a.wait(ctx, room, &r)
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := putReceipt(tx, room.NID, &r)
		return err
	})
	if err != nil {
		return fmt.Errorf("receive receipt: %w", err)
	}
	return nil
}

// locate fills in the place of a receipt's event, if it has one.
func (a *API) locate(ctx context.Context, room *roomserver.Room, r *Receipt) (known bool, err error) {
	e, err := a.rooms.Event(ctx, room, r.EventID)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return false, nil
	}
	if err != nil || e.Anchor == 0 {
		return false, err
	}
	r.At = e.Token()
	return true, nil
}

// maxWaiting bounds the receipts that wait in one room. The oldest ones give way.
const maxWaiting = 100

// wait keeps a receipt for an event that is not known yet, in place of the one that the user had waiting before. Where it
// belongs in the room's history will be known with the event. Until then it stands before everything, so that it is shown
// of a user who has no other, and replaces none.
func (a *API) wait(ctx context.Context, room *roomserver.Room, r *Receipt) error {
	a.waiting.add(room.NID)
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := giveWay(tx, room.NID); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO waiting_receipts (room, user_id, thread, event_id, ts) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (room, user_id, thread) DO UPDATE SET event_id = excluded.event_id, ts = excluded.ts`,
			room.NID, r.User, r.Thread, r.EventID, r.TS)
		if err == nil {
			_, err = putReceipt(tx, room.NID, r)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keep waiting receipt: %w", err)
	}
	// The event may have come meanwhile, and who looked then may have found nothing waiting.
	a.waiting.add(room.NID)
	a.waiting.arrived(room.NID)
	a.wake()
	return nil
}

// giveWay makes room for one that waits. With those that waited longest goes what is shown of them: else a server could
// fill the table with receipts for events that do not exist.
func giveWay(tx *storage.Tx, room int64) error {
	var n int64
	if _, err := tx.Get(`SELECT count(*) FROM waiting_receipts WHERE room = $1`, []any{room}, &n); err != nil || n < maxWaiting {
		return err
	}
	const oldest = `FROM waiting_receipts WHERE room = $1 AND ts = (SELECT min(ts) FROM waiting_receipts WHERE room = $1)`
	_, err := tx.Exec(`DELETE FROM receipts WHERE room = $1 AND kind = $2 AND anchor = 0 AND (user_id, thread) IN (SELECT user_id, thread `+oldest+`)`,
		room, int64(Read))
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE `+oldest, room)
	return err
}

// waitingRooms knows in which rooms receipts wait, and in which of them something arrived.
type waitingRooms struct {
	mu    sync.Mutex
	rooms map[int64]int      // guarded by mu; how often each was added
	due   map[int64]struct{} // guarded by mu

	// These belong to the background.
	loaded bool      // rooms holds those of earlier runs, too
	next   time.Time // not to be settled before
}

func (w *waitingRooms) add(room int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rooms == nil {
		w.rooms = map[int64]int{}
	}
	w.rooms[room]++
}

// added returns how often a room was added.
func (w *waitingRooms) added(room int64) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rooms[room]
}

// arrived notes that something arrived in a room, and tells whether receipts wait there.
func (w *waitingRooms) arrived(room int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.rooms[room]; !ok {
		return false
	}
	if w.due == nil {
		w.due = map[int64]struct{}{}
	}
	w.due[room] = struct{}{}
	return true
}

// take returns the rooms where something arrived since it was last called.
func (w *waitingRooms) take() map[int64]struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	due := w.due
	w.due = nil
	return due
}

// remove forgets a room in which nothing waits, unless it was added again since it was looked at.
func (w *waitingRooms) remove(room int64, added int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rooms[room] == added {
		delete(w.rooms, room)
	}
}

const (
	// settlePause is how often the receipts that wait are looked through, in rooms where something arrives.
	settlePause = time.Second
	// retryWaiting is when to try again what failed.
	retryWaiting = 10 * time.Second
)

// settleWaiting stores the receipts whose events have arrived, and returns when to try again.
func (a *API) settleWaiting(ctx context.Context) time.Duration {
	if early := a.waiting.next.Sub(a.now()); early > 0 {
		return early
	}
	if !a.waiting.loaded {
		if err := a.loadWaiting(ctx); err != nil {
			a.log.WithError(err).Warn("cannot read the receipts that wait")
			return retryWaiting
		}
		a.waiting.loaded = true
	}
	due := a.waiting.take()
	pause := maxPause
	for room := range due {
		if err := a.settleRoom(ctx, room); err != nil {
			a.log.WithError(err).Warn("cannot store receipts that waited")
			a.waiting.arrived(room)
			pause = retryWaiting
		}
	}
	if len(due) > 0 {
		a.waiting.next = a.now().Add(settlePause)
		pause = min(pause, settlePause)
	}
	return pause
}

// loadWaiting finds the rooms where receipts have waited since an earlier run. Their events may be there by now.
func (a *API) loadWaiting(ctx context.Context) error {
	var nids []int64
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		nids = nil
		rows := tx.Query(`SELECT DISTINCT room FROM waiting_receipts`)
		var nid int64
		for rows.Next() {
			rows.Scan(&nid)
			nids = append(nids, nid)
		}
		return rows.Close()
	})
	for _, nid := range nids {
		a.waiting.add(nid)
		a.waiting.arrived(nid)
	}
	return err
}

// settleRoom stores those receipts of a room whose events are known by now.
func (a *API) settleRoom(ctx context.Context, nid int64) error {
	room, err := a.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return err
	}
	var all, known []Receipt
	added := a.waiting.added(nid)
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		all = nil
		rows := tx.Query(`SELECT user_id, thread, event_id, ts FROM waiting_receipts WHERE room = $1`, nid)
		r := Receipt{Kind: Read}
		for rows.Next() {
			rows.Scan(&r.User, &r.Thread, &r.EventID, &r.TS)
			all = append(all, r)
		}
		return rows.Close()
	})
	if err != nil {
		return err
	}
	for i := range all {
		ok, err := a.locate(ctx, room, &all[i])
		if err != nil {
			return err
		}
		if ok {
			known = append(known, all[i])
		}
	}
	if len(all) == 0 {
		a.waiting.remove(nid, added)
	}
	if len(known) == 0 {
		return nil
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error { return putWaiting(tx, nid, known) })
	if err == nil {
		a.waiting.arrived(nid) // look once more, and find nothing if none is left
		a.wake()
	}
	return err
}

// putWaiting stores receipts that waited, in a Write.
func putWaiting(tx *storage.Tx, room int64, known []Receipt) error {
	for i := range known {
		r := &known[i]
		if _, err := tx.Exec(`DELETE FROM waiting_receipts WHERE room = $1 AND user_id = $2 AND thread = $3 AND event_id = $4`,
			room, r.User, r.Thread, r.EventID); err != nil {
			return err
		}
		if _, err := putReceipt(tx, room, r); err != nil {
			return err
		}
	}
	return nil
}
