package syncapi

import (
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const withThreads = `{"room":{"timeline":{"unread_thread_notifications":true}}}`

func TestReceiptsInSync(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice, bob)
		event := w.say(room, alice, "")
		a, b := w.login(alice), w.login(bob)
		a.quiet("at first")

		w.read(room, bob, "m.read", event, "")
		for _, d := range []*device{a, b} {
			content := ephemeralOf(d.next(0), room, "m.receipt")
			if got := gjson.Get(content, event+`.m\.read.@bob:hs`); !got.Get("ts").Exists() || got.Get("thread_id").Exists() {
				t.Errorf("%s is told of %s", d.user, content)
			}
			d.quiet("once told")
		}
		w.read(room, bob, "m.read.private", event, "main")
		a.quiet("a private receipt of somebody else")
		content := ephemeralOf(b.next(0), room, "m.receipt")
		if got := gjson.Get(content, event+`.m\.read\.private.@bob:hs.thread_id`).Str; got != "main" {
			t.Errorf("bob is told of %s", content)
		}
		w.read(room, bob, "m.read", event, "")
		b.quiet("a receipt that does not move")

		// A device that does not know the room is told of all of them.
		if content := ephemeralOf(w.login(alice, "since", "").next(0), room, "m.receipt"); content != "" {
			t.Errorf("a second sync tells of %s", content)
		}
		fresh := &device{world: w, user: alice}
		if content := ephemeralOf(fresh.next(0), room, "m.receipt"); !gjson.Get(content, event+`.m\.read.@bob:hs`).Exists() || strings.Contains(content, "private") {
			t.Errorf("a new device of alice is told %s", content)
		}
		fresh = &device{world: w, user: bob}
		if content := ephemeralOf(fresh.next(0), room, "m.receipt"); !strings.Contains(content, "m.read.private") {
			t.Errorf("a new device of bob is told %s", content)
		}
		w.member(room.ID, carol, roomserver.Join)
		if content := ephemeralOf(w.login(carol).reset().next(0), room, "m.receipt"); !strings.Contains(content, bob) {
			t.Errorf("carol is told %s", content)
		}
	})
}

// reset makes the device know nothing.
func (d *device) reset() *device {
	d.since = ""
	return d
}

func TestReadMarkerInSync(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice, bob)
		event := w.say(room, bob, "")
		a, b := w.login(alice), w.login(bob)
		w.read(room, alice, "m.fully_read", event, "")
		data := joined(a.next(0), room).Get("account_data.events").Array()
		if len(data) != 1 || data[0].Get("type").Str != "m.fully_read" || data[0].Get("content.event_id").Str != event {
			t.Errorf("account data %v", data)
		}
		b.quiet("alice's read marker")
	})
}

func TestTypingInSync(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, db)
		room := w.room(alice, bob)
		w.room(alice, carol)
		a, b := w.login(alice), w.login(bob)
		expect := func(d *device, want string) {
			t.Helper()
			answer := d.next(0)
			if got := ephemeralOf(answer, room, "m.typing"); got != want {
				t.Errorf("%s is told %s, want %s: %s", d.user, got, want, answer.Raw)
			}
			d.quiet("once told")
		}
		w.typing(room, bob, `{"typing":true}`)
		expect(a, `{"user_ids":["@bob:hs"]}`)
		expect(b, `{"user_ids":["@bob:hs"]}`)
		w.typing(room, bob, `{"typing":true,"timeout":40000}`)
		a.quiet("typing on")
		w.typing(room, alice, `{"typing":true}`)
		w.typing(room, bob, `{"typing":false}`)
		expect(a, `{"user_ids":["@alice:hs"]}`)
		if got := ephemeralOf((&device{world: w, user: bob}).next(0), room, "m.typing"); got != `{"user_ids":["@alice:hs"]}` {
			t.Errorf("a new device is told %s", got)
		}

		// Another boot knows of nobody who types, and tells so to those who were shown somebody.
		w2 := newWorld(t, db)
		shown := &device{world: w2, user: alice, since: a.since, query: a.query}
		expect(shown, `{"user_ids":[]}`)
		w.typing(room, alice, `{"typing":false}`)
		expect(a, `{"user_ids":[]}`)
		(&device{world: w2, user: alice, since: a.since, query: a.query}).quiet("who was shown nobody typing")
		// And what is current there.
		w2.typing(room, bob, `{"typing":true}`)
		expect(&device{world: w2, user: alice, since: a.since, query: a.query}, `{"user_ids":["@bob:hs"]}`)

		deaf := w.login(alice, "filter", `{"room":{"ephemeral":{"not_types":["m.typing"]}}}`)
		w.typing(room, bob, `{"typing":true}`)
		deaf.quiet("the filter excludes typing")
		w.member(room.ID, carol, roomserver.Join)
		c := w.login(carol)
		w.member(room.ID, bob, roomserver.Leave)
		if got := ephemeralOf(c.next(0), room, "m.typing"); got != `{"user_ids":[]}` {
			t.Errorf("when bob leaves, carol is told %s", got)
		}
	})
}

