package scenario

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/test/harness"
)

// stuck waits until a user has been told of sticky events, in whichever part of an answer.
func stuck(t *testing.T, c *harness.Client, room string, want ...string) {
	t.Helper()
	told := map[string]bool{}
	within(t, "the sticky events for "+c.UserID, func() bool {
		r := harness.Room(c.Sync(nil), "join", room)
		for _, part := range []gjson.Result{r.Get("timeline.events"), r.Get("msc4354_sticky.events")} {
			for _, id := range harness.IDs(part) {
				told[id] = true
			}
		}
		return !slices.ContainsFunc(want, func(id string) bool { return !told[id] })
	})
}

// A server that comes into a room is sent what is sticky there, by each server what its users sent, through whichever
// server it came; and one that was away misses none of it (MSC4354).
func TestStickyEventsOfOtherServers(t *testing.T) {
	harness.EachFederation(t, 3, func(t *testing.T, servers []*harness.Server) {
		alice, bob, carol := servers[0].Register(t, "alice"), servers[1].Register(t, "bob"), servers[2].Register(t, "carol")
		room := alice.Create(harness.J{"preset": "public_chat"})
		var sent []string
		for i := range 3 {
			sent = append(sent, stick(alice, room, fmt.Sprint(i), 3_600_000))
			alice.Text(room, "between")
		}
		joinThrough(t, bob, room, servers[0])
		stuck(t, bob, room, sent...)
		sent = append(sent, stick(bob, room, "of bob", 3_600_000))
		joinThrough(t, carol, room, servers[1])
		stuck(t, carol, room, sent...)

		servers[2].Stop()
		var missed []string
		for i := range 70 { // more than a transaction holds
			missed = append(missed, stick(alice, room, fmt.Sprint("missed ", i), 3_600_000))
		}
		for i := range 130 { // more than are asked for at once
			alice.Text(room, fmt.Sprint("text ", i))
		}
		servers[0].Restart()
		servers[2].Resume()
		sees(t, alice, room, carol.Text(room, "back again"))
		stuck(t, carol, room, missed...)
	})
}
