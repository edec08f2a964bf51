package roomserver_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// TestMemberCountsAt counts the members at every state that a room has had.
func TestMemberCountsAt(t *testing.T) {
	each(t, func(t *testing.T, s *roomserver.Server) {
		ctx := context.Background()
		id := newRoom(t, s, "11", "public_chat")
		room, err := s.Room(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		roots := []snapshot.Ref{room.Head().State}
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 1))
		for range 30 {
			user := fmt.Sprintf("@u%d:hs", rnd.IntN(5))
			m := roomserver.MembershipChange{RoomID: id, Sender: user, Target: user, Membership: roomserver.Join}
			switch rnd.IntN(3) {
			case 0:
				m.Sender, m.Membership = alice, roomserver.Invite
			case 1:
				m.Membership = roomserver.Leave
			}
			if _, err := s.SetMembership(ctx, m); err == nil { // others are refused: who has joined cannot be invited
				roots = append(roots, room.Head().State)
			}
		}
		for i, root := range roots {
			events, err := s.StateEventsOfType(ctx, room, root, "m.room.member")
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]int{}
			for _, e := range events {
				want[e.Membership()]++
			}
			joined, invited, err := s.MemberCountsAt(ctx, room, root)
			if err != nil || joined != want[roomserver.Join] || invited != want[roomserver.Invite] {
				t.Errorf("seed %d, state %d: %d joined, %d invited, %v, want %v", seed, i, joined, invited, err, want)
			}
		}
	})
}