// arrives runs a long poll, during which do is done, and tells whether there was anything in its answer. The poll waits
// long for what is expected, and not for what is not.
func (d *device) arrives(expected bool, do func()) (answer gjson.Result, found bool) {
	d.t.Helper()
	timeout := 700
	if expected {
		timeout = 60_000
	}
	got := make(chan gjson.Result)
	begun := time.Now()
	go func() { got <- d.next(timeout) }()
	for d.sync.tracker.waiting(d.user) == 0 && time.Since(begun) < time.Minute {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond) // it has looked once and waits
	do()
	answer = <-got
	return answer, len(answer.Map()) > 3 // next_batch and the counts of keys are in every answer
}

// waiting is the number of requests of a user that wait.
func (t *tracker) waiting(user string) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.waiters[user])
}

func TestWakeUps(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice, bob)
		event := w.say(room, bob, "")
		deafTo := func(section, typ string) string {
			return `{"room":{"` + section + `":{"not_types":["` + typ + `"]}}}`
		}
		for _, c := range []struct {
			what   string
			filter string
			do     func()
			want   bool
		}{
			{"bob types", "{}", func() { w.typing(room, bob, `{"typing":true}`) }, true},
			{"bob types on", "{}", func() { w.typing(room, bob, `{"typing":true}`) }, false},
			{"bob stops, unheard", deafTo("ephemeral", "m.typing"), func() { w.typing(room, bob, `{"typing":false}`) }, false},
			{"bob reads in private", "{}", func() { w.read(room, bob, "m.read.private", event, "") }, false},
			{"bob reads", "{}", func() { w.read(room, bob, "m.read", event, "") }, true},
			{"alice reads on another device, receipts unheard", deafTo("ephemeral", "m.receipt"), func() { w.read(room, alice, "m.read.private", event, "") }, true},
			{"alice changes a push rule", "{}", func() { w.do(alice, "PUT", "/pushrules/global/sender/@x:y", `{"actions":[]}`) }, true},
			{"bob comes online", "{}", func() { w.do(bob, "PUT", "/presence/"+bob+"/status", `{"presence":"online"}`) }, true},
			{"bob becomes idle, unheard", `{"presence":{"not_types":["*"]}}`, func() { w.do(bob, "PUT", "/presence/"+bob+"/status", `{"presence":"unavailable"}`) }, false},
			{"carol comes online", "{}", func() { w.do(carol, "PUT", "/presence/"+carol+"/status", `{"presence":"online"}`) }, false},
		} {
			d := w.login(alice, "filter", c.filter)
			d.next(0)
			if answer, got := d.arrives(c.want, c.do); got != c.want {
				t.Errorf("%s: answered %v, want %v: %s", c.what, got, c.want, answer.Raw)
			}
		}
	})
}

