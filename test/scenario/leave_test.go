package scenario

import (
	"strings"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// Whoever is not in a room any more, or never was, learns nothing of what happens in it: not even through the leave
// section of their sync.
func TestLeaveSectionKeepsSecrets(t *testing.T) {
	for _, version := range []string{"10", "12"} {
		Each(t, func(t *testing.T, s *Server) {
			alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
			members := J{"m.federate": true}
			id := alice.Create(J{"preset": "private_chat", "room_version": version, "creation_content": members, "topic": "first secret"})
			word := "first secret"
			secret := func(what string, c *Client, want int) {
				t.Helper()
				for _, device := range []*Client{c, c.Login()} {
					answer := device.Sync(Filter(J{"room": J{"include_leave": true}}))
					part := Room(answer, "leave", id)
					if strings.Contains(answer.Raw, word) {
						t.Errorf("%s: the sync tells the secret: %s", what, part)
					}
					events := part.Get("timeline.events").Array()
					if n := len(events); device == c && n != want || n > 0 && events[n-1].Get("state_key").Str != bob.UserID {
						t.Errorf("%s: the leave section is %s, want %d events", what, part, want)
					}
				}
			}
			bob.Sync(nil)
			alice.Change("invite", id, bob.UserID)
			bob.Sync(nil)
			bob.Leave(id)
			secret("a rejected invite", bob, 1)
			alice.Change("invite", id, bob.UserID)
			alice.Change("kick", id, bob.UserID)
			secret("an invite that was taken back", bob, 1)
			alice.Change("ban", id, bob.UserID)
			secret("a ban", bob, 1)
			alice.Change("unban", id, bob.UserID)
			secret("the end of a ban", bob, 1)

			alice.State(id, "m.room.topic", "", J{"topic": "known"})
			alice.State(id, "m.room.history_visibility", "", J{"history_visibility": "joined"})
			alice.Change("invite", id, bob.UserID)
			bob.Join(id)
			bob.Sync(nil)
			bob.Leave(id)
			word = "second secret"
			alice.State(id, "m.room.topic", "", J{"topic": word})
			alice.Text(id, word)
			alice.Change("ban", id, bob.UserID)
			secret("a leave and a ban", bob, 2)
			alice.Change("unban", id, bob.UserID)
			secret("the end of another ban", bob, 1)
			for _, path := range []string{"/messages?dir=b&limit=100", "/state", "/members", "/initialSync"} {
				if a := bob.Must("GET", Path("/rooms/%s", id)+path, nil); strings.Contains(string(a.Body), word) {
					t.Errorf("%s tells the secret: %v", path, a)
				}
			}
			if topic := bob.Must("GET", Path("/rooms/%s/state/m.room.topic", id), nil).JSON.Get("topic").Str; topic != "known" {
				t.Errorf("to someone who left, the topic is %q", topic)
			}
		})
	}
}
