package scenario

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// forge makes an event of room version 1, whose senders choose the ids: only there can events cite each other.
func forge(t *testing.T, peer *harness.Peer, id, room, sender, typ string, key *string, content any, prev, auth []string) *pdu.Event {
	t.Helper()
	cite := func(ids []string) []any {
		refs := []any{}
		for _, id := range ids {
			refs = append(refs, []any{id, harness.J{"sha256": strings.Repeat("A", 43)}})
		}
		return refs
	}
	event := harness.J{
		"event_id": id, "room_id": room, "sender": sender, "type": typ, "content": content, "depth": 100, "origin": peer.Name,
		"origin_server_ts": time.Now().UnixMilli(), "prev_events": cite(prev), "auth_events": cite(auth),
	}
	if key != nil {
		event["state_key"] = *key
	}
	bare, err := canonicaljson.Canonical(mustJSON(t, event), canonicaljson.Lax)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(bare)
	event["hashes"] = harness.J{"sha256": signing.EncodeBase64(sum[:])}
	v, _ := pdu.Lookup("1")
	event["signatures"] = harness.J{}
	p, err := pdu.Parse(v, mustJSON(t, event))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = p.Sign(peer.Name, peer.KeyID, peer.Key); err != nil || p.Redacted {
		t.Fatalf("forged event: %v, redacted: %v", err, p.Redacted)
	}
	return p
}

// liar answers everything that it is asked for with the same events, whatever they are, and counts how often.
func liar(asked *atomic.Int64, state []string, events ...*pdu.Event) http.HandlerFunc {
	raw := []json.RawMessage{}
	for _, p := range events {
		raw = append(raw, p.JSON())
	}
	return func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer := harness.J{
			"pdus": raw, "events": raw, "auth_chain": raw, "pdu_ids": state, "auth_chain_ids": state, "origin": "liar", "origin_server_ts": 1,
		}
		if id, one := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/event/"); one {
			answer["pdus"] = slices.DeleteFunc(slices.Clone(raw), func(e json.RawMessage) bool { return !strings.Contains(string(e), `"event_id":"`+id+`"`) })
		}
		_ = json.NewEncoder(rw).Encode(answer) // a server that hangs up does so on purpose
	}
}

// Events that cite each other are authorised by nobody, however they come: none is kept, and the server goes on.
func TestLoopsOfEvents(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := harness.Start(t, d, harness.Federating(t))
			alice := server.Register(t, "alice")
			room := alice.Create(harness.J{"preset": "public_chat", "room_version": "1"})
			w := enter(t, harness.NewPeer(t, nil), server, room)
			alice.Sync(nil)
			tip := []string{w.tip[0].ID}
			rules := []string{w.state[[2]string{"m.room.create", ""}].ID, w.state[[2]string{"m.room.power_levels", ""}].ID, tip[0]}
			state := slices.Clone(rules)
			for _, e := range w.state {
				state = append(state, e.ID)
			}
			name := func(s string) string { return "$" + s + ":" + w.peer.Name }
			member := func(id string, prev []string, auth ...string) *pdu.Event {
				content := harness.J{"membership": "join", "displayname": id}
				return forge(t, w.peer, name(id), room, w.user, "m.room.member", &w.user, content, prev, slices.Concat(rules, auth))
			}
			say := func(id string, prev []string, auth ...string) *pdu.Event {
				return forge(t, w.peer, name(id), room, w.user, "m.room.message", nil, harness.J{"body": id}, prev, slices.Concat(rules, auth))
			}
			a, b := member("a", tip, name("b")), member("b", tip, name("a"))
			self := member("self", tip, name("self"))
			ring := make([]*pdu.Event, 50)
			for i := range ring {
				ring[i] = member(fmt.Sprint("ring", i), tip, name(fmt.Sprint("ring", (i+1)%len(ring))))
			}
			cites, after := say("cites", tip, name("a")), say("after", []string{name("a")})
			parent, child := say("parent", []string{name("child")}), say("child", []string{name("parent")})
			forged := append(slices.Clone(ring), a, b, self, cites, after, parent, child)
			var asked atomic.Int64
			w.peer.Handle(liar(&asked, append(state, a.ID, b.ID, self.ID), forged...))

			w.send(a, b, self, cites)
			w.send(after)
			w.send(ring...)
			w.send(parent, child)
			last := w.say("last")
			w.send(last)
			seen := w.until(alice, last)
			for _, p := range slices.Concat(ring, []*pdu.Event{a, b, self, cites}) {
				if slices.Contains(seen, p.ID) {
					t.Errorf("the timeline has %s", p.ID)
				}
				alice.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/rooms/%s/event/%s", room, p.ID), nil)
				if got := w.peer.Do(server, "GET", fed("/v1/event/%s", p.ID), nil); got.Status != 404 {
					t.Errorf("other servers are given %s: %v", p.ID, got)
				}
			}
			if n := asked.Load(); n > 40 {
				t.Errorf("%d requests were made for what cannot be had", n)
			}
			alice.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/rooms/%s/event/%s", room, after.ID), nil)
			if e := alice.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", room, w.user), nil).JSON; e.Get("displayname").Exists() {
				t.Errorf("the member's state is %s", e.Raw)
			}
			if e := w.peer.Do(server, "GET", fed("/v1/state_ids/%s?", room)+url.Values{"event_id": {last.ID}}.Encode(), nil); e.Status != 200 || strings.Contains(string(e.Body), a.ID) || strings.Contains(string(e.Body), ring[0].ID) {
				t.Errorf("the state is %v", e)
			}
			alice.Text(room, "still there")
		})
	}
}

