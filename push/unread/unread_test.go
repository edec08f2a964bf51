package unread

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/counts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const (
	alice = "@alice:hs"
	bob   = "@bob:hs"
	carol = "@carol:hs"
)

// server is what counts are made of.
type server struct {
	*Counts
	t      testing.TB
	db     *storage.DB
	rooms  *roomserver.Server
	router http.Handler
}

func newServer(t testing.TB, db *storage.DB) *server {
	t.Helper()
	s := &server{t: t, db: db, rooms: roomservertest.New(t, db)}
	receipts, err := ephemeral.New(ephemeral.Config{}, ephemeral.Deps{DB: db, Rooms: s.rooms, Log: roomservertest.Log()})
	if err != nil {
		t.Fatal(err)
	}
	rules := push.New(db)
	s.Counts = New(Deps{DB: db, Rooms: s.rooms, Receipts: receipts, Rules: rules, Log: roomservertest.Log()})
	s.router = roomservertest.Router(t, rules.Endpoints(), receipts.Endpoints())
	return s
}

func eachDB(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, ephemeral.Schema, push.Schema}, fn)
}

// do makes a request to a path below /v3 that must succeed.
func (s *server) do(user, method, path, body string) {
	s.t.Helper()
	r := httptest.NewRequest(method, "/_matrix/client/v3"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+user)
	w := httptest.NewRecorder()
	if s.router.ServeHTTP(w, r); w.Code != 200 {
		s.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

// room creates a room of alice's that the others join.
func (s *server) room(users ...string) *roomserver.Room {
	s.t.Helper()
	v, _ := pdu.Lookup("11")
	id, err := s.rooms.CreateRoom(context.Background(), roomserver.NewRoom{Creator: alice, Version: v, Preset: roomserver.PublicChat})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, u := range users {
		s.member(id, u, roomserver.Join)
	}
	return s.find(id)
}

func (s *server) find(id string) *roomserver.Room {
	s.t.Helper()
	room, err := s.rooms.Room(context.Background(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return room
}

func (s *server) member(room, user, membership string) {
	s.t.Helper()
	_, err := s.rooms.SetMembership(context.Background(), roomserver.MembershipChange{RoomID: room, Sender: user, Target: user, Membership: membership})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) state(room *roomserver.Room, user, typ, key, content string) {
	s.t.Helper()
	_, err := s.rooms.Send(context.Background(), room.ID, roomserver.Draft{Sender: user, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	if err != nil {
		s.t.Fatal(err)
	}
}

// say sends a message with the given body and returns its position.
func (s *server) say(room *roomserver.Room, user, body string) int64 {
	s.t.Helper()
	raw, err := json.Marshal(map[string]any{"msgtype": "m.text", "body": body, "m.mentions": map[string]bool{"room": body == "@room"}})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.rooms.Send(context.Background(), room.ID, roomserver.Draft{Sender: user, Type: "m.room.message", Content: raw}); err != nil {
		s.t.Fatal(err)
	}
	return s.db.Head()
}

// total is what a user has not read up to a position, as "notifications/highlights".
func (s *server) total(room *roomserver.Room, user string, at int64) string {
	s.t.Helper()
	u, err := s.Unread(context.Background(), room, user, at)
	if err != nil {
		s.t.Fatal(err)
	}
	c := u.Total()
	return fmt.Sprintf("%d/%d", c.Notifications, c.Highlights)
}

// TestFactsAtThePosition has rules about the room, which changes: each event is judged by what the room was then, also by
// who looks much later and knows nothing.
func TestFactsAtThePosition(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		room := s.room(bob)
		highlight := `"actions":["notify",{"set_tweak":"highlight"}]`
		s.do(bob, "PUT", "/pushrules/global/override/three", `{"conditions":[{"kind":"room_member_count","is":"3"},{"kind":"event_match","key":"type","pattern":"m.room.message"}],`+highlight+`}`)
		s.do(bob, "PUT", "/pushrules/global/override/me", `{"conditions":[{"kind":"contains_display_name"}],`+highlight+`}`)
		type point struct {
			pos  int64
			want string
		}
		var points []point
		n, h := 0, 0
		sender := alice
		say := func(body string, highlights bool) {
			t.Helper()
			pos := s.say(room, sender, body)
			if n++; highlights {
				h++
			}
			points = append(points, point{pos, fmt.Sprintf("%d/%d", n, h)})
		}
		say("two of us", false)
		s.member(room.ID, carol, roomserver.Join)
		say("three of us", true)
		s.member(room.ID, "@dora:hs", roomserver.Join)
		say("four of us", false)
		say("Robert, are you there", false)
		s.state(room, bob, "m.room.member", bob, `{"membership":"join","displayname":"Robert"}`)
		say("Robert, are you there", true)
		s.state(room, bob, "m.room.member", bob, `{"membership":"join","displayname":"Bob"}`)
		say("Robert, are you there", false)
		s.member(room.ID, "@dora:hs", roomserver.Leave)
		say("three again", true)
		s.member(room.ID, "@dora:hs", roomserver.Join)
		say("@room", true)
		sender = carol
		say("@room", false)
		s.state(room, alice, "m.room.power_levels", "", `{"users":{"@alice:hs":100,"@carol:hs":50}}`)
		say("@room", true)
		s.state(room, alice, "m.room.power_levels", "", `{"users":{"@alice:hs":100,"@carol:hs":50},"notifications":{"room":51}}`)
		say("@room", false)
		s.state(room, alice, "m.room.power_levels", "", `{"users":{"@alice:hs":100},"notifications":{"room":0}}`)
		say("@room", true)
		check := func(what string) {
			t.Helper()
			for i, p := range points {
				if got := s.total(room, bob, p.pos); got != p.want {
					t.Errorf("%s, message %d: %s, want %s", what, i, got, p.want)
				}
			}
		}
		check("while it goes on")
		s = newServer(t, db)
		room = s.find(room.ID)
		if got, want := s.total(room, bob, db.Head()), points[len(points)-1].want; got != want {
			t.Errorf("after a restart: %s, want %s", got, want)
		}
		s = newServer(t, db)
		room = s.find(room.ID)
		check("after a restart, in order")
		if got := s.total(room, "@nobody:hs", db.Head()); got != "0/0" {
			t.Errorf("somebody who never was in the room has %s", got)
		}
	})
}

// TestCheckpointsSurvive counts so much that a checkpoint is kept, and goes on from it after a restart.
func TestCheckpointsSurvive(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		room := s.room(bob)
		const messages = 300
		for range messages {
			s.say(room, alice, "x")
		}
		if got := s.total(room, bob, db.Head()); got != "300/0" {
			t.Fatalf("counted %s", got)
		}
		ctx, stop := context.WithCancel(context.Background())
		stop()
		s.Run(ctx) // writes what is left when it ends
		var stored []byte
		if _, err := db.Get(context.Background(), `SELECT checkpoint FROM unread_checkpoints WHERE room = $1 AND user_id = $2`, []any{room.NID, bob}, &stored); err != nil || len(stored) == 0 {
			t.Fatalf("stored %d bytes: %v", len(stored), err)
		}
		s = newServer(t, db)
		room = s.find(room.ID)
		s.say(room, alice, "x")
		if got := s.total(room, bob, db.Head()); got != "301/0" {
			t.Errorf("after a restart: %s", got)
		}
		// A damaged checkpoint costs time only.
		err := db.Write(context.Background(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`UPDATE unread_checkpoints SET checkpoint = $1`, []byte("\x01junk"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		s = newServer(t, db)
		if got := s.total(s.find(room.ID), bob, db.Head()); got != "301/0" {
			t.Errorf("with a damaged checkpoint: %s", got)
		}
	})
}

// open makes a server on a database of its own.
func open(b *testing.B) *server {
	db, err := storage.Open(context.Background(), storage.Options{URL: b.TempDir() + "/db"}, roomserver.Schema, accounts.Schema, ephemeral.Schema, push.Schema)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close(context.Background()) })
	return newServer(b, db)
}

// BenchmarkCold is what a room with 30 state events and 20 messages costs who counts them for the first time.
func BenchmarkCold(b *testing.B) {
	s := open(b)
	room := s.room(bob)
	for i := range 30 {
		s.state(room, alice, "org.example", fmt.Sprint(i), `{"body":"some state"}`)
	}
	for range 20 {
		s.say(room, alice, "a message of some length, as people write them")
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		l := *s.log
		l.makeCaches()
		c := counts.New(&l, counts.Options{})
		b.StartTimer()
		if u, err := c.Unread(context.Background(), room.NID, bob, s.db.Head()); err != nil || u.Main.Notifications != 20 {
			b.Fatal(u, err)
		}
	}
}

// BenchmarkFanOut is what a message to a room of 200 costs each of those who are told their counts.
func BenchmarkFanOut(b *testing.B) {
	s := open(b)
	var users []string
	for i := range 200 {
		users = append(users, fmt.Sprintf("@user%d:hs", i))
	}
	room := s.room(users...)
	for _, u := range users {
		s.total(room, u, s.db.Head())
	}
	b.ReportAllocs()
	n := 0
	var unread *counts.Unread
	var err error
	for b.Loop() {
		if n%len(users) == 0 {
			b.StopTimer()
			s.say(room, alice, "a message of some length, as people write them")
			b.StartTimer()
		}
		if unread, err = s.Unread(context.Background(), room, users[n%len(users)], s.db.Head()); err != nil {
			b.Fatal(err)
		}
		n++
	}
	if unread.Main.Notifications == 0 {
		b.Error("nothing is unread")
	}
}
