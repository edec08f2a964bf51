package clientapi_test

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// state reads the content of a state event, nothing where there is none.
func state(c *Client, room, typ, key string) gjson.Result {
	a := c.Do("GET", Path("/rooms/%s/state/%s/%s", room, typ, key), nil)
	if a.Status != 200 {
		return gjson.Result{}
	}
	return a.JSON
}

func upgrade(c *Client, room string, request J) string {
	return c.Must("POST", Path("/rooms/%s/upgrade", room), request).JSON.Get("replacement_room").Str
}

// initial are state events of a new room by type.
func initial(contents map[string]J) (list []J) {
	for typ, content := range contents {
		list = append(list, J{"type": typ, "content": content})
	}
	return list
}

func TestUpgradeTakesStateOver(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol, dave := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol"), s.Register(t, "dave")
		taken := map[string]J{
			"m.room.encryption":         {"algorithm": "m.megolm.v1.aes-sha2"},
			"m.room.history_visibility": {"history_visibility": "joined"},
			"m.room.guest_access":       {"guest_access": "forbidden"},
			"m.room.server_acl":         {"allow": []any{"*"}, "deny": []any{"evil.example"}},
			"m.room.avatar":             {"url": "mxc://a/b"},
			"m.room.name":               {"name": "Old"},
			"m.room.topic":              {"topic": "About"},
		}
		old := alice.Create(J{
			"room_version": "9", "preset": "public_chat", "visibility": "public", "room_alias_name": "main", "initial_state": initial(taken),
			"creation_content":             J{"type": "m.space", "m.federate": false},
			"power_level_content_override": J{"users": J{alice.UserID: "100", bob.UserID: 50}, "events": J{"org.example": "7"}, "users_default": 3},
		})
		for _, c := range []*Client{bob, dave} {
			c.Join(old)
		}
		alice.Must("PUT", Path("/directory/room/%s", "#other:"+s.Name), J{"room_id": old})
		alice.Must("POST", Path("/rooms/%s/ban", old), J{"user_id": carol.UserID, "reason": "noise"})
		child, parent := alice.Create(J{}), alice.Create(J{"creation_content": J{"type": "m.space"}})
		link := J{"via": []string{s.Name}, "order": "x", "suggested": true}
		alice.State(old, "m.space.child", child, link)
		alice.State(old, "m.space.child", "!gone:elsewhere", J{})
		alice.State(old, "m.space.parent", parent, link)
		alice.State(parent, "m.space.child", old, link)
		alice.State(child, "m.space.parent", old, link)
		alice.State(old, "org.example.widget", "", J{"url": "x"})

		next := upgrade(alice, old, J{"new_version": "12", "additional_creators": []string{bob.UserID, bob.UserID, alice.UserID}})
		create := state(alice, next, "m.room.create", "")
		want(t, "create", create.Value(), map[string]any{
			"room_version": "12", "type": "m.space", "m.federate": false,
			"predecessor": map[string]any{"room_id": old}, "additional_creators": []any{bob.UserID},
		})
		for typ, content := range taken {
			want(t, typ, state(alice, next, typ, "").Value(), content)
		}
		want(t, "join rule", state(alice, next, "m.room.join_rules", "").Get("join_rule").Str, "public")
		want(t, "a stranger's state", state(alice, next, "org.example.widget", "").Exists(), false)
		levels := state(alice, next, "m.room.power_levels", "")
		want(t, "users", levels.Get("users").Raw, "{}")
		want(t, "levels", []any{levels.Get("events.org\\.example").Value(), levels.Get("users_default").Value(), levels.Get("events.m\\.room\\.tombstone").Value()}, []any{7.0, 3.0, 150.0})
		banned := state(alice, next, "m.room.member", carol.UserID)
		want(t, "ban", []string{banned.Get("membership").Str, banned.Get("reason").Str}, []string{"ban", "noise"})
		want(t, "others come themselves", state(alice, next, "m.room.member", dave.UserID).Exists(), false)

		want(t, "canonical alias", state(alice, next, "m.room.canonical_alias", "").Get("alias").Str, "#main:"+s.Name)
		for _, alias := range []string{"#main:", "#other:"} {
			want(t, alias, alice.Must("GET", Path("/directory/room/%s", alias+s.Name), nil).JSON.Get("room_id").Str, next)
		}
		want(t, "listed", alice.Must("GET", Path("/publicRooms"), nil).JSON.Get("chunk.#.room_id").Value(), []any{next})

		raw := map[string]any{"via": []any{s.Name}, "order": "x", "suggested": true}
		for _, l := range []struct{ room, typ, key string }{
			{next, "m.space.child", child}, {next, "m.space.parent", parent}, {parent, "m.space.child", next}, {child, "m.space.parent", next},
		} {
			want(t, l.typ, state(alice, l.room, l.typ, l.key).Value(), raw)
		}
		want(t, "a broken link", state(alice, next, "m.space.child", "!gone:elsewhere").Exists(), false)
		want(t, "the old link down", state(alice, parent, "m.space.child", old).Raw, "{}")
		want(t, "the old link up", state(alice, child, "m.space.parent", old).Raw, "{}")

		want(t, "tombstone", state(bob, old, "m.room.tombstone", "").Get("replacement_room").Str, next)
		levels = state(bob, old, "m.room.power_levels", "")
		want(t, "silence", []int64{levels.Get("events_default").Int(), levels.Get("invite").Int()}, []int64{50, 50})
		dave.Refused(403, "M_FORBIDDEN", "PUT", Path("/rooms/%s/send/m.room.message/1", old), J{"body": "x"})

		// Asking again gives what is there; another version does not.
		want(t, "again", upgrade(alice, old, J{"new_version": "12", "additional_creators": []string{bob.UserID}}), next)
		if other := upgrade(alice, old, J{"new_version": "11"}); other == next {
			t.Error("another version is the same room")
		}
	})
}

