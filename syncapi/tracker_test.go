package syncapi

import (
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// A receipt may come in a room that is not in memory: whoever may care is woken, without a look into the database.
func TestReceiptInARoomThatIsNotInMemory(t *testing.T) {
	db := storagetest.Open(t, storage.SQLite, roomserver.Schema)
	tr := newTracker(roomsOf(t, db, "hs"), db.Head())
	w, done := tr.wait("@alice:hs", inReceipts)
	defer done()
	tr.published([]storage.Notice{{Pos: 1, Kind: storage.Receipt, Room: 7, User: "@bob:hs"}}, 1)
	select {
	case <-w.wake:
	default:
		t.Error("nobody was woken")
	}
}
