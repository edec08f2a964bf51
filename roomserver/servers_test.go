package roomserver

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// TestAudience asks who is sent the events of a forked room, one after the other, in any order and while the room goes on.
func TestAudience(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "11")
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 1))
		history := []*Event{w.room.Head().Extremities[0]}
		for range 60 {
			user := fmt.Sprintf("@u%d:server%d", rnd.IntN(2), rnd.IntN(5))
			membership := []string{Join, Leave}[rnd.IntN(2)]
			prev := []*Event{history[max(0, len(history)-1-rnd.IntN(3))]}
			p := w.build(prev, user, pdu.TypeMember, user, `{"membership":"`+membership+`"}`)
			if w.receive(p).Outcome == Accepted { // who is not there cannot leave
				history = append(history, w.event(p.ID))
			}
		}
		forwards := s.Audience(w.room)
		anyhow := s.Audience(w.room)
		for i, e := range history {
			if i%20 == 0 {
				user := fmt.Sprintf("@new%d:new%d", i, i)
				w.accept(w.build(nil, user, pdu.TypeMember, user, `{"membership":"join"}`))
			}
			other := history[rnd.IntN(len(history))]
			for _, ask := range []struct {
				how string
				a   *Audience
				e   *Event
			}{{"forwards", forwards, e}, {"anyhow", anyhow, other}, {"at once", s.Audience(w.room), e}} {
				got, err := ask.a.Of(ctx, ask.e)
				if err != nil {
					t.Fatal(err)
				}
				slices.Sort(got)
				if want := w.serversBefore(ask.e); !slices.Equal(got, want) {
					t.Errorf("seed %d, event %d %s: %v, want %v", seed, i, ask.how, got, want)
				}
			}
		}
	})
}

// serversBefore lists the other servers in the state before an event.
func (w *world) serversBefore(e *Event) []string {
	w.t.Helper()
	members, err := w.s.StateEventsOfType(ctx, w.room, e.StateBefore, pdu.TypeMember)
	if err != nil {
		w.t.Fatal(err)
	}
	servers := map[string]bool{}
	for _, m := range members {
		if server := pdu.ServerOf(*m.StateKey); m.Membership() == Join && server != w.s.name {
			servers[server] = true
		}
	}
	return slices.Sorted(maps.Keys(servers))
}

// BenchmarkAudience asks who is sent each of 2,000 joins, by who has all of them before them.
func BenchmarkAudience(b *testing.B) {
	s := testServer(b, storagetest.Open(b, storage.SQLite, Schema), "hs")
	w := newWorld(b, s, "11")
	from := w.room.Head().Pos
	for i := range 2000 {
		user := fmt.Sprintf("@user%d:hs", i)
		if _, err := s.SetMembership(ctx, MembershipChange{RoomID: w.room.ID, Sender: user, Target: user, Membership: Join}); err != nil {
			b.Fatal(err)
		}
	}
	events, err := s.Arrived(ctx, w.room, from, w.room.Head().Pos, 5000)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("one by one", func(b *testing.B) {
		for range b.N {
			for _, e := range events {
				if _, err := s.Recipients(ctx, w.room, e); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("in a row", func(b *testing.B) {
		for range b.N {
			a := s.Audience(w.room)
			for _, e := range events {
				if _, err := a.Of(ctx, e); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
