package pushers

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const (
	alice = "@alice:hs"
	bob   = "@bob:hs"
	carol = "@carol:hs"
	dave  = "@dave:hs"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// server is what pushers are made of.
type server struct {
	*API
	t      *testing.T
	url    string
	db     *storage.DB
	rooms  *roomserver.Server
	router http.Handler
	end    func()
}

// each runs fn as a subtest with a server on each kind of database.
func each(t *testing.T, fn func(t *testing.T, s *server)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := &server{t: t, url: storagetest.URL(t, d)}
			s.start()
			t.Cleanup(func() { s.end() })
			fn(t, s)
		})
	}
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) start() {
	s.t.Helper()
	s.db = storagetest.OpenURL(s.t, s.url, roomserver.Schema, accounts.Schema, ephemeral.Schema, push.Schema, Schema)
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	log := logrus.NewEntry(logger)
	var err error
	s.rooms, err = roomserver.New(s.db, roomserver.Options{ServerName: "hs", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: log})
	s.must(err)
	receipts, err := ephemeral.New(ephemeral.Config{}, ephemeral.Deps{DB: s.db, Rooms: s.rooms, Log: log})
	s.must(err)
	rules := push.New(s.db)
	counts := unread.New(unread.Deps{DB: s.db, Rooms: s.rooms, Receipts: receipts, Rules: rules, Log: log})
	s.API = New(Config{AllowPrivate: true}, Deps{DB: s.db, Rooms: s.rooms, Unread: counts, Log: log})
	s.router, err = httpapi.NewRouter(httpapi.Config{
		Log: log,
		Authenticate: func(_ context.Context, token string, _ *http.Request) (*httpapi.Caller, error) {
			return &httpapi.Caller{UserID: token, DeviceID: "DEVICE"}, nil
		},
	}, append(append(s.Endpoints(), rules.Endpoints()...), receipts.Endpoints()...)...)
	s.must(err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	s.end = func() {
		stop()
		running.Wait()
	}
}

// restart ends the server in order and starts it again on the same database.
func (s *server) restart() {
	s.t.Helper()
	s.end()
	s.must(s.db.Close(context.Background()))
	s.start()
}

// ask makes a request to a path below /v3.
func (s *server) ask(user, method, path string, body any) (status int, answer gjson.Result) {
	s.t.Helper()
	raw, err := json.Marshal(body)
	s.must(err)
	r := httptest.NewRequest(method, "/_matrix/client/v3"+path, strings.NewReader(string(raw)))
	r.Header.Set("Authorization", "Bearer "+user)
	w := httptest.NewRecorder()
	s.router.ServeHTTP(w, r)
	return w.Code, gjson.ParseBytes(w.Body.Bytes())
}

// do makes a request that must succeed.
func (s *server) do(user, method, path string, body any) gjson.Result {
	s.t.Helper()
	status, answer := s.ask(user, method, path, body)
	if status != 200 {
		s.t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return answer
}

// room creates a room of alice's that others join.
func (s *server) room(name string, users ...string) string {
	s.t.Helper()
	v, _ := pdu.Lookup("11")
	id, err := s.rooms.CreateRoom(context.Background(), roomserver.NewRoom{Creator: alice, Version: v, Preset: roomserver.PublicChat, Name: name})
	s.must(err)
	for _, u := range users {
		_, err := s.rooms.SetMembership(context.Background(), roomserver.MembershipChange{RoomID: id, Sender: u, Target: u, Membership: roomserver.Join})
		s.must(err)
	}
	return id
}

func (s *server) send(room, typ, content string) (eventID string) {
	s.t.Helper()
	id, err := s.rooms.Send(context.Background(), room, roomserver.Draft{Sender: alice, Type: typ, Content: json.RawMessage(content)})
	s.must(err)
	return id
}

func (s *server) say(room, body string) (eventID string) {
	s.t.Helper()
	return s.send(room, "m.room.message", fmt.Sprintf(`{"body":%q,"msgtype":"m.text"}`, body))
}

func (s *server) reads(user, room, event string) {
	s.t.Helper()
	s.do(user, "POST", "/rooms/"+room+"/receipt/m.read/"+event, map[string]any{})
}

// body is what sets a pusher.
func body(url, pushkey string, data map[string]any) map[string]any {
	all := map[string]any{"url": url + gatewayPath}
	for k, v := range data {
		all[k] = v
	}
	return map[string]any{
		"kind": "http", "app_id": "im.myelin.test", "pushkey": pushkey, "app_display_name": "Test", "device_display_name": "Phone", "lang": "en", "data": all, "append": true,
	}
}

func (s *server) set(user, url, pushkey string, data map[string]any) {
	s.t.Helper()
	s.do(user, "POST", "/pushers/set", body(url, pushkey, data))
}

// pushkeys lists a user's pushers.
func (s *server) pushkeys(user string) (list []string) {
	s.t.Helper()
	for _, p := range s.do(user, "GET", "/pushers", nil).Get("pushers").Array() {
		list = append(list, p.Get("pushkey").Str)
	}
	return list
}

// eventually waits for what nothing tells of.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not happen: %s", what)
		}
	}
}

