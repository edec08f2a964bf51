package scenario

import (
	"fmt"
	"slices"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// findsUsers asks until the users found are these.
func findsUsers(t *testing.T, c *Client, term string, want ...string) {
	t.Helper()
	got := []string{}
	eventually(func() bool {
		got = got[:0]
		for _, u := range c.Must("POST", Path("/user_directory/search"), J{"search_term": term}).JSON.Get("results").Array() {
			got = append(got, u.Get("user_id").Str)
		}
		return slices.Equal(got, want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("%s looks for %q and finds %q, want %q", c.UserID, term, got, want)
	}
}

func setName(c *Client, name string) {
	c.Must("PUT", Path("/profile/%s/displayname", c.UserID), J{"displayname": name})
}

func TestUserDirectory(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		users := map[string]*Client{}
		for localpart, name := range map[string]string{
			"searcher": "", "anna": "", "annabel.lee": "Annabel Lee", "b99": "Anna", "carla": "Carla Müller", "tanaka": "田中太郎", "hermit": "Anna the Hermit",
		} {
			users[localpart] = s.Register(t, localpart)
			if name != "" {
				setName(users[localpart], name)
			} else {
				users[localpart].Must("DELETE", Path("/profile/%s/displayname", users[localpart].UserID), nil)
			}
		}
		me := users["searcher"]
		plaza := me.Create(J{"preset": "public_chat"})
		for _, localpart := range []string{"anna", "annabel.lee", "b99", "carla", "tanaka"} {
			users[localpart].Join(plaza)
		}
		id := func(localpart string) string { return users[localpart].UserID }

		// Exact names first, then the beginnings.
		findsUsers(t, me, "anna", id("b99"), id("anna"), id("annabel.lee"))
		findsUsers(t, me, "ANNAB", id("annabel.lee"))
		findsUsers(t, me, "lee", id("annabel.lee"))
		findsUsers(t, me, "lee ann", id("annabel.lee"))
		findsUsers(t, me, "muller", id("carla"))
		findsUsers(t, me, "MÜL", id("carla"))
		findsUsers(t, me, "田中", id("tanaka"))
		findsUsers(t, me, "郎", id("tanaka"))
		findsUsers(t, me, "@carla:myelin.test", id("carla"))
		findsUsers(t, me, "@carla:elsewhere", []string{}...)
		findsUsers(t, me, "@annabel", id("annabel.lee"))
		// Who searches is in a public room as well, and the specification makes no exception of them.
		findsUsers(t, me, "searcher", id("searcher"))
		findsUsers(t, me, "nobody")
		findsUsers(t, me, "")
		u := me.Must("POST", Path("/user_directory/search"), J{"search_term": "carla"}).JSON
		if u.Get("results.0.display_name").Str != "Carla Müller" || u.Get("limited").Raw != "false" {
			t.Errorf("a found user: %s", u)
		}
		for _, test := range []struct {
			limit   any
			results int
			limited bool
		}{{2, 2, true}, {3, 3, false}, {nil, 3, false}, {1000, 3, false}} {
			a := me.Must("POST", Path("/user_directory/search"), J{"search_term": "anna", "limit": test.limit}).JSON
			if len(a.Get("results").Array()) != test.results || a.Get("limited").Bool() != test.limited {
				t.Errorf("limit %v: %s", test.limit, a)
			}
		}
		me.Refused(400, "M_MISSING_PARAM", "POST", Path("/user_directory/search"), J{})
		me.Refused(400, "M_INVALID_PARAM", "POST", Path("/user_directory/search"), J{"search_term": "x", "limit": -1})
		me.Refused(400, "M_BAD_JSON", "POST", Path("/user_directory/search"), J{"search_term": 7})

		// Names change, also for those who tell no room.
		setName(users["carla"], "Klara")
		findsUsers(t, me, "klara", id("carla"))
		findsUsers(t, me, "muller")
		findsUsers(t, me, "carla", id("carla"))

		// A name for one room only is nobody's name.
		users["carla"].State(plaza, "m.room.member", id("carla"), J{"membership": "join", "displayname": "Incognito"})
		findsUsers(t, me, "incognito")
		findsUsers(t, me, "klara", id("carla"))

		s.Restart()
		findsUsers(t, me, "klara", id("carla"))
		users["carla"].Leave(plaza)
		findsUsers(t, me, "klara")
	})
}

// Users are found by those who share a room with them, and by everybody while a room of theirs is open.
func TestUserDirectoryVisibility(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		ann, ben, cid := s.Register(t, "ann"), s.Register(t, "ben"), s.Register(t, "cid")
		findsUsers(t, ann, "ben")
		findsUsers(t, ann, "ann")
		room := ann.Create(J{"preset": "private_chat"})
		findsUsers(t, ann, "ann") // who shares a room only with herself
		ann.Change("invite", room, ben.UserID)
		findsUsers(t, ann, "ben")
		ben.Join(room)
		findsUsers(t, ann, "ben", ben.UserID)
		findsUsers(t, ben, "ann", ann.UserID)
		findsUsers(t, cid, "ann")

		ann.State(room, "m.room.join_rules", "", J{"join_rule": "public"})
		findsUsers(t, cid, "ann", ann.UserID)
		findsUsers(t, cid, "ben", ben.UserID)
		findsUsers(t, ann, "ann", ann.UserID)
		ann.State(room, "m.room.join_rules", "", J{"join_rule": "invite"})
		findsUsers(t, ann, "ann")
		findsUsers(t, cid, "ann")
		findsUsers(t, cid, "ben")
		findsUsers(t, ben, "ann", ann.UserID)
		ann.State(room, "m.room.history_visibility", "", J{"history_visibility": "world_readable"})
		findsUsers(t, cid, "ben", ben.UserID)
		ben.Leave(room)
		findsUsers(t, cid, "ben")
		findsUsers(t, cid, "ann", ann.UserID)
	})
}

// More users than one write of the index takes come and go with their room.
func TestUserDirectoryManyMembers(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		owner, outsider := s.Register(t, "owner"), s.Register(t, "outsider")
		room := owner.Create(J{"preset": "public_chat"})
		for i := range 70 {
			s.Register(t, fmt.Sprintf("member%d", i)).Join(room)
		}
		count := func(want int) {
			t.Helper()
			got := -1
			eventually(func() bool {
				got = len(outsider.Must("POST", Path("/user_directory/search"), J{"search_term": "member", "limit": 100}).JSON.Get("results").Array())
				return got == want
			})
			if got != want {
				t.Errorf("%d members are found, want %d", got, want)
			}
		}
		count(70)
		owner.State(room, "m.room.join_rules", "", J{"join_rule": "invite"})
		count(0)
		owner.State(room, "m.room.join_rules", "", J{"join_rule": "public"})
		count(70)
	})
}
