package queue

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// source keeps EDUs in memory.
type source struct {
	mu   sync.Mutex
	owed map[string][]owedEDU
}

type owedEDU struct {
	pos int64
	edu EDU
}

func (s *source) put(server string, pos int64, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range n {
		s.owed[server] = append(s.owed[server], owedEDU{pos, EDU{"test.durable", json.RawMessage(fmt.Sprintf(`{"n":%d,"pos":%d}`, i, pos))}})
	}
}

// Destinations implements Source.
func (s *source) Destinations(_ context.Context, after, upTo int64) (servers []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for server, list := range s.owed {
		for _, o := range list {
			if o.pos > after && o.pos <= upTo {
				servers = append(servers, server)
				break
			}
		}
	}
	return servers, nil
}

// Pending implements Source: what was written at one position is not divided.
func (s *source) Pending(_ context.Context, server string, after, upTo int64, limit int) (edus []EDU, next int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := int64(0)
	for _, o := range s.owed[server] {
		if o.pos <= after || o.pos > upTo {
			continue
		}
		if len(edus) >= limit && o.pos != last {
			return edus, last, nil
		}
		edus, last = append(edus, o.edu), o.pos
	}
	return edus, upTo, nil
}

// Delivered implements Source.
func (s *source) Delivered(_ context.Context, server string, upTo int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []owedEDU
	for _, o := range s.owed[server] {
		if o.pos > upTo {
			left = append(left, o)
		}
	}
	s.owed[server] = left
	return nil
}

func (s *source) left(server string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.owed[server])
}

// inbox is a server that takes transactions.
type inbox struct {
	name   string
	mu     sync.Mutex
	status int
	got    []string // bodies that were taken
	tries  int
}

func newInbox(t *testing.T, pool *x509.CertPool) *inbox {
	t.Helper()
	in := &inbox{status: 200}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		in.mu.Lock()
		defer in.mu.Unlock()
		in.tries++
		if in.status == 200 {
			in.got = append(in.got, string(body))
		}
		w.WriteHeader(in.status)
		io.WriteString(w, `{"pdus":{}}`)
	}))
	t.Cleanup(server.Close)
	pool.AddCert(server.Certificate())
	in.name = strings.TrimPrefix(server.URL, "https://")
	return in
}

func (in *inbox) answer(status int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.status = status
}

func (in *inbox) attempts() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.tries
}

// edus are the EDUs that were taken, transaction by transaction.
func (in *inbox) edus() (all [][]gjson.Result) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, body := range in.got {
		all = append(all, gjson.Get(body, "edus").Array())
	}
	return all
}

func (in *inbox) count(typ string) (n int) {
	for _, list := range in.edus() {
		for _, e := range list {
			if e.Get("edu_type").Str == typ {
				n++
			}
		}
	}
	return n
}

type world struct {
	t     *testing.T
	db    *storage.DB
	pool  *x509.CertPool
	rooms *roomserver.Server
	src   *source
}

func each(t *testing.T, fn func(t *testing.T, w *world)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, Schema}, func(t *testing.T, db *storage.DB) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		rooms, err := roomserver.New(db, roomserver.Options{ServerName: "us.org", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: logrus.NewEntry(log)})
		if err != nil {
			t.Fatal(err)
		}
		fn(t, &world{t: t, db: db, pool: x509.NewCertPool(), rooms: rooms, src: &source{owed: map[string][]owedEDU{}}})
	})
}

// run makes and starts a queue; it ends with the returned function.
func (w *world) run() (q *Queue, stop func()) {
	w.t.Helper()
	q = w.queue()
	return q, w.start(q)
}

// queue makes a queue.
func (w *world) queue() *Queue {
	w.t.Helper()
	c, err := client.New(client.Config{ServerName: "us.org", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), CA: w.pool, AllowPrivate: true})
	if err != nil {
		w.t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	return New(Config{Name: "us.org", DB: w.db, Rooms: w.rooms, Client: c, Source: w.src, Log: logrus.NewEntry(log), Backoff: 20 * time.Millisecond})
}

// start starts a queue; it ends with the returned function.
func (w *world) start(q *Queue) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		q.Run(ctx)
		close(ended)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-ended
			q.cfg.Client.Close()
		})
	}
	w.t.Cleanup(stop)
	return stop
}

