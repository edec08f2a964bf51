package e2ee

import (
	"crypto/ed25519"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestIntroductions checks who is told of the devices of a user who comes into a room: the servers that were there before, and
// not those that have come since, however late the follower is.
func TestIntroductions(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		a := newAPI(t, db)
		a.remote = &slowServer{}
		err := db.Write(t.Context(), func(tx *storage.Tx) error {
			for _, user := range []string{"@alice:hs", "@carol:hs"} {
				if _, err := a.accounts.AddDevice(tx, user, "PHONE", nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		from := db.Head()
		id := publicRoom(t, a.rooms)
		room, err := a.rooms.Room(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		joinRemotely(t, a.rooms, id, "@bob:other")
		told := func(what string, want ...string) {
			t.Helper()
			to := db.Head()
			if err := a.followRoom(t.Context(), room.NID, from, to); err != nil {
				t.Fatal(err)
			}
			got, err := a.Destinations(t.Context(), to, db.Head())
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: told %v, %v, want %v", what, got, err, want)
			}
			from = db.Head()
		}
		told("who was there before the other server")
		change := roomserver.MembershipChange{RoomID: id, Sender: "@carol:hs", Target: "@carol:hs", Membership: roomserver.Join}
		if _, err := a.rooms.SetMembership(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		told("who came after it", "other")
	})
}

// What happens before the follower of a new server gets to run is not lost on it.
func TestIntroductionsBeforeTheFirstRun(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		a := newAPI(t, db)
		a.remote = &slowServer{}
		newDevice(t, a, "@carol:hs", "PHONE")
		id := publicRoom(t, a.rooms)
		joinRemotely(t, a.rooms, id, "@bob:other")
		change := roomserver.MembershipChange{RoomID: id, Sender: "@carol:hs", Target: "@carol:hs", Membership: roomserver.Join}
		if _, err := a.rooms.SetMembership(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		from := db.Head()
		if err := a.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := a.Destinations(t.Context(), from, db.Head()); err != nil || !slices.Equal(got, []string{"other"}) {
			t.Errorf("told %v, %v", got, err)
		}
	})
}

// publicRoom makes a room of alice's.
func publicRoom(t *testing.T, rooms *roomserver.Server) (id string) {
	t.Helper()
	v, _ := pdu.Lookup("12")
	id, err := rooms.CreateRoom(t.Context(), roomserver.NewRoom{Creator: "@alice:hs", Version: v, Preset: roomserver.PublicChat})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// joinRemotely lets a user of another server join a room.
func joinRemotely(t *testing.T, rooms *roomserver.Server, room, user string) {
	t.Helper()
	v, template, err := rooms.Template(t.Context(), roomserver.MembershipChange{RoomID: room, Target: user, Membership: roomserver.Join})
	if err != nil {
		t.Fatal(err)
	}
	proto, err := pdu.ParseTemplate(v, template)
	if err != nil {
		t.Fatal(err)
	}
	proto.OriginServerTS = 1_700_000_000_000
	event, err := v.Build(proto, pdu.ServerOf(user), "ed25519:1", ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rooms.Accept(t.Context(), room, roomserver.Incoming{Event: event}); err != nil {
		t.Fatal(err)
	}
}