// A server that is asked to let a user in may put events into its answer that cite each other.
func TestLoopsInAnAnswerToAJoin(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := harness.Start(t, d, harness.Federating(t))
			alice := server.Register(t, "alice")
			peer := harness.NewPeer(t, nil)
			room, owner := "!loops:"+peer.Name, "@owner:"+peer.Name
			name := func(s string) string { return "$" + s + ":" + peer.Name }
			event := func(id, typ, key string, content any, auth ...string) *pdu.Event {
				return forge(t, peer, id, room, owner, typ, &key, content, auth[:min(1, len(auth))], auth)
			}
			create := event(name("create"), "m.room.create", "", harness.J{"creator": owner})
			join := event(name("join"), "m.room.member", owner, harness.J{"membership": "join"}, create.ID)
			public := event(name("rules"), "m.room.join_rules", "", harness.J{"join_rule": "public"}, create.ID, join.ID)
			x := event(name("x"), "m.room.topic", "", harness.J{"topic": "x"}, create.ID, join.ID, name("y"))
			y := event(name("y"), "m.room.name", "", harness.J{"name": "y"}, create.ID, join.ID, name("x"))
			self := event(name("self"), "m.room.avatar", "", harness.J{"url": "mxc://x/y"}, create.ID, join.ID, name("self"))
			state := []json.RawMessage{}
			for _, p := range []*pdu.Event{x, self, create, join, public, y} {
				state = append(state, p.JSON())
			}
			peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				var answer any = harness.J{}
				switch {
				case strings.Contains(r.URL.Path, "/make_join/"):
					ref := func(p *pdu.Event) []any { return []any{p.ID, harness.J{"sha256": p.Ref().SHA256}} }
					answer = harness.J{"room_version": "1", "event": harness.J{
						"type": "m.room.member", "state_key": alice.UserID, "sender": alice.UserID, "room_id": room, "depth": 5, "content": harness.J{"membership": "join"},
						"prev_events": []any{ref(public)}, "auth_events": []any{ref(create), ref(public)}, "origin_server_ts": 1, "origin": server.Name,
					}}
				case strings.Contains(r.URL.Path, "/send_join/"):
					answer = harness.J{"state": state, "auth_chain": state, "members_omitted": false, "servers_in_room": []string{peer.Name}}
				}
				_ = json.NewEncoder(rw).Encode(answer) // a server that hangs up does so on purpose
			}))
			alice.Must("POST", harness.Path("/join/%s?", room)+url.Values{"server_name": {peer.Name}}.Encode(), harness.J{})
			got := map[string]string{}
			for key, id := range stateSeenBy(alice, room) {
				if id != create.ID && id != join.ID && id != public.ID && !strings.HasSuffix(key, "|"+alice.UserID) {
					got[key] = id
				}
			}
			if len(got) > 0 {
				t.Errorf("the state has %v", got)
			}
			alice.Text(room, "still there")
		})
	}
}

// What a server asks of another may be answered with anything. That harms what the other one sent, and nobody else.
func TestHostileAnswers(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := harness.Start(t, d, harness.Federating(t))
			alice := server.Register(t, "alice")
			room := alice.Create(harness.J{"preset": "public_chat"})
			good := enter(t, harness.NewPeer(t, nil), server, room)
			bad := enter(t, harness.NewPeer(t, nil), server, room)
			alice.Sync(nil)
			good.serve(nil)
			deep := strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)
			events := `"pdus":%[1]s,"events":%[1]s,"auth_chain":%[1]s,"pdu_ids":%[1]s,"auth_chain_ids":%[1]s`
			var lost []*pdu.Event
			for what, answer := range map[string]func(http.ResponseWriter){
				"nothing":              func(http.ResponseWriter) {},
				"an array":             func(rw http.ResponseWriter) { fmt.Fprint(rw, `[]`) },
				"half an object":       func(rw http.ResponseWriter) { fmt.Fprint(rw, `{"events":[{`) },
				"depth":                func(rw http.ResponseWriter) { fmt.Fprint(rw, deep) },
				"deep events":          func(rw http.ResponseWriter) { fmt.Fprintf(rw, "{"+events+"}", "["+deep+"]") },
				"events of other kind": func(rw http.ResponseWriter) { fmt.Fprintf(rw, "{"+events+"}", `[null,1,"x",[],{},{"room_id":1}]`) },
				"many events": func(rw http.ResponseWriter) {
					fmt.Fprintf(rw, "{"+events+"}", "[{}"+strings.Repeat(",{}", 200_000)+"]")
				},
				"a redirect":         func(rw http.ResponseWriter) { rw.Header().Set("Location", "http://127.0.0.1:1/"); rw.WriteHeader(302) },
				"a long header":      func(rw http.ResponseWriter) { rw.Header().Set("X", strings.Repeat("x", 8<<20)) },
				"spaces without end": endless,
			} {
				bad.peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { answer(rw) }))
				bad.say("never seen")
				p := bad.say(what)
				lost = append(lost, p)
				bad.send(p)
				last := good.say("beside " + what)
				good.send(last)
				if got := good.until(alice, last); slices.Contains(got, p.ID) {
					t.Errorf("%s: the timeline has an event whose past is unknown", what)
				}
			}
			server.Restart()
			alice.Text(room, "still there")
			for _, p := range lost {
				alice.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/rooms/%s/event/%s", room, p.ID), nil)
			}
		})
	}
}

// endless writes spaces until the other side has had enough.
func endless(rw http.ResponseWriter) {
	chunk := strings.Repeat(" ", 1<<16)
	for {
		if _, err := io.WriteString(rw, chunk); err != nil {
			return
		}
	}
}
