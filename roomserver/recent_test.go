package roomserver

import (
	"fmt"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

// What rooms remember of their recent events is counted, and forgotten beyond a limit; readers notice nothing of it.
func TestRecentEventsAreBounded(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		v, _ := pdu.Lookup("12")
		const rooms, messages = 8, 70
		ids := make([]string, rooms)
		for i := range ids {
			var err error
			if ids[i], err = s.CreateRoom(ctx, NewRoom{Creator: creator, Version: v, Preset: PrivateChat}); err != nil {
				t.Fatal(err)
			}
		}
		filler := strings.Repeat("x", 1000)
		fill := func() {
			for n := range messages {
				for _, id := range ids {
					if _, err := say(s, id, fmt.Sprint(n, filler)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		sum := func() (sum int64) {
			for _, r := range s.rooms.byID {
				for _, e := range r.recent.events {
					sum += int64(e.cost())
				}
			}
			return sum
		}
		fill()
		if got, want := s.rooms.recent.Load(), sum(); got != want || want < rooms*messages*1000 {
			t.Errorf("%d bytes of recent events are counted, want %d", got, want)
		}
		s.rooms.recentLimit = sum() / 4
		fill()
		if got, want := s.rooms.recent.Load(), sum(); got != want || got > 2*s.rooms.recentLimit {
			t.Errorf("%d bytes of recent events are counted, want %d, and not many more than %d", got, want, s.rooms.recentLimit)
		}
		for _, id := range ids {
			room, err := s.Room(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			events, more, err := s.Timeline(ctx, room, 0, s.db.Head(), 50)
			if err != nil || len(events) != 50 || !more {
				t.Fatalf("%d events, more %v, error %v", len(events), more, err)
			}
			if body, _ := events[49].ContentString("body"); body != fmt.Sprint(messages-1, filler) {
				t.Errorf("the last message is %.20s", body)
			}
			arrived, err := s.Arrived(ctx, room, events[40].Anchor, s.db.Head(), 20)
			if err != nil || len(arrived) != 9 {
				t.Errorf("%d events arrived after a known one, error %v", len(arrived), err)
			}
		}
		s.rooms.mu.Lock()
		gone := s.rooms.evictLocked(rooms)
		s.rooms.mu.Unlock()
		for _, r := range gone {
			r.recent.countOut()
		}
		if got := s.rooms.recent.Load(); got != 0 || len(gone) != rooms {
			t.Errorf("%d bytes are counted of no rooms (%d were evicted)", got, len(gone))
		}
	})
}
