package scenario

import (
	"strings"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestErasure: whoever had no part in the room when an erased user wrote sees only that something was written.
func TestErasure(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		event := alice.Text(id, "something personal")
		late := s.Register(t, "late")
		late.Join(id)
		sees := func(c *Client) bool {
			t.Helper()
			r := c.Must("GET", Path("/rooms/%s/event/%s", id, event), nil).JSON
			if r.Get("event_id").Str != event {
				t.Errorf("%s sees %s", c.UserID, r)
			}
			page := c.Must("GET", Path("/rooms/%s/messages?dir=b&limit=50", id), nil).JSON.Raw
			shown := strings.Contains(r.Raw, "something personal")
			if strings.Contains(page, "something personal") != shown {
				t.Errorf("%s: /event and /messages differ", c.UserID)
			}
			return shown
		}
		if !sees(bob) || !sees(late) {
			t.Fatal("the message is hidden before the erasure")
		}
		alice.Must("POST", Path("/account/deactivate"), J{"erase": true, "auth": J{
			"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": alice.UserID}, "password": Password,
		}})
		if !sees(bob) {
			t.Error("the message is hidden from someone who was there")
		}
		if sees(late) {
			t.Error("the message is shown to someone who came later")
		}
		if strings.Contains(late.Sync(nil).Raw, "something personal") {
			t.Error("the message is in a sync of someone who came later")
		}
	})
}
