package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// subscription is the path of a user's subscription to a thread.
func subscription(room, thread string) string {
	return "/_matrix/client/unstable/io.element.msc4306" + strings.TrimPrefix(Path("/rooms/%s/thread/%s/subscription", room, thread), "/_matrix/client/v3")
}

func inThread(c *Client, room, root, body string) string {
	return c.Event(room, "m.room.message", J{"msgtype": "m.text", "body": body, "m.relates_to": J{"rel_type": "m.thread", "event_id": root}})
}

func TestThreadSubscriptions(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		root, other := alice.Text(id, "root"), alice.Text(id, "other")
		reply := inThread(alice, id, root, "hello bob")
		path := subscription(id, root)

		bob.Refused(404, "M_NOT_FOUND", "GET", path, nil)
		bob.Must("DELETE", path, nil)
		for _, missing := range []string{subscription(id, reply), subscription(id, "$unknown"), subscription("!unknown", root)} {
			for _, method := range []string{"PUT", "GET", "DELETE"} {
				bob.Refused(404, "M_NOT_FOUND", method, missing, J{})
			}
		}
		private := alice.Create(J{})
		hidden := alice.Text(private, "hidden")
		carol.Refused(404, "M_NOT_FOUND", "PUT", subscription(private, hidden), J{})

		automatic := func() string {
			t.Helper()
			return bob.Must("GET", path, nil).JSON.Get("automatic").Raw
		}
		bob.Refused(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "PUT", path, J{"automatic": other})
		bob.Refused(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "PUT", path, J{"automatic": "$unknown"})
		bob.Must("PUT", path, J{"automatic": reply})
		if automatic() != "true" {
			t.Error("the subscription is automatic")
		}
		bob.Must("PUT", path, J{})
		bob.Must("PUT", path, J{"automatic": reply})
		if automatic() != "false" {
			t.Error("what the user asked for takes precedence")
		}
		// A cause from before the user unsubscribed counts no more, a later one does.
		bob.Must("DELETE", path, nil)
		bob.Must("DELETE", path, nil)
		bob.Refused(404, "M_NOT_FOUND", "GET", path, nil)
		bob.Refused(409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "PUT", path, J{"automatic": reply})
		later := inThread(alice, id, root, "hello again")
		bob.Must("PUT", path, J{"automatic": later})
		if automatic() != "true" {
			t.Error("the subscription is automatic again")
		}
		alice.Refused(404, "M_NOT_FOUND", "GET", path, nil)
		if !alice.Must("GET", "/_matrix/client/versions", nil).JSON.Get(`unstable_features.org\.matrix\.msc4306`).Bool() {
			t.Error("the flag is missing")
		}
	})
}

