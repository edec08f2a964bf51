package scenario

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/test/harness"
)

// stateSeenBy is the state of a room as a user sees it: event ids by type and state key.
func stateSeenBy(c *harness.Client, room string) map[string]string {
	out := map[string]string{}
	for _, e := range c.Must("GET", harness.Path("/rooms/%s/state", room), nil).JSON.Array() {
		out[e.Get("type").Str+"|"+e.Get("state_key").Str] = e.Get("event_id").Str
	}
	return out
}

// sees waits until a user's room has a message.
func sees(t *testing.T, c *harness.Client, room, id string) {
	t.Helper()
	c.Until("the event "+id, func(r gjson.Result) bool {
		return slices.Contains(harness.IDs(harness.Room(r, "join", room).Get("timeline.events")), id)
	})
}

// One of three servers is away while the others go on. It comes back, and all end with the same events, state and
// members, in an order in which nothing comes before what it follows.
func TestServerThatWasAway(t *testing.T) {
	harness.EachFederation(t, 3, func(t *testing.T, servers []*harness.Server) {
		alice, bob, carol := servers[0].Register(t, "alice"), servers[1].Register(t, "bob"), servers[2].Register(t, "carol")
		dave := servers[1].Register(t, "dave")
		room := alice.Create(harness.J{"preset": "public_chat"})
		joinThrough(t, bob, room, servers[0])
		joinThrough(t, carol, room, servers[1])
		w := enter(t, harness.NewPeer(t, nil), servers[0], room)
		w.serve(nil)
		for _, c := range []*harness.Client{alice, bob, carol} {
			c.Sync(nil)
		}
		hello := carol.Text(room, "hello")
		sees(t, alice, room, hello)
		sees(t, bob, room, hello)

		servers[2].Stop()
		var said []string
		for i := range 20 {
			said = append(said, alice.Text(room, fmt.Sprint("alice ", i)), bob.Text(room, fmt.Sprint("bob ", i)))
		}
		alice.State(room, "m.room.topic", "", harness.J{"topic": "while you were away"})
		alice.Redact(room, said[0])
		dave.Join(room)
		last := bob.Text(room, "the last one")
		sees(t, alice, room, last)

		servers[2].Resume()
		// What carol says cites what her server knows, and tells the others that it is there again.
		back := carol.Text(room, "back again")
		sees(t, alice, room, back)
		sees(t, bob, room, back)
		end := alice.Text(room, "welcome back")
		for _, c := range []*harness.Client{bob, carol} {
			sees(t, c, room, end)
		}
		agree(t, w, room, alice, bob, carol)
		if got := members(carol, room); !slices.Contains(got, dave.UserID) {
			t.Errorf("the server that was away sees the members %v", got)
		}
		if e := carol.Must("GET", harness.Path("/rooms/%s/event/%s", room, said[0]), nil).JSON; e.Get("content.body").Exists() {
			t.Errorf("what was redacted meanwhile is %s", e.Raw)
		}
	})
}

// An invite that is taken back disappears, also where the room is not known.
func TestInviteThatIsTakenBack(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "private_chat"})
		alice.Change("invite", room, bob.UserID)
		invited(bob, room)
		alice.Change("kick", room, bob.UserID)
		bob.Until("the end of the invite", func(r gjson.Result) bool { return harness.Room(r, "leave", room).Exists() })
		bob.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s", room), harness.J{})
		alice.Change("invite", room, bob.UserID)
		invited(bob, room)
		bob.Join(room)
	})
}
