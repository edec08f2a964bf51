package scenario

import (
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

const sendNotice = "/_synapse/admin/v1/send_server_notice"

func notice(user, text string) J {
	return J{"user_id": user, "content": J{"msgtype": "m.text", "body": text}}
}

// invitedBy waits for an invite of a user and returns the room.
func invitedBy(c *Client, sender string) (room string) {
	c.Until("an invite", func(r gjson.Result) bool {
		r.Get("rooms.invite").ForEach(func(id, part gjson.Result) bool {
			if part.Get("invite_state.events.0.sender").Str == sender {
				room = id.Str
			}
			return true
		})
		return room != ""
	})
	return room
}

func TestServerNotices(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		admin, alice, bob := s.Admin(t, "root"), s.Register(t, "alice"), s.Register(t, "bob")
		server := "@_server:" + s.Name
		alice.Must("PUT", Path("/user/%s/account_data/m.invite_permission_config", alice.UserID), J{"default_action": "block"})
		id := admin.Must("POST", sendNotice, notice(alice.UserID, "hello")).JSON.Get("event_id").Str
		room := invitedBy(alice, server)

		tags := alice.Must("GET", Path("/user/%s/rooms/%s/tags", alice.UserID, room), nil)
		if !tags.JSON.Get(`tags.m\.server_notice`).Exists() {
			t.Errorf("tags of the room: %v", tags)
		}
		alice.Refused(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "POST", Path("/rooms/%s/leave", room), J{})
		alice.Refused(403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "PUT", Path("/rooms/%s/state/m.room.member/%s", room, alice.UserID), J{"membership": "leave"})
		alice.Join(room)
		if got := alice.Walk(room, "", "b", 20); got[0] != id && got[1] != id {
			t.Errorf("the notice %s is not in the room: %v", id, got)
		}
		name := alice.Must("GET", Path("/rooms/%s/state/m.room.name/", room), nil)
		member := alice.Must("GET", Path("/rooms/%s/state/m.room.member/%s", room, server), nil)
		if name.JSON.Get("name").Str != "Server notices" || member.JSON.Get("displayname").Str != "Server notices" {
			t.Errorf("name %v, member %v", name, member)
		}

		// Who is suspended can talk there, and come back there.
		admin.Must("PUT", "/_matrix/client/v1/admin/suspend/"+alice.UserID, J{"suspended": true})
		alice.Text(room, "why?")
		alice.Leave(room)
		s.Restart()
		admin.Must("POST", sendNotice, notice(alice.UserID, "because"))
		if again := invitedBy(alice, server); again != room {
			t.Errorf("there is a second room: %s and %s", room, again)
		}
		alice.Join(room)

		// A transaction sends once; others have rooms of their own.
		first := admin.Must("PUT", sendNotice+"/1", notice(alice.UserID, "once")).JSON.Get("event_id").Str
		if second := admin.Must("PUT", sendNotice+"/1", notice(alice.UserID, "once")).JSON.Get("event_id").Str; second != first {
			t.Errorf("a repeated transaction made %s and %s", first, second)
		}
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() { admin.Must("POST", sendNotice, notice(bob.UserID, "hello")) })
		}
		group.Wait()
		if r := bob.Sync(nil); len(r.Get("rooms.invite").Map()) != 1 || r.Get("rooms.invite").Get(Key(room)).Exists() {
			t.Errorf("bob's invites: %s", r.Get("rooms.invite").Raw)
		}

		alice.Refused(403, "M_FORBIDDEN", "POST", sendNotice, notice(bob.UserID, "x"))
		admin.Refused(404, "M_NOT_FOUND", "POST", sendNotice, notice("@nobody:"+s.Name, "x"))
		admin.Refused(400, "M_INVALID_PARAM", "POST", sendNotice, notice("@alice:elsewhere", "x"))
		admin.Refused(400, "M_INVALID_PARAM", "POST", sendNotice, notice(server, "x"))
		admin.Refused(400, "M_MISSING_PARAM", "POST", sendNotice, J{"user_id": bob.UserID})
		admin.Refused(400, "M_BAD_JSON", "POST", sendNotice, J{"user_id": bob.UserID, "content": "text"})
		bob.Refused(400, "M_INVALID_USERNAME", "POST", Path("/register"), J{"username": "_server", "password": "x"})
	})
}
