package scenario

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// stick sends a sticky event.
func stick(c *Client, room, body string, ms int) string {
	return c.Must("PUT", Path("/rooms/%s/send/%s/%s", room, "test.sticky", Txn())+fmt.Sprint("?org.matrix.msc4354.sticky_duration_ms=", ms), J{"body": body}).JSON.Get("event_id").Str
}

func TestStickyEvents(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "initial_state": []J{{"type": "m.room.history_visibility", "content": J{"history_visibility": "joined"}}}})
		// So short a time is over when anybody asks.
		stick(alice, id, "over", 0)
		first := stick(alice, id, "first", 3_600_000)
		redacted := stick(alice, id, "redacted", 3_600_000)
		alice.Redact(id, redacted)
		alice.Text(id, "not sticky")
		s.Restart()
		bob.Join(id)
		sticky := func(r gjson.Result) gjson.Result { return Room(r, "join", id).Get("msc4354_sticky.events") }

		// Who joins is told of all, whatever the history visibility, and once.
		r := sticky(bob.Sync(nil))
		if ids := IDs(r); !slices.Equal(ids, []string{first}) {
			t.Errorf("after joining: %s", r)
		}
		if ttl := r.Get("0.unsigned.msc4354_sticky_duration_ttl_ms").Int(); ttl <= 0 || ttl > 3_600_000 || r.Get("0.msc4354_sticky.duration_ms").Int() != 3_600_000 {
			t.Errorf("the event: %s", r)
		}
		if r := sticky(bob.Sync(nil)); r.Exists() {
			t.Errorf("again: %s", r)
		}
		// What the timeline has is not told twice; what its filter or limit leaves out is told here.
		second := stick(alice, id, "second", 600_000)
		r = bob.Sync(nil)
		if sticky(r).Exists() || !slices.Equal(IDs(Room(r, "join", id).Get("timeline.events")), []string{second}) {
			t.Errorf("in the timeline: %s", r)
		}
		third, fourth := stick(alice, id, "third", 600_000), stick(alice, id, "fourth", 600_000)
		r = bob.Sync(Filter(J{"room": J{"timeline": J{"limit": 1}}}))
		if !slices.Equal(IDs(sticky(r)), []string{third}) || !slices.Equal(IDs(Room(r, "join", id).Get("timeline.events")), []string{fourth}) {
			t.Errorf("a short timeline: %s", r)
		}
		fifth := stick(alice, id, "fifth", 600_000)
		r = bob.Sync(Filter(J{"room": J{"timeline": J{"types": []string{"m.room.message"}}}}))
		if !slices.Equal(IDs(sticky(r)), []string{fifth}) {
			t.Errorf("another filter: %s", r)
		}
		// Ignored users' are left out.
		bob.Must("PUT", Path("/user/%s", bob.UserID)+"/account_data/m.ignored_user_list", J{"ignored_users": J{alice.UserID: J{}}})
		stick(alice, id, "sixth", 600_000)
		if r := bob.Sync(Filter(J{"room": J{"timeline": J{"limit": 1}}})); sticky(r).Exists() {
			t.Errorf("of an ignored user: %s", r)
		}
		alice.Refused(400, "M_INVALID_PARAM", "PUT", Path("/rooms/%s/send/%s/%s", id, "test", Txn())+"?org.matrix.msc4354.sticky_duration_ms=3600001", J{})
		if !alice.Must("GET", "/_matrix/client/versions", nil).JSON.Get(`unstable_features.org\.matrix\.msc4354`).Bool() {
			t.Error("the flag is missing")
		}
	})
}

// TestStickyFlood sends more sticky events than one answer has.
func TestStickyFlood(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		bob.Sync(nil)
		var want []string
		for i := range 520 {
			want = append(want, stick(alice, id, fmt.Sprint(i), 3_600_000))
		}
		filter := Filter(J{"room": J{"timeline": J{"limit": 0}}})
		var got []string
		for i := range 3 {
			part := IDs(Room(bob.Sync(filter), "join", id).Get("msc4354_sticky.events"))
			if i == 0 && len(part) != 500 {
				t.Errorf("the first answer has %d", len(part))
			}
			got = append(got, part...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d of %d arrived, or in another order", len(got), len(want))
		}
	})
}

func TestStickyBySliding(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		other := alice.Create(J{"preset": "public_chat"})
		var want []string
		for i := range 3 {
			want = append(want, stick(alice, id, fmt.Sprint(i), 3_600_000))
		}
		bob.Join(other)
		bob.Join(id)
		alice.Text(other, "the other room is above")
		const name = "org.matrix.msc4354.sticky_events"
		c := &slider{Client: bob}
		// The room is outside of the window, and still told of.
		ask := func(since string, limit int) gjson.Result {
			x := J{"enabled": true, "limit": limit}
			if since != "" {
				x["since"] = since
			}
			return c.sync(J{"lists": list(0, 0, 1, J{}), "extensions": J{name: x}}).Get("extensions").Get(Key(name))
		}
		events := func(x gjson.Result) []string { return IDs(x.Get("rooms").Get(Key(id)).Get("events")) }
		x := ask("", 2)
		if !slices.Equal(events(x), want[:2]) {
			t.Errorf("the oldest: %s", x)
		}
		if again := ask("", 2); !slices.Equal(events(again), want[:2]) {
			t.Errorf("not acknowledged: %s", again)
		}
		x = ask(x.Get("next_batch").Str, 2)
		if !slices.Equal(events(x), want[2:]) {
			t.Errorf("the rest: %s", x)
		}
		since := x.Get("next_batch").Str
		if x = ask(since, 2); x.Exists() {
			t.Errorf("nothing more: %s", x)
		}
		// One that is in the timeline of the answer is not told twice; the room is now in the window, and new.
		last := stick(alice, id, "last", 3_600_000)
		alice.Text(id, "up")
		x = ask(since, 100)
		if got := events(x); !slices.Equal(got, append(slices.Clone(want), last)) {
			t.Errorf("a room that is new to the client: %s", x)
		}
		newest := stick(alice, id, "newest", 3_600_000)
		if x = ask(x.Get("next_batch").Str, 100); x.Exists() {
			t.Errorf("%s is in the timeline: %s", newest, x)
		}
		c.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, J{"extensions": J{name: J{"enabled": true, "since": "x"}}})
		c.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, J{"extensions": J{name: J{"enabled": true, "limit": 0}}})
	})
}