// loopback is a push gateway on a loopback port.
type loopback struct {
	*httptest.Server
	t   *testing.T
	got chan gjson.Result

	mu     sync.Mutex
	answer http.HandlerFunc // guarded by mu, as is the next; nil: takes everything
	once   bool             // answer is given one time
}

func newGateway(t *testing.T) *loopback {
	g := &loopback{t: t, got: make(chan gjson.Result, 10_000)}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != gatewayPath || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("a request to the gateway: %s %s, %v", r.Method, r.URL, err)
		}
		g.mu.Lock()
		answer := g.answer
		if g.once {
			g.answer, g.once = nil, false
		}
		g.mu.Unlock()
		g.got <- gjson.GetBytes(raw, "notification")
		if answer == nil {
			answer = says(200, `{"rejected":[]}`)
		}
		answer(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

// does changes what the gateway answers.
func (g *loopback) does(answer http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = answer
}

// doesOnce changes what the gateway answers the next time.
func (g *loopback) doesOnce(answer http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer, g.once = answer, true
}

// says is an answer.
func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// next is what the gateway is told next.
func (g *loopback) next() gjson.Result {
	g.t.Helper()
	select {
	case n := <-g.got:
		return n
	case <-time.After(patience):
		g.t.Fatal("the gateway is told nothing")
	}
	return gjson.Result{}
}

// hears checks that the gateway is told of an event next, with a number.
func (g *loopback) hears(what, event string, unread int64) {
	g.t.Helper()
	if n := g.next(); n.Get("event_id").Str != event || n.Get("counts.unread").Int() != unread {
		g.t.Errorf("%s: the gateway is told %s, want %q and %d unread", what, n, event, unread)
	}
}

// silence checks that nothing more has reached the gateway.
func (g *loopback) silence() {
	g.t.Helper()
	select {
	case n := <-g.got:
		g.t.Errorf("the gateway is told too much: %s", n)
	default:
	}
}

// What a gateway is told in each format.
func TestFormats(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		room := s.room("Tea", bob, carol, dave)
		begin := time.Now().Unix()
		s.set(bob, g.URL, "full", map[string]any{"brand": "x"})
		s.set(carol, g.URL, "id", map[string]any{"format": "event_id_only"})
		s.set(dave, g.URL, "bare", map[string]any{"org.matrix.msc4076.disable_badge_count": true})
		event := s.say(room, "hello Bob")
		told := map[string]any{}
		for range 3 {
			n := g.next()
			if set := n.Get("devices.0.pushkey_ts").Int(); set < begin || set > time.Now().Unix() {
				t.Errorf("the pushkey is of %d", set)
			}
			told[n.Get("devices.0.pushkey").Str] = n.Value()
		}
		full := map[string]any{
			"event_id": event, "room_id": room, "type": "m.room.message", "sender": alice, "room_name": "Tea", "prio": "low",
			"content": map[string]any{"body": "hello Bob", "msgtype": "m.text"}, "counts": map[string]any{"unread": 1.0},
		}
		device := func(pushkey string, tweaks any, data map[string]any) []any {
			d := map[string]any{"app_id": "im.myelin.test", "pushkey": pushkey, "data": data}
			if tweaks != nil {
				d["tweaks"] = tweaks
			}
			return []any{d}
		}
		with := func(change map[string]any) map[string]any {
			out := map[string]any{}
			for k, v := range full {
				out[k] = v
			}
			for k, v := range change {
				out[k] = v
			}
			return out
		}
		want := map[string]any{
			"full": with(map[string]any{"devices": device("full", nil, map[string]any{"brand": "x"})}),
			"bare": with(map[string]any{"devices": device("bare", nil, map[string]any{"org.matrix.msc4076.disable_badge_count": true}), "counts": map[string]any{}}),
			"id": map[string]any{"event_id": event, "room_id": room, "prio": "low", "counts": map[string]any{"unread": 1.0},
				"devices": device("id", nil, map[string]any{"format": "event_id_only"})},
		}
		for _, n := range told {
			delete(n.(map[string]any)["devices"].([]any)[0].(map[string]any), "pushkey_ts")
		}
		for key := range want {
			if !reflect.DeepEqual(told[key], want[key]) {
				t.Errorf("%s: told\n%v, want\n%v", key, told[key], want[key])
			}
		}
	})
}

