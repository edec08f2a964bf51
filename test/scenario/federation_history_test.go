package scenario

import (
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/test/harness"
)

// Messages that were fetched from another server are found, also if this one stops right after it has them.
func TestSearchInFetchedHistory(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		var want []string
		for i := range 30 {
			want = append(want, alice.Text(room, fmt.Sprint("needle ", i)))
		}
		joinThrough(t, bob, room, servers[0])
		alice.Redact(room, want[0])
		end := alice.Text(room, "the end")
		sees(t, bob, room, end)
		bob.Walk(room, "", "b", 50)
		servers[1].Restart()
		within(t, "the messages to be found", func() bool {
			got := hits(search(bob, "needle", harness.J{"order_by": "recent", "filter": harness.J{"limit": 50}}))
			slices.Reverse(got)
			return slices.Equal(got, want[1:])
		})
	})
}

// Who reads forward gets what their server is missing as well as who reads backward: what was before it came into the
// room, and what was said while it was away.
func TestReadForwardOverGaps(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		for i := range 60 {
			alice.Text(room, fmt.Sprint("early ", i))
		}
		joinThrough(t, bob, room, servers[0])
		if got, want := bob.Walk(room, "", "f", 10), alice.Walk(room, "", "f", 100); !slices.Equal(got, want) {
			t.Errorf("from the start: %d events, want %d:\n%v\n%v", len(got), len(want), got, want)
		}

		from := bob.Sync(nil).Get("next_batch").Str
		servers[1].Stop()
		var want []string
		for i := range 150 {
			want = append(want, alice.Text(room, fmt.Sprint("missed ", i)))
		}
		servers[1].Resume()
		back := bob.Text(room, "back again")
		sees(t, alice, room, back)
		last := alice.Text(room, "welcome back")
		sees(t, bob, room, last)
		got := slices.DeleteFunc(bob.Walk(room, from, "f", 20), func(id string) bool { return id == back })
		if want = append(want, last); !slices.Equal(got, want) {
			t.Errorf("while it was away: %d events, want %d:\n%v\n%v", len(got), len(want), got, want)
		}
		if e := bob.Must("GET", harness.Path("/rooms/%s/context/%s?limit=20", room, want[70]), nil).JSON; !slices.Equal(harness.IDs(e.Get("events_after")), want[71:81]) {
			t.Errorf("events after one: %s", e.Get("events_after").Raw)
		}
	})
}
