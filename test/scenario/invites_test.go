package scenario

import (
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// Users say whose invites they want: refused ones fail, hidden ones happen without being shown (MSC4155).
func TestInviteRules(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		rules := func(content J) {
			alice.Must("PUT", Path("/user/%s/account_data/%s", alice.UserID, "org.matrix.msc4155.invite_permission_config"), content)
		}
		shown := func(c *Client) bool { // on both kinds of sync
			id := c.Create(J{})
			c.Must("POST", Path("/rooms/%s/invite", id), J{"user_id": alice.UserID})
			alice.SyncFrom("")
			v3 := Room(alice.Sync(nil), "invite", id).Exists()
			sliding := alice.Must("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
				J{"lists": J{"all": J{"ranges": [][]int{{0, 99}}, "timeline_limit": 1, "required_state": [][]string{}}}}).JSON
			if v4 := sliding.Get("rooms." + Key(id)).Exists(); v3 != v4 {
				t.Errorf("shown by /sync: %v, by sliding sync: %v", v3, v4)
			}
			return v3
		}
		refused := func(c *Client) {
			t.Helper()
			c.Refused(403, "M_INVITE_BLOCKED", "POST", Path("/rooms/%s/invite", c.Create(J{})), J{"user_id": alice.UserID})
			c.Refused(403, "M_INVITE_BLOCKED", "POST", Path("/createRoom"), J{"invite": []string{alice.UserID}})
		}
		if !shown(bob) {
			t.Error("without rules, an invite is not shown")
		}
		rules(J{"blocked_users": []string{bob.UserID}, "ignored_users": []string{"@car?l:*"}, "allowed_users": nil})
		refused(bob)
		if shown(carol) {
			t.Error("an invite of an ignored user is shown")
		}
		rules(J{"blocked_servers": []string{"*.test"}, "allowed_users": []string{carol.UserID}})
		refused(bob)
		if !shown(carol) {
			t.Error("an invite of an allowed user is not shown")
		}
		rules(J{"blocked_users": "nonsense", "blocked_servers": []any{1, nil}})
		if !shown(bob) {
			t.Error("with rules that say nothing, an invite is not shown")
		}
	})
}