// The number is that of all rooms, and comes down as they are read.
func TestBadge(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		tea, cake := s.room("Tea", bob), s.room("Cake", bob)
		s.set(bob, g.URL, "key", nil)
		one := s.say(tea, "one")
		g.hears("the first", one, 1)
		two := s.say(cake, "two")
		g.hears("another room", two, 2)
		three := s.say(cake, "three")
		g.hears("once more", three, 3)
		s.reads(bob, cake, two)
		g.hears("a room read in part", "", 2)
		s.reads(bob, cake, three)
		g.hears("a room read", "", 1)
		s.do(bob, "PUT", "/pushrules/global/room/"+cake, map[string]any{"actions": []string{}})
		s.say(cake, "muted")
		four := s.say(tea, "four")
		g.hears("after a muted room", four, 2)
		s.reads(bob, tea, four)
		g.hears("all read", "", 0)
		g.silence()
	})
}

// A pusher that is set after the last one was removed begins with what is unread then.
func TestBadgeAfterATimeWithoutPushers(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		tea, cake := s.room("Tea", bob), s.room("Cake", bob)
		s.set(bob, g.URL, "key", nil)
		one := s.say(tea, "one")
		g.hears("the first", one, 1)
		s.do(bob, "POST", "/pushers/set", map[string]any{"app_id": "im.myelin.test", "pushkey": "key", "kind": nil})
		s.until("bob has no pushers", bob, func(u *user) bool { return len(u.queues) == 0 })
		s.reads(bob, tea, one)
		s.set(bob, g.URL, "another", nil)
		g.hears("another room", s.say(cake, "two"), 1)
		g.silence()
	})
}

// What is read while the gateway has not answered yet, or has been away, takes the number down as well.
func TestBadgeWhileTheGatewayIsBusy(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		room := s.room("Tea", bob)
		s.set(bob, g.URL, "key", nil)
		answer := make(chan struct{})
		g.does(func(w http.ResponseWriter, r *http.Request) {
			<-answer
			says(200, `{}`)(w, r)
		})
		one := s.say(room, "one")
		g.hears("the first", one, 1)
		s.reads(bob, room, one)
		close(answer)
		g.hears("read while it was told", "", 0)

		g.does(nil)
		two := s.say(room, "two")
		g.hears("the second", two, 1)
		g.does(says(503, ""))
		three := s.say(room, "three")
		g.hears("the third, in vain", three, 2)
		s.reads(bob, room, three)
		s.untilBadge(bob, 0)
		g.does(nil)
		s.set(bob, g.URL, "key", nil) // and so it is tried at once
		for n := g.next(); n.Get("counts.unread").Exists() || n.Get("event_id").Exists(); n = g.next() {
			// Attempts from before it was read, and after.
			if n.Get("event_id").Str != three {
				t.Fatalf("the gateway is told %s", n)
			}
		}
	})
}

