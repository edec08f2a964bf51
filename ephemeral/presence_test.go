package ephemeral

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

func presencePath(user string) string { return "/presence/" + user + "/status" }

// sync starts a request of a device that says what its user is.
func (s *server) sync(user, device string, state State) (done func()) {
	return s.Syncing(s.t.Context(), user, device, state)
}

// poll is a request that ends at once.
func (s *server) poll(user, device string, state State) { s.sync(user, device, state)() }

// sees is what a user is told of another: state, "*" if currently active, seconds since the last activity.
func (s *server) sees(user, other string) string {
	s.t.Helper()
	p := s.ok(user, "GET", presencePath(other), "")
	out := p.Get("presence").Str
	if p.Get("currently_active").Bool() {
		out += "*"
	}
	if ago := p.Get("last_active_ago"); ago.Exists() {
		out += fmt.Sprint(" ", ago.Int()/1000)
	}
	return out
}

func TestPresenceOverTime(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.room(alice, bob)
		check := func(want string) {
			t.Helper()
			if got := s.sees(bob, alice); got != want {
				t.Errorf("alice is %q, want %q", got, want)
			}
		}
		check("offline")
		end := s.sync(alice, "A", Online)
		check("online* 0")
		s.pass(59 * time.Second)
		check("online* 59")
		s.pass(time.Second)
		check("online 60")
		s.pass(4*time.Minute - time.Second)
		check("online 299")
		s.pass(time.Second)
		check("unavailable 300") // idle, though the client is still there
		end()
		s.poll(alice, "A", Online) // which is no activity
		check("unavailable 300")
		s.active(alice)
		check("online* 0")
		s.poll(alice, "A", Unavailable)
		check("unavailable 0")
		s.pass(time.Second)
		s.active(alice)
		check("online* 0")
		s.poll(alice, "A", Unavailable) // says it again: it knew before that
		check("online* 0")
		s.pass(29 * time.Second)
		check("online* 29")
		s.pass(time.Second)
		check("offline 30") // no request for 30 seconds
		s.active(alice)     // as a bot that does not sync
		check("offline 0")
		s.poll(alice, "A", Offline)
		check("offline 0")
	})
}

func TestPresenceOfSeveralDevices(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.room(alice, bob)
		check := func(want string) {
			t.Helper()
			got, _, _ := strings.Cut(s.sees(bob, alice), " ")
			if got != want {
				t.Errorf("alice is %q, want %q", got, want)
			}
		}
		s.poll(alice, "A", Unavailable)
		check("unavailable")
		s.poll(alice, "B", Online)
		check("online*")
		s.poll(alice, "B", Busy)
		check("org.matrix.msc3026.busy")
		s.poll(alice, "A", Online)
		check("org.matrix.msc3026.busy")
		s.poll(alice, "B", Online) // does not end it
		check("org.matrix.msc3026.busy")
		s.pass(20 * time.Second)
		s.poll(alice, "A", Unavailable)
		s.pass(10 * time.Second)
		check("unavailable") // B is gone
		s.ok(alice+" A", "PUT", presencePath(alice), `{"presence":"offline"}`)
		check("offline")
	})
}

