package scenario

import (
	"bytes"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// lazily is the filter of clients that load members when they need them.
var lazily = harness.Filter(harness.J{"room": harness.J{"state": harness.J{"lazy_load_members": true}}})

// residents are a room of two servers, and a third server whose users want to join it. Nobody tells the third one its
// members before the gate opens.
type residents struct {
	t            *testing.T
	gate         *harness.Gate
	first        *harness.Server // stands behind the gate
	second       *harness.Server
	third        *harness.Server
	owner, guest *harness.Client // of the first and the second
	others       []*harness.Client
	room         string
}

func eachResidents(t *testing.T, fn func(t *testing.T, r *residents)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { fn(t, newResidents(t, d)) })
	}
}

func newResidents(t *testing.T, d storage.Dialect) *residents {
	t.Helper()
	gate, behind := harness.NewGate(t)
	r := &residents{t: t, gate: gate, first: harness.Start(t, storage.SQLite, behind)}
	r.second, r.third = harness.Federation(t, storage.SQLite, 1)[0], harness.Federation(t, d, 1)[0]
	r.owner, r.guest = r.first.Register(t, "owner"), r.second.Register(t, "guest")
	r.room = r.owner.Create(harness.J{"preset": "public_chat", "name": "Hall"})
	for _, name := range []string{"ann", "ben"} {
		c := r.first.Register(t, name)
		c.Join(r.room)
		r.others = append(r.others, c)
	}
	r.joinBy(r.guest, r.first)
	r.members(r.guest) // which waits until the second server knows them
	gate.Hold("/state")
	return r
}

// joinBy joins the room through a server.
func (r *residents) joinBy(c *harness.Client, server *harness.Server) {
	r.t.Helper()
	c.Must("POST", harness.Path("/join/%s?server_name=", r.room)+url.QueryEscape(server.Name), harness.J{})
}

// members are the joined members that a client is told.
func (r *residents) members(c *harness.Client) (ids []string) {
	r.t.Helper()
	for _, e := range c.Must("GET", harness.Path("/rooms/%s/members?membership=join", r.room), nil).JSON.Get("chunk").Array() {
		ids = append(ids, e.Get("state_key").Str)
	}
	slices.Sort(ids)
	return ids
}

// all are the ids of clients, sorted.
func all(clients ...*harness.Client) (ids []string) {
	for _, c := range clients {
		ids = append(ids, c.UserID)
	}
	slices.Sort(ids)
	return ids
}

// until syncs with a filter from a token until the room's part of an answer fulfils a condition, and returns both.
func (r *residents) until(c *harness.Client, token *string, filter url.Values, what string, done func(room gjson.Result) bool) gjson.Result {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		q := url.Values{"timeout": {"1000"}}
		for k, v := range filter {
			q[k] = v
		}
		c.SyncFrom(*token)
		room := harness.Room(c.Sync(q), "join", r.room)
		if *token = c.Since(); done(room) {
			return room
		}
	}
	r.t.Fatalf("%s: not in half a minute of sync", what)
	return gjson.Result{}
}

// shows tells whether a room's timeline has an event.
func shows(id string) func(gjson.Result) bool {
	return func(room gjson.Result) bool { return slices.Contains(harness.IDs(room.Get("timeline.events")), id) }
}

