package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// unreadOf shows a room's counts in an answer as "notifications/highlights", followed by those of threads, whose roots
// are looked up in names.
func unreadOf(answer gjson.Result, room *roomserver.Room, names map[string]string) string {
	r := joined(answer, room)
	if !r.Exists() {
		return "no room"
	}
	show := func(c gjson.Result) string {
		return fmt.Sprintf("%s/%s", c.Get("notification_count").Raw, c.Get("highlight_count").Raw)
	}
	out := show(r.Get("unread_notifications"))
	var threads []string
	r.Get("unread_thread_notifications").ForEach(func(root, c gjson.Result) bool {
		threads = append(threads, names[root.Str]+" "+show(c))
		return true
	})
	slices.Sort(threads)
	return strings.Join(append([]string{out}, threads...), ", ")
}

func mention(user string) map[string]any {
	return map[string]any{"msgtype": "m.text", "body": "hi", "m.mentions": map[string]any{"user_ids": []string{user}}}
}

func TestUnreadCounts(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice, bob, carol)
		b, old := w.login(bob, "filter", withThreads), w.login(bob)
		var root, reply, last string
		names := map[string]string{}
		for i, step := range []struct {
			do          func()
			want, total string
		}{
			{func() { root = w.say(room, alice, ""); names[root] = "t" }, "1/0", "1/0"},
			{func() { w.send(room, alice, "m.room.message", mention(bob)) }, "2/1", "2/1"},
			{func() { w.send(room, alice, "m.room.message", mention(carol)) }, "3/1", "3/1"},
			{func() {
				w.send(room, alice, "m.reaction", map[string]any{"m.relates_to": map[string]string{"rel_type": "m.annotation", "event_id": root, "key": "x"}})
			}, "3/1", "3/1"},
			{func() { reply = w.say(room, carol, root) }, "3/1, t 1/0", "4/1"},
			{func() { w.say(room, carol, root) }, "3/1, t 2/0", "5/1"},
			// What relates to a reply belongs to its thread, but an edit notifies nobody, and what else there is does.
			{func() {
				w.send(room, alice, "m.room.message", map[string]any{"body": "x", "m.relates_to": map[string]string{"rel_type": "m.replace", "event_id": reply}})
			}, "3/1, t 2/0", "5/1"},
			{func() {
				w.send(room, alice, "m.room.message", map[string]any{"body": "x", "m.relates_to": map[string]string{"rel_type": "org.example", "event_id": reply}})
			}, "3/1, t 3/0", "6/1"},
			{func() { last = w.say(room, alice, "") }, "4/1, t 3/0", "7/1"},
			{func() { w.read(room, bob, "m.read", reply, root) }, "4/1, t 2/0", "6/1"},
			{func() { w.read(room, bob, "m.read", root, "main") }, "3/1, t 2/0", "5/1"},
			{func() { w.say(room, bob, root) }, "3/1", "3/1"}, // who writes has read the thread
			{func() { w.send(room, alice, "m.room.redaction", map[string]any{"redacts": last}) }, "2/1", "2/1"},
			{func() { last = w.say(room, alice, "") }, "3/1", "3/1"},
			{func() { w.say(room, carol, root) }, "3/1, t 1/0", "4/1"},
			{func() { w.read(room, bob, "m.read.private", last, "") }, "0/0, t 1/0", "1/0"},
			{func() { w.say(room, alice, "") }, "1/0, t 1/0", "2/0"},
			{func() { w.say(room, bob, "") }, "0/0, t 1/0", "1/0"},
			{func() { last = w.say(room, alice, "") }, "1/0, t 1/0", "2/0"},
			{func() { w.read(room, bob, "m.read", last, "") }, "0/0", "0/0"},
			// A new profile is no new stay, and reads nothing.
			{func() { w.say(room, alice, "") }, "1/0", "1/0"},
			{func() {
				if err := w.rooms.SetMemberField(context.Background(), bob, "displayname", "Robert", nil); err != nil {
					t.Fatal(err)
				}
			}, "1/0", "1/0"},
			{func() {
				w.do(bob, "PUT", "/pushrules/global/room/"+url.PathEscape(room.ID), `{"actions":[]}`)
				w.say(room, alice, "")
			}, "1/0", "1/0"},
			{func() { w.send(room, alice, "m.room.message", mention(bob)) }, "2/1", "2/1"},
			{func() {
				w.do(bob, "DELETE", "/pushrules/global/room/"+url.PathEscape(room.ID), ``)
				w.say(room, alice, "")
			}, "3/1", "3/1"},
			{func() { w.member(room.ID, bob, roomserver.Leave); w.say(room, alice, "") }, "no room", "no room"},
			{func() { w.member(room.ID, bob, roomserver.Join) }, "0/0", "0/0"},
			{func() {
				w.send(room, alice, "m.room.message", map[string]any{"body": "x", "m.mentions": map[string]any{"room": true}})
			}, "1/1", "1/1"},
			{func() {
				w.send(room, carol, "m.room.message", map[string]any{"body": "x", "m.mentions": map[string]any{"room": true}})
			}, "2/1", "2/1"}, // who may not
		} {
			step.do()
			if got := unreadOf(b.next(0), room, names); got != step.want {
				t.Errorf("step %d: %s, want %s", i, got, step.want)
			}
			if got := unreadOf(old.next(0), room, names); got != step.total {
				t.Errorf("step %d: in total %s, want %s", i, got, step.total)
			}
			if step.want == "no room" {
				continue
			}
			if got := unreadOf((&device{world: w, user: bob, query: b.query}).next(0), room, names); got != step.want {
				t.Errorf("step %d: a new device has %s, want %s", i, got, step.want)
			}
		}
	})
}

