package scenario

import (
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// membership is what the room's state says of a user, as another member sees it.
func membership(c *Client, id, user string) string {
	a := c.Do("GET", Path("/rooms/%s/state/m.room.member/%s", id, user), nil)
	return a.JSON.Get("membership").Str
}

func TestMemberships(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "private_chat"})
		action := func(c *Client, what, user string) *Answer {
			return c.Do("POST", Path("/rooms/%s/"+what, id), J{"user_id": user, "reason": "because"})
		}
		steps := []struct {
			who          *Client
			what         string
			whom         *Client
			status       int
			code, result string // result is the membership afterwards
		}{
			{bob, "join", bob, 403, "M_FORBIDDEN", ""},
			{bob, "leave", bob, 403, "M_FORBIDDEN", ""}, // never was in it
			{carol, "invite", bob, 403, "M_FORBIDDEN", ""},
			{alice, "invite", bob, 200, "", "invite"},
			{alice, "invite", bob, 200, "", "invite"},
			{bob, "leave", bob, 200, "", "leave"}, // rejects the invite
			{bob, "join", bob, 403, "M_FORBIDDEN", "leave"},
			{alice, "invite", bob, 200, "", "invite"},
			{alice, "kick", bob, 200, "", "leave"}, // takes the invite back
			{alice, "invite", bob, 200, "", "invite"},
			{bob, "join", bob, 200, "", "join"},
			{bob, "join", bob, 200, "", "join"},
			{alice, "invite", bob, 403, "M_FORBIDDEN", "join"},
			{bob, "kick", alice, 403, "M_FORBIDDEN", "join"},
			{bob, "ban", alice, 403, "M_FORBIDDEN", "join"},
			{bob, "invite", carol, 200, "", "invite"},
			{alice, "kick", bob, 200, "", "leave"},
			{bob, "leave", bob, 200, "", "leave"},
			{alice, "kick", bob, 403, "M_FORBIDDEN", "leave"},
			{alice, "ban", bob, 200, "", "ban"},
			{alice, "invite", bob, 403, "M_FORBIDDEN", "ban"},
			{bob, "join", bob, 403, "M_FORBIDDEN", "ban"},
			{alice, "kick", bob, 403, "M_FORBIDDEN", "ban"},
			{alice, "unban", bob, 200, "", "leave"},
			{alice, "unban", bob, 403, "M_FORBIDDEN", "leave"},
			{alice, "invite", bob, 200, "", "invite"},
			{alice, "ban", bob, 200, "", "ban"},
			{alice, "unban", bob, 200, "", "leave"},
		}
		for i, step := range steps {
			a := action(step.who, step.what, step.whom.UserID)
			if a.Status != step.status || a.Code() != step.code {
				t.Errorf("step %d: %s %s %s: %v, want %d %s", i, step.who.UserID, step.what, step.whom.UserID, a, step.status, step.code)
			}
			if got := membership(alice, id, step.whom.UserID); got != step.result && step.whom != alice {
				t.Errorf("step %d: %s %s %s: membership %q, want %q", i, step.who.UserID, step.what, step.whom.UserID, got, step.result)
			}
		}
		if reason := alice.Must("GET", Path("/rooms/%s/state/m.room.member/%s", id, bob.UserID), nil).JSON.Get("reason").Str; reason != "because" {
			t.Errorf("the reason became %q", reason)
		}
		carol.Refused(403, "M_FORBIDDEN", "PUT", Path("/rooms/%s/send/m.room.message/1", id), J{"body": "x"})
	})
}

