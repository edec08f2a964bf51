package roomserver

import (
	"bytes"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// Who asks for one row of state gets it, and what is small and lies just before it is at hand then; what is large is not
// read with it, and a row that does not exist is not made up.
func TestPacksAhead(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		const room, large = 7, 50
		data := func(id int64) []byte {
			if id == large {
				return bytes.Repeat([]byte{1}, smallPack+1)
			}
			return []byte{byte(id)}
		}
		put := func(room, id int64, data []byte) {
			err := db.Write(ctx, func(tx *storage.Tx) error {
				_, err := tx.Exec(`INSERT INTO state_packs (room, pack, data) VALUES ($1, $2, $3)`, room, id, data)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for id := int64(1); id <= 100; id++ {
			put(room, id, data(id))
		}
		put(room+1, 10, []byte("of another room"))
		l := newPackLoader(db)
		load := func(ids ...int64) (got []int64) {
			t.Helper()
			err := l.LoadPacks(ctx, room, ids, func(id int64, d []byte) {
				if !bytes.Equal(d, data(id)) {
					t.Errorf("row %d is %q", id, d)
				}
				got = append(got, id)
			})
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			return got
		}
		if got := load(90); !slices.Equal(got, []int64{90}) {
			t.Errorf("asked for row 90, got %v", got)
		}
		if n := l.ahead.Len(); n != packsAhead-2 { // all but 90 itself and the large one
			t.Errorf("%d rows wait, want %d", n, packsAhead-2)
		}
		// Some wait, one was too large, one is too far away, one does not exist.
		if got, want := load(89, 60, large, 20, 1000), []int64{20, large, 60, 89}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if got := load(1001); got != nil {
			t.Errorf("a row that does not exist is %v", got)
		}
	})
}
