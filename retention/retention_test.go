package retention

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const alice = "@alice:hs"

// A pass that fails in one room goes on with the others, says so, and is made good by the next one. It also removes rooms
// whose cool-off is over.
func TestPass(t *testing.T) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		now := time.Now()
		rooms := roomservertest.New(t, db, func(o *roomserver.Options) {
			o.Retention, o.Now = roomserver.Retention{Enabled: true, Default: time.Hour}, func() time.Time { return now }
		})
		version, _ := pdu.Lookup("10")
		var ids, messages []string
		for range 2 {
			id, err := rooms.CreateRoom(ctx, roomserver.NewRoom{Creator: alice, Version: version, Preset: roomserver.PrivateChat})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 2 { // the last one stays, because the next one builds on it
				event, err := rooms.Send(ctx, id, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{"body":"x"}`)})
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					ids, messages = append(ids, id), append(messages, event)
				}
			}
		}
		known := func(i int) bool {
			t.Helper()
			room, err := rooms.Room(ctx, ids[i])
			if err != nil {
				t.Fatal(err)
			}
			_, err = rooms.Event(ctx, room, messages[i])
			if err != nil && !errors.Is(err, roomserver.ErrUnknownEvent) {
				t.Fatal(err)
			}
			return err == nil
		}
		broken := errors.New("broken")
		var failing string
		told := map[string]int{}
		begun, ended := 0, 0
		begin := func() (end func()) {
			begun++
			return func() { ended++ }
		}
		c := New(Config{Interval: time.Hour, Abandoned: 24 * time.Hour}, Deps{DB: db, Rooms: rooms, Log: roomservertest.Log(), Hooks: []Hooks{{Begin: begin}, {
			Begin: begin,
			Events: func(_ *storage.Tx, _ int64, purged []*roomserver.Event) error {
				if begun != ended+2 {
					t.Errorf("%d features heard of the beginning of a purge, %d of its end", begun, ended)
				}
				told[purged[0].RoomID] += len(purged)
				if purged[0].RoomID == failing {
					return broken
				}
				return nil
			},
			Room: func(_ *storage.Tx, _ int64, roomID string, _ int) (int64, error) {
				if begun != ended+2 {
					t.Errorf("%d features heard of the beginning of a removal, %d of its end", begun, ended)
				}
				told["removed "+roomID]++
				return 0, nil
			},
		}}})
		c.now = func() time.Time { return now }
		if err := c.Pass(ctx); err != nil || len(told) != 0 {
			t.Fatalf("nothing has expired: %v, %v", told, err)
		}
		now = now.Add(2 * time.Hour)
		failing = ids[0]
		if err := c.Pass(ctx); !errors.Is(err, broken) || !known(0) || known(1) {
			t.Errorf("with a hook that fails for the first room: %v, known %v and %v", err, known(0), known(1))
		}
		if begun == 0 || ended != begun {
			t.Errorf("after purges of which one failed, features heard of %d beginnings and %d ends", begun, ended)
		}
		failing = ""
		if err := c.Pass(ctx); err != nil || known(0) || told[ids[0]] == 0 {
			t.Errorf("the next pass: %v, known %v", err, known(0))
		}

		if _, err := rooms.SetMembership(ctx, roomserver.MembershipChange{RoomID: ids[0], Sender: alice, Target: alice, Membership: roomserver.Leave}); err != nil {
			t.Fatal(err)
		}
		if err := rooms.Forget(ctx, alice, ids[0]); err != nil {
			t.Fatal(err)
		}
		now = now.Add(23 * time.Hour)
		if err := c.Pass(ctx); err != nil || told["removed "+ids[0]] != 0 {
			t.Errorf("before the cool-off is over: %v, %v", told, err)
		}
		now = now.Add(time.Hour)
		if err := c.Pass(ctx); err != nil || told["removed "+ids[0]] == 0 || told["removed "+ids[1]] != 0 {
			t.Errorf("after it: %v, %v", told, err)
		}
		if ended != begun {
			t.Errorf("after the removal, features heard of %d beginnings and %d ends", begun, ended)
		}
		if _, err := rooms.Room(ctx, ids[0]); !errors.Is(err, roomserver.ErrUnknownRoom) {
			t.Errorf("the removed room: %v", err)
		}
		if err := rooms.CheckConsistency(ctx); err != nil {
			t.Error(err)
		}
	})
}