// until waits until something is true of a user.
func (s *server) until(what, name string, isTrue func(u *user) bool) {
	s.t.Helper()
	eventually(s.t, what, func() bool {
		s.mu.Lock()
		u := s.users[name]
		s.mu.Unlock()
		if u == nil {
			return false
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		return isTrue(u)
	})
}

// untilBadge waits until a user's number is known.
func (s *server) untilBadge(name string, want int64) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s has %d unread", name, want), name, func(u *user) bool { return u.badge == want })
}

// untilTold waits until nothing waits for a user's gateways.
func (s *server) untilTold(name string) {
	s.t.Helper()
	s.until("all is told to "+name, name, func(u *user) bool {
		for _, q := range u.queues {
			q.mu.Lock()
			waiting := len(q.notes)
			q.mu.Unlock()
			if waiting > 0 {
				return false
			}
		}
		return true
	})
}

// What a gateway could not be told before a restart it is told afterwards, and nothing twice.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		room := s.room("Tea", bob)
		s.set(bob, g.URL, "key", map[string]any{"format": "event_id_only"})
		told := s.say(room, "told")
		g.hears("before all", told, 1)
		s.untilTold(bob)
		g.does(says(500, "no"))
		sent := []string{s.say(room, "one")}
		g.hears("a first attempt", sent[0], 2)
		sent = append(sent, s.say(room, "two"))
		s.until("the gateway is known to fail", bob, func(u *user) bool {
			for _, q := range u.queues {
				q.mu.Lock()
				defer q.mu.Unlock()
				return q.pusher.FailingSince != 0
			}
			return false
		})
		s.restart()
		row := s.row(bob)
		if row.FailingSince == 0 {
			t.Error("the gateway is not known to fail")
		}
		n := g.next()
		for n.Get("counts.unread").Int() == 2 { // attempts from before the restart
			n = g.next()
		}
		if n.Get("event_id").Str != sent[0] || n.Get("counts.unread").Int() != 3 {
			t.Errorf("after the restart the gateway is told %s, want %s and 3 unread", n, sent[0])
		}
		s.restart()
		if again := s.row(bob); again.FailingSince != row.FailingSince || again.Told != row.Told {
			t.Errorf("failing since %d, told up to %d; before the second restart %d and %d", again.FailingSince, again.Told, row.FailingSince, row.Told)
		}
		g.does(nil)
		s.set(bob, g.URL, "key", map[string]any{"format": "event_id_only"})
		n = g.next()
		for n.Get("event_id").Str == sent[0] { // attempts that failed, and one that did not
			n = g.next()
		}
		if n.Get("event_id").Str != sent[1] {
			t.Errorf("after the first the gateway is told %s, want %s", n, sent[1])
		}
		s.untilTold(bob)
		s.restart()
		last := s.say(room, "last")
		g.hears("after all", last, 4)
		s.untilTold(bob)
		s.restart()
		if s.row(bob).FailingSince != 0 {
			t.Error("the gateway is still known to fail")
		}
		g.silence()
	})
}

// A number that fell, of which the gateway could not be told before a restart, it is told after it, and once.
func TestBadgeAfterARestart(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		room := s.room("Tea", bob)
		s.set(bob, g.URL, "key", nil)
		one := s.say(room, "one")
		g.hears("the first", one, 1)
		s.untilTold(bob)
		s.end() // in order; nobody is told of what is read from now on
		s.reads(bob, room, one)
		s.must(s.db.Close(context.Background()))
		s.start()
		g.hears("read just before the end", "", 0)
		s.untilTold(bob)
		s.restart()
		two := s.say(room, "two")
		g.hears("nothing but the second", two, 1)
		s.untilTold(bob)
		g.silence()
	})
}

// row is what the database has of a user's only pusher.
func (s *server) row(name string) (p pusher) {
	s.t.Helper()
	s.must(s.db.Read(context.Background(), func(tx *storage.Tx) error {
		list, err := ofUser(tx, name)
		if err == nil {
			p = list[0]
		}
		return err
	}))
	return p
}

