package scenario

import (
	"slices"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// What a member sees depends on the visibility at each event and on the member's membership there.
func TestHistoryVisibility(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, eve := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "eve")
		guest := s.Guest(t)
		for _, test := range []struct {
			visibility string
			member     string // of the messages a to d, those a member sees
			left       string // those that someone who left sees
			others     bool   // whether strangers see all
		}{
			// a: before the invite, b: while invited, c: while joined, d: after leaving
			{"world_readable", "abc", "abcd", true},
			{"shared", "abc", "abc", false},
			{"invited", "bc", "bc", false},
			{"joined", "c", "c", false},
		} {
			t.Run(test.visibility, func(t *testing.T) {
				id := alice.Create(J{"preset": "private_chat", "initial_state": []J{
					{"type": "m.room.history_visibility", "content": J{"history_visibility": test.visibility}},
				}})
				names := map[string]string{}
				say := func(name string) { names[alice.Text(id, name)] = name }
				seen := func(c *Client) (out string) {
					for _, e := range c.Walk(id, "", "f", 3) {
						out += names[e]
					}
					back := c.Walk(id, "", "b", 100)
					slices.Reverse(back)
					reverse := ""
					for _, e := range back {
						reverse += names[e]
					}
					if reverse != out {
						t.Errorf("forward: %q, backward: %q", out, reverse)
					}
					for e, name := range names {
						status := 404
						if slices.Contains(back, e) {
							status = 200
						}
						for _, kind := range []string{"event", "context"} {
							if a := c.Do("GET", Path("/rooms/%s/"+kind+"/%s", id, e), nil); a.Status != status {
								t.Errorf("%s of %s: %v, want %d", kind, name, a, status)
							}
						}
					}
					return out
				}
				say("a")
				alice.Change("invite", id, bob.UserID)
				say("b")
				bob.Sync(nil)
				bob.Join(id)
				say("c")
				if got := seen(bob); got != test.member {
					t.Errorf("a member sees %q, want %q", got, test.member)
				}
				got := ""
				for _, e := range timeline(bob.Sync(Filter(J{"room": J{"timeline": J{"limit": 100}}})), id).Array() {
					got += names[e.Get("event_id").Str]
				}
				if got != test.member {
					t.Errorf("the sync of a new member shows %q, want %q", got, test.member)
				}
				bob.Leave(id)
				say("d")
				if got := seen(bob); got != test.left {
					t.Errorf("someone who left sees %q, want %q", got, test.left)
				}
				for _, c := range []*Client{eve, guest} {
					if test.others {
						if got := seen(c); got != "abcd" {
							t.Errorf("a stranger sees %q", got)
						}
						continue
					}
					c.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s/messages?dir=b", id), nil)
					c.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s/state", id), nil)
					c.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s/members", id), nil)
				}
			})
		}
	})
}

// A change of visibility holds from there on and does not open the past.
func TestVisibilityChanges(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		set := func(v string) string {
			return alice.State(id, "m.room.history_visibility", "", J{"history_visibility": v})
		}
		toJoined := set("joined")
		hidden := alice.Text(id, "hidden")
		toShared := set("shared")
		open := alice.Text(id, "open")
		bob.Join(id)
		got := bob.Walk(id, "", "b", 4)
		for id, want := range map[string]bool{toJoined: true, hidden: false, toShared: true, open: true} {
			if slices.Contains(got, id) != want {
				t.Errorf("event %s: visible %v, want %v", id, !want, want)
			}
		}
		// The spec judges both changes by the more open of before and after.
		if len(got) < 8 {
			t.Errorf("a new member sees only %d events", len(got))
		}
	})
}

// A client that is shown an older change of something, but may not see the latest, would take the older one for current.
func TestCurrentStateAmongHiddenEvents(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		alice.State(id, "m.room.history_visibility", "", J{"history_visibility": "joined"})
		bob.Join(id)
		alice.State(id, "m.room.topic", "", J{"topic": "seen"})
		bob.Leave(id)
		current := alice.State(id, "m.room.topic", "", J{"topic": "current"})
		hidden := alice.Text(id, "hidden")
		bob.Join(id)
		bob.Text(id, "back")
		part := room(bob.Sync(timelineOf(20)), id)
		topics := part.Get(`timeline.events.#(type=="m.room.topic")#.event_id`).Array()
		if len(topics) == 0 || topics[len(topics)-1].Str != current {
			t.Errorf("the last topic in the timeline is not the current one: %s", part)
		}
		if slices.Contains(IDs(part.Get("timeline.events")), hidden) {
			t.Errorf("a message of the time when the reader was away is shown: %s", part)
		}
	})
}
