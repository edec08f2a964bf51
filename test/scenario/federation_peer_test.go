package scenario

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// world is a room of a server in which a peer takes part whose events the test makes.
type world struct {
	t      *testing.T
	peer   *harness.Peer
	server *harness.Server
	room   string
	v      *pdu.Version
	user   string

	mu     sync.Mutex
	events map[string]*pdu.Event               // by id
	state  map[[2]string]*pdu.Event            // as the peer sees it
	before map[string]map[[2]string]*pdu.Event // state before the peer's own events
	tip    []*pdu.Event
	asked  []string // paths that were asked of the peer
	ts     int64
}

// enter makes a peer's user join a public room of the server.
func enter(t *testing.T, peer *harness.Peer, server *harness.Server, room string) *world {
	t.Helper()
	w := &world{
		t: t, peer: peer, server: server, room: room, user: "@peer:" + peer.Name, ts: time.Now().UnixMilli(),
		events: map[string]*pdu.Event{}, state: map[[2]string]*pdu.Event{}, before: map[string]map[[2]string]*pdu.Event{},
	}
	q := url.Values{}
	for _, v := range pdu.Versions() {
		q.Add("ver", v.ID)
	}
	made := peer.Do(server, "GET", fed("/v1/make_join/%s/%s?", room, w.user)+q.Encode(), nil)
	if made.Status != 200 {
		t.Fatalf("make_join: %v", made)
	}
	w.v, _ = pdu.Lookup(made.JSON.Get("room_version").Str)
	proto, err := pdu.ParseTemplate(w.v, []byte(made.JSON.Get("event").Raw))
	if err != nil {
		t.Fatal(err)
	}
	proto.OriginServerTS = w.now()
	join, err := w.v.Build(proto, peer.Name, peer.KeyID, peer.Key)
	if err != nil {
		t.Fatal(err)
	}
	sent := peer.Do(server, "PUT", fed("/v2/send_join/%s/%s", room, join.ID), json.RawMessage(join.JSON()))
	if sent.Status != 200 {
		t.Fatalf("send_join: %v", sent)
	}
	for _, name := range []string{"auth_chain", "state"} {
		for _, raw := range sent.JSON.Get(name).Array() {
			p, err := pdu.Parse(w.v, []byte(raw.Raw))
			if err != nil {
				t.Fatal(err)
			}
			w.events[p.ID] = p
			if name == "state" {
				w.state[[2]string{p.Type, *p.StateKey}] = p
			}
		}
	}
	w.add(join)
	return w
}

func fed(format string, segments ...string) string {
	escaped := make([]any, len(segments))
	for i, s := range segments {
		escaped[i] = url.PathEscape(s)
	}
	return "/_matrix/federation" + fmt.Sprintf(format, escaped...)
}

func (w *world) now() int64 { w.ts++; return w.ts }

// add makes an event the tip of the peer's copy of the room.
func (w *world) add(p *pdu.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events[p.ID] = p
	before := map[[2]string]*pdu.Event{}
	for k, e := range w.state {
		before[k] = e
	}
	w.before[p.ID] = before
	if p.IsState() {
		w.state[[2]string{p.Type, *p.StateKey}] = p
	}
	w.tip = []*pdu.Event{p}
}

