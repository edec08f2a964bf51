package ephemeral

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
)

func typingPath(room *roomserver.Room, user string) string {
	return "/rooms/" + url.PathEscape(room.ID) + "/typing/" + user
}

// typists are those who type in a room, as clients see them.
func (s *server) typists(room *roomserver.Room) string {
	s.t.Helper()
	e := string(s.AppendTypingEvent(nil, room.NID))
	if !gjson.Valid(e) || gjson.Get(e, "type").Str != "m.typing" {
		s.t.Fatalf("no event: %s", e)
	}
	var out []string
	for _, u := range gjson.Get(e, "content.user_ids").Array() {
		out = append(out, u.Str)
	}
	return strings.Join(out, " ")
}

func TestTyping(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room, other := s.room(alice, bob), s.room(alice)
		type step struct {
			user, body string
			pass       time.Duration // before it
			typing     string
			changed    bool
		}
		for i, c := range []step{
			{alice, `{"typing":false}`, 0, "", false},
			{alice, `{"typing":true,"timeout":10000}`, 0, alice, true},
			{alice, `{"typing":true,"timeout":20000}`, 5 * time.Second, alice, false}, // says it again
			{bob, `{"typing":true}`, 0, alice + " " + bob, true},
			{"", "", 19 * time.Second, alice + " " + bob, false},
			{"", "", time.Second, bob, true},
			{"", "", 9 * time.Second, bob, false},
			{"", "", time.Second, "", true}, // 30 seconds if it does not say for how long
			{"", "", time.Hour, "", false},
			{bob, `{"typing":true,"timeout":86400000}`, 0, bob, true},
			{"", "", maxTyping - time.Second, bob, false},
			{"", "", time.Second, "", true},
			{bob, `{"typing":true,"timeout":-5}`, 0, bob, true},
			{"", "", minTyping, "", true},
			{bob, `{"typing":true,"timeout":5000}`, 0, bob, true},
			{bob, `{"typing":false,"timeout":5000}`, 0, "", true},
		} {
			before := s.TypingStamp()
			s.told()
			s.pass(c.pass)
			if c.user != "" {
				s.ok(c.user, "PUT", typingPath(room, c.user), c.body)
			}
			if got := s.typists(room); got != c.typing {
				t.Errorf("step %d: %q, want %q", i, got, c.typing)
			}
			if got := s.TypingChanged(room.NID, before); got != c.changed {
				t.Errorf("step %d: changed %v, want %v", i, got, c.changed)
			}
			if got, _, _ := s.told(); len(got) > 0 != c.changed {
				t.Errorf("step %d: listener told %v, changed %v", i, got, c.changed)
			}
			if s.TypingChanged(other.NID, 0) {
				t.Errorf("step %d: the other room changed", i)
			}
			if s.TypingChanged(room.NID, -1) != (c.typing != "") {
				t.Errorf("step %d: who knows nothing is told %v", i, s.TypingChanged(room.NID, -1))
			}
			rooms, err := s.rooms.UserRooms(t.Context(), alice)
			if err != nil {
				t.Fatal(err)
			}
			if s.SomebodyTypes(rooms) != (c.typing != "") {
				t.Errorf("step %d: somebody types: %v", i, s.SomebodyTypes(rooms))
			}
		}
	})
}

func TestBadTyping(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		s.refused(403, "M_FORBIDDEN", bob, "PUT", typingPath(room, alice), `{"typing":true}`)
		s.refused(403, "M_FORBIDDEN", carol, "PUT", typingPath(room, carol), `{"typing":true}`)
		s.refused(403, "M_FORBIDDEN", alice, "PUT", "/rooms/!nowhere:hs/typing/"+alice, `{"typing":true}`)
		s.refused(400, "M_MISSING_PARAM", alice, "PUT", typingPath(room, alice), `{}`)
		s.refused(400, "M_BAD_JSON", alice, "PUT", typingPath(room, alice), `{"typing":"yes"}`)
		s.refused(400, "M_BAD_JSON", alice, "PUT", typingPath(room, alice), `{"typing":true,"timeout":"long"}`)
		s.refused(400, "M_INVALID_PARAM", alice, "PUT", typingPath(room, "alice"), `{"typing":true}`)
		if got := s.typists(room); got != "" {
			t.Errorf("%q type", got)
		}
	})
}

func TestWhoLeavesStopsTyping(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		for _, u := range []string{alice, bob} {
			s.ok(u, "PUT", typingPath(room, u), `{"typing":true}`)
		}
		s.member(room.ID, bob, roomserver.Leave)
		if got := s.typists(room); got != alice {
			t.Errorf("%q type", got)
		}
	})
}

// TestTypingIsBounded has more rooms and typists than are remembered.
func TestTypingIsBounded(t *testing.T) {
	ty := newTyping()
	until := time.UnixMilli(1000)
	for i := range 2 * maxTypists {
		ty.set(1, fmt.Sprint(i), until)
	}
	if n := len(ty.rooms[1].list); n != maxTypists {
		t.Errorf("%d type in one room", n)
	}
	stamp := int64(0)
	for i := range int64(3 * maxTypingRooms) {
		ty.set(2+i, alice, until)
		ty.set(2+i, alice, time.Time{})
		if i == 10 {
			stamp = ty.stamp
		}
	}
	if len(ty.rooms) > maxTypingRooms || ty.busy != 1 {
		t.Errorf("%d rooms, %d busy", len(ty.rooms), ty.busy)
	}
	if ty.floor <= stamp || ty.floor > ty.stamp {
		t.Errorf("floor %d, an old stamp %d, now %d", ty.floor, stamp, ty.stamp)
	}
	if rooms, next := ty.expire(until); len(rooms) != 1 || !next.IsZero() || ty.busy != 0 {
		t.Errorf("expired in %v, next %v, busy %d", rooms, next, ty.busy)
	}
}

// TestTypingEndsByItself lets the background run.
func TestTypingEndsByItself(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.API.now = time.Now
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Run(ctx)
		}()
		room := s.room(alice)
		begun := time.Now() // before it is said, since the rest may take a while
		s.ok(alice, "PUT", typingPath(room, alice), `{"typing":true,"timeout":1000}`)
		for s.typists(room) != "" && time.Since(begun) < time.Minute {
			time.Sleep(5 * time.Millisecond)
		}
		if took := time.Since(begun); took < 900*time.Millisecond || took > time.Minute {
			t.Errorf("it took %v", took)
		}
		stop()
		<-ended
	})
}
