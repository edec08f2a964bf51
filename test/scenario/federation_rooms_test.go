package scenario

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// joinThrough joins a room with the help of another server. One that has only just entered the room itself lets nobody in
// before it knows all members.
func joinThrough(t *testing.T, c *harness.Client, room string, via *harness.Server) {
	t.Helper()
	path := harness.Path("/join/%s?", room) + url.Values{"server_name": {via.Name}}.Encode()
	var a *harness.Answer
	within(t, "the join through "+via.Name, func() bool {
		a = c.Do("POST", path, harness.J{})
		return a.Status != 404
	})
	if a.Status != 200 {
		t.Fatalf("join through %s: %v", via.Name, a)
	}
}

// members lists the joined members that a user sees.
func members(c *harness.Client, room string) []string {
	var out []string
	for user := range c.Must("GET", harness.Path("/rooms/%s/joined_members", room), nil).JSON.Get("joined").Map() {
		out = append(out, user)
	}
	slices.Sort(out)
	return out
}

func sorted(list ...string) []string {
	slices.Sort(list)
	return list
}

func TestJoinARoomOfAnotherServer(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		for _, version := range []string{"1", "10", "12"} {
			room := alice.Create(harness.J{"preset": "public_chat", "name": "The room", "room_version": version})
			var sent []string
			for range 25 {
				sent = append(sent, alice.Text(room, "before the join"))
			}
			joinThrough(t, bob, room, servers[0])
			// It is shown once its members are known.
			joined := harness.Room(bob.Until("the room", func(r gjson.Result) bool { return harness.Room(r, "join", room).Exists() }), "join", room)
			if n := harness.Find(joined.Get("state.events"), "m.room.name", ""); n.Get("content.name").Str != "The room" {
				t.Errorf("version %s: state of the joined room: %s", version, joined.Get("state.events").Raw)
			}
			if !joined.Get("timeline.limited").Bool() {
				t.Errorf("version %s: the first timeline is not limited: %s", version, joined.Get("timeline").Raw)
			}
			for _, c := range []*harness.Client{alice, bob} {
				if got, want := members(c, room), sorted(alice.UserID, bob.UserID); !slices.Equal(got, want) {
					t.Errorf("version %s: %s sees the members %v, want %v", version, c.UserID, got, want)
				}
			}
			// The history that was before the join comes from the other server.
			var got []string
			for _, id := range bob.Walk(room, "", "b", 10) {
				if slices.Contains(sent, id) {
					got = append(got, id)
				}
			}
			slices.Reverse(got)
			if !slices.Equal(got, sent) {
				t.Errorf("version %s: %d of %d messages in the history, or not in their order", version, len(got), len(sent))
			}
			if all, theirs := alice.Walk(room, "", "b", 100), bob.Walk(room, "", "b", 100); !slices.Equal(all, theirs) {
				t.Errorf("version %s: histories differ: %v and %v", version, all, theirs)
			}
		}
	})
}

func TestJoinThatIsRefused(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "private_chat"})
		via := url.Values{"server_name": {servers[0].Name}}.Encode()
		bob.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s?", room)+via, harness.J{})
		bob.Refused(404, "M_NOT_FOUND", "POST", harness.Path("/join/%s?", "!nothing:"+servers[0].Name)+via, harness.J{})
		public := alice.Create(harness.J{"preset": "public_chat"})
		alice.Change("ban", public, bob.UserID)
		bob.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s?", public)+via, harness.J{})
		acl := alice.Create(harness.J{"preset": "public_chat", "initial_state": []harness.J{{
			"type": "m.room.server_acl", "state_key": "", "content": harness.J{"allow": []string{"*"}, "deny": []string{"localhost"}},
		}}})
		bob.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s?", acl)+via, harness.J{})
	})
}

// invited waits for an invite and returns its stripped state.
func invited(c *harness.Client, room string) gjson.Result {
	return harness.Room(c.Until("an invite", func(r gjson.Result) bool { return harness.Room(r, "invite", room).Exists() }), "invite", room).Get("invite_state.events")
}

