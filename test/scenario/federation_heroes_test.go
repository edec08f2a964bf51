package scenario

import (
	"net/url"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/test/harness"
)

// TestJoinAfterSomebodyToldAlready joins a room without a name, of which the answer to the join tells some members (those who
// name it) although it leaves the others out. Among them is the one whose join came last: the state after it has it, too.
func TestJoinAfterSomebodyToldAlready(t *testing.T) {
	harness.EachFederation(t, 3, func(t *testing.T, servers []*harness.Server) {
		alice, bob, carol := servers[0].Register(t, "alice"), servers[1].Register(t, "bob"), servers[2].Register(t, "carol")
		room := alice.Create(harness.J{"preset": "public_chat"})
		for _, c := range []*harness.Client{bob, carol} {
			c.Must("POST", harness.Path("/join/%s?server_name=", room)+url.QueryEscape(servers[0].Name), harness.J{})
		}
		if got, want := members(carol, room), sorted(alice.UserID, bob.UserID, carol.UserID); !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
		bob.Until("carol's join", func(r gjson.Result) bool {
			return harness.Find(harness.Room(r, "join", room).Get("timeline.events"), "m.room.member", carol.UserID).Exists()
		})
		sent := bob.Text(room, "hello")
		carol.Until("bob's message", func(r gjson.Result) bool {
			return slices.Contains(harness.IDs(harness.Room(r, "join", room).Get("timeline.events")), sent)
		})
	})
}
