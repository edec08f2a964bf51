package scenario

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestClientsAgree has users do things by chance in rooms with gaps, hidden history, leaving and coming back, while clients
// with different filters sync now and then. What each has put together is what the server says at once.
func TestClientsAgree(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		w := newCrowd(t, s)
		for i := range 90 {
			w.act()
			for range w.IntN(4) {
				w.views[w.IntN(len(w.views))].sync()
			}
			if i%45 == 44 {
				for _, v := range w.views {
					v.sync()
					v.sync() // for what the timeline of the one before has left wrong
					v.compare(t)
				}
			}
		}
	})
}

// crowd are users who do things by chance, the same with each run.
type crowd struct {
	*rand.Rand
	moderator *Client
	users     []*Client
	rooms     []string
	views     []*view
	events    map[string][]string // messages, by room
}

func newCrowd(t *testing.T, s *Server) *crowd {
	w := &crowd{Rand: rand.New(rand.NewPCG(1, 2)), moderator: s.Register(t, "moderator"), events: map[string][]string{}}
	for range 2 {
		w.rooms = append(w.rooms, w.moderator.Create(J{"preset": "public_chat", "power_level_content_override": J{"users_default": 50}}))
	}
	messages := []string{"m.room.message"}
	for _, name := range []string{"ann", "ben", "cyd"} {
		c := s.Register(t, name)
		w.users = append(w.users, c)
		add := func(v *view, timeline J) {
			v.query = Filter(J{"room": J{"timeline": timeline, "state": J{"lazy_load_members": v.lazy}}})
			v.query.Set("use_state_after", fmt.Sprint(v.after))
			v.rooms = map[string]*roomView{}
			w.views = append(w.views, v)
		}
		add(&view{c: c.With(t)}, J{"limit": 1000})
		add(&view{c: c.With(t)}, J{"limit": 1})
		add(&view{c: c.With(t), after: true}, J{"limit": 3})
		add(&view{c: c.With(t), partly: true}, J{"limit": 2, "types": messages})
		add(&view{c: c.With(t), partly: true, after: true}, J{"limit": 2, "types": messages})
		add(&view{c: c.With(t), partly: true}, J{"limit": 1000, "not_types": messages})
		add(&view{c: c.With(t), partly: true, deaf: true}, J{"limit": 20, "not_senders": []string{w.moderator.UserID}})
		add(&view{c: c.Login(), lazy: true}, J{"limit": 3})
		add(&view{c: c.Login(), lazy: true, partly: true}, J{"limit": 3, "types": messages})
	}
	return w
}

// pick is one of some strings.
func (w *crowd) pick(of ...string) string { return of[w.IntN(len(of))] }

// act lets somebody try something. Whether it is allowed is not the question here.
func (w *crowd) act() {
	id := w.rooms[w.IntN(len(w.rooms))]
	user, other := w.users[w.IntN(len(w.users))], w.users[w.IntN(len(w.users))]
	by := user
	if w.IntN(3) == 0 {
		by = w.moderator
	}
	state := func(c *Client, typ, key string, content J) {
		c.Do("PUT", Path("/rooms/%s/state/%s/%s", id, typ, key), content)
	}
	switch n := w.IntN(100); {
	case n < 30:
		a := by.Do("PUT", Path("/rooms/%s/send/m.room.message/%s", id, Txn()), J{"msgtype": "m.text", "body": "hello"})
		if event := a.JSON.Get("event_id").Str; event != "" {
			w.events[id] = append(w.events[id], event)
		}
	case n < 38:
		state(by, "org.example.thing", w.pick("a", "b", "c"), J{"value": w.IntN(2)})
	case n < 44:
		state(w.moderator, "m.room.name", "", J{"name": w.pick("", "one", "two")})
	case n < 48:
		state(w.moderator, "m.room.history_visibility", "", J{"history_visibility": w.pick("shared", "invited", "joined")})
	case n < 52:
		state(user, "m.room.member", user.UserID, J{"membership": "join", "displayname": w.pick("x", "y", "z")})
	case n < 68:
		user.Do("POST", Path("/join/%s", id), J{})
	case n < 75:
		user.Do("POST", Path("/rooms/%s/leave", id), J{})
	case n < 87:
		by.Do("POST", Path("/rooms/%s/"+w.pick("kick", "ban", "unban", "unban", "invite"), id), J{"user_id": other.UserID})
	case n < 93:
		w.receipt(user, id)
	default:
		if events := w.events[id]; len(events) > 0 {
			by.Do("PUT", Path("/rooms/%s/redact/%s/%s", id, events[w.IntN(len(events))], Txn()), J{})
		}
	}
}