// build makes an event of the peer's user on the tip. A key makes it state.
func (w *world) build(typ string, key *string, content any, change ...func(*pdu.Proto)) *pdu.Event {
	w.t.Helper()
	raw, err := json.Marshal(content)
	if err != nil {
		w.t.Fatal(err)
	}
	proto := &pdu.Proto{RoomID: w.room, Sender: w.user, Type: typ, StateKey: key, Content: raw, OriginServerTS: w.now()}
	for _, p := range w.tip {
		proto.PrevEvents = append(proto.PrevEvents, p.Ref())
		proto.Depth = max(proto.Depth, p.Depth+1)
	}
	for _, k := range authrules.Required(w.v, authrules.Header{Type: typ, StateKey: key, Sender: w.user, Content: raw}) {
		if e := w.state[[2]string{k.Type, k.StateKey}]; e != nil {
			proto.AuthEvents = append(proto.AuthEvents, e.Ref())
		}
	}
	for _, fn := range change {
		fn(proto)
	}
	p, err := w.v.Build(proto, w.peer.Name, w.peer.KeyID, w.peer.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// say makes a message and adds it to the peer's copy.
func (w *world) say(text string) *pdu.Event {
	w.t.Helper()
	p := w.build("m.room.message", nil, harness.J{"msgtype": "m.text", "body": text})
	w.add(p)
	return p
}

// send sends a transaction and returns the results.
func (w *world) send(list ...*pdu.Event) gjson.Result {
	w.t.Helper()
	var raw []json.RawMessage
	for _, p := range list {
		raw = append(raw, p.JSON())
	}
	return w.sendRaw(harness.Txn(), raw)
}

func (w *world) sendRaw(txn string, list []json.RawMessage) gjson.Result {
	w.t.Helper()
	a := w.peer.Do(w.server, "PUT", fed("/v1/send/%s", txn), harness.J{"origin": w.peer.Name, "origin_server_ts": 1, "pdus": list})
	if a.Status != 200 {
		w.t.Fatalf("send: %v", a)
	}
	return a.JSON.Get("pdus")
}

// serve answers what the server asks of the peer; hide are events that it does not give away.
func (w *world) serve(missing []*pdu.Event, hide ...string) {
	w.peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		path := strings.TrimPrefix(r.URL.Path, "/_matrix/federation/v1/")
		what, rest, _ := strings.Cut(path, "/")
		w.asked = append(w.asked, what)
		var answer any
		switch what {
		case "send":
			answer = harness.J{"pdus": harness.J{}}
		case "get_missing_events":
			list := []json.RawMessage{}
			for _, p := range missing {
				list = append(list, p.JSON())
			}
			answer = harness.J{"events": list}
		case "state_ids":
			before := w.before[r.URL.Query().Get("event_id")]
			ids := []string{}
			for _, e := range before {
				ids = append(ids, e.ID)
			}
			answer = harness.J{"pdu_ids": ids, "auth_chain_ids": w.chain(ids)}
		case "event":
			id, _ := url.PathUnescape(rest)
			if p := w.events[id]; p != nil && !slices.Contains(hide, id) {
				answer = harness.J{"origin": w.peer.Name, "origin_server_ts": 1, "pdus": []json.RawMessage{p.JSON()}}
			}
		}
		if answer == nil {
			rw.WriteHeader(http.StatusNotFound)
			answer = harness.J{"errcode": "M_NOT_FOUND", "error": "The peer does not have it"}
		}
		_ = json.NewEncoder(rw).Encode(answer) // a server that hangs up does so on purpose
	}))
}

// chain lists the auth chains of events.
func (w *world) chain(ids []string) []string {
	out := []string{}
	for next := ids; len(next) > 0; {
		e := w.events[next[0]]
		next = next[1:]
		if e == nil {
			continue
		}
		for _, id := range e.AuthEventIDs() {
			if !slices.Contains(out, id) {
				out, next = append(out, id), append(next, id)
			}
		}
	}
	return out
}

// eachWorld runs fn with a public room of a server, its creator, and a peer in it, on each kind of database.
func eachWorld(t *testing.T, fn func(t *testing.T, w *world, alice *harness.Client)) {
	t.Helper()
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := harness.Start(t, d, harness.Federating(t))
			alice := server.Register(t, "alice")
			room := alice.Create(harness.J{"preset": "public_chat"})
			w := enter(t, harness.NewPeer(t, nil), server, room)
			alice.Sync(nil)
			fn(t, w, alice)
		})
	}
}

// until waits for an event to appear in /sync, and returns the ids of all events that the room's timelines had.
func (w *world) until(c *harness.Client, last *pdu.Event) (ids []string) {
	w.t.Helper()
	c.Until("the event "+last.ID, func(r gjson.Result) bool {
		ids = append(ids, harness.IDs(harness.Room(r, "join", w.room).Get("timeline.events"))...)
		return slices.Contains(ids, last.ID)
	})
	return ids
}