func TestInviteToAnotherServer(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		for _, version := range []string{"2", "11", "12"} {
			room := alice.Create(harness.J{"preset": "private_chat", "name": "Secret", "room_version": version})
			alice.Change("invite", room, bob.UserID)
			state := invited(bob, room)
			create := harness.Find(state, "m.room.create", "")
			if !create.Get("origin_server_ts").Exists() || harness.Find(state, "m.room.name", "").Get("content.name").Str != "Secret" ||
				harness.Find(state, "m.room.member", bob.UserID).Get("content.membership").Str != "invite" {
				t.Errorf("version %s: invite state %s", version, state.Raw)
			}
			bob.Join(room) // through the server of who invited
			if got, want := members(bob, room), sorted(alice.UserID, bob.UserID); !slices.Equal(got, want) {
				t.Errorf("version %s: members %v, want %v", version, got, want)
			}
			if r := harness.Room(bob.Sync(nil), "join", room); !r.Exists() {
				t.Errorf("version %s: the room is not among those joined", version)
			}
			// And with the creation of a room.
			room = alice.Create(harness.J{"preset": "trusted_private_chat", "room_version": version, "invite": []string{bob.UserID}, "is_direct": true})
			if state := invited(bob, room); !harness.Find(state, "m.room.member", bob.UserID).Get("content.is_direct").Bool() {
				t.Errorf("version %s: invite of a direct chat: %s", version, state.Raw)
			}
			bob.Leave(room)
			r := bob.Until("the rejection", func(r gjson.Result) bool { return harness.Room(r, "leave", room).Exists() })
			if harness.Room(r, "invite", room).Exists() {
				t.Errorf("version %s: the rejected invite is still there", version)
			}
			got := alice.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", room, bob.UserID), nil).JSON
			if got.Get("membership").Str != "leave" {
				t.Errorf("version %s: after the rejection the inviting server sees %s", version, got.Raw)
			}
		}
	})
}

func TestRejectAnInviteOfAServerThatIsGone(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "private_chat"})
		alice.Change("invite", room, bob.UserID)
		invited(bob, room)
		servers[0].Stop()
		bob.Leave(room)
		bob.Until("the rejection", func(r gjson.Result) bool { return harness.Room(r, "leave", room).Exists() })
	})
}

func TestInviteThatIsBlocked(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		bob.Must("PUT", harness.Path("/user/%s/account_data/m.invite_permission_config", bob.UserID), harness.J{"default_action": "block"})
		room := alice.Create(harness.J{"preset": "private_chat"})
		alice.Refused(403, "M_INVITE_BLOCKED", "POST", harness.Path("/rooms/%s/invite", room), harness.J{"user_id": bob.UserID})
		alice.Refused(404, "M_NOT_FOUND", "POST", harness.Path("/rooms/%s/invite", room), harness.J{"user_id": "@nobody:" + servers[1].Name})
		got := alice.Do("GET", harness.Path("/rooms/%s/state/m.room.member/%s", room, bob.UserID), nil)
		if got.Status != 404 {
			t.Errorf("after an invite that was refused there is a membership: %v", got)
		}
	})
}

func TestKnockOnARoomOfAnotherServer(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "private_chat", "name": "Door", "initial_state": []harness.J{{
			"type": "m.room.join_rules", "state_key": "", "content": harness.J{"join_rule": "knock"},
		}}})
		path := harness.Path("/knock/%s?", room) + url.Values{"via": {servers[0].Name}}.Encode()
		bob.Must("POST", path, harness.J{"reason": "let me in"})
		state := harness.Room(bob.Sync(nil), "knock", room).Get("knock_state.events")
		if harness.Find(state, "m.room.name", "").Get("content.name").Str != "Door" {
			t.Errorf("knock state %s", state.Raw)
		}
		seen := func(want string) {
			t.Helper()
			got := alice.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", room, bob.UserID), nil).JSON
			if got.Get("membership").Str != want {
				t.Errorf("the room's server sees %s, want %s", got.Raw, want)
			}
		}
		seen("knock")
		bob.Leave(room)
		seen("leave")
		bob.Must("POST", path, harness.J{})
		alice.Change("invite", room, bob.UserID)
		invited(bob, room)
		bob.Join(room)
		seen("join")
		private := alice.Create(harness.J{"preset": "private_chat"})
		bob.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/knock/%s?", private)+url.Values{"via": {servers[0].Name}}.Encode(), harness.J{})
	})
}

