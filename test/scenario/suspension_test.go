package scenario

import (
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestSuspension tries what a suspended account may do, and what not.
//
// Spec: client-server API v1.19, "Account suspension".
func TestSuspension(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		admin, alice, bob := s.Admin(t, "root"), s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat"})
		bob.Join(room)
		own, others := alice.Text(room, "mine"), bob.Text(room, "not mine")
		second, public, invites := alice.Create(J{}), bob.Create(J{"preset": "public_chat"}), bob.Create(J{"invite": []string{alice.UserID}})
		knock := bob.Create(J{"initial_state": []J{{"type": "m.room.join_rules", "content": J{"join_rule": "knock"}}}})
		suspend := func(yes bool) {
			admin.Must("PUT", "/_matrix/client/v1/admin/suspend/"+alice.UserID, J{"suspended": yes})
		}
		suspend(true)

		for _, request := range []struct {
			method, path string
			body         J
		}{
			{"PUT", Path("/rooms/%s/send/%s/%s", room, "m.room.message", Txn()), J{"msgtype": "m.text", "body": "x"}},
			{"PUT", Path("/rooms/%s/state/%s/", room, "m.room.topic"), J{"topic": "x"}},
			{"PUT", Path("/rooms/%s/state/%s/%s", room, "m.room.member", alice.UserID), J{"membership": "join", "displayname": "x"}},
			{"PUT", Path("/rooms/%s/redact/%s/%s", room, others, Txn()), J{}},
			{"PUT", Path("/rooms/%s/redact/%s/%s", room, "$nothing", Txn()), J{}},
			{"PUT", Path("/rooms/%s/send/%s/%s", room, "m.room.redaction", Txn()), J{"redacts": others}},
			{"POST", Path("/rooms/%s/invite", room), J{"user_id": "@someone:" + s.Name}},
			{"POST", Path("/rooms/%s/kick", room), J{"user_id": bob.UserID}},
			{"POST", Path("/rooms/%s/ban", room), J{"user_id": bob.UserID}},
			{"POST", Path("/rooms/%s/unban", room), J{"user_id": bob.UserID}},
			{"POST", Path("/rooms/%s/upgrade", room), J{"new_version": "11"}},
			{"POST", Path("/rooms/%s/join", public), J{}},
			{"POST", Path("/join/%s", public), J{}},
			{"POST", Path("/join/%s", invites), J{}},
			{"POST", Path("/knock/%s", knock), J{}},
			{"POST", Path("/createRoom"), J{}},
			{"PUT", Path("/profile/%s/displayname", alice.UserID), J{"displayname": "x"}},
			{"PUT", Path("/profile/%s/m.tz", alice.UserID), J{"m.tz": "x"}},
			{"DELETE", Path("/profile/%s/displayname", alice.UserID), nil},
			{"PUT", Path("/directory/room/%s", "#x:"+s.Name), J{"room_id": room}},
			{"PUT", Path("/directory/list/room/%s", room), J{"visibility": "public"}},
		} {
			alice.Refused(403, "M_USER_SUSPENDED", request.method, request.path, request.body)
		}

		alice.Sync(nil)
		alice.Login()
		alice.Walk(room, "", "b", 50)
		alice.Redact(room, own)
		bob.Text(room, "still heard")
		alice.Leave(invites)
		alice.State(second, "m.room.member", alice.UserID, J{"membership": "leave"})
		alice.Login().Must("POST", Path("/logout"), J{})

		suspend(false)
		alice.Text(room, "back again")
		alice.Join(public)
	})
}

func TestDefaultRoomVersion(t *testing.T) {
	s := Start(t, storage.SQLite, func(c *config.Config) { c.Rooms.DefaultVersion = "10" })
	alice := s.Register(t, "alice")
	version := func(room string) string {
		return alice.Must("GET", Path("/rooms/%s/state/m.room.create/", room), nil).JSON.Get("room_version").Str
	}
	if v := version(alice.Create(J{})); v != "10" {
		t.Errorf("version of a new room: %s", v)
	}
	if v := version(alice.Create(J{"room_version": "12"})); v != "12" {
		t.Errorf("version of a room that asks for 12: %s", v)
	}
	if a := alice.Must("GET", Path("/capabilities"), nil); a.JSON.Get(`capabilities.m\.room_versions.default`).Str != "10" {
		t.Errorf("capabilities: %v", a)
	}
}
