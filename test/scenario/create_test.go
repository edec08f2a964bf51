package scenario

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// stateOf reads a room's state as member of an object: "type|key" to the event.
func stateOf(c *Client, id string) map[string]gjson.Result {
	out := map[string]gjson.Result{}
	for _, e := range c.Must("GET", Path("/rooms/%s/state", id), nil).JSON.Array() {
		out[e.Get("type").Str+"|"+e.Get("state_key").Str] = e
	}
	return out
}

func TestCreateRoom(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		alice.Must("PUT", Path("/profile/%s/displayname", alice.UserID), J{"displayname": "Alice"})
		type want map[string]string // "type|key path" to the value's JSON, "" for absent
		for i, test := range []struct {
			request J
			want    want
		}{
			{J{}, want{
				"m.room.create| room_version": `"12"`, "m.room.create| creator": "", "m.room.member|" + alice.UserID + " membership": `"join"`,
				"m.room.member|" + alice.UserID + " displayname": `"Alice"`,
				"m.room.join_rules| join_rule":                   `"invite"`, "m.room.history_visibility| history_visibility": `"shared"`,
				"m.room.guest_access| guest_access": `"can_join"`, "m.room.power_levels| state_default": `50`,
				"m.room.name| name": "", "m.room.topic| topic": "", "m.room.canonical_alias| alias": "",
			}},
			{J{"preset": "public_chat"}, want{"m.room.join_rules| join_rule": `"public"`, "m.room.guest_access| guest_access": ""}}, // which means forbidden,
			{J{"visibility": "public"}, want{"m.room.join_rules| join_rule": `"public"`}},
			{J{"visibility": "public", "preset": "private_chat"}, want{"m.room.join_rules| join_rule": `"invite"`}},
			{J{"name": "Name", "topic": "Topic", "room_alias_name": "created"}, want{
				"m.room.name| name": `"Name"`, "m.room.topic| topic": `"Topic"`, "m.room.topic| m\\.topic.m\\.text.0.body": `"Topic"`,
				"m.room.canonical_alias| alias": `"#created:` + s.Name + `"`,
			}},
			{J{"invite": []string{bob.UserID, bob.UserID}, "is_direct": true}, want{
				"m.room.member|" + bob.UserID + " membership": `"invite"`, "m.room.member|" + bob.UserID + " is_direct": "true",
				"m.room.member|" + alice.UserID + " is_direct": "",
			}},
			{J{"invite": []string{bob.UserID}}, want{"m.room.member|" + bob.UserID + " is_direct": ""}},
			{J{"preset": "trusted_private_chat", "invite": []string{bob.UserID}}, want{
				"m.room.create| additional_creators": `["` + bob.UserID + `"]`, "m.room.power_levels| users": "{}",
			}},
			{J{"preset": "trusted_private_chat", "invite": []string{bob.UserID}, "room_version": "11"}, want{
				"m.room.create| room_version": `"11"`, "m.room.create| additional_creators": "",
				"m.room.power_levels| users." + Key(bob.UserID): "100", "m.room.power_levels| users." + Key(alice.UserID): "100",
			}},
			{J{"room_version": "10"}, want{"m.room.create| creator": `"` + alice.UserID + `"`}},
			{J{"creation_content": J{"m.federate": false, "type": "m.space", "room_version": "3", "creator": "@eve:evil"}}, want{
				"m.room.create| m\\.federate": "false", "m.room.create| type": `"m.space"`, "m.room.create| room_version": `"12"`,
			}},
			{J{"creation_content": J{"additional_creators": []string{carol.UserID}}}, want{
				"m.room.create| additional_creators": `["` + carol.UserID + `"]`,
			}},
			{J{"power_level_content_override": J{"events_default": 10, "users": J{carol.UserID: 42}}}, want{
				"m.room.power_levels| events_default": "10", "m.room.power_levels| users": `{"` + carol.UserID + `":42}`, "m.room.power_levels| ban": "50",
			}},
			{J{"name": "Name", "topic": "Topic", "preset": "private_chat", "initial_state": []J{
				{"type": "m.room.join_rules", "content": J{"join_rule": "knock"}},
				{"type": "m.room.encryption", "state_key": "", "content": J{"algorithm": "m.megolm.v1.aes-sha2"}},
				{"type": "org.example", "state_key": "key", "content": J{"a": 1}},
				{"type": "m.room.name", "content": J{"name": "Other"}},
			}}, want{
				"m.room.join_rules| join_rule": `"knock"`, "m.room.encryption| algorithm": `"m.megolm.v1.aes-sha2"`,
				"org.example|key a": "1", "m.room.name| name": `"Name"`,
			}},
		} {
			id := alice.Create(test.request)
			state := stateOf(alice, id)
			for place, value := range test.want {
				key, path, _ := strings.Cut(place, " ")
				got := state[key].Get("content")
				if got = got.Get(path); got.Raw != value {
					t.Errorf("room %d: %s is %s, want %s", i, place, got.Raw, value)
				}
			}
		}
	})
}

