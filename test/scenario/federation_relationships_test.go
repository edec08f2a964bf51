package scenario

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/test/harness"
)

const remoteRelationships = "/_matrix/federation/unstable/event_relationships"

// What a server has not seen of a thread, it gets from the others of the room, and keeps while they are away. Redactions
// reach it there.
func TestWalkOverFederation(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		ids, names := grow(alice, room)
		joinThrough(t, bob, room, servers[0])
		bob.Refused(404, "M_NOT_FOUND", "POST", eventRelationships, harness.J{"event_id": "$unknown", "room_id": room})
		_, got := walked(bob, names, ids["a11"], harness.J{"room_id": room, "direction": "up"})
		if want := strings.Fields("a11 a1 a root"); !slices.Equal(got, want) {
			t.Errorf("up: %v, want %v", got, want)
		}
		all := func(what, want string) gjson.Result {
			t.Helper()
			r, got := walked(bob, names, ids["root"], harness.J{"recent_first": false, "room_id": room})
			if !slices.Equal(got, strings.Fields(want)) || r.Get("limited").Bool() {
				t.Errorf("%s: %v, want %s", what, got, want)
			}
			return r.Get("events")
		}
		events := all("down", "root a b c a1 a2 a11")
		wantChildren(t, find(events, ids["root"]), `{"m.reference":3}`, ids["a"], ids["b"], ids["c"])
		wantChildren(t, find(events, ids["a"]), `{"m.reference":2}`, ids["a1"], ids["a2"])
		sees(t, bob, room, alice.Redact(room, ids["b"]))
		all("after a redaction", "root a c a1 a2 a11")
		r, _ := walked(bob, names, ids["b"], harness.J{"room_id": room})
		if e := r.Get("events.0"); e.Get("content.body").Exists() || !e.Get("unsigned.redacted_because").Exists() {
			t.Errorf("the redacted event: %s", e.Raw)
		}
		own := answerTo(bob, room, ids["c"], "of bob")
		names[own] = "c1"
		servers[0].Stop()
		all("without the other server", "root a c a1 a2 c1 a11")
		servers[0].Resume()
	})
}

// A server gives others what they may see, with what they need to check it.
func TestRelationshipsForServers(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		ask := func(request harness.J) *harness.Answer {
			t.Helper()
			return w.peer.Do(w.server, "POST", remoteRelationships, request)
		}
		refused := func(status int, request harness.J) {
			t.Helper()
			if a := ask(request); a.Status != status {
				t.Errorf("%v: %v, want %d", request, a, status)
			}
		}
		ids, names := grow(alice, w.room)
		a := ask(harness.J{"event_id": ids["root"], "limit": 4})
		if a.Status != 200 || !a.JSON.Get("limited").Bool() {
			t.Fatalf("the thread: %v", a)
		}
		next := ask(harness.J{"batch": a.JSON.Get("next_batch").Str})
		var got []string
		for _, answer := range []*harness.Answer{a, next} {
			for _, raw := range answer.JSON.Get("events").Array() {
				p, err := pdu.Parse(w.v, []byte(raw.Raw))
				if err != nil || p.Redacted {
					t.Fatalf("event %s: %v", raw.Raw, err)
				}
				got = append(got, names[p.ID])
			}
		}
		if want := strings.Fields("root c b a a2 a1 a11"); !slices.Equal(got, want) {
			t.Errorf("pages: %v, want %v", got, want)
		}
		wantChildren(t, a.JSON.Get("events.0"), `{"m.reference":3}`, ids["a"], ids["b"], ids["c"])
		types := map[string]bool{}
		for _, raw := range a.JSON.Get("auth_chain").Array() {
			types[raw.Get("type").Str] = true
		}
		if !types["m.room.create"] || !types["m.room.power_levels"] || !types["m.room.member"] {
			t.Errorf("the auth chain has %v", types)
		}
		refused(404, harness.J{"event_id": "$unknown"})
		refused(404, harness.J{"event_id": "$unknown", "room_id": w.room})
		refused(400, harness.J{"event_id": ids["root"], "direction": "sideways"})

		// Not of a room that the server is not in, and not of what was before it came where only members see that.
		hidden := alice.Create(harness.J{"preset": "public_chat", "initial_state": []harness.J{
			{"type": "m.room.history_visibility", "state_key": "", "content": harness.J{"history_visibility": "joined"}},
		}})
		before := alice.Text(hidden, "before")
		refused(403, harness.J{"event_id": before})
		refused(403, harness.J{"event_id": before, "room_id": hidden})
		enter(t, w.peer, w.server, hidden)
		refused(404, harness.J{"event_id": before})
		after := answerTo(alice, hidden, before, "after")
		if a := ask(harness.J{"event_id": after, "direction": "up", "include_parent": true}); a.Status != 200 || len(a.JSON.Get("events").Array()) != 1 {
			t.Errorf("up to what the server may not see: %v", a)
		}
		alice.State(w.room, "m.room.server_acl", "", harness.J{"allow": []string{"*"}, "deny": []string{strings.Split(w.peer.Name, ":")[0]}, "allow_ip_literals": true})
		refused(403, harness.J{"event_id": ids["root"]})
	})
}

