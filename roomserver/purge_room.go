package roomserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// Removal is a room that this server may have no use for any more, or that is gone already.
type Removal struct {
	// NID and RoomID name it.
	NID    int64
	RoomID string
	// Since is when a local user forgot it last, in milliseconds.
	Since int64
	// Begun tells that the room is gone, and only its rows are left.
	Begun bool
}

// Removals returns rooms that local users forgot before a time, in milliseconds, and rooms whose removal has begun, in
// the order of their numbers: those after a number, at most limit.
func (s *Server) Removals(ctx context.Context, before, after int64, limit int) (list []Removal, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		list = list[:0]
		rows := tx.Query(`SELECT room, room_id, since, begun FROM room_removals WHERE room > $1 AND (since < $2 OR begun) ORDER BY room LIMIT $3`,
			after, before, int64(limit))
		var r Removal
		for rows.Next() {
			rows.Scan(&r.NID, &r.RoomID, &r.Since, &r.Begun)
			list = append(list, r)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("rooms to remove: %w", err)
	}
	return list, nil
}

// errStillUsed says that a local user has not left and forgotten the room.
var errStillUsed = errors.New("the room is in use")

// BeginRemoval takes a room away, unless a local user is in it, is invited, has knocked, or has not forgotten it: from
// then on the room is unknown, with its aliases, and whoever joins it by another server makes a new one. What is left are
// rows that nothing finds, which Remove deletes, and that each local user has left, for devices that come back later. It
// returns false where the room is in use; then it is no candidate any more.
func (s *Server) BeginRemoval(ctx context.Context, r Removal) (bool, error) {
	defer s.rooms.load.lock(r.RoomID)()
	// The room is loaded, if it is not, so that nobody writes it meanwhile.
	room := s.rooms.get(r.RoomID)
	if room == nil {
		var err error
		room, err = s.loadRoom(ctx, r.RoomID)
		if err != nil && !errors.Is(err, ErrUnknownRoom) {
			return false, err
		}
	}
	if room == nil || room.NID != r.NID {
		return false, s.dropCandidate(ctx, r)
	}
	room.turn.Lock()
	defer room.turn.Unlock()
	var locals []string
	err := s.db.Write(ctx, func(tx *storage.Tx) (err error) {
		locals, err = removeRoom(tx, room, r)
		return err
	})
	if errors.Is(err, errStillUsed) {
		return false, s.dropCandidate(ctx, r)
	}
	if err != nil {
		return false, fmt.Errorf("remove %s: %w", r.RoomID, err)
	}
	s.rooms.remove(room)
	s.partials.drop(room.NID)
	for _, user := range locals {
		s.removeUserRoom(user, r.NID)
	}
	return true, nil
}

// removeRoom is the unit of BeginRemoval. It returns the local users who had something to do with the room.
func removeRoom(tx *storage.Tx, room *Room, r Removal) (locals []string, err error) {
	var stays []UserRoom
	rows := tx.Query(`SELECT user_id, membership, forgotten, event, pos FROM room_members WHERE room = $1 AND local`, r.NID)
	var user string
	stay, used := UserRoom{NID: r.NID, RoomID: r.RoomID}, false
	for rows.Next() {
		rows.Scan(&user, &stay.Membership, &stay.Forgotten, &stay.EventNID, &stay.Pos)
		locals, stays = append(locals, user), append(stays, stay)
		used = used || !stay.Forgotten || stay.Membership != Leave && stay.Membership != Ban
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	if used {
		return nil, errStillUsed
	}
	for i, user := range locals {
		if err := keepLeave(tx, room, user, stays[i]); err != nil {
			return nil, fmt.Errorf("that %s has left: %w", user, err)
		}
	}
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{`DELETE FROM rooms WHERE nid = $1`, []any{r.NID}},
		{`DELETE FROM room_heads WHERE room = $1`, []any{r.NID}},
		{`DELETE FROM room_aliases WHERE room_id = $1`, []any{r.RoomID}},
		{`DELETE FROM public_rooms WHERE room_id = $1`, []any{r.RoomID}},
		{`DELETE FROM room_upgrades WHERE old_room = $1`, []any{r.RoomID}},
		{`UPDATE room_removals SET begun = $1 WHERE room = $2`, []any{true, r.NID}},
	} {
		if _, err := tx.Exec(q.sql, q.args...); err != nil {
			return nil, err
		}
	}
	return locals, NoteDirectory(tx, r.NID)
}

// maxKeptLeaves bounds the removed rooms of a user of which it is remembered that they have left.
const maxKeptLeaves = 200

// keepLeave writes down, as of a room that this server is not in, that a user has left a room that is removed. It stays at
// the position at which that happened: a device that has been away since hears of it when it is back.
func keepLeave(tx *storage.Tx, room *Room, user string, stay UserRoom) error {
	var row eventRow
	found, err := tx.Get(`SELECT `+eventColumns+` FROM events WHERE nid = $1`, []any{stay.EventNID}, row.dest()...)
	if err != nil || !found { // state resolution has left the user without a membership
		return err
	}
	e, err := row.event(room)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO outside_memberships (user_id, room_id, version, membership, sender, event_id, event, stripped, pos, forgotten, room)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (user_id, room_id) DO UPDATE SET version = excluded.version, membership = excluded.membership, sender = excluded.sender,
			event_id = excluded.event_id, event = excluded.event, stripped = excluded.stripped, pos = excluded.pos,
			forgotten = excluded.forgotten, room = excluded.room`,
		user, room.ID, room.Version.ID, stay.Membership, e.Sender, e.ID, e.JSON(), []byte("[]"), stay.Pos, true, room.NID)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM outside_memberships WHERE user_id = $1 AND forgotten AND pos <= (
		SELECT pos FROM outside_memberships WHERE user_id = $1 AND forgotten ORDER BY pos DESC LIMIT 1 OFFSET $2)`, user, int64(maxKeptLeaves))
	if err != nil {
		return err
	}
	pos, err := tx.Position()
	if err == nil {
		tx.Notice(storage.Notice{Pos: pos, Kind: storage.Membership, User: user})
	}
	return err
}

