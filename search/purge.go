package search

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Purging hears that events are going to be purged, or rooms removed; end must be called when they are gone, from memory as
// well.
func (a *API) Purging() (end func()) {
	a.index.purges.begun.Add(1)
	return func() {
		a.index.purges.ended.Add(1)
		a.index.expect()
	}
}

// Purged takes events that leave the timeline out of the index. They come between [API.Purging] and its end.
func Purged(tx *storage.Tx, _ int64, purged []*roomserver.Event) error {
	for _, e := range purged {
		id, ok := entryID(e)
		if _, searched := partOf(e); !ok || !searched {
			continue
		}
		if err := dropEntry(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// dropGone takes out again what a batch has written of events that were purged, and of rooms that were removed, between
// being read and being written.
func (b *batch) dropGone(ctx context.Context) error {
	for ids := range slices.Chunk(slices.Collect(maps.Keys(b.entries)), purgeChunk) {
		err := b.x.db.Write(ctx, func(tx *storage.Tx) error {
			gone, err := storage.List[int64](tx, `SELECT id FROM search_events WHERE id IN `+storage.In(purgeChunk, 1)+`
				AND NOT EXISTS (SELECT 1 FROM events WHERE events.nid = search_events.event AND events.anchor IS NOT NULL
					AND EXISTS (SELECT 1 FROM rooms WHERE rooms.nid = events.room))`, chunkArgs(ids)...)
			for _, id := range gone {
				if err == nil {
					err = dropEntry(tx, id)
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("take purged events out of the search index: %w", err)
		}
	}
	return b.dropGoneRooms(ctx)
}

// dropGoneRooms takes rooms out of the user directory again that were removed.
func (b *batch) dropGoneRooms(ctx context.Context) error {
	members := b.members()
	for rooms := range slices.Chunk(slices.Collect(maps.Keys(members)), purgeChunk) {
		err := b.x.db.Write(ctx, func(tx *storage.Tx) error {
			there, err := storage.List[int64](tx, `SELECT nid FROM rooms WHERE nid IN `+storage.In(purgeChunk, 1), chunkArgs(rooms)...)
			for _, room := range rooms {
				if err == nil && !slices.Contains(there, room) {
					err = dropRoom(tx, room, members[room])
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("take removed rooms out of the user directory: %w", err)
		}
	}
	return nil
}

// members are the rooms that the batch has changed in the directory, with the users that it has found in them.
func (b *batch) members() map[int64][]string {
	rooms := map[int64][]string{}
	for room := range b.open {
		rooms[room] = nil
	}
	for id, u := range b.users {
		for room, joined := range u.rooms {
			if joined {
				rooms[room] = append(rooms[room], id)
			}
		}
	}
	return rooms
}

// dropRoom takes a room out of the directory, and some of its members out of the room.
func dropRoom(tx *storage.Tx, room int64, members []string) error {
	_, err := tx.Exec(`DELETE FROM directory_open_rooms WHERE room = $1`, room)
	for _, id := range members {
		if err == nil {
			_, err = dropMembers(tx, room, `SELECT id, CAST($1 AS BIGINT) FROM directory_users WHERE user_id = $2`, id)
		}
	}
	return err
}

// dropMembers takes members out of a room that is gone, and notes that their entries have to follow. A query, whose $1 is the
// room, tells which rows of directory_rooms those are. It returns how many there were.
func dropMembers(tx *storage.Tx, room int64, which string, arg any) (n int64, err error) {
	members, err := storage.List[int64](tx, `DELETE FROM directory_rooms WHERE (member, room) IN (`+which+`) RETURNING member`, room, arg)
	for _, id := range members {
		if err == nil {
			_, err = tx.Exec(`INSERT INTO directory_removals (member, room) VALUES ($1, $2) ON CONFLICT DO NOTHING`, id, room)
		}
	}
	return int64(len(members)), err
}

// purgeChunk is how many entries or rooms are looked at in one write.
const purgeChunk = 100

// chunkArgs are up to purgeChunk numbers as arguments of a list of so many.
func chunkArgs(ids []int64) []any {
	args := make([]any, purgeChunk)
	for i := range args {
		args[i] = ids[min(i, len(ids)-1)]
	}
	return args
}

func dropEntry(tx *storage.Tx, id int64) error {
	n, err := tx.Exec(`DELETE FROM search_events WHERE id = $1`, id)
	if err == nil && n > 0 {
		_, err = tx.Exec(`DELETE FROM search_terms WHERE rowid = $1`, id)
	}
	return err
}

// RoomRemoved deletes up to limit entries of a room that is gone from the index and the user directory.
func RoomRemoved(tx *storage.Tx, room int64, _ string, limit int) (n int64, err error) {
	condition, text := tx.Matching(anyEntries.terms, storage.TermQuery{{{Text: roomTerm(room)}}})
	ids, err := storage.List[int64](tx, `SELECT rowid FROM search_terms WHERE `+condition+` LIMIT $2`, text, int64(limit))
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if err := dropEntry(tx, id); err != nil {
			return 0, err
		}
	}
	if len(ids) > 0 {
		return int64(len(ids)), nil
	}
	if _, err := tx.Exec(`DELETE FROM search_past WHERE room = $1`, room); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(`DELETE FROM directory_open_rooms WHERE room = $1`, room); err != nil {
		return 0, err
	}
	return dropMembers(tx, room, `SELECT d.member, d.room FROM room_members m JOIN directory_users u ON u.user_id = m.user_id
		JOIN directory_rooms d ON d.member = u.id AND d.room = m.room WHERE m.room = $1 LIMIT $2`, int64(limit))
}
