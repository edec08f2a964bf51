package unread

import "github.com/myelin-im/myelin/storage"

// RoomRemoved deletes up to limit checkpoints of the local members of a room that is gone.
func RoomRemoved(tx *storage.Tx, room int64, _ string, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM unread_checkpoints WHERE (user_id, room) IN (
		SELECT c.user_id, c.room FROM room_members m JOIN unread_checkpoints c ON c.user_id = m.user_id AND c.room = m.room
		WHERE m.room = $1 AND m.local LIMIT $2)`, room, int64(limit))
}
