package scenario

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	. "github.com/myelin-im/myelin/test/harness"
)

func TestReadingRooms(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		bob.Must("PUT", Path("/profile/%s/displayname", bob.UserID), J{"displayname": "Bob"})
		id := alice.Create(J{"preset": "public_chat"})
		at := alice.Sync(nil).Get("next_batch").Str
		bob.Join(id)
		joined := alice.Must("GET", Path("/rooms/%s/joined_members", id), nil).JSON.Get("joined").Map()
		if len(joined) != 2 || joined[bob.UserID].Get("display_name").Str != "Bob" {
			t.Errorf("joined members: %v", joined)
		}
		members := func(query url.Values) (out []string) {
			r := alice.Must("GET", Path("/rooms/%s/members?", id)+query.Encode(), nil).JSON
			for _, e := range r.Get("chunk").Array() {
				out = append(out, e.Get("state_key").Str+" "+e.Get("content.membership").Str)
			}
			slices.Sort(out)
			return out
		}
		alice.Change("invite", id, carol.UserID)
		bob.Leave(id)
		a, b, c := alice.UserID, bob.UserID, carol.UserID
		for _, test := range []struct {
			query url.Values
			want  []string
		}{
			{url.Values{}, []string{a + " join", b + " leave", c + " invite"}},
			{url.Values{"membership": {"join"}}, []string{a + " join"}},
			{url.Values{"not_membership": {"leave"}}, []string{a + " join", c + " invite"}},
			{url.Values{"membership": {"invite"}, "not_membership": {"leave"}}, []string{a + " join", c + " invite"}}, // either
			{url.Values{"membership": {"leave"}, "not_membership": {"join"}}, []string{b + " leave", c + " invite"}},
			{url.Values{"at": {at}}, []string{a + " join"}},
			{url.Values{"at": {alice.Sync(nil).Get("next_batch").Str}, "membership": {"leave"}}, []string{b + " leave"}},
		} {
			if got := members(test.query); !slices.Equal(got, test.want) {
				t.Errorf("members %v: %v, want %v", test.query, got, test.want)
			}
		}
		alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/rooms/%s/members?membership=captain", id), nil)
		carol.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s/members", id), nil)

		// One piece of state, as content and as event, with all forms of an empty state key.
		for _, path := range []string{"/state/m.room.join_rules", "/state/m.room.join_rules/"} {
			if r := alice.Must("GET", Path("/rooms/%s", id)+path, nil).JSON; r.Get("join_rule").Str != "public" {
				t.Errorf("%s: %s", path, r)
			}
			if r := alice.Must("GET", Path("/rooms/%s", id)+path+"?format=event", nil).JSON; r.Get("content.join_rule").Str != "public" || r.Get("sender").Str != a {
				t.Errorf("%s as event: %s", path, r)
			}
			alice.Must("PUT", Path("/rooms/%s", id)+path, J{"join_rule": "public"})
		}
		for _, key := range []string{"a/b", "a b", "ä", "%2F", "a?b#c", "..", "x;y"} {
			alice.State(id, "org.example/x y", key, J{"key": key})
			if r := alice.Must("GET", Path("/rooms/%s/state/%s/%s", id, "org.example/x y", key), nil).JSON; r.Get("key").Str != key {
				t.Errorf("the state of key %q is %s", key, r)
			}
		}
		alice.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/state/org.example", id), nil)
		// The same state again is the same event.
		if x, y := alice.State(id, "org.same", "", J{"a": 1, "b": 2}), alice.State(id, "org.same", "", J{"b": 2, "a": 1}); x != y {
			t.Error("setting the state to what it is makes an event")
		}
		initial := alice.Must("GET", Path("/rooms/%s/initialSync?limit=3", id), nil).JSON
		if len(initial.Get("messages.chunk").Array()) != 3 || initial.Get("membership").Str != "join" || len(initial.Get("state").Array()) < 6 {
			t.Errorf("initialSync: %s", initial)
		}
	})
}