func TestPresenceInSync(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice, bob)
		w.room(bob, carol)
		a := w.login(alice)
		people := func(answer gjson.Result) string {
			var out []string
			for _, e := range answer.Get("presence.events").Array() {
				out = append(out, e.Get("sender").Str+" "+e.Get("content.presence").Str)
			}
			return strings.Join(out, ", ")
		}
		expect := func(d *device, want string) {
			t.Helper()
			answer := d.next(0)
			if got := people(answer); got != want {
				t.Errorf("%s is told %q, want %q: %s", d.user, got, want, answer.Raw)
			}
		}
		put := func(user, state string) {
			w.do(user, "PUT", "/presence/"+user+"/status", `{"presence":"`+state+`"}`)
		}
		put(carol, "online")
		a.quiet("carol is none of alice's business")
		put(bob, "online")
		expect(a, "@bob:hs online")
		a.quiet("once told")
		put(bob, "unavailable")
		put(bob, "online")
		expect(a, "@bob:hs online")
		put(bob, "offline")
		expect(a, "@bob:hs offline")
		put(bob, "org.matrix.msc3026.busy")
		expect(a, "@bob:hs org.matrix.msc3026.busy")
		expect(w.login(alice).reset(), "@bob:hs org.matrix.msc3026.busy")

		// One's own requests count, unless they say that they do not; oneself is told as well.
		b := w.login(bob, "set_presence", "online")
		expect(a, "")
		b.query.Set("set_presence", "unavailable")
		c := w.login(carol, "set_presence", "unavailable")
		if got := people(c.reset().next(0)); got != "@bob:hs org.matrix.msc3026.busy, @carol:hs unavailable" && got != "@carol:hs unavailable, @bob:hs org.matrix.msc3026.busy" {
			t.Errorf("carol is told %q", got)
		}

		// Filters, ignored users.
		expect(w.login(alice, "filter", `{"presence":{"not_senders":["@bob:hs"]}}`).reset(), "")
		expect(w.login(alice, "filter", `{"presence":{"types":["m.other"]}}`).reset(), "")
		w.do(alice, "PUT", "/user/"+alice+"/account_data/m.ignored_user_list", `{"ignored_users":{"@bob:hs":{}}}`)
		expect(w.login(alice).reset(), "")
		w.do(alice, "PUT", "/user/"+alice+"/account_data/m.ignored_user_list", `{}`)

		// Who comes into a room sees who is there, and is seen.
		a = w.login(alice)
		w.member(room.ID, carol, roomserver.Join)
		expect(a, "@carol:hs unavailable")
		w.room(alice, "@dora:hs")
		put("@dora:hs", "online")
		c = w.login(carol)
		w.member(w.room("@dora:hs", "@eve:hs").ID, carol, roomserver.Join)
		if got := people(c.next(0)); !strings.Contains(got, "@dora:hs online") {
			t.Errorf("in the new room, carol is told of %q", got)
		}
	})
}

// TestStampsOfAnotherBoot gives tokens to a server that did not make them.
func TestStampsOfAnotherBoot(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, db)
		w.room(alice, bob)
		w.do(bob, "PUT", "/presence/"+bob+"/status", `{"presence":"online"}`)
		a := w.login(alice)
		w2 := newWorld(t, db)
		moved := &device{world: w2, user: alice, since: a.since, query: a.query}
		moved.quiet("nobody is online there")
		w2.do(bob, "PUT", "/presence/"+bob+"/status", `{"presence":"online"}`)
		answer := (&device{world: w2, user: alice, since: a.since, query: a.query}).next(0)
		if got := answer.Get("presence.events.#").Int(); got != 1 {
			t.Errorf("told of %s", answer.Raw)
		}
	})
}

func TestPushRulesInSync(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		rules := func(answer gjson.Result) (content string) {
			for _, e := range answer.Get("account_data.events").Array() {
				if e.Get("type").Str == "m.push_rules" {
					content = e.Get("content").Raw
				}
			}
			return content
		}
		w.room(alice)
		a := w.login(alice)
		first := rules(a.reset().next(0))
		if first != w.do(alice, "GET", "/pushrules/", "").Raw {
			t.Errorf("an initial sync has the rules %s", first)
		}
		if got := w.do(alice, "GET", "/user/"+alice+"/account_data/m.push_rules", "").Raw; got != first {
			t.Errorf("as account data they are %s", got)
		}
		a.quiet("nothing changed")
		w.do(alice, "PUT", "/user/"+alice+"/account_data/m.other", `{"a":1}`)
		if got := rules(a.next(0)); got != "" {
			t.Errorf("without a change of rules: %s", got)
		}
		w.do(alice, "PUT", "/pushrules/global/content/cake", `{"pattern":"cake","actions":["notify"]}`)
		if got := rules(a.next(0)); !strings.Contains(got, `"cake"`) {
			t.Errorf("after a change: %s", got)
		}
		a.quiet("once told")
		if got := rules(w.login(alice, "filter", `{"account_data":{"not_types":["m.push_rules"]}}`).reset().next(0)); got != "" {
			t.Errorf("the filter lets through %s", got)
		}
	})
}
