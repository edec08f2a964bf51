package scenario

import (
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestGuestsLeaveClosedRooms withdraws the access of guests in several ways.
//
// Spec: client-server API v1.19, "Guest Access".
func TestGuestsLeaveClosedRooms(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		guests := []*Client{s.Guest(t), s.Guest(t)}
		open := J{"preset": "public_chat", "initial_state": []J{{"type": "m.room.guest_access", "content": J{"guest_access": "can_join"}}}}
		withdrawn, deleted, stays := alice.Create(open), alice.Create(open), alice.Create(open)
		closed := alice.Create(J{"preset": "public_chat"})
		for _, room := range []string{withdrawn, deleted, stays} {
			bob.Join(room)
			for _, g := range guests {
				g.Join(room)
			}
		}
		guests[0].Refused(403, "M_GUEST_ACCESS_FORBIDDEN", "POST", Path("/join/%s", closed), J{})
		guests[0].Sync(nil)
		s.Restart()

		alice.State(withdrawn, "m.room.guest_access", "", J{"guest_access": "forbidden"})
		alice.State(deleted, "m.room.guest_access", "", J{})
		for _, room := range []string{withdrawn, deleted} {
			for _, g := range guests {
				alice.Until("a guest leaves", func(gjson.Result) bool {
					m := alice.Must("GET", Path("/rooms/%s/state/m.room.member/%s?format=event", room, g.UserID), nil).JSON
					return m.Get("content.membership").Str == "leave" && m.Get("sender").Str == g.UserID
				})
				g.Refused(403, "M_FORBIDDEN", "PUT", Path("/rooms/%s/send/m.room.message/%s", room, Txn()), J{"msgtype": "m.text", "body": "x"})
			}
			bob.Text(room, "not a guest")
		}
		guests[0].Text(stays, "still here")
		alice.State(withdrawn, "m.room.guest_access", "", J{"guest_access": "can_join"})
		guests[0].Join(withdrawn)
		guests[0].Text(withdrawn, "back again")
		alice.State(withdrawn, "m.room.guest_access", "", J{"guest_access": "forbidden"})
		alice.Until("the guest leaves again", func(gjson.Result) bool {
			return alice.Must("GET", Path("/rooms/%s/state/m.room.member/%s", withdrawn, guests[0].UserID), nil).JSON.Get("membership").Str == "leave"
		})
	})
}
