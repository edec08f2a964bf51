package roomserver

import (
	"testing"

	"github.com/tidwall/gjson"
)

// Each event tells what its reader was in the room right after it (client-server API v1.19, unsigned.membership), in whatever
// order they are shown and looked at.
func TestMembershipOfTheReader(t *testing.T) {
	const reader = "@reader:hs"
	eachServer(t, func(t *testing.T, s *Server) {
		id, err := s.CreateRoom(ctx, NewRoom{Creator: creator, Version: defaultVersion(t), Preset: PublicChat})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		note := func(membership string) {
			for _, what := range []string{"m.room.topic", "m.room.message", "m.room.message"} {
				d := Draft{Sender: creator, Type: what, Content: []byte(`{"body":"x","topic":"x"}`)}
				if what == "m.room.topic" {
					d.StateKey = new(string)
					d.Content = []byte(`{"topic":"` + membership + `"}`)
				}
				e, err := s.Send(ctx, id, d)
				if err != nil {
					t.Fatal(err)
				}
				want[e] = membership
			}
		}
		note(Leave)
		for _, m := range []string{Join, Leave} {
			if _, err := s.SetMembership(ctx, MembershipChange{RoomID: id, Sender: reader, Target: reader, Membership: m}); err != nil {
				t.Fatal(err)
			}
			note(m)
		}
		room, err := s.Room(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		events, _, err := s.Timeline(ctx, room, 0, s.db.Head(), ringSize)
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.Viewer(ctx, room, reader, s.db.Head())
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for i := range events {
			// Forwards, from both ends at once, and each after another one was looked at.
			for _, e := range []*Event{events[i], events[len(events)-1-i], events[i]} {
				if _, err := v.Sees(ctx, events[(i+4)%len(events)]); err != nil {
					t.Fatal(err)
				}
				b, err := s.AppendClientEvent(ctx, nil, room, e, &Reader{User: reader, Membership: v})
				if err != nil {
					t.Fatal(err)
				}
				membership, ok := want[e.ID]
				if !ok {
					continue
				}
				shown++
				if got := gjson.GetBytes(b, "unsigned.membership").Str; got != membership {
					t.Errorf("event %d of type %s: the reader is said to be %q, want %q", i, e.Type, got, membership)
				}
			}
		}
		if shown != 3*len(want) {
			t.Errorf("%d events were shown, want %d", shown, 3*len(want))
		}
	})
}
