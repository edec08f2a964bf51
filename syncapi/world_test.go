package syncapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/unread"
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

// world is what a sync tells of: rooms, account data, push rules, receipts, typing, presence, behind one router. Users
// show their user ID as token.
type world struct {
	t         testing.TB
	db        *storage.DB
	rooms     *roomserver.Server
	ephemeral *ephemeral.API
	sync      *API
	router    http.Handler

	mu    sync.Mutex
	clock time.Time // guarded by mu
}

// noRooms is what accounts ask of rooms, of which these tests need nothing.
type noRooms struct{}

func (noRooms) ProfileChanged(context.Context, string, accounts.ProfileChange) error { return nil }
func (noRooms) LeaveAll(context.Context, string) error                               { return nil }
func (noRooms) Known(context.Context, string) (bool, error)                          { return false, nil }

func newWorld(t testing.TB, db *storage.DB) *world {
	t.Helper()
	log := roomservertest.Log()
	w := &world{t: t, db: db, rooms: roomservertest.New(t, db), clock: time.UnixMilli(1_700_000_000_000)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.ephemeral, err = ephemeral.New(ephemeral.Config{Presence: true}, ephemeral.Deps{DB: db, Rooms: w.rooms, Log: log, Now: w.now})
	must(err)
	rules := push.New(db)
	acc, err := accounts.New(accounts.Config{ServerName: "hs"}, accounts.Deps{DB: db, Rooms: noRooms{}, Log: log,
		Computed: map[string]func(*storage.Tx, string) (json.RawMessage, error){"m.push_rules": rules.AccountData}})
	must(err)
	counts := unread.New(unread.Deps{DB: db, Rooms: w.rooms, Receipts: w.ephemeral, Rules: rules, Log: log})
	keys, err := e2ee.New(e2ee.Deps{DB: db, Rooms: w.rooms, Log: log, Now: w.now})
	must(err)
	keys.SetAccounts(acc)
	w.sync, err = New(Deps{DB: db, Rooms: w.rooms, Ephemeral: w.ephemeral, Push: rules, Unread: counts, Accounts: acc, E2EE: keys, Log: log})
	must(err)
	w.sync.now = w.now
	w.router = roomservertest.Router(t, acc.Endpoints(), w.ephemeral.Endpoints(), rules.Endpoints(), w.sync.Endpoints())
	ctx, stop := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { w.ephemeral.Run(ctx) })
	group.Go(func() { counts.Run(ctx) })
	t.Cleanup(func() {
		stop()
		group.Wait()
	})
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

// eachWorld runs a test on both databases.
func eachWorld(t *testing.T, fn func(t *testing.T, w *world)) {
	eachDB(t, func(t *testing.T, db *storage.DB) { fn(t, newWorld(t, db)) })
}

func eachDB(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, e2ee.Schema, ephemeral.Schema, push.Schema}, fn)
}

// do makes a request to a path below /v3 that must succeed.
func (w *world) do(user, method, path, body string) gjson.Result {
	w.t.Helper()
	r := httptest.NewRequest(method, "/_matrix/client/v3"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+user+" D")
	rec := httptest.NewRecorder()
	w.router.ServeHTTP(rec, r)
	if rec.Code != 200 || !gjson.ValidBytes(rec.Body.Bytes()) {
		w.t.Fatalf("%s %s %s: %d %s", method, path, body, rec.Code, rec.Body)
	}
	return gjson.Parse(rec.Body.String())
}

// device is one that syncs.
type device struct {
	*world
	user, since string
	query       url.Values
}

// login makes a device with further query parameters of /sync, which has synced once.
func (w *world) login(user string, query ...string) *device {
	d := &device{world: w, user: user, query: url.Values{"set_presence": {"offline"}}}
	for i := 0; i < len(query); i += 2 {
		d.query.Set(query[i], query[i+1])
	}
	d.next(0)
	return d
}

// next syncs, waiting for up to so many milliseconds.
func (d *device) next(timeout int) gjson.Result {
	d.t.Helper()
	q := url.Values{}
	for k, v := range d.query {
		q[k] = v
	}
	if d.since != "" {
		q.Set("since", d.since)
	}
	if timeout > 0 {
		q.Set("timeout", strconv.Itoa(timeout))
	}
	out := d.do(d.user, "GET", "/sync?"+q.Encode(), "")
	d.since = out.Get("next_batch").Str
	return out
}

// quiet fails the test if a sync has anything to tell.
func (d *device) quiet(what string) {
	d.t.Helper()
	out := d.next(0)
	if len(out.Map()) != 3 { // next_batch and the counts of keys are in every answer
		d.t.Errorf("%s: %s is told %.1000s", what, d.user, out.Raw)
	}
}

// joined is a room's part of an answer.
func joined(answer gjson.Result, room *roomserver.Room) gjson.Result {
	return answer.Get("rooms.join." + gjson.Escape(room.ID))
}

// ephemeralOf is the content of the room's ephemeral event of a type, or "".
func ephemeralOf(answer gjson.Result, room *roomserver.Room, typ string) string {
	var out []string
	for _, e := range joined(answer, room).Get("ephemeral.events").Array() {
		if e.Get("type").Str == typ {
			out = append(out, e.Get("content").Raw)
		}
	}
	return strings.Join(out, " ")
}

// room creates a room of the first user's that the others join.
func (w *world) room(users ...string) *roomserver.Room {
	w.t.Helper()
	v, _ := pdu.Lookup("12")
	id, err := w.rooms.CreateRoom(context.Background(), roomserver.NewRoom{Creator: users[0], Version: v, Preset: roomserver.PublicChat})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, u := range users[1:] {
		w.member(id, u, roomserver.Join)
	}
	room, err := w.rooms.Room(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return room
}

func (w *world) member(room, user, membership string) {
	w.t.Helper()
	_, err := w.rooms.SetMembership(context.Background(), roomserver.MembershipChange{RoomID: room, Sender: user, Target: user, Membership: membership})
	if err != nil {
		w.t.Fatal(err)
	}
}

// send sends an event and returns its ID.
func (w *world) send(room *roomserver.Room, user, typ string, content map[string]any) string {
	w.t.Helper()
	raw, err := json.Marshal(content)
	if err != nil {
		w.t.Fatal(err)
	}
	redacts, _ := content["redacts"].(string)
	id, err := w.rooms.Send(context.Background(), room.ID, roomserver.Draft{Sender: user, Type: typ, Content: raw, Redacts: redacts})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// say sends a message, in a thread if root is not empty.
func (w *world) say(room *roomserver.Room, user, root string) string {
	w.t.Helper()
	content := map[string]any{"msgtype": "m.text", "body": "x"}
	if root != "" {
		content["m.relates_to"] = map[string]string{"rel_type": "m.thread", "event_id": root}
	}
	return w.send(room, user, "m.room.message", content)
}

// read sends a receipt; thread is empty for an unthreaded one.
func (w *world) read(room *roomserver.Room, user, kind, event, thread string) {
	w.t.Helper()
	body := "{}"
	if thread != "" {
		body = `{"thread_id":"` + thread + `"}`
	}
	w.do(user, "POST", "/rooms/"+url.PathEscape(room.ID)+"/receipt/"+kind+"/"+url.PathEscape(event), body)
}

func (w *world) typing(room *roomserver.Room, user, body string) {
	w.t.Helper()
	w.do(user, "PUT", "/rooms/"+url.PathEscape(room.ID)+"/typing/"+user, body)
}
