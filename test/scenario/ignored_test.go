package scenario

import (
	"strings"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestIgnoredUsers: what an ignored user writes is in no answer, what they change in the room is.
func TestIgnoredUsers(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		bob.Text(id, "before")
		middle := alice.Text(id, "in between")
		bob.Text(id, "after")
		alice.Must("PUT", Path("/user/%s/account_data/m.ignored_user_list", alice.UserID), J{"ignored_users": J{bob.UserID: J{}}})
		for name, answer := range map[string]string{
			"sync":     alice.Sync(nil).Raw,
			"messages": alice.Must("GET", Path("/rooms/%s/messages?dir=b&limit=100", id), nil).JSON.Raw,
			"context":  alice.Must("GET", Path("/rooms/%s/context/%s?limit=100", id, middle), nil).JSON.Raw,
		} {
			if strings.Contains(answer, `"body":"before"`) || strings.Contains(answer, `"body":"after"`) {
				t.Errorf("%s shows messages of an ignored user", name)
			}
			if !strings.Contains(answer, "in between") || !strings.Contains(answer, `"state_key":"`+bob.UserID+`"`) {
				t.Errorf("%s hides more than messages: %s", name, answer)
			}
		}
	})
}
