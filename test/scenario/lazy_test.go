package scenario

import (
	"net/url"
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
		id := alice.Create(J{"preset": "public_chat", "name": "room"})
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

// lazyTimeline is a filter for a client that loads members lazily.
func lazyTimeline(timeline J) url.Values {
	return Filter(J{"room": J{"state": J{"lazy_load_members": true}, "timeline": timeline}})
}

// The users after whom a room is named come with their membership, since the client shows their names.
func TestLazyLoadingIncludesHeroes(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		alice.Text(id, "the only event of the first timeline")
		part := room(alice.Sync(lazyTimeline(J{"limit": 1})), id)
		if !Find(part.Get("state.events"), "m.room.member", bob.UserID).Exists() {
			t.Errorf("the hero of a new room is missing: %s", part)
		}
		carol.Join(id)
		alice.Text(id, "the only event of the second timeline")
		part = room(alice.Sync(lazyTimeline(J{"limit": 1})), id)
		if !Find(part.Get("state.events"), "m.room.member", carol.UserID).Exists() {
			t.Errorf("a new hero is missing: %s", part)
		}
		if Find(part.Get("state.events"), "m.room.member", bob.UserID).Exists() {
			t.Errorf("a hero whom the client knows is repeated: %s", part)
		}
	})
}

// A filter that keeps memberships out of the timeline keeps them not out of the state: the client learns those of now.
func TestLazyLoadingBesideAFilter(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "name": "room"})
		alice.Text(id, "before bob")
		bob.Join(id)
		bob.Text(id, "hello")
		messages := lazyTimeline(J{"limit": 3, "types": []string{"m.room.message"}})
		part := room(bob.Sync(messages), id)
		if got := Find(part.Get("state.events"), "m.room.member", bob.UserID); got.Get("content.membership").Str != "join" {
			t.Errorf("the reader's own membership is missing: %s", part)
		}
		alice.Sync(messages)
		alice.Text(id, "before the change")
		renamed := bob.State(id, "m.room.member", bob.UserID, J{"membership": "join", "displayname": "Robert"})
		bob.Text(id, "after the change")
		part = room(alice.Sync(messages), id)
		if got := Find(part.Get("state.events"), "m.room.member", bob.UserID); got.Get("event_id").Str != renamed {
			t.Errorf("the membership of the sender is not that of now: %s", part)
		}
	})
}

// Whom a client knows is forgotten when the server stops. Then it is told of each member that changes.
func TestLazyLoadingAfterARestart(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "name": "room"})
		bob.Join(id)
		bob.Text(id, "hello")
		alice.Sync(lazyTimeline(J{"limit": 1}))
		s.Restart()
		bob.Leave(id)
		alice.Text(id, "the only event of the next timeline")
		part := room(alice.Sync(lazyTimeline(J{"limit": 1})), id)
		if got := Find(part.Get("state.events"), "m.room.member", bob.UserID); got.Get("content.membership").Str != "leave" {
			t.Errorf("the leave of a known member is lost: %s", part)
		}
	})
}

// A client that has not heard that its user was away is told of the members that it knows as they are now.
func TestLazyLoadingOfARoomEnteredAgain(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "name": "room"})
		bob.Join(id)
		alice.Text(id, "hello")
		bob.Sync(lazyTimeline(J{"limit": 1}))
		bob.Leave(id)
		renamed := alice.State(id, "m.room.member", alice.UserID, J{"membership": "join", "displayname": "Alicia"})
		bob.Join(id)
		bob.Text(id, "the only event of the next timeline")
		part := room(bob.Sync(lazyTimeline(J{"limit": 1})), id)
		if got := Find(part.Get("state.events"), "m.room.member", alice.UserID); got.Get("event_id").Str != renamed {
			t.Errorf("the new name of a known member is lost: %s", part)
		}
	})
}