// A user is in a room, sends and receives, while nobody has told their server the members yet (MSC3902).
func TestJoinBeforeTheMembersAreKnown(t *testing.T) {
	eachResidents(t, func(t *testing.T, r *residents) {
		user := r.third.Register(t, "user")
		user.Sync(nil)
		eager, lazy := user.Since(), user.Since()
		r.joinBy(user, r.first)

		room := r.until(user, &lazy, lazily, "the join", gjson.Result.Exists)
		if !harness.Find(room.Get("state.events"), "m.room.name", "").Exists() {
			t.Errorf("no name: %s", room)
		}
		user.SyncFrom(eager)
		if got := harness.Room(user.Sync(nil), "join", r.room); got.Exists() {
			t.Errorf("a client that wants all members is shown the room: %s", got)
		}
		eager = user.Since()

		eagerly := &slider{Client: user, name: "eager"}
		wish := harness.J{"lists": list(0, 9, 5, everything)}
		if got := slid(eagerly.sync(wish), r.room); got.Exists() {
			t.Errorf("a sliding client that wants all members is shown the room: %s", got)
		}
		sent := user.Text(r.room, "hello")
		for _, c := range []*harness.Client{r.owner, r.guest} {
			c.Until("the message", func(sync gjson.Result) bool { return shows(sent)(harness.Room(sync, "join", r.room)) })
		}
		answer := r.others[0].Text(r.room, "hello yourself")
		room = r.until(user, &lazy, lazily, "the answer", shows(answer))
		asked := harness.J{"lists": list(0, 9, 5, harness.J{"include": []harness.J{{}}, "lazy_members": true})}
		got := slid((&slider{Client: user, name: "lazy"}).sync(asked), r.room)
		if !harness.Find(got.Get("required_state"), "m.room.member", r.others[0].UserID).Exists() {
			t.Errorf("sliding: the sender of the answer has no membership: %s", got)
		}
		if !harness.Find(room.Get("state.events"), "m.room.member", r.others[0].UserID).Exists() {
			t.Errorf("the sender of the answer has no membership: %s", room)
		}
		r.refusesOthers(user)

		second := r.third.Register(t, "another")
		r.joinBy(second, r.first)
		joined := r.owner.Until("the second join", func(sync gjson.Result) bool {
			return harness.Find(harness.Room(sync, "join", r.room).Get("timeline.events"), "m.room.member", second.UserID).Exists()
		})
		if joined.Raw == "" {
			t.Error("the second join did not arrive")
		}

		r.third.Restart()
		r.until(user, &lazy, lazily, "a message after the restart", shows(r.others[1].Text(r.room, "still here?")))
		user.SyncFrom(eager)
		if got := harness.Room(user.Sync(nil), "join", r.room); got.Exists() {
			t.Errorf("after a restart, a client that wants all members is shown the room: %s", got)
		}
		eager = user.Since()

		members := make(chan []string, 1)
		go func() { members <- r.members(user) }()
		r.until(user, &lazy, lazily, "a message while somebody waits for the members", shows(r.owner.Text(r.room, "wait")))
		r.gate.Open()
		want := all(append(r.others, r.owner, r.guest, user, second)...)
		if got := <-members; !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
		room = r.until(user, &eager, nil, "the room with its members", gjson.Result.Exists)
		for _, id := range want {
			if !harness.Find(room.Get("state.events"), "m.room.member", id).Exists() && !harness.Find(room.Get("timeline.events"), "m.room.member", id).Exists() {
				t.Errorf("%s is missing in %s", id, room)
			}
		}
		if count := room.Get(`summary.m\.joined_member_count`).Int(); count != int64(len(want)) {
			t.Errorf("%d members in the summary, want %d", count, len(want))
		}
		room = slid(eagerly.sync(wish), r.room)
		for _, id := range want {
			if !harness.Find(room.Get("required_state"), "m.room.member", id).Exists() {
				t.Errorf("sliding: %s is missing in %s", id, room)
			}
		}
		r.findsMembers(user)
	})
}

// restricted is the state of a room that the members of another may join.
func restricted(room string) []harness.J {
	return []harness.J{{"type": "m.room.join_rules", "state_key": "", "content": harness.J{
		"join_rule": "restricted", "allow": []harness.J{{"type": "m.room_membership", "room_id": room}},
	}}}
}

// refusesOthers checks that a server which does not know the members lets nobody else in, nor tells its state, nor who may
// enter a room of a user of its that those members may join.
func (r *residents) refusesOthers(user *harness.Client) {
	r.t.Helper()
	peer := harness.NewPeer(r.t, nil)
	for _, what := range []string{"join", "knock"} {
		got := peer.Do(r.third, "GET", fed("/v1/make_"+what+"/%s/%s?ver=10&ver=11&ver=12", r.room, "@x:"+peer.Name), nil)
		if got.Status != http.StatusNotFound || got.Code() != "M_NOT_FOUND" {
			r.t.Errorf("make_%s: %v", what, got)
		}
	}
	inner := user.Create(harness.J{"preset": "private_chat", "initial_state": restricted(r.room)})
	if got := peer.Do(r.third, "GET", fed("/v1/make_join/%s/%s?ver=10&ver=11&ver=12", inner, "@x:"+peer.Name), nil); got.Code() != "M_UNABLE_TO_AUTHORISE_JOIN" {
		r.t.Errorf("make_join of a room for the members: %v", got)
	}
	if got := peer.Do(r.third, "GET", fed("/v1/state_ids/%s?event_id=%s", r.room, "$x"), nil); got.Status != http.StatusForbidden || got.Code() != "M_UNABLE_DUE_TO_PARTIAL_STATE" {
		r.t.Errorf("state_ids: %v", got)
	}
}

// findsMembers checks that the user directory knows those whom nobody has heard of.
func (r *residents) findsMembers(c *harness.Client) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		found := c.Must("POST", harness.Path("/user_directory/search"), harness.J{"search_term": "owner"}).JSON.Get("results.0.user_id").Str
		if found == r.owner.UserID {
			return
		}
	}
	r.t.Error("the user directory does not find a member")
}