// A gateway that says that a pushkey is void takes away that pusher, and no other.
func TestRejection(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g, other := newGateway(t), newGateway(t)
		room := s.room("Tea", bob, carol)
		s.set(bob, g.URL, "void", nil)
		s.set(bob, other.URL, "other", nil)
		s.set(carol, other.URL, "void", nil)
		g.does(says(200, `{"rejected":["other","another"]}`))
		s.say(room, "one")
		g.next()
		other.next()
		other.next()
		g.does(says(200, `{"rejected":["another","void"]}`))
		s.say(room, "two")
		g.next()
		other.next()
		other.next()
		eventually(t, "the pusher goes", func() bool { return len(s.pushkeys(bob)) == 1 })
		if got := s.pushkeys(bob); got[0] != "other" {
			t.Errorf("bob has %v", got)
		}
		if got := s.pushkeys(carol); len(got) != 1 {
			t.Errorf("carol has %v", got)
		}
		s.say(room, "three")
		other.next()
		other.next()
		g.silence()
	})
}

// What gateways answer that they should not.
func TestAnswers(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g, elsewhere := newGateway(t), newGateway(t)
		room := s.room("Tea", bob)
		s.set(bob, g.URL, "key", nil)
		unread := int64(0)
		for _, c := range []struct {
			what   string
			answer http.HandlerFunc
			again  bool
		}{
			{"a redirect", http.RedirectHandler(elsewhere.URL+gatewayPath, http.StatusTemporaryRedirect).ServeHTTP, true},
			{"no JSON", says(200, "fine"), false},
			{"a long answer", says(200, `{"x":"`+strings.Repeat("x", 10*maxAnswer)+`","rejected":["key"]}`), false},
			{"rejections that are none", says(200, `{"rejected":"key"}`), false},
			{"an error", says(400, `{"rejected":["key"]}`), true},
			{"a hang up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
		} {
			g.doesOnce(c.answer)
			event := s.say(room, c.what)
			unread++
			g.hears(c.what, event, unread)
			if c.again {
				g.hears(c.what+", again", event, unread)
			}
		}
		elsewhere.silence()
		if got := s.pushkeys(bob); len(got) != 1 {
			t.Errorf("bob has %v", got)
		}
	})
}

// A gateway that does not answer holds up nobody else.
func TestSlowGateway(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		slow, quick := newGateway(t), newGateway(t)
		room := s.room("Tea", bob, carol)
		s.set(bob, slow.URL, "slow", nil)
		s.set(bob, quick.URL, "quick", nil)
		s.set(carol, quick.URL, "carol", nil)
		end := make(chan struct{})
		t.Cleanup(func() { close(end) })
		slow.does(func(http.ResponseWriter, *http.Request) { <-end })
		for i := range int64(5) {
			event := s.say(room, "hello")
			quick.hears("one", event, i+1)
			quick.hears("the other", event, i+1)
		}
		slow.next()
		slow.silence()
	})
}

// Of what piles up while a gateway is away the newest is told.
func TestOverflow(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		g := newGateway(t)
		room := s.room("Tea", bob)
		s.set(bob, g.URL, "key", map[string]any{"format": "event_id_only"})
		g.does(says(503, ""))
		var sent []string
		for range maxWaiting + 20 {
			sent = append(sent, s.say(room, "hello"))
		}
		s.untilBadge(bob, int64(len(sent)))
		s.restart()
		s.untilBadge(bob, int64(len(sent)))
		g.does(nil)
		s.set(bob, g.URL, "key", map[string]any{"format": "event_id_only"})
		for n := ""; n != sent[20]; { // attempts from before are about older ones
			n = g.next().Get("event_id").Str
		}
		for _, event := range sent[21:] {
			n := g.next()
			for n.Get("event_id").Str == sent[20] {
				n = g.next()
			}
			if n.Get("event_id").Str != event {
				t.Fatalf("told %s, want %s", n, event)
			}
		}
	})
}

