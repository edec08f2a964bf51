package scenario

import (
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// Lazy loading leaves out members whom a client need not know, but no change of one that it does.
func TestLazyLoadingTellsOfChanges(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		carol.Join(id)
		q := func(limit int) map[string][]string {
			return Filter(J{"room": J{"state": J{"lazy_load_members": true}, "timeline": J{"limit": limit}}})
		}
		alice.Sync(q(10))
		alice.Change("kick", id, bob.UserID)
		after := q(10)
		after["use_state_after"] = []string{"true"}
		part := room(alice.Sync(after), id)
		if got := Find(part.Get("state_after.events"), "m.room.member", bob.UserID); got.Get("content.membership").Str != "leave" {
			t.Errorf("state_after lacks who was kicked: %s", part)
		}
		carol.Leave(id)
		alice.Text(id, "one")
		alice.Text(id, "two")
		part = room(alice.Sync(q(1)), id)
		if got := Find(part.Get("state.events"), "m.room.member", carol.UserID); got.Get("content.membership").Str != "leave" {
			t.Errorf("the leave of a known member is lost in a gap: %s", part)
		}
	})
}

// TestLazyLoadingRepeatsWhatWasLost: an answer that the client did not acknowledge counts for nothing.
func TestLazyLoadingRepeatsWhatWasLost(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		alice.Text(id, "the only event of the first timeline")
		lazy := Filter(J{"room": J{"state": J{"lazy_load_members": true}, "timeline": J{"limit": 1}}})
		alice.Sync(lazy)
		token := alice.Since()
		bob.Text(id, "hello")
		for _, attempt := range []string{"first", "second"} {
			alice.SyncFrom(token)
			part := room(alice.Sync(lazy), id)
			if !Find(part.Get("state.events"), "m.room.member", bob.UserID).Exists() {
				t.Errorf("the %s answer lacks the sender: %s", attempt, part)
			}
		}
		bob.Text(id, "again")
		if part := room(alice.Sync(lazy), id); Find(part.Get("state.events"), "m.room.member", bob.UserID).Exists() {
			t.Errorf("the sender is told again after an acknowledged answer: %s", part)
		}
	})
}
