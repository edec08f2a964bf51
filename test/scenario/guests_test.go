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

// TestGuestsCapabilities asks what a guest can do, as client libraries do at every start.
//
// Spec: client-server API v1.19, "Capabilities negotiation" and "Guest Access".
func TestGuestsCapabilities(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		guest, alice := s.Guest(t), s.Register(t, "alice")
		for _, c := range []struct {
			name          string
			guest, person bool
		}{
			{"m.change_password", false, true},
			{"m.get_login_token", false, true},
			{"m.set_avatar_url", false, true},
			{"m.set_displayname", true, true},
			{"m.profile_fields", true, true},
		} {
			for who, want := range map[*Client]bool{guest: c.guest, alice: c.person} {
				got := who.Must("GET", Path("/capabilities"), nil).JSON.Get("capabilities." + Key(c.name) + ".enabled")
				if !got.Exists() || got.Bool() != want {
					t.Errorf("%s of %s: %s, want %t", c.name, who.UserID, got.Raw, want)
				}
			}
		}
		allowed := guest.Must("GET", Path("/capabilities"), nil).JSON.Get("capabilities." + Key("m.profile_fields") + ".allowed").Raw
		if allowed != `["displayname"]` {
			t.Errorf("a guest may set the fields %s", allowed)
		}
		if got := guest.Must("GET", Path("/thirdparty/protocols"), nil).JSON.Raw; got != "{}" {
			t.Errorf("the networks are %s", got)
		}
	})
}