// owe writes EDUs of the source at a new position.
func (w *world) owe(server string, n int) {
	w.t.Helper()
	var written int64
	err := w.db.Write(context.Background(), func(tx *storage.Tx) error {
		pos, err := tx.Position()
		if err != nil {
			return err
		}
		if written == 0 { // the function may run again
			w.src.put(server, pos, n)
		}
		written = pos
		tx.Notice(storage.Notice{Kind: storage.Outgoing})
		_, err = tx.Exec(`INSERT INTO federation_cursor (id, pos) VALUES (2, 0) ON CONFLICT (id) DO UPDATE SET pos = 0`)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestWhatMustArriveArrives(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		in := newInbox(t, w.pool)
		_, stop := w.run()
		w.owe(in.name, 1) // the first entry of the log at all
		until(t, "the first EDU", func() bool { return in.count("test.durable") == 1 && w.src.left(in.name) == 0 })

		// More than a transaction holds, all at one position.
		w.owe(in.name, 250)
		until(t, "many EDUs", func() bool { return in.count("test.durable") == 251 && w.src.left(in.name) == 0 })
		for _, list := range in.edus() {
			if len(list) > maxEDUs {
				t.Errorf("a transaction has %d EDUs", len(list))
			}
		}

		// What was not taken is there after a restart, and is not taken twice.
		in.answer(500)
		w.owe(in.name, 3)
		before := in.attempts()
		until(t, "an attempt", func() bool { return in.attempts() > before })
		stop()
		in.answer(200)
		w.run()
		until(t, "the rest", func() bool { return in.count("test.durable") == 254 && w.src.left(in.name) == 0 })
	})
}

// TestGivenUp: when nothing is left of what a server did not take, it is left alone and forgotten.
func TestGivenUp(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		in := newInbox(t, w.pool)
		in.answer(500)
		q, stop := w.run()
		w.owe(in.name, 3)
		until(t, "some attempts", func() bool { return in.attempts() > 2 })
		rows := func() (n int64) {
			if _, err := w.db.Get(t.Context(), `SELECT count(*) FROM federation_unreached`, nil, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if rows() != 1 {
			t.Fatal("the transaction is not kept")
		}
		stop()
		q, stop = w.run()
		before := in.attempts()
		until(t, "attempts after a restart", func() bool { return in.attempts() > before })
		if err := w.src.Delivered(t.Context(), in.name, w.db.Head()); err != nil { // that is, gives up
			t.Fatal(err)
		}
		until(t, "nothing is kept", func() bool { return rows() == 0 })
		until(t, "the server is forgotten", func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			return len(q.servers) == 0
		})
		stop()
		if n := in.count("test.durable"); n != 0 {
			t.Errorf("%d EDUs were taken", n)
		}
	})
}

func TestVolatile(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		in := newInbox(t, w.pool)
		q, _ := w.run()
		send := func(key, content string, fleeting bool) {
			q.Volatile([]string{in.name, "us.org"}, key, EDU{"test.volatile", json.RawMessage(content)}, fleeting)
		}
		until(t, "the queue to run", func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			return q.ctx != nil
		})
		send("a", `{"n":0}`, true)
		until(t, "an EDU", func() bool { return in.count("test.volatile") == 1 })

		// While a server does not answer, what is fleeting is dropped, and of the rest the last of each key is kept.
		in.answer(503)
		send("typing", `{"n":1}`, true)
		before := in.attempts()
		until(t, "a failure", func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			d := q.servers[in.name]
			return d != nil && d.failures > 0 && !d.running
		})
		for i := range 10 {
			send("typing", fmt.Sprintf(`{"n":%d}`, i), true)
			send("receipt", fmt.Sprintf(`{"receipt":%d}`, i), false)
		}
		for i := range 3 * maxVolatile {
			send(fmt.Sprint("receipt", i), fmt.Sprintf(`{"other":%d}`, i), false)
		}
		until(t, "another attempt", func() bool { return in.attempts() > before+1 })
		in.answer(200)
		q.Reached(in.name)
		until(t, "what was kept", func() bool { return in.count("test.volatile") > 1 })
		q.mu.Lock()
		if d := q.servers["us.org"]; d != nil {
			t.Error("we send to ourselves")
		}
		q.mu.Unlock()
		n := 0
		for _, list := range in.edus() {
			for _, e := range list {
				if e.Get("content.n").Int() > 0 {
					t.Errorf("a fleeting EDU was kept: %s", e.Raw)
				}
				n++
			}
		}
		if n > 1+2*maxVolatile { // as many may be under way as wait
			t.Errorf("%d EDUs were kept", n)
		}
	})
}

// What was delivered while it was being written down does not stay written down.
func TestOwedAndDeliveredAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		q := New(Config{Name: "us.org", DB: w.db, Rooms: w.rooms, Log: logrus.NewEntry(logrus.New())})
		ctx := context.Background()
		d := &destination{name: "a.org", failures: 1}
		for pos := range int64(50) {
			q.mu.Lock()
			d.owe(ref{1, pos + 1})
			q.mu.Unlock()
			var group sync.WaitGroup
			group.Go(func() {
				if err := q.saveOwed(ctx, d); err != nil {
					t.Error(err)
				}
			})
			q.succeeded(ctx, d, &transaction{covers: covers{Rooms: map[int64]int64{1: pos + 1}}})
			group.Wait()
			var n int64
			if _, err := w.db.Get(ctx, `SELECT count(*) FROM federation_owed`, nil, &n); err != nil || n != 0 {
				t.Fatalf("%d rows are left (%v)", n, err)
			}
		}
	})
}

