package scenario

import (
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/test/harness"
)

// Another server is told of the time before its users came, with everything in it that they may not see redacted.
//
// spec: server-server API v1.19, "Backfilling and retrieving missing events"; client-server API v1.19, "Room history visibility"
func TestWhatOtherServersAreShownOfThePast(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		alice := servers[0].Register(t, "alice")
		room := alice.Create(harness.J{"preset": "public_chat", "initial_state": []harness.J{
			{"type": "m.room.history_visibility", "state_key": "", "content": harness.J{"history_visibility": "joined"}},
		}})
		secret := alice.Text(room, "between us")
		w := enter(t, harness.NewPeer(t, nil), servers[0], room)
		open := alice.Text(room, "for all")
		body := func(id string) (text string, found bool) {
			t.Helper()
			a := w.peer.Do(w.server, "GET", fed("/v1/backfill/%s?limit=20&v=", room)+open, nil)
			for _, raw := range a.JSON.Get("pdus").Array() {
				p, err := pdu.Parse(w.v, []byte(raw.Raw))
				if err != nil {
					t.Fatal(err)
				}
				if p.ID == id {
					return raw.Get("content.body").Str, true
				}
			}
			return "", false
		}
		if text, found := body(secret); text != "" || !found {
			t.Errorf("from before the join: %q, found: %v", text, found)
		}
		if text, found := body(open); text != "for all" || !found {
			t.Errorf("from after the join: %q, found: %v", text, found)
		}
		for id, want := range map[string]string{secret: "", open: "for all"} {
			a := w.peer.Do(w.server, "GET", fed("/v1/event/%s", id), nil)
			if got := a.JSON.Get("pdus.0.content.body").Str; a.Status != 200 || got != want {
				t.Errorf("asked for one event: %d %q, want %q", a.Status, got, want)
			}
		}
	})
}

// What a server sends that the room's access control list denies stays out: events, typing and receipts.
//
// spec: server-server API v1.19, "Server access control lists"
func TestDeniedByARoom(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		alice := servers[0].Register(t, "alice")
		peer := harness.NewPeer(t, nil)
		closed, open := alice.Create(harness.J{"preset": "public_chat"}), alice.Create(harness.J{"preset": "public_chat"})
		in, other := enter(t, peer, servers[0], closed), enter(t, peer, servers[0], open)
		alice.State(closed, "m.room.server_acl", "", harness.J{"allow": []string{"*"}, "deny": []string{"localhost"}})
		read := alice.Text(closed, "who has read this?")
		alice.Sync(nil)

		spam := in.build("m.room.message", nil, harness.J{"msgtype": "m.text", "body": "spam"})
		if r := in.send(spam).Get(harness.Key(spam.ID)); r.Get("error").Str == "" {
			t.Errorf("the result of an event: %s", r.Raw)
		}
		typing := func(room string) harness.J {
			return harness.J{"edu_type": "m.typing", "content": harness.J{"room_id": room, "user_id": in.user, "typing": true}}
		}
		receipt := harness.J{"edu_type": "m.receipt", "content": harness.J{closed: harness.J{"m.read": harness.J{
			in.user: harness.J{"event_ids": []string{read}, "data": harness.J{"ts": time.Now().UnixMilli()}},
		}}}}
		a := peer.Do(servers[0], "PUT", fed("/v1/send/%s", harness.Txn()), harness.J{"origin": peer.Name, "origin_server_ts": 1,
			"pdus": []any{}, "edus": []any{typing(closed), receipt, typing(open)}})
		if a.Status != 200 {
			t.Fatal(a)
		}
		last := other.say("after that")
		other.send(last)
		var seen []string
		told := false
		alice.Until("what follows", func(r gjson.Result) bool {
			seen = append(seen, harness.Room(r, "join", closed).Raw)
			for _, e := range harness.Room(r, "join", open).Get("ephemeral.events").Array() {
				told = told || strings.Contains(e.Raw, in.user)
			}
			return told && known(alice, open, last.ID)
		})
		if all := strings.Join(seen, "\n"); strings.Contains(all, in.user) {
			t.Errorf("the room that denies it has %s", all)
		}
		alice.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/rooms/%s/event/%s", closed, spam.ID), nil)
	})
}

// known tells whether a client can read an event.
func known(c *harness.Client, room, id string) bool {
	a, err := c.Send("GET", harness.Path("/rooms/%s/event/%s", room, id), nil)
	return err == nil && a.Status == 200
}