// TestBadgeGoesDown reads on one device and looks at the other, whose filter takes no receipts.
func TestBadgeGoesDown(t *testing.T) {
	eachWorld(t, func(t *testing.T, w *world) {
		room := w.room(alice, bob)
		b := w.login(bob, "filter", `{"room":{"ephemeral":{"types":[]}}}`)
		event := w.say(room, alice, "")
		if got := unreadOf(b.next(0), room, nil); got != "1/0" {
			t.Errorf("at first: %s", got)
		}
		answer, quick := b.arrives(true, func() { w.read(room, bob, "m.read", event, "") })
		if got := unreadOf(answer, room, nil); got != "0/0" || !quick {
			t.Errorf("after reading: %s, at once %v", got, quick)
		}
		// Others hear of nothing that they do not want.
		a := w.login(alice, "filter", `{"room":{"ephemeral":{"types":[]}}}`)
		w.read(room, bob, "m.read", w.say(room, bob, ""), "")
		a.next(0)
		w.say(room, alice, "")
		a.next(0)
		w.read(room, bob, "m.read.private", event, "")
		a.quiet("bob's receipts")
	})
}

// model is what a naive reader makes of one room's history.
type model struct {
	events   []modelEvent
	members  map[string]int64            // since when joined, by user
	receipts map[string]map[string]int64 // by user and thread
	muted    map[string][]mute
	ignores  map[string]map[string]bool
}

type modelEvent struct {
	pos      int64
	id       string
	sender   string
	thread   string
	notifies bool
	mentions string
	redacted bool
	relates  bool
}

// mute is a time in which a user's rules silence the room.
type mute struct{ from, to int64 }

func (m *model) counts(user string) string {
	since, ok := m.members[user]
	if !ok {
		return "no room"
	}
	own := map[string]int64{}
	for _, e := range m.events {
		if e.pos > since && e.sender == user {
			own[e.thread] = e.pos
		}
	}
	type pair struct{ n, h int }
	sums := map[string]pair{}
	for _, e := range m.events {
		thread := e.thread
		if thread == "" {
			thread = "main"
		}
		if e.pos <= since || e.sender == user || e.redacted || e.pos <= own[e.thread] || m.ignores[user][e.sender] ||
			e.pos <= m.receipts[user][""] || e.pos <= m.receipts[user][thread] || !e.notifies {
			continue
		}
		mentioned := e.mentions == user
		silent := slices.ContainsFunc(m.muted[user], func(mt mute) bool { return e.pos >= mt.from && (mt.to == 0 || e.pos < mt.to) })
		if silent && !mentioned {
			continue
		}
		s := sums[e.thread]
		s.n++
		if mentioned {
			s.h++
		}
		sums[e.thread] = s
	}
	out := []string{fmt.Sprintf("%d/%d", sums[""].n, sums[""].h)}
	var ts []string
	for thread, s := range sums {
		if thread != "" {
			ts = append(ts, fmt.Sprintf("%s %d/%d", thread, s.n, s.h))
		}
	}
	slices.Sort(ts)
	return strings.Join(append(out, ts...), ", ")
}

// TestCountsEqualTheModel takes random actions and compares the counts in /sync with those of the model: of a device
// that follows, of one that comes for the first time, and after a restart.
func TestCountsEqualTheModel(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		for seed := range uint64(3) {
			randomRoom(t, newWorld(t, db), seed)
		}
	})
}

func randomRoom(t *testing.T, w *world, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	users := []string{alice, bob, carol}
	room := w.room(users...)
	m := &model{members: map[string]int64{}, receipts: map[string]map[string]int64{}, muted: map[string][]mute{}, ignores: map[string]map[string]bool{}}
	for _, u := range users {
		m.members[u] = w.db.Head() // the joins stand before all that is counted
		m.receipts[u] = map[string]int64{}
		w.do(u, "PUT", "/user/"+u+"/account_data/m.ignored_user_list", `{}`)
	}
	devices := map[string]*device{}
	names := map[string]string{}
	for _, u := range users {
		devices[u] = w.login(u, "filter", withThreads)
	}
	trace := []string{}
	for step := range 120 {
		user := users[rnd.IntN(len(users))]
		trace = append(trace, m.act(w, room, user, rnd))
		for _, e := range m.events {
			names[e.id] = e.id
		}
		if rnd.IntN(3) > 0 {
			continue // look at several changes together
		}
		if rnd.IntN(20) == 0 {
			trace = append(trace, "restart")
			w = newWorld(t, w.db)
			room, _ = w.rooms.Room(context.Background(), room.ID)
			for _, d := range devices {
				d.world = w
			}
		}
		for _, u := range users {
			want := m.counts(u)
			got := unreadOf(devices[u].next(0), room, names)
			fresh := unreadOf((&device{world: w, user: u, query: devices[u].query}).next(0), room, names)
			if got != want && got != "no room" || fresh != want {
				t.Fatalf("seed %d, step %d: %s has %s (a new device %s), want %s\n%s", seed, step, u, got, fresh, want, strings.Join(trace, "\n"))
			}
		}
	}
}