// What servers are owed of a room goes with the room.
func TestRoomRemoved(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		err := w.db.Write(ctx, func(tx *storage.Tx) error {
			for i := range 5 {
				if err := putOwed(tx, fmt.Sprint("server", i), map[int64]int64{1: 10, 2: 20}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []int64{3, 2, 0} {
			err := w.db.Write(ctx, func(tx *storage.Tx) error {
				n, err := RoomRemoved(tx, 1, "!r:us.org", 3)
				if n != want {
					t.Errorf("%d rows are deleted, want %d", n, want)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		var left int64
		if _, err := w.db.Get(ctx, `SELECT count(*) FROM federation_owed WHERE room = 2`, nil, &left); err != nil || left != 5 {
			t.Errorf("%d rows of the other room are left (%v)", left, err)
		}
	})
}

func TestWaiting(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		q := New(Config{Name: "us.org", DB: w.db, Rooms: w.rooms, Log: logrus.NewEntry(logrus.New())})
		q.pos = 10
		q.servers["some.org"] = &destination{pending: []ref{{1, 8}, {2, 9}}}
		q.servers["many.org"] = &destination{lossy: true}
		q.servers["kept.org"] = &destination{kept: true}
		for _, test := range []struct {
			server    string
			room, pos int64
			want      bool
		}{
			{"none.org", 1, 8, false},
			{"none.org", 1, 11, true}, // it is not looked at yet
			{"some.org", 1, 7, false},
			{"some.org", 1, 8, true},
			{"some.org", 1, 9, false},
			{"some.org", 2, 9, true},
			{"many.org", 1, 8, true},
			{"kept.org", 1, 8, true},
		} {
			if got := q.Waiting(test.server, test.room, test.pos); got != test.want {
				t.Errorf("%s, room %d at %d: %t", test.server, test.room, test.pos, got)
			}
		}
		q.notice([]storage.Notice{
			{Pos: 11, Kind: storage.Event, Room: 1},
			{Pos: 12, Kind: storage.Event, Room: 2, Private: true},
		}, 12)
		for room, want := range map[int64]bool{1: true, 2: false} {
			if got := q.Waiting("none.org", room, 10+room); got != want {
				t.Errorf("room %d waits: %t", room, got)
			}
		}
		q.takeNews()
		if !q.Waiting("none.org", 1, 11) {
			t.Error("an event is not waiting while it is put on the lists")
		}
	})
}

// After a start without news, what no other server is sent does not wait for the next look at the news.
func TestWaitingAfterAStart(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		q := New(Config{Name: "us.org", DB: w.db, Rooms: w.rooms, Log: logrus.NewEntry(logrus.New())})
		if err := q.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		rooms, all, _, head := q.takeNews()
		if err := q.dispatch(t.Context(), rooms, all, head); err != nil {
			t.Fatal(err)
		}
		q.notice([]storage.Notice{{Pos: head + 1, Kind: storage.Event, Room: 1, Private: true}}, head+1)
		if q.Waiting("none.org", 1, head+1) {
			t.Error("an event that no other server is sent waits to be sent")
		}
	})
}

func TestBackoff(t *testing.T) {
	q := &Queue{cfg: Config{Backoff: 2 * time.Second}}
	for failures, want := range map[int]time.Duration{1: 2 * time.Second, 2: 4 * time.Second, 5: 32 * time.Second, 12: time.Hour, 1000: time.Hour} {
		for range 20 {
			if got := q.backoff(failures); got < want*3/4 || got > want*5/4+1 {
				t.Errorf("after %d failures: %v, want about %v", failures, got, want)
			}
		}
	}
	if got := retryAfter(fmt.Errorf("send: %w", &client.Error{Status: 429, RetryAfter: time.Minute})); got != time.Minute {
		t.Errorf("Retry-After: %v", got)
	}
	if got := retryAfter(errors.New("x")); got != 0 {
		t.Errorf("without Retry-After: %v", got)
	}
}

const alice = "@alice:us.org"

// room makes a public room of alice's.
func (w *world) room() (id string) {
	w.t.Helper()
	version, _ := pdu.Lookup("11")
	id, err := w.rooms.CreateRoom(context.Background(), roomserver.NewRoom{Creator: alice, Version: version, Preset: roomserver.PublicChat})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// say sends a message of alice's.
func (w *world) say(roomID, text string) {
	w.t.Helper()
	_, err := w.rooms.Send(context.Background(), roomID, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":%q}`, text)})
	if err != nil {
		w.t.Fatal(err)
	}
}

// join receives the join of another server's user.
func (w *world) join(roomID, user string) {
	w.t.Helper()
	ctx := context.Background()
	room, err := w.rooms.Room(ctx, roomID)
	if err != nil {
		w.t.Fatal(err)
	}
	head := room.Head()
	proto := &pdu.Proto{RoomID: roomID, Sender: user, Type: pdu.TypeMember, StateKey: &user, Content: json.RawMessage(`{"membership":"join"}`), OriginServerTS: time.Now().UnixMilli()}
	for _, e := range head.Extremities {
		proto.PrevEvents, proto.Depth = append(proto.PrevEvents, e.Ref()), e.Depth+1
	}
	for _, k := range authrules.Required(room.Version, authrules.Header{Type: proto.Type, StateKey: &user, Sender: user, Content: proto.Content}) {
		e, err := w.rooms.StateEvent(ctx, room, head.State, k.Type, k.StateKey)
		if err != nil {
			w.t.Fatal(err)
		}
		if e != nil {
			proto.AuthEvents = append(proto.AuthEvents, e.Ref())
		}
	}
	event, err := room.Version.Build(proto, pdu.ServerOf(user), "ed25519:r", ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := w.rooms.Take(ctx, roomID, []roomserver.Incoming{{Event: event}})
	if err != nil || out[0].Outcome != roomserver.Accepted {
		w.t.Fatalf("the join of %s: %+v, %v", user, out, err)
	}
}

// kick has alice kick a user.
func (w *world) kick(roomID, user string) {
	w.t.Helper()
	_, err := w.rooms.SetMembership(context.Background(), roomserver.MembershipChange{RoomID: roomID, Sender: alice, Target: user, Membership: roomserver.Leave})
	if err != nil {
		w.t.Fatal(err)
	}
}

// passed waits until the position that is written down is behind everything that there is.
func (w *world) passed() {
	w.t.Helper()
	head := w.db.Head()
	until(w.t, "the position to be written down", func() bool {
		var pos int64
		if _, err := w.db.Get(context.Background(), `SELECT pos FROM federation_cursor WHERE id = 1`, nil, &pos); err != nil {
			w.t.Fatal(err)
		}
		return pos >= head
	})
}

// events are the events that were taken: the bodies of messages, and the types of others.
func (in *inbox) events() (all []string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, body := range in.got {
		for _, e := range gjson.Get(body, "pdus").Array() {
			if text := e.Get("content.body"); text.Exists() {
				all = append(all, text.Str)
			} else {
				all = append(all, e.Get("type").Str)
			}
		}
	}
	return all
}

// What concerns no other server is sent to none, and is behind the queue all the same.
func TestRoomWithoutOthers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		q, _ := w.run()
		w.passed()
		id := w.room()
		w.say(id, "to nobody")
		w.passed()
		q.mu.Lock()
		defer q.mu.Unlock()
		if len(q.servers) != 0 {
			t.Errorf("something is to be sent to %d servers", len(q.servers))
		}
	})
}

// A server that has never run before sends what is said before its queue gets to run, too.
func TestSaidBeforeTheFirstRun(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		in := newInbox(t, w.pool)
		id := w.room()
		w.say(id, "of another time")
		w.join(id, "@bob:"+in.name)
		q := w.queue()
		w.say(id, "early")
		w.start(q)
		w.passed()
		w.say(id, "later")
		until(t, "the last message", func() bool { return slices.Contains(in.events(), "later") })
		if got, want := in.events(), []string{"early", "later"}; !slices.Equal(got, want) {
			t.Errorf("%v were sent, want %v", got, want)
		}
	})
}

// The last member of a server is sent the message before their kick and the kick, also if both were written while nobody sent.
func TestLastMemberHearsOfTheKick(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		in := newInbox(t, w.pool)
		bob := "@bob:" + in.name
		id := w.room()
		var want []string
		_, stop := w.run()
		w.passed()
		for _, running := range []bool{true, false} {
			if !running {
				stop()
			}
			w.say(id, "before they are there")
			w.join(id, bob)
			w.say(id, "to them")
			w.kick(id, bob)
			w.say(id, "behind their back")
			if !running {
				w.run()
			}
			want = append(want, "to them", pdu.TypeMember)
			until(t, "the kick", func() bool { return len(in.events()) >= len(want) })
			w.passed()
			if got := in.events(); !slices.Equal(got, want) {
				t.Errorf("%v were sent, want %v", got, want)
			}
		}
	})
}