func TestUpgradeBetweenVersions(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		for _, from := range []int{1, 2, 5, 9, 10, 11, 12} {
			for _, to := range []int{1, 10, 12} {
				request := J{"room_version": fmt.Sprint(from)}
				if from >= 10 {
					request["initial_state"] = initial(map[string]J{"m.room.join_rules": {"join_rule": "knock_restricted", "allow": []J{}}})
				}
				if from == 12 {
					request["creation_content"] = J{"additional_creators": []string{bob.UserID}}
				}
				old := alice.Create(request)
				last := alice.Text(old, "the last message")
				next := upgrade(alice, old, J{"new_version": fmt.Sprint(to)})
				name := fmt.Sprint(from, " to ", to)
				predecessor := state(alice, next, "m.room.create", "").Get("predecessor")
				want(t, name, predecessor.Get("room_id").Str, old)
				if to < 12 {
					want(t, name+": last event", predecessor.Get("event_id").Str, last)
				}
				rule := "invite"
				if from >= 10 && to >= 10 {
					rule = "knock_restricted"
				}
				want(t, name+": join rule", state(alice, next, "m.room.join_rules", "").Get("join_rule").Str, rule)
				users := state(alice, next, "m.room.power_levels", "").Get("users")
				switch {
				case to == 12:
					want(t, name+": users", users.Raw, "{}")
				case from == 12:
					want(t, name+": users", users.Value(), map[string]any{alice.UserID: 150.0, bob.UserID: 150.0})
				default:
					want(t, name+": users", users.Value(), map[string]any{alice.UserID: 100.0})
				}
				alice.State(next, "m.room.name", "", J{"name": "still in power"})
			}
		}
	})
}

func TestWhoMayUpgrade(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat", "room_version": "10", "power_level_content_override": J{
			"users": J{alice.UserID: 100, bob.UserID: 50}, "events": J{"m.room.tombstone": 50, "m.room.power_levels": 100}}})
		path := Path("/rooms/%s/upgrade", room)
		bob.Refused(403, "M_FORBIDDEN", "POST", path, J{"new_version": "11"})
		bob.Refused(403, "M_FORBIDDEN", "POST", Path("/rooms/%s/upgrade", "!none:"+s.Name), J{"new_version": "11"})
		bob.Join(room)
		bob.Refused(400, "M_UNSUPPORTED_ROOM_VERSION", "POST", path, J{"new_version": "none"})
		bob.Refused(400, "M_MISSING_PARAM", "POST", path, J{})
		bob.Refused(400, "M_INVALID_PARAM", "POST", path, J{"new_version": "12", "additional_creators": []string{"bob"}})
		// Bob has the power for the tombstone only: the new room has the same levels, the old one keeps its.
		next := upgrade(bob, room, J{"new_version": "11"})
		want(t, "users", state(bob, next, "m.room.power_levels", "").Get("users").Value(), map[string]any{alice.UserID: 100.0, bob.UserID: 50.0})
		want(t, "old levels", state(bob, room, "m.room.power_levels", "").Get("events_default").Int(), int64(0))
		want(t, "tombstone", state(bob, room, "m.room.tombstone", "").Get("replacement_room").Str, next)
		alice.Refused(403, "M_FORBIDDEN", "POST", Path("/rooms/%s/upgrade", next), J{"new_version": "12"})
	})
}