func TestRestrictedRoomOfAnotherServer(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		for _, version := range []string{"8", "12"} {
			space := alice.Create(harness.J{"preset": "public_chat", "room_version": version})
			room := alice.Create(harness.J{"preset": "private_chat", "room_version": version, "initial_state": restricted(space)})
			via := url.Values{"server_name": {servers[0].Name}}.Encode()
			bob.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s?", room)+via, harness.J{})
			joinThrough(t, bob, space, servers[0])
			joinThrough(t, bob, room, servers[0])
			content := bob.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", room, bob.UserID), nil).JSON
			if content.Get("join_authorised_via_users_server").Str != alice.UserID {
				t.Errorf("version %s: the join is %s", version, content.Raw)
			}
		}
	})
}

// A user joins a space that their server is in and, before the only server that can let them into one of its restricted rooms
// has heard of that, this room.
func TestRestrictedRoomRightAfterItsSpace(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			gate, behind := harness.NewGate(t)
			first, second := harness.Start(t, storage.SQLite, behind), harness.Federation(t, d, 1)[0]
			alice, bob, carol := first.Register(t, "alice"), second.Register(t, "bob"), second.Register(t, "carol")
			space := alice.Create(harness.J{"preset": "public_chat"})
			room := alice.Create(harness.J{"preset": "private_chat", "initial_state": restricted(space)})
			joinThrough(t, bob, space, first)
			members(bob, space) // which waits until all are known
			gate.Hold("/send/")
			gate.Change("/make_join/", func(answer []byte) []byte {
				gate.Open() // once it has refused
				return answer
			})
			carol.Join(space)
			joinThrough(t, carol, room, first)
			if got, want := members(alice, room), sorted(alice.UserID, carol.UserID); !slices.Equal(got, want) {
				t.Errorf("members %v, want %v", got, want)
			}
			dave := second.Register(t, "dave")
			dave.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s?server_name=", room)+url.QueryEscape(first.Name), harness.J{})
		})
	}
}

// A join that was refused for good is not tried again, although the user has just joined another room: the server that refuses
// let them into that one itself, or is not in it.
func TestRefusedJoinsAreNotTriedAgain(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			gate, behind := harness.NewGate(t)
			first, second := harness.Start(t, storage.SQLite, behind), harness.Federation(t, d, 1)[0]
			alice, bob, carol := first.Register(t, "alice"), second.Register(t, "bob"), second.Register(t, "carol")
			open, closed := alice.Create(harness.J{"preset": "public_chat"}), alice.Create(harness.J{"preset": "private_chat"})
			var asked atomic.Int32
			gate.Change("/make_join/", func(answer []byte) []byte {
				asked.Add(1)
				return answer
			})
			refused := func(c *harness.Client, after string) {
				asked.Store(0)
				c.Refused(403, "M_FORBIDDEN", "POST", harness.Path("/join/%s?server_name=", closed)+url.QueryEscape(first.Name), harness.J{})
				if n := asked.Load(); n != 1 {
					t.Errorf("after %s: the server was asked %d times", after, n)
				}
			}
			joinThrough(t, bob, open, first)
			refused(bob, "a room that the same server let them into")
			carol.Create(harness.J{})
			refused(carol, "a room that the server is not in")
		})
	}
}