func TestTimestampToEvent(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{"preset": "public_chat"})
		var events []string
		var times []int64
		for i := range 3 {
			time.Sleep(4 * time.Millisecond)
			events = append(events, alice.Text(id, fmt.Sprint(i)))
			times = append(times, alice.Must("GET", Path("/rooms/%s/event/%s", id, events[i]), nil).JSON.Get("origin_server_ts").Int())
		}
		near := func(ts int64, dir string) *Answer {
			return alice.Do("GET", fmt.Sprintf("/_matrix/client/v1/rooms/%s/timestamp_to_event?ts=%d&dir=%s", url.PathEscape(id), ts, dir), nil)
		}
		for _, test := range []struct {
			ts   int64
			dir  string
			want string // "" for none
		}{
			{times[1], "f", events[1]}, {times[1], "b", events[1]}, {times[1] - 1, "f", events[1]}, {times[1] - 1, "b", events[0]},
			{times[2] + 1, "b", events[2]}, {times[2] + 1, "f", ""}, {times[2] + 1e6, "b", events[2]}, {0, "b", ""},
		} {
			a := near(test.ts, test.dir)
			if test.want == "" && (a.Status != 404 || a.Code() != "M_NOT_FOUND") || test.want != "" && a.JSON.Get("event_id").Str != test.want {
				t.Errorf("%d %s: %v, want %s", test.ts, test.dir, a, test.want)
			}
		}
		alice.Refused(400, "M_MISSING_PARAM", "GET", "/_matrix/client/v1/rooms/"+url.PathEscape(id)+"/timestamp_to_event?dir=f", nil)
		// What the user may not see is passed over, however much of it there is.
		alice.State(id, "m.room.history_visibility", "", J{"history_visibility": "joined"})
		time.Sleep(4 * time.Millisecond) // the change is seen by all: it must not share the first one's millisecond
		first := ""
		for i := range 120 {
			if e := alice.Text(id, fmt.Sprint("hidden ", i)); i == 0 {
				first = e
			}
		}
		from := alice.Must("GET", Path("/rooms/%s/event/%s", id, first), nil).JSON.Get("origin_server_ts").Int()
		bob := s.Register(t, "bob")
		bob.Join(id)
		seen := bob.Do("GET", fmt.Sprintf("/_matrix/client/v1/rooms/%s/timestamp_to_event?ts=%d&dir=f", url.PathEscape(id), from), nil)
		join := Find(Room(bob.Sync(nil), "join", id).Get("timeline.events"), "m.room.member", bob.UserID)
		if got := seen.JSON.Get("event_id").Str; got == "" || got != join.Get("event_id").Str {
			t.Errorf("the first event that bob sees: %v", seen)
		}
		s.Register(t, "eve").Refused(403, "M_FORBIDDEN", "GET", "/_matrix/client/v1/rooms/"+url.PathEscape(id)+"/timestamp_to_event?dir=f&ts=1", nil)
	})
}

func TestContextLimits(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{"preset": "public_chat"})
		var events []string
		for i := range 8 {
			events = append(events, alice.Text(id, fmt.Sprint(i)))
		}
		for limit, want := range map[int][2]int{0: {0, 0}, 1: {0, 1}, 2: {1, 1}, 5: {2, 3}, 6: {3, 3}} {
			r := alice.Must("GET", Path("/rooms/%s/context/%s?limit=", id, events[4])+fmt.Sprint(limit), nil).JSON
			before, after := len(r.Get("events_before").Array()), len(r.Get("events_after").Array())
			if before+after > max(limit, 0) || before+after < limit-1 || limit > 1 && before != want[0] {
				t.Errorf("limit %d: %d before, %d after", limit, before, after)
			}
			if len(r.Get("state").Array()) < 5 {
				t.Errorf("limit %d: the state is %s", limit, r.Get("state"))
			}
		}
		alice.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/context/%s", id, "$nosuchevent"), nil)
		alice.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/event/%s", id, "$nosuchevent"), nil)
		other := alice.Create(J{})
		alice.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/event/%s", other, events[0]), nil)
	})
}