// Gateways are where the specification wants them, and not in the server's own network.
func TestURLs(t *testing.T) {
	public := New(Config{ClientURL: "https://hs.test"}, Deps{DB: storagetest.Open(t, storage.SQLite, Schema)})
	for url, ok := range map[string]bool{
		"https://push.test/_matrix/push/v1/notify":        true,
		"https://push.test:8443/_matrix/push/v1/notify":   true,
		"https://push.test/_matrix/push/v1/notify?app=x":  true,
		"https://hs.test/_matrix/push/v1/notify":          true,
		"http://push.test/_matrix/push/v1/notify":         false,
		"https://push.test/_matrix/push/v1/notify/":       false,
		"https://push.test/":                              false,
		"https://a:b@push.test/_matrix/push/v1/notify":    false,
		"https://push.test/_matrix/push/v1/notify#x":      false,
		"https:///_matrix/push/v1/notify":                 false,
		"file:///_matrix/push/v1/notify":                  false,
		"https://push.test/x/../_matrix/push/v1/notify":   false,
		"https://push.test/%5Fmatrix/push/v1/notify/../x": false,
		"": false,
		"https://push.test\x00/_matrix/push/v1/notify":      false,
		"//push.test/_matrix/push/v1/notify":                false,
		"gopher://push.test/_matrix/push/v1/notify":         false,
		"https://[::1%25eth0]:443/_matrix/push/v1/notify\n": false,
	} {
		if err := public.checkURL(url); (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
	g := newGateway(t)
	answer, err := public.http.Post(g.URL+gatewayPath, "application/json", strings.NewReader("{}"))
	if err == nil {
		answer.Body.Close()
		t.Error("a loopback address is reached")
	}
	g.silence()
}

func TestSet(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		const url = "http://push.test"
		for what, c := range map[string]struct {
			change map[string]any
			code   string
		}{
			"no app_id":               {map[string]any{"app_id": ""}, "M_INVALID_PARAM"},
			"a long app_id":           {map[string]any{"app_id": strings.Repeat("ä", maxAppID+1)}, "M_INVALID_PARAM"},
			"no pushkey":              {map[string]any{"pushkey": ""}, "M_INVALID_PARAM"},
			"a long pushkey":          {map[string]any{"pushkey": strings.Repeat("x", maxPushkey+1)}, "M_INVALID_PARAM"},
			"no name of the app":      {map[string]any{"app_display_name": nil}, "M_MISSING_PARAM"},
			"no name of the device":   {map[string]any{"device_display_name": nil}, "M_MISSING_PARAM"},
			"no language":             {map[string]any{"lang": nil}, "M_MISSING_PARAM"},
			"a long name":             {map[string]any{"app_display_name": strings.Repeat("x", maxText+1)}, "M_INVALID_PARAM"},
			"data that is no object":  {map[string]any{"data": []int{1}}, "M_INVALID_PARAM"},
			"no url":                  {map[string]any{"data": map[string]any{}}, "M_INVALID_PARAM"},
			"a url that is none":      {map[string]any{"data": map[string]any{"url": 7}}, "M_INVALID_PARAM"},
			"much data":               {map[string]any{"data": map[string]any{"url": url + gatewayPath, "x": strings.Repeat("x", maxData)}}, "M_INVALID_PARAM"},
			"another kind":            {map[string]any{"kind": "pigeon"}, "M_INVALID_PARAM"},
			"e-mail, which is not on": {map[string]any{"kind": "email", "app_id": "m.email"}, "M_INVALID_PARAM"},
		} {
			in := body(url, "key", nil)
			for k, v := range c.change {
				in[k] = v
			}
			if status, answer := s.ask(bob, "POST", "/pushers/set", in); status != 400 || answer.Get("errcode").Str != c.code {
				t.Errorf("%s: %d %s", what, status, answer)
			}
		}
		for i := range maxPushers {
			s.set(bob, url, fmt.Sprint(i), nil)
		}
		if status, answer := s.ask(bob, "POST", "/pushers/set", body(url, "one more", nil)); status != 400 {
			t.Errorf("one too many: %d %s", status, answer)
		}
		s.set(bob, url, "0", nil) // not one more
		s.set(carol, url, "one more", nil)
		for range 2 { // the second time there is none
			s.do(bob, "POST", "/pushers/set", map[string]any{"kind": nil, "app_id": "im.myelin.test", "pushkey": "0"})
		}
		if got := len(s.pushkeys(bob)); got != maxPushers-1 {
			t.Errorf("bob has %d", got)
		}
	})
}