func TestTransactions(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		w.serve(nil)
		one, two := w.say("one"), w.say("two")
		got := w.send(one, two)
		for _, p := range []*pdu.Event{one, two} {
			if r := got.Get(harness.Key(p.ID)); !r.IsObject() || r.Get("error").Exists() {
				t.Errorf("result of %s: %s", p.ID, got.Raw)
			}
		}
		if got, want := w.until(alice, two), []string{one.ID, two.ID}; !slices.Equal(got, want) {
			t.Errorf("timeline %v, want %v", got, want)
		}
		// The same transaction has the same answer and no effect, whatever is in it now.
		txn := harness.Txn()
		three := w.say("three")
		first := w.sendRaw(txn, []json.RawMessage{three.JSON()}).Raw
		w.until(alice, three)
		four := w.say("four")
		if again := w.sendRaw(txn, []json.RawMessage{four.JSON()}).Raw; again != first {
			t.Errorf("a repeated transaction is answered with %s, first it was %s", again, first)
		}
		// Children before their parents, and one event twice.
		five := w.say("five")
		w.send(five, four, four)
		if got, want := w.until(alice, five), []string{four.ID, five.ID}; !slices.Equal(got, want) {
			t.Errorf("timeline %v, want %v", got, want)
		}
		// An edit and a redaction.
		edit := w.build("m.room.message", nil, harness.J{"body": "* 5", "m.new_content": harness.J{"body": "V"}, "m.relates_to": harness.J{"rel_type": "m.replace", "event_id": five.ID}})
		w.add(edit)
		redaction := w.build("m.room.redaction", nil, harness.J{"redacts": one.ID}, func(p *pdu.Proto) { p.Redacts = one.ID })
		w.add(redaction)
		w.send(edit, redaction)
		w.until(alice, redaction)
		e := alice.Must("GET", harness.Path("/rooms/%s/event/%s", w.room, five.ID), nil).JSON
		if e.Get("unsigned").Get(harness.Key("m.relations")).Get(harness.Key("m.replace")).Get("event_id").Str != edit.ID {
			t.Errorf("the edited event is %s", e.Raw)
		}
		if e := alice.Must("GET", harness.Path("/rooms/%s/event/%s", w.room, one.ID), nil).JSON; e.Get("content.body").Exists() {
			t.Errorf("the redacted event is %s", e.Raw)
		}
	})
}

func TestTransactionLimits(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		var many []json.RawMessage
		for range 51 {
			many = append(many, w.build("m.room.message", nil, harness.J{"body": "x"}).JSON())
		}
		if a := w.peer.Do(w.server, "PUT", fed("/v1/send/%s", "limit"), harness.J{"origin": w.peer.Name, "pdus": many}); a.Status != 400 {
			t.Errorf("51 PDUs: %v", a)
		}
		edus := make([]harness.J, 101)
		for i := range edus {
			edus[i] = harness.J{"edu_type": "m.none", "content": harness.J{}}
		}
		if a := w.peer.Do(w.server, "PUT", fed("/v1/send/%s", "limit2"), harness.J{"origin": w.peer.Name, "pdus": []int{}, "edus": edus}); a.Status != 400 {
			t.Errorf("101 EDUs: %v", a)
		}
		if a := w.peer.Do(w.server, "PUT", fed("/v1/send/%s", "limit3"), harness.J{"origin": "other.example", "pdus": []int{}}); a.Status != 403 {
			t.Errorf("another server's transaction: %v", a)
		}
		big := harness.J{"origin": w.peer.Name, "pdus": []harness.J{{"room_id": w.room, "content": harness.J{"x": strings.Repeat("x", 11<<20)}}}}
		if a := w.peer.Do(w.server, "PUT", fed("/v1/send/%s", "limit4"), big); a.Status != 413 {
			t.Errorf("11 MiB: %d", a.Status)
		}
		last := w.say("still there")
		w.send(last)
		w.until(alice, last)
	})
}

