package scenario

import (
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

func heroesOf(part gjson.Result) (heroes []string) {
	for _, h := range part.Get("summary").Get(Key("m.heroes")).Array() {
		heroes = append(heroes, h.Str)
	}
	return heroes
}

// A room that loses its name is called after its members, of whom clients were not told while it had one.
func TestHeroesOfARoomWithoutItsName(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		if got := heroesOf(room(alice.Sync(nil), id)); !slices.Equal(got, []string{bob.UserID}) {
			t.Errorf("heroes of a room without a name: %q", got)
		}
		alice.State(id, "m.room.name", "", J{"name": "room"})
		carol.Join(id)
		if got := heroesOf(room(alice.Sync(nil), id)); got != nil {
			t.Errorf("heroes of a room with a name: %q", got)
		}
		alice.State(id, "m.room.name", "", J{})
		if got := heroesOf(room(alice.Sync(nil), id)); !slices.Equal(got, []string{bob.UserID, carol.UserID}) {
			t.Errorf("heroes of a room that lost its name: %q", got)
		}
	})
}

// Clients are told how many members there are also where a filter leaves out who they are.
func TestSummaryBesideAFilter(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "name": "room"})
		messages := lazyTimeline(J{"types": []string{"m.room.message"}})
		alice.Sync(messages)
		alice.Change("invite", id, bob.UserID)
		part := room(alice.Sync(messages), id)
		if got := part.Get("summary").Get(Key("m.invited_member_count")); got.Int() != 1 {
			t.Errorf("an invited user is not counted: %s", part)
		}
		bob.Join(id)
		part = room(alice.Sync(messages), id)
		if got := part.Get("summary").Get(Key("m.joined_member_count")); got.Int() != 2 {
			t.Errorf("a new member is not counted: %s", part)
		}
		bob.State(id, "m.room.member", bob.UserID, J{"membership": "join", "displayname": "Robert"})
		if part = room(alice.Sync(messages), id); part.Exists() {
			t.Errorf("a change that the client does not want is told: %s", part)
		}
	})
}