func TestCreateRoomRefused(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		alice.Create(J{"room_alias_name": "taken"})
		rooms := func() int { return len(alice.Must("GET", Path("/joined_rooms"), nil).JSON.Get("joined_rooms").Array()) }
		before, long := rooms(), strings.Repeat("x", 70_000)
		for i, test := range []struct {
			request J
			status  int
			code    string
		}{
			{J{"room_alias_name": "taken"}, 400, "M_ROOM_IN_USE"},
			{J{"room_alias_name": "no:colons", "name": "x"}, 400, "M_INVALID_PARAM"},
			{J{"room_alias_name": strings.Repeat("x", 300)}, 400, "M_INVALID_PARAM"},
			{J{"room_alias_name": ""}, 400, "M_INVALID_PARAM"},
			{J{"room_version": "99"}, 400, "M_UNSUPPORTED_ROOM_VERSION"},
			{J{"room_version": ""}, 400, "M_UNSUPPORTED_ROOM_VERSION"},
			{J{"room_version": 11}, 400, "M_BAD_JSON"},
			{J{"preset": "no_such_preset"}, 400, "M_INVALID_PARAM"},
			{J{"visibility": "secret"}, 400, "M_INVALID_PARAM"},
			{J{"invite": []string{"nobody"}}, 400, "M_INVALID_PARAM"},
			{J{"invite": "@bob:b"}, 400, "M_BAD_JSON"},
			{J{"invite": []int{1}}, 400, "M_BAD_JSON"},
			{J{"name": long}, 413, "M_TOO_LARGE"},
			{J{"topic": long}, 413, "M_TOO_LARGE"},
			{J{"name": 1}, 400, "M_BAD_JSON"},
			{J{"creation_content": "x"}, 400, "M_BAD_JSON"},
			{J{"creation_content": J{"additional_creators": "x"}}, 400, ""},
			{J{"creation_content": J{"additional_creators": []string{"nobody"}}}, 400, ""},
			{J{"initial_state": []J{{"type": "m.x"}}}, 400, "M_BAD_JSON"},
			{J{"initial_state": []J{{"content": J{}}}}, 400, "M_BAD_JSON"},
			{J{"initial_state": J{}}, 400, "M_BAD_JSON"},
			{J{"initial_state": []J{{"type": "m.room.member", "state_key": "@bob:" + s.Name, "content": J{"membership": "join"}}}}, 400, "M_INVALID_ROOM_STATE"},
			{J{"initial_state": []J{{"type": strings.Repeat("x", 300), "content": J{}}}}, 413, "M_TOO_LARGE"},
			{J{"power_level_content_override": []int{1}}, 400, "M_BAD_JSON"},
			{J{"power_level_content_override": J{"users": "x"}}, 400, ""},
			{J{"power_level_content_override": J{"users": J{alice.UserID: 100}}}, 400, ""},
			{J{"power_level_content_override": J{"state_default": "50"}}, 400, ""},
			{J{"power_level_content_override": J{"events": J{"m.x": "50"}}}, 400, ""},
		} {
			for _, alias := range []string{"", fmt.Sprint("alias", i)} {
				if alias != "" && test.request["room_alias_name"] == nil {
					test.request["room_alias_name"] = alias
				}
				a := alice.Do("POST", Path("/createRoom"), test.request)
				if a.Status != test.status || test.code != "" && a.Code() != test.code || a.Code() == "" {
					t.Errorf("request %d (%.80v): %v, want %d %s", i, test.request, a, test.status, test.code)
				}
				if alias != "" && test.request["room_alias_name"] == alias {
					alice.Refused(404, "M_NOT_FOUND", "GET", Path("/directory/room/%s", "#"+alias+":"+s.Name), nil)
				}
			}
		}
		if n := rooms(); n != before {
			t.Errorf("refused requests left %d rooms behind", n-before)
		}
	})
}