// A server that tells of a thread what is not so is not believed, and does not keep this one busy.
func TestHostileThreads(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		message := func(target, body string, change ...func(*pdu.Proto)) *pdu.Event {
			return w.build("m.room.message", nil, answering(target, body), change...)
		}
		root := w.build("m.room.message", nil, harness.J{"msgtype": "m.text", "body": "root"})
		first := message(root.ID, "first")
		var list []json.RawMessage
		add := func(p *pdu.Event, claim int) {
			list = append(list, fmt.Appendf(nil, `%s,"unsigned":{"children":{"m.reference":%d},"children_hash":"x"}}`, p.JSON()[:len(p.JSON())-1], claim))
		}
		add(first, 1<<40)
		add(root, 1000)
		other := alice.Create(harness.J{})
		elsewhere := message(first.ID, "elsewhere", func(p *pdu.Proto) { p.RoomID = other })
		stranger := message(first.ID, "stranger", func(p *pdu.Proto) { p.Sender = "@stranger:" + w.peer.Name })
		forged := message(first.ID, "forged")
		list = append(list, json.RawMessage(strings.Replace(string(forged.JSON()), `"origin_server_ts":`, `"origin_server_ts":1`, 1)))
		add(elsewhere, 1)
		add(stranger, 1)
		list = append(list, json.RawMessage("7"), json.RawMessage(`"x"`), json.RawMessage("{}"), list[0])
		for i := range 1000 {
			add(message(first.ID, fmt.Sprint(i)), 0)
		}
		var asked atomic.Int64
		w.peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == remoteRelationships:
				asked.Add(1)
				_ = json.NewEncoder(rw).Encode(harness.J{"events": list, "auth_chain": list, "limited": "maybe", "next_batch": 7})
			case strings.Contains(r.URL.Path, "/v1/send/"):
				_, _ = rw.Write([]byte(`{"pdus":{}}`))
			default:
				rw.WriteHeader(http.StatusNotFound)
			}
		}))
		last := message(first.ID, "last")
		w.send(last)
		w.until(alice, last)

		if _, got := walked(alice, nil, last.ID, harness.J{"direction": "up"}); !slices.Equal(got, []string{last.ID, first.ID, root.ID}) {
			t.Errorf("up: %v", got)
		}
		if n := asked.Load(); n > 5 {
			t.Errorf("the peer was asked %d times for one request", n)
		}
		r, got := walked(alice, nil, first.ID, harness.J{"max_breadth": -1, "limit": 500})
		if len(got) < 50 || len(got) > 102 || r.Get("limited").Bool() {
			t.Errorf("of 1,000 answers: %d", len(got))
		}
		for what, p := range map[string]*pdu.Event{"of another room": elsewhere, "of a stranger": stranger, "forged": forged} {
			if slices.Contains(got, p.ID) {
				t.Errorf("an event %s is in the thread", what)
			}
		}
		before := asked.Load()
		for range 3 {
			walked(alice, nil, first.ID, nil)
			walked(alice, nil, root.ID, nil)
			alice.Refused(404, "M_NOT_FOUND", "POST", eventRelationships, harness.J{"event_id": stranger.ID, "room_id": w.room})
		}
		if n := asked.Load() - before; n > 3 {
			t.Errorf("the peer was asked %d times more for what it does not have", n)
		}
	})
}

// Whether a user may see an event that only another server has, goes by what is certain of the time before it.
func TestThreadsOfOthersAreForThoseWhoWereThere(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world, alice *harness.Client) {
		bob := w.server.Register(t, "bob")
		early := w.build("m.room.message", nil, harness.J{"msgtype": "m.text", "body": "early"})
		w.peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != remoteRelationships {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			_ = json.NewEncoder(rw).Encode(harness.J{"events": []json.RawMessage{early.JSON()}, "auth_chain": []int{}, "limited": false})
		}))
		alice.State(w.room, "m.room.history_visibility", "", harness.J{"history_visibility": "joined"})
		bob.Join(w.room)
		answer := w.build("m.room.message", nil, answering(early.ID, "late"))
		w.send(answer)
		w.until(alice, answer)
		late := answer.ID
		up := func(c *harness.Client, want ...string) gjson.Result {
			t.Helper()
			r, got := walked(c, nil, late, harness.J{"direction": "up"})
			if !slices.Equal(got, want) {
				t.Errorf("%s sees %v, want %v", c.UserID, got, want)
			}
			return r.Get("events")
		}
		up(alice, late, early.ID)
		up(bob, late)
		bob.Refused(404, "M_NOT_FOUND", "POST", eventRelationships, harness.J{"event_id": early.ID})
		alice.State(w.room, "m.room.history_visibility", "", harness.J{"history_visibility": "shared"})
		up(bob, late)

		redaction := w.build("m.room.redaction", nil, harness.J{"redacts": early.ID}, func(p *pdu.Proto) { p.Redacts = early.ID })
		w.send(redaction)
		w.until(alice, redaction)
		if e := up(alice, late, early.ID).Get("1"); e.Get("content.body").Exists() || e.Get("unsigned.redacted_by").Str != redaction.ID {
			t.Errorf("the redacted event: %s", e.Raw)
		}
	})
}