// The members come from another server if the one that let us in does not tell them.
func TestMembersFromAnotherServer(t *testing.T) {
	eachResidents(t, func(t *testing.T, r *residents) {
		r.gate.Open()
		r.gate.Refuse("/state", http.StatusInternalServerError)
		user := r.third.Register(t, "user")
		r.joinBy(user, r.first)
		if got, want := r.members(user), all(append(r.others, r.owner, r.guest, user)...); !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
	})
}

// Who leaves before the members are known has left at once, and can come back.
func TestLeaveBeforeTheMembersAreKnown(t *testing.T) {
	eachResidents(t, func(t *testing.T, r *residents) {
		user := r.third.Register(t, "user")
		r.joinBy(user, r.first)
		r.owner.Sync(nil)
		user.Leave(r.room)
		r.owner.Until("the leave", func(sync gjson.Result) bool {
			e := harness.Find(harness.Room(sync, "join", r.room).Get("timeline.events"), "m.room.member", user.UserID)
			return e.Get("content.membership").Str == "leave"
		})
		r.owner.Text(r.room, "gone")
		r.gate.Open()
		r.joinBy(user, r.first)
		if got, want := r.members(user), all(append(r.others, r.owner, r.guest, user)...); !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
	})
}

// A member's devices that change before it is known that they are a member are told of afterwards, and no others, since the
// room is not encrypted.
func TestDevicesThatChangeBeforeTheMembersAreKnown(t *testing.T) {
	eachResidents(t, func(t *testing.T, r *residents) {
		user, ann := r.third.Register(t, "user"), r.others[0]
		r.joinBy(user, r.first)
		user.Sync(lazily)
		ann.Must("PUT", harness.Path("/devices/%s", ann.DeviceID), harness.J{"display_name": "Renamed"})
		said := r.others[1].Text(r.room, "renamed") // goes the same way
		var told []string
		sync := func() gjson.Result {
			q := url.Values{"timeout": {"1000"}, "filter": lazily["filter"]}
			got := user.Sync(q)
			for _, id := range got.Get("device_lists.changed").Array() {
				told = append(told, id.Str)
			}
			return harness.Room(got, "join", r.room)
		}
		for end := time.Now().Add(time.Minute); !shows(said)(sync()); {
			if time.Now().After(end) {
				t.Fatal("the message does not arrive")
			}
		}
		r.gate.Open()
		r.members(user)
		for end := time.Now().Add(time.Minute); !slices.Contains(told, ann.UserID); sync() {
			if time.Now().After(end) {
				t.Fatalf("the change is not told; told of %v", told)
			}
		}
		if slices.Contains(told, r.owner.UserID) {
			t.Errorf("told of %v", told)
		}
	})
}

// A server that nobody named among those in the room gets what was sent before its members were known, also if it cannot be
// reached then and this server is started again.
func TestMessagesForServersThatWereNotNamed(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			gate, behind := harness.NewGate(t)
			link, linked := harness.Linked(t)
			r := &residents{t: t, gate: gate, first: harness.Start(t, storage.SQLite, behind)}
			r.second = harness.Start(t, storage.SQLite, harness.Federating(t), linked)
			r.third = harness.Federation(t, d, 1)[0]
			r.owner, r.guest = r.first.Register(t, "owner"), r.second.Register(t, "guest")
			r.room = r.owner.Create(harness.J{"preset": "public_chat", "name": "Hall"})
			r.joinBy(r.guest, r.first)
			r.members(r.guest)
			gate.Hold("/state")
			gate.Change("/send_join/", func(answer []byte) []byte {
				all := gjson.GetBytes(answer, "servers_in_room").Raw
				if !strings.Contains(all, r.second.Name) {
					t.Errorf("servers in the room: %s", all)
				}
				return bytes.Replace(answer, []byte(all), []byte(`["`+r.first.Name+`"]`), 1)
			})
			user := r.third.Register(t, "user")
			r.joinBy(user, r.first)
			wait(t, "the second server knows of the join", func() bool { return membership(r.guest, r.room, user.UserID) == "join" })
			r.guest.Sync(nil)
			sent := []string{user.Text(r.room, "hello"), user.Text(r.room, "hello?")}
			r.owner.Until("the messages", func(sync gjson.Result) bool { return shows(sent[1])(harness.Room(sync, "join", r.room)) })
			link.Cut()
			gate.Open()
			r.members(user)
			r.third.Restart()
			link.Heal()
			r.guest.Text(r.room, "back") // so that its server is tried again soon
			r.guest.Until("the messages", func(sync gjson.Result) bool {
				sent = slices.DeleteFunc(sent, func(id string) bool { return shows(id)(harness.Room(sync, "join", r.room)) })
				return len(sent) == 0
			})
		})
	}
}