func TestThreadSubscriptionsBySliding(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{})
		var roots []string
		for i := range 5 {
			roots = append(roots, alice.Text(id, fmt.Sprint(i)))
			alice.Must("PUT", subscription(id, roots[i]), J{})
		}
		const name = "io.element.msc4308.thread_subscriptions"
		c := &slider{Client: alice}
		ask := func(limit int) gjson.Result {
			return c.sync(J{"extensions": J{name: J{"enabled": true, "limit": limit}}}).Get("extensions").Get(Key(name))
		}
		threads := func(x gjson.Result, state string) (ids []string) {
			x.Get(state).Get(Key(id)).ForEach(func(thread, s gjson.Result) bool {
				if s.Get("bump_stamp").Int() == 0 {
					t.Errorf("%s has no stamp: %s", thread, s)
				}
				ids = append(ids, thread.Str)
				return true
			})
			slices.Sort(ids)
			return ids
		}
		sorted := func(ids ...string) []string { slices.Sort(ids); return ids }
		list := func(query string) gjson.Result {
			return alice.Must("GET", "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b"+query, nil).JSON
		}

		x := ask(2)
		if !slices.Equal(threads(x, "subscribed"), sorted(roots[3], roots[4])) || x.Get("prev_batch").Str == "" {
			t.Errorf("the latest: %s", x)
		}
		page := list("&limit=2&from=" + x.Get("prev_batch").Str)
		if !slices.Equal(threads(page, "subscribed"), sorted(roots[1], roots[2])) {
			t.Errorf("before that: %s", page)
		}
		page = list("&limit=2&from=" + page.Get("end").Str)
		if !slices.Equal(threads(page, "subscribed"), sorted(roots[0])) || page.Get("end").Exists() {
			t.Errorf("the last page: %s", page)
		}
		if x = ask(2); x.Exists() {
			t.Errorf("nothing has changed: %s", x)
		}
		// Each thread is told of once, as it is now.
		from := c.pos
		for _, root := range roots[:3] {
			alice.Must("DELETE", subscription(id, root), nil)
		}
		alice.Must("PUT", subscription(id, roots[0]), J{})
		x = ask(2)
		if !slices.Equal(threads(x, "subscribed"), sorted(roots[0])) || !slices.Equal(threads(x, "unsubscribed"), sorted(roots[2])) {
			t.Errorf("what changed: %s", x)
		}
		page = list("&to=" + from + "&from=" + x.Get("prev_batch").Str)
		if !slices.Equal(threads(page, "unsubscribed"), sorted(roots[1])) || page.Get("subscribed").Exists() || page.Get("end").Exists() {
			t.Errorf("up to the former answer: %s", page)
		}
		// While it was not asked for, changes went by: all is told again.
		c.sync(J{})
		alice.Must("DELETE", subscription(id, roots[4]), nil)
		c.sync(J{})
		if x = ask(100); len(threads(x, "subscribed")) != 2 || len(threads(x, "unsubscribed")) != 3 || x.Get("prev_batch").Exists() {
			t.Errorf("asked for again: %s", x)
		}
		alice.Refused(400, "M_INVALID_PARAM", "GET", "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=f", nil)
		alice.Refused(400, "M_INVALID_PARAM", "GET", "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b&from=x", nil)
		alice.Refused(400, "M_INVALID_PARAM", "GET", "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b&to=x", nil)
	})
}

// TestThreadSubscriptionCounts has subscriptions decide what is unread, from where they were made on.
func TestThreadSubscriptionCounts(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		root, other := alice.Text(id, "root"), alice.Text(id, "other")
		bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, other), J{})
		filter := Filter(J{"room": J{"timeline": J{"unread_thread_notifications": true}}})
		count := func(c *Client, thread string) int64 {
			c.SyncFrom("")
			return Room(c.Sync(filter), "join", id).Get("unread_thread_notifications").Get(Key(thread)).Get("notification_count").Int()
		}
		inThread(alice, id, other, "before anybody subscribes")
		bob.Must("PUT", subscription(id, root), J{})
		inThread(alice, id, root, "heard")
		inThread(alice, id, other, "not heard")
		for range 2 {
			if a, b := count(bob, root), count(bob, other); a != 1 || b != 1 {
				t.Errorf("unread: %d in the thread, %d in the other", a, b)
			}
			s.Restart()
		}
		bob.Must("DELETE", subscription(id, root), nil)
		inThread(alice, id, root, "not heard any more")
		if n := count(bob, root); n != 1 {
			t.Errorf("unread after unsubscribing: %d", n)
		}
		bob.Refused(400, "M_INVALID_PARAM", "PUT", Path("/pushrules/global/postcontent/mine"), J{"actions": []string{}})
		rule := bob.Must("GET", Path("/pushrules/global/postcontent/%s", ".io.element.msc4306.rule.subscribed_thread"), nil).JSON
		if !rule.Get("enabled").Bool() || rule.Get("conditions.0.kind").Str != "io.element.msc4306.thread_subscription" {
			t.Errorf("the rule: %s", rule)
		}
	})
}
