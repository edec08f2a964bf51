package roomserver_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const (
	alice = "@alice:hs"
	bob   = "@bob:hs"
)

// newServer makes a roomserver on a database.
func newServer(t testing.TB, db *storage.DB) *roomserver.Server {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := roomserver.New(db, roomserver.Options{
		ServerName: "hs", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: logrus.NewEntry(log),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// each runs a test with a roomserver on both databases.
func each(t *testing.T, fn func(t *testing.T, s *roomserver.Server)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) { fn(t, newServer(t, db)) })
}

// newRoom creates a room of alice's.
func newRoom(t testing.TB, s *roomserver.Server, version, preset string) string {
	t.Helper()
	v, ok := pdu.Lookup(version)
	if !ok {
		t.Fatalf("room version %s", version)
	}
	id, err := s.CreateRoom(context.Background(), roomserver.NewRoom{Creator: alice, Version: v, Preset: preset})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// send sends a message and returns its id.
func send(t testing.TB, s *roomserver.Server, room, user, body string) string {
	t.Helper()
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Send(context.Background(), room, roomserver.Draft{Sender: user, Type: "m.room.message", Content: content})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCreateAndSend(t *testing.T) {
	each(t, func(t *testing.T, s *roomserver.Server) {
		for _, v := range pdu.Versions() {
			ctx := context.Background()
			id := newRoom(t, s, v.ID, roomserver.PublicChat)
			if _, err := s.SetMembership(ctx, roomserver.MembershipChange{RoomID: id, Sender: bob, Target: bob, Membership: roomserver.Join}); err != nil {
				t.Fatalf("version %s: join: %v", v.ID, err)
			}
			first := send(t, s, id, alice, "one")
			second := send(t, s, id, bob, "two")
			room, err := s.Room(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			events, more, err := s.Timeline(ctx, room, 0, room.Head().Pos, 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(events) != 2 || !more || events[0].ID != first || events[1].ID != second {
				t.Fatalf("version %s: timeline %v, more %v", v.ID, events, more)
			}
			if joined, _ := room.MemberCounts(); joined != 2 {
				t.Errorf("version %s: %d joined members", v.ID, joined)
			}
		}
	})
}