func TestKnocking(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		closed := alice.Create(J{"preset": "private_chat"})
		bob.Refused(403, "M_FORBIDDEN", "POST", Path("/knock/%s", closed), J{})
		id := alice.Create(J{"preset": "private_chat", "name": "Door", "initial_state": []J{
			{"type": "m.room.join_rules", "content": J{"join_rule": "knock"}},
		}})
		alice.Sync(nil)
		bob.Refused(403, "M_FORBIDDEN", "POST", Path("/join/%s", id), J{})
		a := bob.Must("POST", Path("/knock/%s", id), J{"reason": "let me in"})
		if a.JSON.Get("room_id").Str != id {
			t.Errorf("knocking answers %v", a)
		}
		knock := Room(bob.Sync(nil), "knock", id).Get("knock_state.events")
		if Find(knock, "m.room.name", "").Get("content.name").Str != "Door" || Find(knock, "m.room.member", bob.UserID).Get("content.membership").Str != "knock" {
			t.Errorf("the one who knocks sees %s", knock)
		}
		e := timeline(alice.Sync(nil), id).Array()
		if len(e) != 1 || e[0].Get("content.membership").Str != "knock" || e[0].Get("content.reason").Str != "let me in" {
			t.Errorf("the members see %v", e)
		}
		bob.Leave(id) // takes it back
		if left := Room(bob.Sync(nil), "leave", id); !left.Exists() {
			t.Error("a knock that was taken back is not in the leave section")
		}
		bob.Must("POST", Path("/knock/%s", id), J{})
		alice.Change("invite", id, bob.UserID)
		bob.Join(id)
		bob.Refused(403, "M_FORBIDDEN", "POST", Path("/knock/%s", id), J{})
		if !room(bob.Sync(nil), id).Exists() {
			t.Error("the room is not in the join section")
		}
	})
}

func TestRestrictedRooms(t *testing.T) {
	for _, version := range []string{"8", "9", "10", "11", "12"} {
		t.Run(version, func(t *testing.T) {
			Each(t, func(t *testing.T, s *Server) {
				alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
				space := alice.Create(J{"preset": "public_chat", "room_version": version, "creation_content": J{"type": "m.space"}})
				rules := func(rule string) J {
					return J{"join_rule": rule, "allow": []J{{"type": "m.room_membership", "room_id": space}, {"type": "unknown"}}}
				}
				id := alice.Create(J{"preset": "private_chat", "room_version": version, "initial_state": []J{
					{"type": "m.room.join_rules", "content": rules("restricted")},
				}})
				bob.Refused(403, "M_FORBIDDEN", "POST", Path("/join/%s", id), J{})
				bob.Join(space)
				bob.Join(id)
				e := alice.Must("GET", Path("/rooms/%s/state/m.room.member/%s", id, bob.UserID), nil).JSON
				if e.Get("join_authorised_via_users_server").Str != alice.UserID {
					t.Errorf("the join is authorised by nobody: %s", e)
				}
				// A client changes its name in the event that it has.
				bob.State(id, "m.room.member", bob.UserID, J{"membership": "join", "displayname": "Bobby", "join_authorised_via_users_server": "unused"})
				bob.Leave(space)
				bob.Text(id, "leaving the space leaves the room alone")
				bob.Leave(id)
				bob.Refused(403, "M_FORBIDDEN", "POST", Path("/join/%s", id), J{})
				alice.Change("invite", id, bob.UserID)
				bob.Join(id)
				if version < "8" || version == "8" || version == "9" {
					return
				}
				alice.State(id, "m.room.join_rules", "", rules("knock_restricted"))
				bob.Leave(id)
				bob.Must("POST", Path("/knock/%s", id), J{})
				bob.Join(space)
				bob.Join(id)
			})
		})
	}
}

