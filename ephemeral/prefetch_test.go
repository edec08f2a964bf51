package ephemeral

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// TestPrefetch compares what memory tells after rooms were read together with what the database holds.
func TestPrefetch(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		var rooms []*roomserver.Room
		for i := range prefetchFrom + 1 {
			room := s.room(alice, bob)
			rooms = append(rooms, room)
			event := s.send(room, alice, "")
			e, err := s.rooms.Event(t.Context(), room, event)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Write(t.Context(), func(tx *storage.Tx) error {
				for j := range []int{0, 1, keepReceipts - 2, keepReceipts, keepReceipts + 40}[i] {
					r := Receipt{User: fmt.Sprintf("@u%d:hs", j), Kind: Read, EventID: event, At: e.Token()}
					if _, err := putReceipt(tx, room.NID, &r); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				s.ok(bob, "POST", receiptPath(room, "m.read.private", event), `{}`)
				s.ok(bob, "POST", receiptPath(room, "m.fully_read", event), `{}`)
			}
		}
		s = newServer(t, db)
		list, err := s.rooms.UserRooms(t.Context(), bob)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Prefetch(t.Context(), list); err != nil {
				t.Fatal(err)
			}
		}
		for i, room := range rooms {
			if _, ok := s.API.receipts.logs.Get(room.NID); !ok {
				t.Errorf("room %d was not read", i)
			}
			want, err := s.API.receipts.old(t.Context(), room.NID, bob, 0, db.Head())
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Receipts(t.Context(), room.NID, bob, 0, db.Head())
			if err != nil {
				t.Fatal(err)
			}
			byUser := func(a, b Receipt) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.User, b.User)) }
			slices.SortFunc(got, byUser)
			slices.SortFunc(want, byUser)
			if !slices.Equal(got, want) {
				t.Errorf("room %d: %d receipts, want %d", i, len(got), len(want))
			}
			upTo, err := s.ReadUpTo(t.Context(), room.NID, bob, Unthreaded)
			if err != nil || upTo > 0 != (i > 0) {
				t.Errorf("room %d: bob has read up to %d: %v", i, upTo, err)
			}
		}
	})
}