func TestSettingsFollowUpgrades(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		for _, byHand := range []bool{false, true} {
			old := alice.Create(J{"preset": "public_chat"})
			bob.Join(old)
			for _, c := range []*Client{alice, bob} {
				c.Must("PUT", Path("/user/%s/rooms/%s/tags/m.favourite", c.UserID, old), J{"order": 0.5})
				c.Must("PUT", Path("/user/%s/account_data/m.direct", c.UserID), J{"@x:y": []string{old}, "@z:y": "nonsense"})
				c.Must("PUT", Path("/pushrules/global/room/%s", old), J{"actions": []string{}})
				c.Must("PUT", Path("/pushrules/global/override/%s", old), J{"actions": []any{"notify"}, "conditions": []J{
					{"kind": "event_match", "key": "room_id", "pattern": old}, {"kind": "room_member_count", "is": "2"}}})
				c.Must("PUT", Path("/pushrules/global/override/%s/enabled", old), J{"enabled": false})
			}
			var next string
			if byHand {
				next = alice.Create(J{"preset": "public_chat", "creation_content": J{"predecessor": J{"room_id": old}}})
			} else {
				next = upgrade(alice, old, J{"new_version": "11"})
			}
			want(t, "who has not come yet", bob.Do("GET", Path("/pushrules/global/room/%s", next), nil).Status, 404)
			bob.Join(next)
			bob.Join(next)
			for _, c := range []*Client{alice, bob} {
				want(t, "tags", c.Must("GET", Path("/user/%s/rooms/%s/tags", c.UserID, next), nil).JSON.Raw, `{"tags":{"m.favourite":{"order":0.5}}}`)
				want(t, "direct", c.Must("GET", Path("/user/%s/account_data/m.direct", c.UserID), nil).JSON.Value(),
					map[string]any{"@x:y": []any{old, next}, "@z:y": "nonsense"})
				want(t, "room rule", c.Must("GET", Path("/pushrules/global/room/%s", next), nil).JSON.Get("actions").Raw, "[]")
				override := c.Must("GET", Path("/pushrules/global/override/%s", next), nil).JSON
				want(t, "override", []any{override.Get("enabled").Bool(), override.Get("conditions.0.pattern").Str, override.Get("conditions.1.is").Str}, []any{false, next, "2"})
				c.Must("GET", Path("/pushrules/global/room/%s", old), nil)
			}
			// What the user does in the new room is theirs: coming again does not undo it.
			bob.Must("DELETE", Path("/user/%s/rooms/%s/tags/m.favourite", bob.UserID, next), nil)
			bob.Must("PUT", Path("/pushrules/global/room/%s/actions", next), J{"actions": []string{"notify"}})
			bob.Leave(next)
			bob.Join(next)
			want(t, "tags", bob.Must("GET", Path("/user/%s/rooms/%s/tags", bob.UserID, next), nil).JSON.Raw, `{"tags":{}}`)
			want(t, "room rule", bob.Must("GET", Path("/pushrules/global/room/%s", next), nil).JSON.Get("actions").Raw, `["notify"]`)
		}
	})
}

func TestBlockedInvites(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		earlier, room := alice.Create(J{"invite": []string{bob.UserID}}), alice.Create(J{})
		setting := Path("/user/%s/account_data/m.invite_permission_config", bob.UserID)
		bob.Must("PUT", setting, J{"default_action": "block"})
		alice.Refused(403, "M_INVITE_BLOCKED", "POST", Path("/rooms/%s/invite", room), J{"user_id": bob.UserID})
		alice.Refused(403, "M_INVITE_BLOCKED", "POST", Path("/createRoom"), J{"invite": []string{bob.UserID}})
		alice.Refused(403, "M_INVITE_BLOCKED", "PUT", Path("/rooms/%s/state/m.room.member/%s", room, bob.UserID), J{"membership": "invite"})
		if r := bob.Sync(nil); Room(r, "invite", earlier).Exists() {
			t.Errorf("an earlier invite is shown: %v", r)
		}
		// Blocking is about invites alone.
		alice.Must("PUT", Path("/rooms/%s/state/m.room.member/%s", room, bob.UserID), J{"membership": "ban"})
		alice.Change("unban", room, bob.UserID)
		bob.SyncFrom("")
		bob.Must("PUT", setting, J{"default_action": "allow"})
		alice.Change("invite", room, bob.UserID)
		if r := bob.Sync(nil); !Room(r, "invite", earlier).Exists() || !Room(r, "invite", room).Exists() {
			t.Errorf("invites are not shown: %v", r)
		}
	})
}
