package e2ee

import (
	"slices"
	"testing"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestMembersKnown lets a room's members become known: servers among them that nobody told of a changed device are told now.
func TestMembersKnown(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		const alice = "@alice:hs"
		a := newAPI(t, db)
		a.remote = &slowServer{}
		v, _ := pdu.Lookup("12")
		room, err := a.rooms.CreateRoom(t.Context(), roomserver.NewRoom{Creator: alice, Version: v, Preset: roomserver.PublicChat})
		if err != nil {
			t.Fatal(err)
		}
		entered := db.Head()
		var changed int64
		name := "Phone"
		err = db.Write(t.Context(), func(tx *storage.Tx) error {
			if _, err := a.accounts.AddDevice(tx, alice, "PHONE", &name); err != nil {
				return err
			}
			if err := noteNews(tx, alice, "PHONE"); err != nil {
				return err
			}
			if changed, err = tx.Position(); err != nil {
				return err
			}
			if err := putSent(tx, "knows", alice, changed*streamsPerPosition); err != nil {
				return err
			}
			return putSent(tx, "behind", alice, 1)
		})
		if err != nil {
			t.Fatal(err)
		}
		told := func(what string, since int64, want ...string) {
			t.Helper()
			before := db.Head()
			c := roomserver.Completion{RoomID: room, Since: since, Servers: []string{"hs", "knows", "behind", "stranger"}}
			if err := a.MembersKnown(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			got, err := a.Destinations(t.Context(), before, db.Head())
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: told %v, %v, want %v", what, got, err, want)
			}
		}
		told("a device changed since", entered, "behind", "stranger")
		told("once more", entered)
	})
}

// TestPostponed keeps the change of a user of whom nobody knows whether they are in a room, as often as it is told, and
// forgets it when all members of all rooms are known and they are not among them.
func TestPostponed(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		a := newAPI(t, db)
		v, _ := pdu.Lookup("12")
		room, err := a.rooms.CreateRoom(t.Context(), roomserver.NewRoom{Creator: "@alice:hs", Version: v, Preset: roomserver.PublicChat})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.postpone(t.Context(), "@bob:other"); err != nil {
				t.Fatal(err)
			}
		}
		waiting := func() (n int64) {
			t.Helper()
			if _, err := db.Get(t.Context(), `SELECT count(*) FROM postponed_device_lists`, nil, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := waiting(); n != 1 {
			t.Errorf("%d changes wait", n)
		}
		if err := a.MembersKnown(t.Context(), roomserver.Completion{RoomID: room}); err != nil {
			t.Fatal(err)
		}
		if n := waiting(); n != 0 {
			t.Errorf("%d changes still wait", n)
		}
	})
}
