package scenario

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// parentsBefore checks that a history, oldest first, has every event after those that it follows. A peer in the room knows
// them.
func parentsBefore(t *testing.T, w *world, name string, history []string) {
	t.Helper()
	place := map[string]int{}
	for i, id := range history {
		place[id] = i
	}
	for i, id := range history {
		a := w.peer.Do(w.server, "GET", fed("/v1/event/%s", id), nil)
		if a.Status != 200 {
			t.Fatalf("event %s: %v", id, a)
		}
		for _, parent := range a.JSON.Get("pdus.0.prev_events").Array() {
			if before, known := place[parent.Str]; known && before > i {
				t.Errorf("%s sees %s before its parent %s", name, id, parent.Str)
			}
		}
	}
}

// agree checks that all users have the same events, state and members, and histories in an order that the events allow.
func agree(t *testing.T, w *world, room string, users ...*harness.Client) {
	t.Helper()
	first := users[0]
	want, state := sorted(first.Walk(room, "", "b", 50)...), stateSeenBy(first, room)
	for _, c := range users {
		history := c.Walk(room, "", "b", 50)
		slices.Reverse(history)
		parentsBefore(t, w, c.UserID, history)
		if got := sorted(slices.Clone(history)...); !slices.Equal(got, want) {
			t.Errorf("%s has %d events and %s %d: %v and %v", c.UserID, len(got), first.UserID, len(want), got, want)
		}
		if got := stateSeenBy(c, room); !maps.Equal(got, state) {
			t.Errorf("%s sees the state %v, %s %v", c.UserID, got, first.UserID, state)
		}
		if got := members(c, room); !slices.Equal(got, members(first, room)) {
			t.Errorf("%s sees the members %v", c.UserID, got)
		}
	}
}

// Three servers are cut off from each other while their users go on, each on their own. When the network is whole again,
// they end with the same events, state and members, and with histories in which nothing comes before what it follows.
func TestServersCutOffFromEachOther(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			var links []*harness.Link
			var users []*harness.Client
			var servers []*harness.Server
			for _, name := range []string{"alice", "bob", "carol"} {
				link, linked := harness.Linked(t)
				server := harness.Start(t, d, harness.Federating(t), linked)
				links, servers, users = append(links, link), append(servers, server), append(users, server.Register(t, name))
			}
			alice := users[0]
			dave := servers[1].Register(t, "dave")
			room := alice.Create(harness.J{"preset": "public_chat"})
			joinThrough(t, users[1], room, servers[0])
			joinThrough(t, users[2], room, servers[1])
			within(t, "carol's join to reach alice's server", func() bool { return slices.Contains(members(alice, room), users[2].UserID) })
			w := enter(t, harness.NewPeer(t, nil), servers[0], room)
			w.serve(nil)
			levels := harness.J{"users": harness.J{users[1].UserID: 50, users[2].UserID: 50}, "events": harness.J{"m.room.topic": 0}}
			alice.State(room, "m.room.power_levels", "", levels)
			hello := alice.Text(room, "hello")
			for _, c := range users {
				sees(t, c, room, hello)
			}

			for _, link := range links {
				link.Cut()
			}
			for i := range 12 {
				for _, c := range users {
					c.Text(room, fmt.Sprint(c.UserID, " alone ", i))
					if i == 5 {
						c.State(room, "m.room.topic", "", harness.J{"topic": "as " + c.UserID + " sees it"})
						c.State(room, "m.room.name", "", harness.J{"name": c.UserID})
					}
				}
			}
			dave.Join(room)
			dave.Text(room, "I came while nobody looked")
			users[2].State(room, "m.room.member", users[2].UserID, harness.J{"membership": "join", "displayname": "Carol alone"})

			for _, link := range links {
				link.Heal()
			}
			for round := range 2 { // of which the second merges what the first has brought together
				for _, c := range users {
					id := c.Text(room, fmt.Sprint("together again ", round))
					for _, other := range users { // to whose server the next try may be some seconds off
						within(t, "the message of "+c.UserID+" for "+other.UserID, func() bool {
							return other.Do("GET", harness.Path("/rooms/%s/event/%s", room, id), nil).Status == 200
						})
					}
				}
			}
			agree(t, w, room, append(users, dave)...)
		})
	}
}
