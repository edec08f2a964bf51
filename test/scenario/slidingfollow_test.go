package scenario

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// tracked is what a client knows of a room it is in.
type tracked struct {
	timeline []string
	state    map[string]string // event ids by type and key
	joined   int64
	unread   int64
	last     string // the membership of the client's user
}

func newTracked() *tracked { return &tracked{state: map[string]string{}} }

// events takes note of state; what has no event is gone.
func (r *tracked) events(list gjson.Result) {
	for _, e := range list.Array() {
		key := e.Get("type").Str + "|" + e.Get("state_key").Str
		if id := e.Get("event_id").Str; id != "" {
			r.state[key] = id
		} else {
			delete(r.state, key)
		}
	}
}

// follower follows an account by sliding sync, by one connection of a device.
type follower struct {
	*Client
	v4    bool // the accepted dialect, not the drafts'
	name  string
	pos   string
	rooms map[string]*tracked
	// toDevice followers read what is sent to the device, as far as since; inbox is what they got.
	toDevice bool
	since    string
	inbox    []int64
}

// body adds to a request what all have.
func (f *follower) body(request J) J {
	if f.name != "" {
		request["conn_id"] = f.name
	}
	if f.toDevice {
		x := J{"enabled": true}
		if f.since != "" {
			x["since"] = f.since
		}
		request["extensions"] = J{"to_device": x}
	}
	return request
}

// ask makes a request for a window of rooms, with all of their state or some, and perhaps for one room outside of it.
func (f *follower) ask(from, to int, wide bool, room string) gjson.Result {
	if f.v4 {
		state := J{"include": []J{{"type": "m.room.topic"}}, "lazy_members": true}
		if wide {
			state = everything
		}
		body := J{"lists": list(from, to, 3, state)}
		if room != "" {
			body["room_subscriptions"] = J{room: J{"timeline_limit": 5, "required_state": J{"include": []J{{"type": "test.state"}}}}}
		}
		if f.pos != "" {
			body["pos"] = f.pos
		}
		return f.Must("POST", slidingV4, f.body(body)).JSON
	}
	state := [][]string{{"m.room.topic", ""}, {"m.room.member", "$LAZY"}}
	if wide {
		state = [][]string{{"*", "*"}}
	}
	body := J{"lists": draftList(from, to, 3, state...)}
	if room != "" {
		body["room_subscriptions"] = J{room: J{"timeline_limit": 5, "required_state": [][]string{{"test.state", "*"}}}}
	}
	path := slidingDraft + "?timeout=0"
	if f.pos != "" {
		path += "&pos=" + f.pos
	}
	return f.Must("POST", path, f.body(body)).JSON
}

func (f *follower) sync(from, to int, wide bool, room string) {
	if f.pos == "" {
		f.rooms = map[string]*tracked{}
	}
	answer := f.ask(from, to, wide, room)
	f.pos = answer.Get("pos").Str
	if x := answer.Get("extensions.to_device"); x.Exists() {
		for _, e := range x.Get("events").Array() {
			f.inbox = append(f.inbox, e.Get("content.n").Int())
		}
		f.since = x.Get("next_batch").Str
	}
	answer.Get("rooms").ForEach(func(id, part gjson.Result) bool {
		r := f.rooms[id.Str]
		if r == nil || part.Get("initial").Bool() {
			r = newTracked()
			f.rooms[id.Str] = r
		}
		if part.Get("limited").Bool() || part.Get("unstable_expanded_timeline").Bool() || part.Get("expanded_timeline").Bool() {
			r.timeline = nil
		}
		r.timeline = append(r.timeline, IDs(part.Get("timeline"))...)
		r.events(part.Get("required_state"))
		if n := part.Get("joined_count"); n.Exists() {
			r.joined = n.Int()
		}
		if n := part.Get("notification_count"); n.Exists() {
			r.unread = n.Int()
		}
		if m := part.Get("membership"); m.Exists() {
			r.last = m.Str
		}
		return true
	})
}

// lose makes a request whose answer does not arrive.
func (f *follower) lose(from, to int, wide bool) {
	if f.pos != "" {
		f.ask(from, to, wide, "")
	}
}

// classic follows the same account by /v3/sync.
func classic(c *Client, rooms map[string]*tracked) {
	q := Filter(J{"room": J{"timeline": J{"limit": 3}}})
	q.Set("use_state_after", "true")
	answer := c.Sync(q)
	answer.Get("rooms.leave").ForEach(func(id, part gjson.Result) bool {
		if r := rooms[id.Str]; r != nil {
			r.events(part.Get("state_after.events"))
			r.last = "leave"
		}
		return true
	})
	answer.Get("rooms.join").ForEach(func(id, part gjson.Result) bool {
		r := rooms[id.Str]
		if r == nil {
			r = newTracked()
			rooms[id.Str] = r
		}
		if part.Get("timeline.limited").Bool() {
			r.timeline = nil
		}
		r.last = "join"
		r.timeline = append(r.timeline, IDs(part.Get("timeline.events"))...)
		r.events(part.Get("state_after.events"))
		if n := part.Get("summary.m\\.joined_member_count"); n.Exists() {
			r.joined = n.Int()
		}
		if n := part.Get("unread_notifications.notification_count"); n.Exists() {
			r.unread = n.Int()
		}
		return true
	})
}

// last is the newest part of a timeline, which clients that saw different gaps have in common.
func last(ids []string) []string { return ids[max(0, len(ids)-2):] }