// receipt lets a user read up to some message.
func (w *crowd) receipt(user *Client, id string) {
	if events := w.events[id]; len(events) > 0 {
		event := events[w.IntN(len(events))]
		user.Do("POST", Path("/rooms/%s/receipt/%s/%s", id, w.pick("m.read", "m.read.private"), event), J{})
	}
}

// view is what a client with a filter has put together. A partly one does not want all events, a
// deaf one not all that may be unread, a lazy one not all members.
type view struct {
	c                   *Client
	query               url.Values
	after, partly, lazy bool
	deaf                bool
	rooms               map[string]*roomView
}

type roomView struct {
	state         map[string]string // event ids, by type and state key
	summary       map[string]string
	senders       []string
	notifications int64
}

func (v *view) sync() { v.apply(v.c.Sync(v.query)) }

// apply adds an answer to what the client knows.
func (v *view) apply(sync gjson.Result) {
	for _, section := range []string{"leave", "invite"} {
		sync.Get("rooms." + section).ForEach(func(id, _ gjson.Result) bool {
			delete(v.rooms, id.Str)
			return true
		})
	}
	sync.Get("rooms.join").ForEach(func(id, part gjson.Result) bool {
		if v.rooms[id.Str] == nil {
			v.rooms[id.Str] = &roomView{state: map[string]string{}, summary: map[string]string{}}
		}
		v.rooms[id.Str].apply(part)
		return true
	})
}

func (r *roomView) apply(part gjson.Result) {
	events := part.Get("state.events").Array()
	if after := part.Get("state_after.events"); after.Exists() {
		events = after.Array()
	} else {
		events = append(slices.Clip(events), part.Get("timeline.events").Array()...)
	}
	for _, e := range events {
		if key := e.Get("state_key"); key.Exists() {
			r.state[e.Get("type").Str+" "+key.Str] = e.Get("event_id").Str
		}
	}
	for _, e := range part.Get("timeline.events").Array() {
		r.senders = append(r.senders, e.Get("sender").Str)
	}
	part.Get("summary").ForEach(func(key, value gjson.Result) bool {
		r.summary[key.Str] = value.Raw
		return true
	})
	if n := part.Get("unread_notifications.notification_count"); n.Exists() {
		r.notifications = n.Int()
	}
}

const memberPrefix = "m.room.member "

// compare holds what the client knows against an initial sync and the state of its rooms.
func (v *view) compare(t *testing.T) {
	t.Helper()
	who := v.c.UserID + " with " + v.query.Encode()
	fresh := &view{c: v.c.With(t), query: url.Values{}, rooms: map[string]*roomView{}}
	fresh.c.SyncFrom("")
	fresh.sync()
	if got, want := slices.Sorted(maps.Keys(v.rooms)), slices.Sorted(maps.Keys(fresh.rooms)); !slices.Equal(got, want) {
		t.Fatalf("%s: in rooms %q, want %q", who, got, want)
	}
	for id, r := range v.rooms {
		state := map[string]string{}
		for _, e := range v.c.Must("GET", Path("/rooms/%s/state", id), nil).JSON.Array() {
			state[e.Get("type").Str+" "+e.Get("state_key").Str] = e.Get("event_id").Str
		}
		r.agree(t, who, fresh.rooms[id], state, v)
	}
}

// agree compares with what an initial sync says, and with the state.
func (r *roomView) agree(t *testing.T, who string, fresh *roomView, state map[string]string, v *view) {
	t.Helper()
	if !maps.Equal(fresh.state, state) {
		t.Errorf("%s: the state of an initial sync is\n%v, want\n%v", who, fresh.state, state)
	}
	known := maps.Clone(state)
	if v.lazy {
		maps.DeleteFunc(known, func(key, _ string) bool { return strings.HasPrefix(key, memberPrefix) && r.state[key] == "" })
		for _, user := range append(r.senders, r.heroes()...) {
			if r.state[memberPrefix+user] == "" {
				t.Errorf("%s: nothing is known of %s", who, user)
			}
		}
	}
	if !maps.Equal(r.state, known) {
		t.Errorf("%s: the state is\n%v, want\n%v", who, r.state, known)
	}
	if fresh.summary["m.heroes"] == "" { // the name is shown instead
		delete(r.summary, "m.heroes")
	}
	if !maps.Equal(r.summary, fresh.summary) {
		t.Errorf("%s: the summary is %v, want %v", who, r.summary, fresh.summary)
	}
	if !v.deaf && r.notifications != fresh.notifications {
		t.Errorf("%s: %d unread, want %d", who, r.notifications, fresh.notifications)
	}
}

// heroes are the users after whom the room is called.
func (r *roomView) heroes() (users []string) {
	for _, h := range gjson.Parse(r.summary["m.heroes"]).Array() {
		users = append(users, h.Str)
	}
	return users
}