func TestAliases(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "room_alias_name": "first"})
		first, second := "#first:"+s.Name, "#sec/ond é:"+s.Name
		if got := alice.Must("GET", Path("/rooms/%s/state/m.room.canonical_alias/", id), nil).JSON.Get("alias").Str; got != first {
			t.Errorf("the canonical alias is %q", got)
		}
		nobody := s.Client(t)
		got := nobody.Must("GET", Path("/directory/room/%s", first), nil).JSON
		if got.Get("room_id").Str != id || got.Get("servers.0").Str != s.Name {
			t.Errorf("the alias leads to %s", got)
		}
		bob.Join(first)
		bob.Must("PUT", Path("/directory/room/%s", second), J{"room_id": id})
		bob.Refused(409, "M_UNKNOWN", "PUT", Path("/directory/room/%s", second), J{"room_id": id})
		nobody.Must("GET", Path("/directory/room/%s", second), nil)
		list := bob.Must("GET", Path("/rooms/%s/aliases", id), nil).JSON.Get("aliases").Array()
		if len(list) != 2 {
			t.Errorf("the room has the aliases %v", list)
		}
		bob.Refused(403, "M_FORBIDDEN", "DELETE", Path("/directory/room/%s", first), nil)
		alice.State(id, "m.room.canonical_alias", "", J{"alias": first, "alt_aliases": []string{second}})
		alice.Refused(400, "M_BAD_ALIAS", "PUT", Path("/rooms/%s/state/m.room.canonical_alias", id), J{"alias": "#nobody:" + s.Name})
		alice.Refused(400, "M_INVALID_PARAM", "PUT", Path("/rooms/%s/state/m.room.canonical_alias", id), J{"alias": "no alias"})
		alice.Must("DELETE", Path("/directory/room/%s", second), nil)
		nobody.Refused(404, "M_NOT_FOUND", "GET", Path("/directory/room/%s", second), nil)
		alice.Refused(404, "M_NOT_FOUND", "DELETE", Path("/directory/room/%s", second), nil)
		alice.Refused(404, "M_NOT_FOUND", "POST", Path("/join/%s", second), J{})
		alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/directory/room/%s", "no alias"), nil)
		s.Restart()
		nobody.Must("GET", Path("/directory/room/%s", first), nil)
	})
}

func TestLeavingAndForgetting(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "private_chat", "invite": []string{bob.UserID}})
		bob.Join(id)
		bob.Sync(nil)
		before := alice.Text(id, "before the leave")
		bob.Leave(id)
		alice.Text(id, "after the leave")
		alice.State(id, "m.room.name", "", J{"name": "later"})
		part := Room(bob.Sync(nil), "leave", id)
		events := part.Get("timeline.events").Array()
		if len(events) != 2 || events[0].Get("event_id").Str != before || events[1].Get("content.membership").Str != "leave" {
			t.Errorf("the leave section is %s", part)
		}
		if Room(bob.Sync(nil), "leave", id).Exists() {
			t.Error("the leave is told twice")
		}
		include := J{"room": J{"include_leave": true}}
		fresh := bob.Login()
		part = Room(fresh.Sync(Filter(include)), "leave", id)
		events = part.Get("timeline.events").Array()
		if len(events) == 0 || events[len(events)-1].Get("content.membership").Str != "leave" {
			t.Errorf("an initial sync with include_leave has %s", part)
		}
		if Find(part.Get("state.events"), "m.room.name", "").Exists() {
			t.Error("state after the leave is shown")
		}
		if Room(bob.Login().Sync(nil), "leave", id).Exists() {
			t.Error("an initial sync has a left room without being asked")
		}
		// Someone who left reads the room as of leaving.
		bob.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/state/m.room.name", id), nil)
		if ids := bob.Walk(id, "", "b", 5); len(ids) == 0 || ids[1] != before {
			t.Errorf("history of a room that was left: %v", ids)
		}
		alice.Refused(400, "M_UNKNOWN", "POST", Path("/rooms/%s/forget", id), J{})
		bob.Must("POST", Path("/rooms/%s/forget", id), J{})
		bob.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s/messages?dir=b", id), nil)
		if Room(bob.Login().Sync(Filter(include)), "leave", id).Exists() {
			t.Error("a forgotten room is shown")
		}
		bob.Sync(nil)
		alice.Change("invite", id, bob.UserID)
		if !Room(bob.Sync(nil), "invite", id).Exists() || !Room(bob.Login().Sync(nil), "invite", id).Exists() {
			t.Error("an invite to a forgotten room does not appear")
		}
		bob.Join(id)
		part = room(bob.Sync(nil), id)
		if !has(part, "m.room.create", "") || !has(part, "m.room.name", "") {
			t.Errorf("joined again, without the state: %s", part)
		}
	})
}

// has tells whether a state event is in state or timeline.
func has(part gjson.Result, typ, key string) bool {
	return Find(part.Get("state.events"), typ, key).Exists() || Find(part.Get("timeline.events"), typ, key).Exists()
}