func TestSetPresence(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		s.room(alice, bob)
		get := func(want string) {
			t.Helper()
			if got := s.ok(bob, "GET", presencePath(alice), "").Raw; got != want {
				t.Errorf("bob sees %s, want %s", got, want)
			}
		}
		s.ok(alice, "PUT", presencePath(alice), `{"presence":"online","status_msg":"in a \"meeting\""}`)
		get(`{"presence":"online","last_active_ago":0,"currently_active":true,"status_msg":"in a \"meeting\""}`)
		s.ok(alice, "PUT", presencePath(alice), `{"presence":"unavailable"}`)
		get(`{"presence":"unavailable","last_active_ago":0}`)
		s.ok(alice, "PUT", presencePath(alice), `{"presence":"org.matrix.msc3026.busy","status_msg":"gone"}`)
		get(`{"presence":"org.matrix.msc3026.busy","last_active_ago":0,"status_msg":"gone"}`)

		s.refused(403, "M_FORBIDDEN", alice, "PUT", presencePath(bob), `{"presence":"online"}`)
		s.refused(400, "M_MISSING_PARAM", alice, "PUT", presencePath(alice), `{}`)
		s.refused(400, "M_INVALID_PARAM", alice, "PUT", presencePath(alice), `{"presence":"dead"}`)
		s.refused(400, "M_BAD_JSON", alice, "PUT", presencePath(alice), `{"presence":"online","status_msg":5}`)
		s.refused(400, "M_BAD_JSON", alice, "PUT", presencePath(alice), `{"presence":true}`)
		s.refused(400, "M_TOO_LARGE", alice, "PUT", presencePath(alice), `{"presence":"online","status_msg":"`+strings.Repeat("x", 1025)+`"}`)

		// The status message is written down after a while, and again when the process ends.
		s.pass(0)
		s.pass(savePause)
		s = newServer(t, db)
		get(`{"presence":"offline","status_msg":"gone"}`)
		s.poll(alice, "A", Online)
		get(`{"presence":"online","last_active_ago":0,"currently_active":true,"status_msg":"gone"}`)
		s.ok(alice, "PUT", presencePath(alice), `{"presence":"online"}`)
		ctx, stop := context.WithCancel(t.Context())
		stop()
		s.Run(ctx)
		s = newServer(t, db)
		get(`{"presence":"offline"}`)
		s.refused(403, "M_FORBIDDEN", carol, "GET", presencePath(alice), "")
	})
}

func TestWhoSeesPresence(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		first, second := s.room(alice, bob), s.room(bob, carol)
		sees := func(user, other string, want bool) {
			t.Helper()
			if status, out := s.do(user, "GET", presencePath(other), ""); status == 200 != want {
				t.Errorf("%s sees %s: %d %s", user, other, status, out.Raw)
			}
		}
		sees(alice, alice, true)
		sees("@nobody:hs", "@nobody:hs", true)
		sees(alice, bob, true)
		sees(bob, carol, true)
		sees(alice, carol, false)
		sees(alice, "@unknown:hs", false)
		sees(alice, "@someone:elsewhere", false)
		s.member(second.ID, alice, roomserver.Join)
		sees(carol, alice, true)
		s.member(second.ID, carol, roomserver.Leave)
		sees(alice, carol, false)
		s.member(first.ID, bob, roomserver.Leave)
		sees(alice, bob, true)
		s.member(second.ID, alice, roomserver.Leave)
		sees(alice, bob, false)
		sees(alice, alice, true)
	})
}

// TestPresenceChanges checks what those are told who follow by stamps.
func TestPresenceChanges(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		since := func(stamp int64) (string, int64) {
			list, upTo := s.PresenceSince(stamp, 100)
			var out []string
			for _, p := range list {
				out = append(out, strings.TrimSuffix(p.User[1:], ":hs")+" "+p.State.String())
			}
			return strings.Join(out, ", "), upTo
		}
		var stamp int64
		expect := func(want string) {
			t.Helper()
			var got string
			if got, stamp = since(stamp); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		expect("")
		end := s.sync(alice, "A", Online)
		s.poll(bob, "B", Online)
		expect("alice online, bob online")
		expect("")
		s.poll(bob, "B", Online)
		s.active(alice)
		s.send(room, bob, "")
		expect("") // nothing that others see
		s.pass(time.Minute)
		expect("alice online, bob offline") // no longer currently active; gone
		if got, _ := since(-1); got != "alice online" {
			t.Errorf("who knows nothing is told %q", got)
		}
		s.send(room, alice, "")
		expect("alice online") // active again, by what she sent
		for range 6 {
			s.pass(time.Minute)
		}
		expect("alice unavailable")
		s.send(room, alice, "")
		expect("alice online")
		s.ok(bob, "PUT", presencePath(bob), `{"presence":"offline","status_msg":"away"}`)
		expect("bob offline")

		// Who comes into a room is shown to those who are there, and is shown them.
		s.room(carol)
		s.poll(carol, "C", Online)
		expect("carol online")
		s.member(room.ID, carol, roomserver.Join)
		expect("carol online")
		var there []string
		for _, p := range s.PresenceIn(room) {
			there = append(there, p.User)
		}
		slices.Sort(there)
		if want := []string{alice, carol}; !slices.Equal(there, want) {
			t.Errorf("present in the room: %q, want %q", there, want)
		}

		// In portions.
		list, upTo := s.PresenceSince(0, 2)
		rest, last := s.PresenceSince(upTo, 2)
		if len(list) != 2 || len(rest) != 1 || upTo >= last {
			t.Errorf("%d up to %d, then %d up to %d", len(list), upTo, len(rest), last)
		}
		end()
	})
}