// A server that refuses a user, because it has not been told yet that they have joined another room, is asked again also after it
// was told: it needs time to judge the join.
func TestRefusedJoinIsTriedAgainWhileAnotherIsJudged(t *testing.T) {
	t.Parallel() // it waits most of the time
	server := harness.Federation(t, storage.SQLite, 1)[0]
	alice, carol := server.Register(t, "alice"), server.Register(t, "carol")
	space := alice.Create(harness.J{"preset": "public_chat"})
	peer := harness.NewPeer(t, nil)
	enter(t, peer, server, space)
	var asked atomic.Int32
	told := make(chan struct{})
	peer.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		status, answer := http.StatusNotFound, `{"errcode":"M_NOT_FOUND","error":"Not here"}`
		switch {
		case strings.Contains(r.URL.Path, "/send/"):
			select {
			case <-told:
			case <-r.Context().Done():
			}
			status, answer = http.StatusOK, `{"pdus":{}}`
		case strings.Contains(r.URL.Path, "/make_join/"):
			n := asked.Add(1)
			if n < 3 {
				status, answer = http.StatusForbidden, `{"errcode":"M_FORBIDDEN","error":"The user is in none of the rooms"}`
			}
			if n == 2 {
				close(told)
				time.Sleep(200 * time.Millisecond) // enough for the server to see that
			}
		}
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, answer)
	}))
	carol.Join(space)
	time.Sleep(1100 * time.Millisecond) // for so long, a join is taken to be judged yet in any case
	carol.Refused(404, "M_NOT_FOUND", "POST", harness.Path("/join/%s?server_name=", "!restricted:"+peer.Name)+url.QueryEscape(peer.Name), harness.J{})
	if n := asked.Load(); n != 3 {
		t.Errorf("the server was asked %d times", n)
	}
}

// A user whom another server refuses comes in by one of their own server's, who turns out to be allowed to let them in.
func TestRestrictedRoomByWhoMayInviteMeanwhile(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			firstGate, beforeFirst := harness.NewGate(t)
			secondGate, beforeSecond := harness.NewGate(t)
			first, second := harness.Start(t, storage.SQLite, beforeFirst), harness.Start(t, d, beforeSecond)
			alice, bob, carol := first.Register(t, "alice"), second.Register(t, "bob"), second.Register(t, "carol")
			space := alice.Create(harness.J{"preset": "public_chat"})
			room := alice.Create(harness.J{
				"preset": "private_chat", "room_version": "11", "initial_state": restricted(space), "power_level_content_override": harness.J{"invite": 50},
			})
			for _, id := range []string{space, room} {
				joinThrough(t, bob, id, first)
				members(bob, id) // which waits until all are known
			}
			firstGate.Hold("/send/")
			secondGate.Hold("/send/")
			firstGate.Change("/make_join/", func(answer []byte) []byte {
				secondGate.Open() // once the first server has refused
				return answer
			})
			carol.Join(space)
			alice.State(room, "m.room.power_levels", "", harness.J{"invite": 50, "users": harness.J{alice.UserID: 100, bob.UserID: 50}})
			carol.Join(room)
			content := carol.Must("GET", harness.Path("/rooms/%s/state/m.room.member/%s", room, carol.UserID), nil).JSON
			if got := content.Get("join_authorised_via_users_server").Str; got != bob.UserID {
				t.Errorf("let in by %q", got)
			}
		})
	}
}

// The last user of a server leaves a room and comes back to what it has become.
func TestComeBackToARoomOfAnotherServer(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		joinThrough(t, bob, room, servers[0])
		bob.Sync(nil)
		bob.Leave(room)
		alice.Until("the other server's user to leave", func(gjson.Result) bool { return len(members(alice, room)) == 1 })
		alice.State(room, "m.room.topic", "", harness.J{"topic": "changed meanwhile"})
		said := alice.Text(room, "meanwhile")
		joinThrough(t, bob, room, servers[0])
		topic := bob.Must("GET", harness.Path("/rooms/%s/state/m.room.topic", room), nil).JSON
		if topic.Get("topic").Str != "changed meanwhile" {
			t.Errorf("topic %s", topic.Raw)
		}
		if !slices.Contains(bob.Walk(room, "", "b", 20), said) {
			t.Error("what was said meanwhile is not in the history")
		}
		servers[1].Restart()
		if got, want := members(bob, room), sorted(alice.UserID, bob.UserID); !slices.Equal(got, want) {
			t.Errorf("members after a restart %v, want %v", got, want)
		}
	})
}
