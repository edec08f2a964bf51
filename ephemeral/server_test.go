package ephemeral

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
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

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// server is the API behind a router. Users show their user ID as token, with the device after a blank.
type server struct {
	*API
	t      *testing.T
	db     *storage.DB
	rooms  *roomserver.Server
	clock  *clock
	router http.Handler

	mu      sync.Mutex
	notices []storage.Notice // guarded by mu, as is the rest
	typed   []int64
	people  []string
	audible []int64
}

func newServer(t *testing.T, db *storage.DB) *server {
	t.Helper()
	s := &server{t: t, db: db, clock: &clock{now: time.UnixMilli(1_700_000_000_000)}}
	s.rooms = roomservertest.New(t, db, func(o *roomserver.Options) { o.Now = s.clock.Now })
	var err error
	s.API, err = New(Config{Presence: true}, Deps{DB: db, Rooms: s.rooms, Log: roomservertest.Log(), Now: s.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.Listen(Listener{
		Typing: func(room int64) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.typed = append(s.typed, room)
		},
		Presence: func(users []string, rooms []int64) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.people, s.audible = append(s.people, users...), append(s.audible, rooms...)
		},
	})
	db.Subscribe(func(batch []storage.Notice, _ int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.notices = append(s.notices, batch...)
	})
	s.router = roomservertest.Router(t, s.Endpoints())
	return s
}

// each runs a test on both databases.
func each(t *testing.T, fn func(t *testing.T, s *server)) {
	eachDB(t, func(t *testing.T, db *storage.DB) { fn(t, newServer(t, db)) })
}

func eachDB(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, fn)
}

// do makes a request to a path below /v3.
func (s *server) do(token, method, path, body string) (int, gjson.Result) {
	s.t.Helper()
	r := httptest.NewRequest(method, "/_matrix/client/v3"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	s.router.ServeHTTP(w, r)
	if !gjson.ValidBytes(w.Body.Bytes()) {
		s.t.Fatalf("%s %s: no JSON: %q", method, path, w.Body)
	}
	return w.Code, gjson.ParseBytes(bytes.Clone(w.Body.Bytes()))
}

// ok is do for a request that must succeed.
func (s *server) ok(token, method, path, body string) gjson.Result {
	s.t.Helper()
	status, out := s.do(token, method, path, body)
	if status != 200 {
		s.t.Fatalf("%s %s %s: %d %s", method, path, body, status, out.Raw)
	}
	return out
}

// refused is do for a request that must fail.
func (s *server) refused(status int, code, token, method, path, body string) {
	s.t.Helper()
	got, out := s.do(token, method, path, body)
	if got != status || out.Get("errcode").Str != code {
		s.t.Errorf("%s %s %s: %d %s, want %d %s", method, path, body, got, out.Raw, status, code)
	}
}

// room creates a room of the first user's that the others join.
func (s *server) room(users ...string) *roomserver.Room {
	s.t.Helper()
	v, _ := pdu.Lookup("12")
	id, err := s.rooms.CreateRoom(s.t.Context(), roomserver.NewRoom{Creator: users[0], Version: v, Preset: roomserver.PublicChat})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, u := range users[1:] {
		s.member(id, u, roomserver.Join)
	}
	room, err := s.rooms.Room(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return room
}

func (s *server) member(room, user, membership string) {
	s.t.Helper()
	_, err := s.rooms.SetMembership(s.t.Context(), roomserver.MembershipChange{RoomID: room, Sender: user, Target: user, Membership: membership})
	if err != nil {
		s.t.Fatal(err)
	}
}

// send sends a message, in a thread if root is not empty, and returns its ID.
func (s *server) send(room *roomserver.Room, user, root string) string {
	s.t.Helper()
	content := map[string]any{"body": "x"}
	if root != "" {
		content["m.relates_to"] = map[string]string{"rel_type": "m.thread", "event_id": root}
	}
	raw, err := json.Marshal(content)
	if err != nil {
		s.t.Fatal(err)
	}
	id, err := s.rooms.Send(s.t.Context(), room.ID, roomserver.Draft{Sender: user, Type: "m.room.message", Content: raw})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// pos is the position of an event.
func (s *server) pos(room *roomserver.Room, id string) int64 {
	s.t.Helper()
	e, err := s.rooms.Event(s.t.Context(), room, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return e.Anchor
}

// announced returns what was announced of receipts and account data since it was last called, as "kind user".
func (s *server) announced() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.notices {
		name := map[storage.Kind]string{storage.Receipt: "receipt", storage.PrivateReceipt: "private", storage.AccountData: "data"}[n.Kind]
		if name != "" {
			list = append(list, name+" "+n.User)
		}
	}
	s.notices = nil
	slices.Sort(list)
	return list
}

// pass lets time pass, and the background do its work.
func (s *server) pass(d time.Duration) {
	s.clock.mu.Lock()
	s.clock.now = s.clock.now.Add(d)
	s.clock.mu.Unlock()
	s.step(s.t.Context())
}

// told returns what the listener heard since it was last called.
func (s *server) told() (typed []int64, people []string, audible []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	typed, people, audible = s.typed, s.people, s.audible
	s.typed, s.people, s.audible = nil, nil, nil
	slices.Sort(people)
	return typed, people, audible
}
