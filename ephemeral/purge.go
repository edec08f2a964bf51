package ephemeral

import (
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Purged deletes the receipts in threads whose root leaves the timeline. Those that tell how far a user has read the room
// stay, because a place in history means something without its event.
func Purged(tx *storage.Tx, room int64, purged []*roomserver.Event) error {
	read := map[string]bool{}
	rows := tx.Query(`SELECT DISTINCT thread FROM receipts WHERE room = $1 AND thread <> $2 AND thread <> $3`, room, Unthreaded, Main)
	var thread string
	for rows.Next() {
		rows.Scan(&thread)
		read[thread] = true
	}
	if err := rows.Close(); err != nil {
		return err
	}
	for _, e := range purged {
		if !read[e.ID] {
			continue
		}
		if _, err := tx.Exec(`DELETE FROM receipts WHERE room = $1 AND thread = $2`, room, e.ID); err != nil {
			return err
		}
	}
	return nil
}

// RoomRemoved deletes up to limit receipts of a room that is gone.
func RoomRemoved(tx *storage.Tx, room int64, _ string, limit int) (int64, error) {
	n, err := tx.Exec(`DELETE FROM receipts WHERE room = $1 AND (user_id, kind, thread) IN (
		SELECT user_id, kind, thread FROM receipts WHERE room = $1 ORDER BY user_id, kind, thread LIMIT $2)`, room, int64(limit))
	if err != nil || n > 0 {
		return n, err
	}
	return tx.Exec(`DELETE FROM waiting_receipts WHERE room = $1 AND (user_id, thread) IN (
		SELECT user_id, thread FROM waiting_receipts WHERE room = $1 ORDER BY user_id, thread LIMIT $2)`, room, int64(limit))
}