// act does something at random and returns what.
func (m *model) act(w *world, room *roomserver.Room, user string, rnd *rand.Rand) string {
	_, in := m.members[user]
	other := []string{alice, bob, carol}[rnd.IntN(3)]
	var target *modelEvent
	if len(m.events) > 0 {
		target = &m.events[rnd.IntN(len(m.events))]
	}
	switch n := rnd.IntN(20); {
	case !in:
		w.member(room.ID, user, roomserver.Join)
		m.members[user] = w.db.Head()
		return user + " joins"
	case n < 9 || target == nil:
		return m.say(w, room, user, other, target, rnd)
	case n < 13:
		return m.read(w, room, user, target, rnd)
	case n < 15:
		if target.sender != user && user != alice || target.redacted {
			return "nothing"
		}
		w.send(room, user, "m.room.redaction", map[string]any{"redacts": target.id})
		target.redacted = true
		m.note(w, room, user, "", false, "")
		return user + " redacts " + target.id
	case n < 16:
		if user == alice {
			return "nothing" // she created the room
		}
		w.member(room.ID, user, roomserver.Leave)
		delete(m.members, user)
		return user + " leaves"
	case n < 17:
		if err := w.rooms.SetMemberField(context.Background(), user, "displayname", fmt.Sprint(rnd.Uint32()), nil); err != nil {
			w.t.Fatal(err)
		}
		return user + " changes their name"
	case n < 19:
		list := m.muted[user]
		path := "/pushrules/global/room/" + url.PathEscape(room.ID)
		if len(list) > 0 && list[len(list)-1].to == 0 {
			w.do(user, "DELETE", path, "")
			list[len(list)-1].to = w.db.Head()
			return user + " listens"
		}
		w.do(user, "PUT", path, `{"actions":[]}`)
		m.muted[user] = append(list, mute{from: w.db.Head()})
		return user + " mutes the room"
	default:
		list, _ := json.Marshal(map[string]any{"ignored_users": map[string]any{other: map[string]any{}}})
		w.do(user, "PUT", "/user/"+user+"/account_data/m.ignored_user_list", string(list))
		m.ignores[user] = map[string]bool{other: other != user}
		return user + " ignores " + other
	}
}

// note remembers the event at the head.
func (m *model) note(w *world, room *roomserver.Room, user, thread string, notifies bool, mentions string) *modelEvent {
	e := room.Latest(w.db.Head())
	m.events = append(m.events, modelEvent{pos: w.db.Head(), id: e.ID, sender: user, thread: thread, notifies: notifies, mentions: mentions})
	return &m.events[len(m.events)-1]
}

func (m *model) say(w *world, room *roomserver.Room, user, other string, target *modelEvent, rnd *rand.Rand) string {
	content := map[string]any{"msgtype": "m.text", "body": "x"}
	mentions := ""
	if rnd.IntN(4) == 0 {
		content, mentions = mention(other), other
	}
	typ, thread, notifies := "m.room.message", "", true
	if target != nil {
		switch rnd.IntN(6) {
		case 0, 1: // in the thread of the target, or in one that begins there
			if thread = target.thread; thread == "" {
				thread = target.id
			}
			if target.thread == "" && target.relates {
				return "nothing" // no thread may begin there
			}
			content["m.relates_to"] = map[string]string{"rel_type": "m.thread", "event_id": thread}
		case 2:
			typ, notifies, mentions = "m.reaction", false, ""
			content = map[string]any{"m.relates_to": map[string]string{"rel_type": "m.annotation", "event_id": target.id, "key": strconv.Itoa(rnd.Int())}}
			thread = target.thread
		}
	}
	w.send(room, user, typ, content)
	e := m.note(w, room, user, thread, notifies, mentions)
	e.relates = content["m.relates_to"] != nil
	return fmt.Sprintf("%s sends %s %s in %q, mentions %q", user, typ, e.id, thread, mentions)
}

func (m *model) read(w *world, room *roomserver.Room, user string, target *modelEvent, rnd *rand.Rand) string {
	kind := []string{"m.read", "m.read.private"}[rnd.IntN(2)]
	thread := ""
	if rnd.IntN(2) == 0 {
		if thread = target.thread; thread == "" {
			thread = "main"
		}
	}
	w.read(room, user, kind, target.id, thread)
	m.receipts[user][thread] = max(m.receipts[user][thread], target.pos)
	return fmt.Sprintf("%s reads %s in %q", user, target.id, thread)
}