// Of many that want the same alias at once, one gets it, and the others get nothing.
func TestAliasRace(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		answers := make(chan *Answer, 10)
		for range cap(answers) {
			go func() {
				a, err := alice.Send("POST", Path("/createRoom"), J{"room_alias_name": "race"})
				if err != nil {
					t.Error(err)
				}
				answers <- a
			}()
		}
		won := ""
		for range cap(answers) {
			a := <-answers
			switch {
			case a.Status == 200 && won == "":
				won = a.JSON.Get("room_id").Str
			case a.Status != 400 || a.Code() != "M_ROOM_IN_USE":
				t.Errorf("%v", a)
			}
		}
		if got := alice.Must("GET", Path("/directory/room/%s", "#race:"+s.Name), nil).JSON.Get("room_id").Str; got != won {
			t.Errorf("the alias leads to %s, created was %s", got, won)
		}
		if rooms := alice.Must("GET", Path("/joined_rooms"), nil).JSON.Get("joined_rooms").Array(); len(rooms) != 1 {
			t.Errorf("there are rooms %v", rooms)
		}
	})
}

func TestRoomVersions(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		available := alice.Must("GET", Path("/capabilities"), nil).JSON.Get(`capabilities.m\.room_versions`)
		if available.Get("default").Str != "12" {
			t.Errorf("the default version is %s", available.Get("default"))
		}
		for n := 1; n <= 12; n++ {
			version := fmt.Sprint(n)
			if available.Get("available."+version).Str != "stable" {
				t.Errorf("version %s is not offered", version)
			}
			id := alice.Create(J{"preset": "public_chat", "room_version": version, "name": "v" + version})
			if strings.Contains(id, ":") != (n < 12) {
				t.Errorf("version %s has the room id %s", version, id)
			}
			bob.Join(id)
			mine, his := alice.Text(id, "mine"), bob.Text(id, "his")
			if strings.Contains(mine, ":") != (n <= 2) {
				t.Errorf("version %s has the event id %s", version, mine)
			}
			bob.Refused(403, "M_FORBIDDEN", "PUT", Path("/rooms/%s/redact/%s/%s", id, mine, Txn()), J{})
			redactions := []string{bob.Redact(id, his), alice.Redact(id, mine)}
			for i, event := range []string{his, mine} {
				e := alice.Must("GET", Path("/rooms/%s/event/%s", id, event), nil).JSON
				by := e.Get("unsigned.redacted_because")
				if len(e.Get("content").Map()) != 0 || by.Get("event_id").Str != redactions[i] {
					t.Errorf("version %s: redacted event %s", version, e)
				}
				if by.Get("redacts").Str != event || by.Get("content.redacts").Str != event {
					t.Errorf("version %s: the redaction %s", version, by)
				}
			}
			topic := alice.State(id, "m.room.topic", "", J{"topic": "secret"})
			alice.Redact(id, topic)
			if got := stateOf(bob, id)["m.room.topic|"]; got.Get("content.topic").Exists() {
				t.Errorf("version %s: redacted state %s", version, got)
			}
			member := stateOf(bob, id)["m.room.member|"+bob.UserID].Get("event_id").Str
			alice.Redact(id, member)
			bob.Text(id, "still here")
			if n >= 10 {
				alice.Refused(400, "M_BAD_JSON", "PUT", Path("/rooms/%s/state/m.room.power_levels/", id), J{"ban": "50"})
			}
			if n >= 6 {
				alice.Refused(400, "M_BAD_JSON", "PUT", Path("/rooms/%s/send/m.x/%s", id, Txn()), `{"a":1.5}`)
			} else {
				alice.Must("PUT", Path("/rooms/%s/send/m.x/%s", id, Txn()), `{"a":1.5}`)
			}
			alice.Refused(400, "M_BAD_JSON", "PUT", Path("/rooms/%s/state/m.room.create/", id), J{"room_version": version, "new": true})
			alice.Refused(404, "M_NOT_FOUND", "PUT", Path("/rooms/%s/redact/%s/%s", id, "$nosuchevent", Txn()), J{})
		}
	})
}