// followed is the world in which things happen while bob's clients follow.
type followed struct {
	s                 *Server
	rnd               *rand.Rand
	alice, bob, carol *Client
	rooms             []string
	in, banned, carry map[string]bool // bob is in the room, or banned; carol is in it
	said              map[string][]string
	sent              []int64 // to bob's device
}

// happen does one thing.
func (w *followed) happen(i int) {
	id := w.rooms[w.rnd.IntN(len(w.rooms))]
	switch n := w.rnd.IntN(22); {
	case n >= 20:
		w.carol.Must("PUT", Path("/sendToDevice/test.message/%s", Txn()), J{"messages": J{w.bob.UserID: J{w.bob.DeviceID: J{"n": i}}}})
		w.sent = append(w.sent, int64(i))
	case n < 6:
		event := w.alice.Text(id, fmt.Sprint(i))
		w.said[id] = append(w.said[id], event)
		if w.in[id] && w.rnd.IntN(3) == 0 {
			w.bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, event), J{})
		}
	case n < 8:
		w.alice.State(id, "m.room.topic", "", J{"topic": fmt.Sprint(i)})
	case n < 10:
		w.alice.State(id, "test.state", fmt.Sprint(w.rnd.IntN(3)), J{"n": i})
	case n < 12:
		if said := w.said[id]; len(said) > 0 {
			w.alice.Redact(id, said[len(said)-1])
			w.said[id] = said[:len(said)-1]
		}
	case n < 14:
		if w.carry[id] = !w.carry[id]; w.carry[id] {
			w.carol.Join(id)
		} else {
			w.carol.Leave(id)
		}
	case n < 15 && w.in[id]:
		w.bob.Leave(id)
		w.in[id] = false
	case n < 16 && w.in[id]:
		action := []string{"kick", "ban"}[w.rnd.IntN(2)]
		w.alice.Change(action, id, w.bob.UserID)
		w.in[id], w.banned[id] = false, action == "ban"
	case n < 19 && !w.in[id]:
		if w.banned[id] {
			w.alice.Change("unban", id, w.bob.UserID)
		}
		w.bob.Join(id)
		w.in[id], w.banned[id] = true, false
	case w.rnd.IntN(5) == 0:
		w.s.Restart()
	}
}

// TestSlidingFollows does things at random while one device follows by two connections of sliding sync, through windows
// that grow, shrink and move, required state that changes, subscriptions, lost answers, new connections and restarts of the
// server, and another by /v3/sync. In the end all know the same, and the connection that reads what is sent to the device
// has got each message once and in order.
func TestSlidingFollows(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		for _, v4 := range []bool{false, true} {
			seed := rand.Uint64()
			t.Logf("seed %d, accepted dialect: %t", seed, v4)
			name := fmt.Sprint(v4)
			w := &followed{
				s: s, rnd: rand.New(rand.NewPCG(seed, 1)),
				alice: s.Register(t, "alice"+name), bob: s.Register(t, "bob"+name), carol: s.Register(t, "carol"+name),
				in: map[string]bool{}, banned: map[string]bool{}, carry: map[string]bool{}, said: map[string][]string{},
			}
			for range 5 {
				w.rooms = append(w.rooms, w.alice.Create(J{"preset": "public_chat"}))
			}
			v3 := w.bob.Login()
			both := []*follower{{Client: w.bob, v4: v4}, {Client: w.bob, v4: v4, name: "encryption", toDevice: true}}
			rooms := map[string]*tracked{}
			for i := range 200 {
				sliding := both[w.rnd.IntN(2)]
				switch n := w.rnd.IntN(20); {
				case n < 14:
					w.happen(i)
				case n < 17:
					room := ""
					if w.rnd.IntN(3) == 0 {
						room = w.rooms[w.rnd.IntN(5)]
					}
					from := w.rnd.IntN(2)
					sliding.sync(from, from+w.rnd.IntN(4), w.rnd.IntN(3) > 0, room)
					if w.rnd.IntN(15) == 0 {
						sliding.pos = ""
					}
				case n < 18:
					sliding.lose(w.rnd.IntN(2), 4, w.rnd.IntN(2) == 0)
				default:
					classic(v3, rooms)
				}
			}
			for range 2 {
				for _, sliding := range both {
					sliding.sync(0, 99, true, "")
				}
				classic(v3, rooms)
			}
			for _, sliding := range both {
				w.compare(t, sliding, rooms)
			}
			if !slices.Equal(both[1].inbox, w.sent) {
				t.Errorf("messages to the device: %v, sent were %v", both[1].inbox, w.sent)
			}
		}
	})
}

// compare compares what the followers know.
func (w *followed) compare(t *testing.T, f *follower, rooms map[string]*tracked) {
	t.Helper()
	for _, id := range w.rooms {
		got, want := f.rooms[id], rooms[id]
		if !w.in[id] {
			if f.v4 && got != nil && got.last == "join" || want != nil && want.last == "join" {
				t.Errorf("%s: bob is not in it; sliding sync says %+v, v3 %+v", id, got, want)
			}
			continue
		}
		if got == nil || want == nil {
			t.Errorf("%s is missing: %v, %v", id, got, want)
			continue
		}
		if !maps.Equal(got.state, want.state) || !slices.Equal(last(got.timeline), last(want.timeline)) || got.joined != want.joined ||
			!f.v4 && got.unread != want.unread {
			t.Errorf("%s\nby sliding sync %v %v joined %d unread %d\nby v3 %v %v joined %d unread %d", id,
				got.state, last(got.timeline), got.joined, got.unread, want.state, last(want.timeline), want.joined, want.unread)
		}
	}
}
