package roomserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestUpgradeGoesOn undoes what follows the making of the new room, as a crash would, and has it done again.
func TestUpgradeGoesOn(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db)
		v, _ := pdu.Lookup("11")
		next, _ := pdu.Lookup("12")
		levels := map[string]json.RawMessage{"events": json.RawMessage(`{"m.room.tombstone":101}`)}
		old, err := s.CreateRoom(ctx, roomserver.NewRoom{Creator: alice, Version: v, Preset: roomserver.PublicChat, Alias: "#a:hs", Public: true})
		if err != nil {
			t.Fatal(err)
		}
		const bans = 120 // more than one unit takes
		for i := range bans {
			user := fmt.Sprintf("@u%d:hs", i)
			if _, err := s.SetMembership(ctx, roomserver.MembershipChange{RoomID: old, Sender: alice, Target: user, Membership: roomserver.Ban}); err != nil {
				t.Fatal(err)
			}
		}
		to, err := s.UpgradeRoom(ctx, roomserver.Upgrade{RoomID: old, User: alice, Version: next})
		if err != nil {
			t.Fatal(err)
		}
		if done, err := s.ResumeUpgrades(ctx); err != nil || len(done) != 0 {
			t.Fatalf("there is something to go on with: %v, %v", done, err)
		}
		// As if the server had stopped after the first batch of bans: the tombstone is gone, and what came with it.
		if _, err := s.Send(ctx, old, roomserver.Draft{Sender: alice, Type: "m.room.tombstone", StateKey: new(string), Content: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
		for i := range 70 {
			user := fmt.Sprintf("@u%d:hs", i)
			if _, err := s.SetMembership(ctx, roomserver.MembershipChange{RoomID: to, Sender: alice, Target: user, Membership: roomserver.Leave}); err != nil {
				t.Fatal(err)
			}
		}
		err = db.Write(ctx, func(tx *storage.Tx) error {
			if _, err := tx.Exec(`UPDATE room_upgrades SET finished = $1 WHERE old_room = $2 AND new_room = $3`, false, old, to); err != nil {
				return err
			}
			if _, err := tx.Exec(`UPDATE room_aliases SET room_id = $1`, old); err != nil {
				return err
			}
			_, err := tx.Exec(`UPDATE public_rooms SET room_id = $1`, old)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		s = newServer(t, db)
		done, err := s.ResumeUpgrades(ctx)
		if err != nil || len(done) != 1 || done[0] != (roomserver.Upgraded{User: alice, From: old, To: to}) {
			t.Fatalf("went on with %v, %v", done, err)
		}
		room, err := s.Room(ctx, to)
		if err != nil {
			t.Fatal(err)
		}
		for i := range bans {
			user := fmt.Sprintf("@u%d:hs", i)
			if m, err := s.MembershipAt(ctx, room, room.Head().State, user); err != nil || m != roomserver.Ban {
				t.Errorf("%s: %s, %v", user, m, err)
			}
		}
		oldRoom, err := s.Room(ctx, old)
		if err != nil {
			t.Fatal(err)
		}
		tombstone, err := s.StateEvent(ctx, oldRoom, oldRoom.Head().State, "m.room.tombstone", "")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := tombstone.ContentString("replacement_room"); got != to {
			t.Errorf("the tombstone names %q", got)
		}
		if a, _, err := s.LookupAlias(ctx, "#a:hs"); err != nil || a.RoomID != to {
			t.Errorf("the alias is of %q, %v", a.RoomID, err)
		}
		for id, want := range map[string]bool{old: false, to: true} {
			if public, err := s.Public(ctx, id); err != nil || public != want {
				t.Errorf("%s is public: %v, %v", id, public, err)
			}
		}
		if err := s.CheckConsistency(ctx); err != nil {
			t.Error(err)
		}
		if again, err := s.UpgradeRoom(ctx, roomserver.Upgrade{RoomID: old, User: alice, Version: next}); err != nil || again != to {
			t.Errorf("asked again: %s, %v", again, err)
		}

		// Whoever lost the power meanwhile leaves an upgrade that has ended, not one that is tried for ever.
		second, err := s.CreateRoom(ctx, roomserver.NewRoom{Creator: alice, Version: v, Preset: roomserver.PublicChat, PowerLevels: levels})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Write(ctx, func(tx *storage.Tx) error {
			_, err := tx.Exec(`INSERT INTO room_upgrades (old_room, new_room, user_id, finished) VALUES ($1, $2, $3, $4)`, second, to, alice, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if done, err := s.ResumeUpgrades(ctx); err == nil || len(done) != 0 {
			t.Errorf("went on with %v, %v", done, err)
		}
		if done, err := s.ResumeUpgrades(ctx); err != nil || len(done) != 0 {
			t.Errorf("went on again with %v, %v", done, err)
		}
	})
}