// What is wrong in a transaction is dropped, and what is right next to it is not.
func TestHostileEvents(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		w.serve(nil)
		text := harness.J{"msgtype": "m.text", "body": "bad"}
		member := func(p *pdu.Event, name string, value any) json.RawMessage {
			var m map[string]any
			if err := json.Unmarshal(p.JSON(), &m); err != nil {
				t.Fatal(err)
			}
			m[name] = value
			raw, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		good := w.build("m.room.message", nil, text)
		forged := w.build("m.room.message", nil, text, func(p *pdu.Proto) { p.Sender = alice.UserID })
		stranger := w.build("m.room.message", nil, text, func(p *pdu.Proto) { p.Sender = "@stranger:" + w.peer.Name })
		power := w.build("m.room.power_levels", new(string), harness.J{"users": harness.J{w.user: 100}})
		loop := w.build("m.room.message", nil, text, func(p *pdu.Proto) { p.PrevEvents = append(p.PrevEvents, pdu.Ref{ID: "$" + strings.Repeat("A", 43)}) })
		auth := w.build("m.room.message", nil, text, func(p *pdu.Proto) { p.AuthEvents = append(p.AuthEvents, pdu.Ref{ID: "$" + strings.Repeat("B", 43)}) })
		deep := strings.Repeat(`{"a":`, 900) + "1" + strings.Repeat("}", 900)
		bad := []json.RawMessage{
			member(good, "signatures", harness.J{w.peer.Name: harness.J{w.peer.KeyID: strings.Repeat("A", 86)}}),
			member(good, "signatures", harness.J{w.peer.Name: harness.J{"ed25519:unknown": strings.Repeat("A", 86)}}),
			member(good, "signatures", harness.J{}),
			member(good, "depth", -1),
			member(good, "room_id", "!other:"+w.server.Name),
			member(good, "prev_events", "none"),
			member(good, "origin_server_ts", 1.5),
			member(good, "content", harness.J{"body": strings.Repeat("x", 70_000)}),
			json.RawMessage(`{"room_id":` + string(mustJSON(t, w.room)) + `,"content":` + deep + `}`),
			json.RawMessage(`{}`), json.RawMessage(`"text"`), json.RawMessage(`[1,2]`), json.RawMessage(`null`),
			forged.JSON(), stranger.JSON(), power.JSON(), loop.JSON(), auth.JSON(),
		}
		last := w.say("good")
		w.sendRaw(harness.Txn(), append(bad, last.JSON()))
		if got, want := w.until(alice, last), []string{last.ID}; !slices.Equal(got, want) {
			t.Errorf("timeline %v, want %v", got, want)
		}
		// A wrong content hash leaves the event there, redacted.
		hash := w.build("m.room.message", nil, text)
		w.sendRaw(harness.Txn(), []json.RawMessage{member(hash, "content", harness.J{"body": "changed"})})
		w.until(alice, hash)
		if e := alice.Must("GET", harness.Path("/rooms/%s/event/%s", w.room, hash.ID), nil).JSON; len(e.Get("content").Map()) != 0 {
			t.Errorf("an event with a wrong content hash is %s", e.Raw)
		}
		for _, p := range []*pdu.Event{forged, stranger, power, loop, auth} {
			alice.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/rooms/%s/event/%s", w.room, p.ID), nil)
		}
		if got, want := members(alice, w.room), sorted(alice.UserID, w.user); !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
	})
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What a server missed while it was not told comes from get_missing_events, in order and without a look at states.
func TestMissingEventsAreAskedFor(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		var missed []*pdu.Event
		var want []string
		for i := range 5 {
			p := w.say(fmt.Sprintf("missed %d", i))
			missed, want = append(missed, p), append(want, p.ID)
		}
		last := w.say("last")
		w.serve(missed)
		w.send(last)
		if got, want := w.until(alice, last), append(want, last.ID); !slices.Equal(got, want) {
			t.Errorf("timeline %v, want %v", got, want)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if slices.Contains(w.asked, "state_ids") {
			t.Errorf("the server asked for %v", w.asked)
		}
	})
}