// dropCandidate forgets that a room may be abandoned, unless its removal has begun.
func (s *Server) dropCandidate(ctx context.Context, r Removal) error {
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM room_removals WHERE room = $1 AND since = $2 AND NOT begun`, r.NID, r.Since)
		return err
	})
	if err != nil {
		return fmt.Errorf("keep %s: %w", r.RoomID, err)
	}
	return nil
}

// removalSteps delete what is left of a room, each at most $2 rows. Its members go last, because others find by them
// what they keep for users of the room.
var removalSteps = []string{
	`DELETE FROM events WHERE nid IN (SELECT nid FROM events WHERE room = $1 AND anchor IS NOT NULL ORDER BY anchor, sub LIMIT $2)`,
	`DELETE FROM events WHERE nid IN (SELECT nid FROM events WHERE room = $1 AND chain_order IS NOT NULL ORDER BY chain_order LIMIT $2)`,
	`DELETE FROM events WHERE nid IN (SELECT nid FROM events WHERE room = $1 AND anchor IS NULL AND chain_order IS NULL ORDER BY ts LIMIT $2)`,
	`DELETE FROM state_packs WHERE room = $1 AND pack IN (SELECT pack FROM state_packs WHERE room = $1 ORDER BY pack LIMIT $2)`,
	`DELETE FROM state_log WHERE room = $1 AND pos IN (SELECT pos FROM state_log WHERE room = $1 ORDER BY pos LIMIT $2)`,
	`DELETE FROM relations WHERE room = $1 AND (target, anchor, sub) IN (SELECT target, anchor, sub FROM relations WHERE room = $1 ORDER BY target, anchor, sub LIMIT $2)`,
	`DELETE FROM redactions WHERE room = $1 AND (target, redaction) IN (SELECT target, redaction FROM redactions WHERE room = $1 ORDER BY target, redaction LIMIT $2)`,
	`DELETE FROM room_gaps WHERE room = $1 AND (anchor, sub) IN (SELECT anchor, sub FROM room_gaps WHERE room = $1 ORDER BY anchor, sub LIMIT $2)`,
	`DELETE FROM partial_given WHERE room = $1 AND (event, n) IN (SELECT event, n FROM partial_given WHERE room = $1 ORDER BY event, n LIMIT $2)`,
	`DELETE FROM partial_rooms WHERE room = $1 AND room IN (SELECT room FROM partial_rooms WHERE room = $1 LIMIT $2)`,
	`DELETE FROM room_purges WHERE room = $1 AND room IN (SELECT room FROM room_purges WHERE room = $1 LIMIT $2)`,
	`DELETE FROM room_members WHERE room = $1 AND user_id IN (SELECT user_id FROM room_members WHERE room = $1 ORDER BY user_id LIMIT $2)`,
}

// removalBatch is how many rows one unit of Remove deletes: few, because other writes wait for it.
const removalBatch = 200

// RoomRows deletes up to limit of the rows that a feature keeps about a room that is gone, and returns how many those
// were; it is called again until there are none.
type RoomRows func(tx *storage.Tx, room int64, roomID string, limit int) (int64, error)

// Remove deletes the rows of a room that BeginRemoval took away, in small units, others' first. pause, if not nil, is
// called between two of them. It may be interrupted anywhere and asked again.
func (s *Server) Remove(ctx context.Context, r Removal, others []RoomRows, pause func(context.Context) error) error {
	steps := append([]RoomRows(nil), others...)
	for _, sql := range removalSteps {
		steps = append(steps, func(tx *storage.Tx, room int64, _ string, limit int) (int64, error) {
			return tx.Exec(sql, room, int64(limit))
		})
	}
	for _, step := range steps {
		for n := int64(1); n > 0; {
			err := s.db.Write(ctx, func(tx *storage.Tx) (err error) {
				n, err = step(tx, r.NID, r.RoomID, removalBatch)
				return err
			})
			if err == nil && n > 0 && pause != nil {
				err = pause(ctx)
			}
			if err != nil {
				return fmt.Errorf("remove what is left of %s: %w", r.RoomID, err)
			}
		}
	}
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM room_removals WHERE room = $1`, r.NID)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", r.RoomID, err)
	}
	return nil
}

// remove takes a room out of the table; the caller holds its turn, and has seen all of its units written.
func (t *roomTable) remove(r *Room) {
	defer r.recent.countOut()
	t.mu.Lock()
	defer t.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.evicted = true
	delete(t.byID, r.ID)
	delete(t.byNID, r.NID)
}

// removeUserRoom forgets in memory that a user had a membership of a room.
func (s *Server) removeUserRoom(user string, nid int64) {
	u := s.users.entry(user, false)
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rooms == nil {
		return
	}
	rooms := make([]UserRoom, 0, len(u.rooms))
	for _, r := range u.rooms {
		if r.NID != nid {
			rooms = append(rooms, r)
		}
	}
	u.rooms = rooms
}
