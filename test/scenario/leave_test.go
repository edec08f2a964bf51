package scenario

import (
	"slices"
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

// Whoever was in a room, and is invited again or knocks, sees it as it was when they left. Whoever never was in it does not
// see it before they join, whatever the visibility.
func TestFormerMemberAtTheDoor(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		for _, visibility := range []string{"shared", "invited", "joined"} {
			for _, door := range []string{"invite", "knock"} {
				t.Run(visibility+" "+door, func(t *testing.T) { formerMember(t, s, visibility, door) })
			}
		}
	})
}

func formerMember(t *testing.T, s *Server, visibility, door string) {
	alice, bob, carol := s.Register(t, visibility+door+"alice"), s.Register(t, visibility+door+"bob"), s.Register(t, visibility+door+"carol")
	id := alice.Create(J{"preset": "private_chat", "topic": "known", "initial_state": []J{
		{"type": "m.room.history_visibility", "content": J{"history_visibility": visibility}},
		{"type": "m.room.join_rules", "content": J{"join_rule": "knock"}},
	}})
	alice.Change("invite", id, bob.UserID)
	bob.Join(id)
	seen := alice.Text(id, "while bob is in the room")
	bob.Leave(id)
	hidden := alice.Text(id, "while bob is away")
	alice.State(id, "m.room.topic", "", J{"topic": "secret"})
	for _, c := range []*Client{bob, carol} {
		if door == "invite" {
			alice.Change("invite", id, c.UserID)
		} else {
			c.Must("POST", Path("/knock/%s", id), J{})
		}
	}
	alice.Text(id, "a secret while both are at the door")

	for _, path := range []string{"/messages?dir=b&limit=100", "/messages?dir=f&limit=100", "/context/" + seen, "/state", "/members", "/initialSync"} {
		if a := bob.Must("GET", Path("/rooms/%s", id)+path, nil); strings.Contains(string(a.Body), "secret") {
			t.Errorf("%s tells the secret: %v", path, a)
		}
	}
	if page := bob.Walk(id, "", "b", 100); !slices.Contains(page, seen) || slices.Contains(page, hidden) {
		t.Errorf("the messages are %v, want %s and not %s", page, seen, hidden)
	}
	bob.Must("GET", Path("/rooms/%s/event/%s", id, seen), nil)
	bob.Refused(404, "M_NOT_FOUND", "GET", Path("/rooms/%s/event/%s", id, hidden), nil)
	if topic := bob.Must("GET", Path("/rooms/%s/state/m.room.topic", id), nil).JSON.Get("topic").Str; topic != "known" {
		t.Errorf("to someone who left, the topic is %q", topic)
	}
	members := bob.Must("GET", Path("/rooms/%s/members", id), nil).JSON.Get("chunk")
	if own := Find(members, "m.room.member", bob.UserID).Get("content.membership").Str; own != "leave" || Find(members, "m.room.member", carol.UserID).Exists() {
		t.Errorf("the members when bob left are %s", members)
	}
	bob.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s/joined_members", id), nil)
	for _, path := range []string{"/messages?dir=b", "/state", "/members", "/initialSync", "/joined_members"} {
		carol.Refused(403, "M_FORBIDDEN", "GET", Path("/rooms/%s", id)+path, nil)
	}
}