// A gap that is too large is left open: the event after it comes with the state that its server tells.
func TestStateAfterAGap(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		w.say("never seen")
		name := w.build("m.room.member", &w.user, harness.J{"membership": "join", "displayname": "New name"})
		w.add(name)
		w.say("never seen either")
		near := w.say("given as missing")
		last := w.say("last")
		w.serve([]*pdu.Event{near})
		w.send(last)
		got := w.until(alice, last)
		if want := []string{near.ID, last.ID}; !slices.Equal(got, want) {
			t.Errorf("timeline %v, want %v", got, want)
		}
		e := alice.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", w.room, w.user), nil).JSON
		if e.Get("displayname").Str != "New name" {
			t.Errorf("the member's state is %s", e.Raw)
		}
	})
}

// A state of which an event cannot be had is none: the event after the gap stays out, and others do not.
func TestStateThatCannotBeHad(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		tip := w.tip
		a := w.build("m.room.member", &w.user, harness.J{"membership": "join", "displayname": "A"})
		w.add(a)
		b := w.build("m.room.member", &w.user, harness.J{"membership": "join", "displayname": "B"})
		w.add(b)
		w.say("never seen")
		lost := w.say("lost")
		w.serve(nil, a.ID)
		w.send(lost)
		w.tip = tip
		w.mu.Lock()
		w.state[[2]string{"m.room.member", w.user}] = tip[0]
		w.mu.Unlock()
		last := w.say("on another branch")
		w.send(last)
		if got := w.until(alice, last); slices.Contains(got, lost.ID) {
			t.Errorf("timeline %v has an event whose state is unknown", got)
		}
		e := alice.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", w.room, w.user), nil).JSON
		if e.Get("displayname").Exists() {
			t.Errorf("the member's state is %s", e.Raw)
		}
	})
}

// The state after a parent holds the parent itself also where the server had it as an auth event before.
func TestStateAfterAnEventOutsideOfTheTimeline(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		tip := w.tip
		w.say("never seen")
		name := w.build("m.room.member", &w.user, harness.J{"membership": "join", "displayname": "New name"})
		w.serve(nil)
		w.mu.Lock()
		w.events[name.ID] = name
		w.mu.Unlock()
		// A message on the old branch makes it known, by its auth events.
		before := w.tip
		w.tip = tip
		cites := w.build("m.room.message", nil, harness.J{"body": "cites the name"}, func(p *pdu.Proto) {
			p.AuthEvents = slices.DeleteFunc(p.AuthEvents, func(r pdu.Ref) bool { return r.ID == tip[0].ID })
			p.AuthEvents = append(p.AuthEvents, name.Ref())
		})
		w.send(cites)
		w.until(alice, cites)
		w.tip = before
		w.add(name)
		near := w.say("given as missing")
		last := w.say("last")
		w.serve([]*pdu.Event{near})
		w.send(last)
		w.until(alice, last)
		e := alice.Must("GET", harness.Path("/rooms/%s/context/%s?limit=0", w.room, last.ID), nil).JSON
		if m := harness.Find(e.Get("state"), "m.room.member", w.user); m.Get("content.displayname").Str != "New name" {
			t.Errorf("the member at the last event is %s", m.Raw)
		}
	})
}

// What was answered is worked through after a stop in between.
func TestTransactionsOutliveAStop(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		w.serve(nil)
		var all []*pdu.Event
		for i := range 50 {
			all = append(all, w.say(fmt.Sprint(i)))
		}
		w.send(all...)
		w.server.Restart()
		w.until(alice, all[49])
	})
}

// Rooms with many ends are tidied up, and clients see nothing of it.
func TestManyForwardExtremities(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		w.serve(nil)
		var branches []*pdu.Event
		for i := range 30 {
			branches = append(branches, w.build("m.room.message", nil, harness.J{"body": fmt.Sprint(i)}))
		}
		w.send(branches...)
		w.until(alice, branches[29])
		last := alice.Text(w.room, "after it")
		got := w.peer.Do(w.server, "GET", fed("/v1/event/%s", last), nil)
		if n := len(got.JSON.Get("pdus.0.prev_events").Array()); n < 1 || n > 20 {
			t.Errorf("the next event has %d parents: %v", n, got)
		}
		for _, p := range alice.Messages(w.room, "", "b", 100, nil).Events {
			if p.Get("type").Str == "org.matrix.dummy_event" {
				t.Error("a client sees a dummy event")
			}
		}
	})
}