// Nobody can redact the create event and the access control list of a room, whatever their power; an event without a state key
// that has the type of one is like any other.
func TestWhatCannotBeRedacted(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		for _, version := range []string{"1", "10", "11", "12"} {
			id := alice.Create(J{"preset": "public_chat", "room_version": version})
			list := alice.State(id, "m.room.server_acl", "", J{"allow": []string{"*"}, "deny": []string{"evil.example.org"}})
			create := stateOf(alice, id)["m.room.create|"].Get("event_id").Str
			for _, event := range []string{create, list} {
				alice.Refused(403, "M_FORBIDDEN", "PUT", Path("/rooms/%s/redact/%s/%s", id, event, Txn()), J{})
				alice.Refused(403, "M_FORBIDDEN", "PUT", Path("/rooms/%s/send/m.room.redaction/%s", id, Txn()), J{"redacts": event})
			}
			if got := stateOf(alice, id)["m.room.server_acl|"]; got.Get("content.deny.0").Str != "evil.example.org" {
				t.Errorf("version %s: the list is %s", version, got.Raw)
			}
			alice.Redact(id, alice.Event(id, "m.room.server_acl", J{"allow": []string{"*"}}))
		}
	})
}

func TestCreatorsOfVersion12(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat", "creation_content": J{"additional_creators": []string{bob.UserID}}})
		for _, c := range []*Client{bob, carol} {
			c.Join(id)
		}
		bob.State(id, "m.room.power_levels", "", J{"users": J{carol.UserID: 100}, "state_default": 100})
		carol.Refused(403, "M_FORBIDDEN", "POST", Path("/rooms/%s/kick", id), J{"user_id": bob.UserID})
		carol.Refused(403, "M_FORBIDDEN", "POST", Path("/rooms/%s/ban", id), J{"user_id": alice.UserID})
		bob.Refused(403, "M_FORBIDDEN", "POST", Path("/rooms/%s/kick", id), J{"user_id": alice.UserID})
		alice.Refused(400, "M_BAD_JSON", "PUT", Path("/rooms/%s/state/m.room.power_levels/", id), J{"users": J{bob.UserID: 50}})
	})
}

func TestGuests(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, guest := s.Register(t, "alice"), s.Guest(t)
		closed := alice.Create(J{"preset": "public_chat"})
		id := alice.Create(J{"preset": "public_chat", "initial_state": []J{{"type": "m.room.guest_access", "content": J{"guest_access": "can_join"}}}})
		if who := guest.Must("GET", Path("/account/whoami"), nil).JSON; !who.Get("is_guest").Bool() {
			t.Errorf("whoami of a guest: %s", who)
		}
		guest.Refused(403, "M_GUEST_ACCESS_FORBIDDEN", "POST", Path("/join/%s", closed), J{})
		guest.Join(id)
		guest.Text(id, "hello")
		if !room(guest.Sync(nil), id).Exists() {
			t.Error("a guest does not see the room")
		}
		guest.Refused(403, "M_GUEST_ACCESS_FORBIDDEN", "POST", Path("/createRoom"), J{})
		guest.Refused(403, "M_GUEST_ACCESS_FORBIDDEN", "POST", Path("/rooms/%s/invite", id), J{"user_id": alice.UserID})
	})
}

// TestOwnedState is MSC3757: state under keys that begin with a user's ID is that user's, and of those with more power.
func TestOwnedState(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		if v := alice.Must("GET", Path("/capabilities"), nil).JSON.Get(`capabilities.m\.room_versions.available`); v.Get(Key("org.matrix.msc3757.11")).Str != "unstable" || v.Get("11").Str != "stable" {
			t.Errorf("versions: %s", v)
		}
		for _, version := range []string{"11", "org.matrix.msc3757.10", "org.matrix.msc3757.11"} {
			owned := version != "11"
			id := alice.Create(J{"preset": "public_chat", "room_version": version, "power_level_content_override": J{"state_default": 0}})
			bob.Join(id)
			for _, c := range []struct {
				who    *Client
				key    string
				status int // with owned state
				bare   int // without
			}{
				{bob, bob.UserID, 200, 200},
				{bob, bob.UserID + "_device:1", 200, 403},
				{bob, alice.UserID, 403, 403},
				{bob, alice.UserID + "_device", 403, 403},
				{alice, bob.UserID + "_device", 200, 403},
				{alice, "@somebody:elsewhere", 200, 403},
				{alice, "@somebody", 400, 403},
				{bob, "_" + bob.UserID, 200, 200},
			} {
				want, code := c.bare, ""
				if owned {
					want = c.status
				}
				switch want {
				case 400:
					code = "M_BAD_JSON"
				case 403:
					code = "M_FORBIDDEN"
				}
				a := c.who.Do("PUT", Path("/rooms/%s/state/test.state/%s", id, c.key), J{"version": version})
				if a.Status != want || a.Code() != code {
					t.Errorf("version %s: %s sets state under %s: %v, want %d", version, c.who.UserID, c.key, a, want)
				}
			}
		}
	})
}
