package directory

import (
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// RoomRemoved takes a room that is gone out of the lists of application services.
func RoomRemoved(tx *storage.Tx, room int64, _ string, _ int) (int64, error) {
	n, err := tx.Exec(`DELETE FROM appservice_rooms WHERE room = $1`, room)
	if err != nil || n == 0 {
		return 0, err
	}
	return n, roomserver.NoteDirectory(tx, room)
}