func TestPresenceIsTold(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		small, large := s.room(alice, bob), s.room(alice)
		for i := range maxAudience {
			s.member(large.ID, fmt.Sprintf("@u%d:hs", i), roomserver.Join)
		}
		s.pass(0)
		s.told()
		s.poll(alice, "A", Online)
		s.pass(0)
		if _, people, rooms := s.told(); !slices.Equal(people, []string{alice}) || !slices.Equal(rooms, []int64{small.NID}) {
			t.Errorf("told of %v in %v; the rooms are %d and the large %d", people, rooms, small.NID, large.NID)
		}
		// Others have to wait for a second, and are then told of together.
		s.poll(bob, "B", Online)
		s.pass(tellPause / 2)
		s.poll(alice, "A", Unavailable)
		s.pass(0)
		if _, people, _ := s.told(); len(people) > 0 {
			t.Errorf("told too early: %v", people)
		}
		s.pass(tellPause / 2)
		if _, people, _ := s.told(); !slices.Equal(people, []string{alice, bob}) {
			t.Errorf("told of %v", people)
		}
		s.pass(tellPause)
		if _, people, _ := s.told(); len(people) > 0 {
			t.Errorf("told again of %v", people)
		}
	})
}

// Right after a start, who is back does not make the server load all of their rooms at once, but is told of there.
func TestPresenceLoadsNoRooms(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		room := newServer(t, db).room(alice, bob)
		s := newServer(t, db)
		s.poll(alice, "A", Online)
		s.pass(0)
		if _, people, rooms := s.told(); !slices.Equal(people, []string{alice}) || !slices.Equal(rooms, []int64{room.NID}) {
			t.Errorf("told of %v in %v; the room is %d", people, rooms, room.NID)
		}
		if s.rooms.ActiveRoom(room.NID) != nil {
			t.Error("the room was loaded")
		}
	})
}

func TestPresenceOff(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.API.presence = nil
		s.room(alice, bob)
		s.ok(alice, "PUT", presencePath(alice), `{"presence":"online","status_msg":"x"}`)
		s.poll(alice, "A", Online)
		s.pass(time.Minute)
		if got := s.ok(bob, "GET", presencePath(alice), "").Raw; got != `{"presence":"offline"}` {
			t.Errorf("bob sees %s", got)
		}
		if list, stamp := s.PresenceSince(-1, 10); len(list) > 0 || stamp != 0 {
			t.Errorf("%v, %d", list, stamp)
		}
	})
}

// TestPresenceIsBounded has more users and devices than are remembered.
func TestPresenceIsBounded(t *testing.T) {
	p, now := newPresence(), time.UnixMilli(0)
	for i := range maxPeople + 10 {
		who := p.entry(fmt.Sprint(i), "")
		d := who.say("A", Online, now)
		p.update(who, now)
		if i < 20 {
			d.state = Offline
			p.update(who, now)
		}
	}
	if len(p.people) != maxPeople || p.people["0"] != nil || p.people["20"] == nil || p.present != maxPeople-10 {
		t.Errorf("%d people, %d present", len(p.people), p.present)
	}
	if p.floor == 0 || p.floor >= p.stamp {
		t.Errorf("floor %d of %d", p.floor, p.stamp)
	}
	n, last := 0, int64(0)
	for who := p.first; who != nil; who = who.next {
		if n++; who.changed <= last || who.next != nil && who.next.prev != who {
			t.Fatal("the list is broken")
		}
		last = who.changed
	}
	if n != len(p.people) {
		t.Errorf("%d in the list, %d known", n, len(p.people))
	}
	who := p.people["20"]
	for i := range 3 * maxDevices {
		who.say(fmt.Sprint("d", i), Online, now)
	}
	if len(who.devices) > maxDevices {
		t.Errorf("%d devices", len(who.devices))
	}
	p.age(now.Add(time.Hour))
	if p.present != 0 {
		t.Errorf("%d present after an hour", p.present)
	}
}
