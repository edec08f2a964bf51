package ephemeral

import (
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// waits is the number of receipts that wait.
func (s *server) waits() (n int64) {
	s.t.Helper()
	if _, err := s.db.Get(s.t.Context(), `SELECT count(*) FROM waiting_receipts`, nil, &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func TestReceivedReceipts(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		events := []string{s.send(room, alice, ""), s.send(room, alice, "")}
		receive := func(user, event, thread string) {
			t.Helper()
			if err := s.Receive(t.Context(), room.ID, user, thread, event, 5); err != nil {
				t.Fatal(err)
			}
		}
		receive(bob, events[1], "")
		receive(bob, events[0], "") // never back
		receive(bob, events[0], "main")
		receive(carol, events[0], "") // is not in the room
		if err := s.Receive(t.Context(), "!nowhere:hs", bob, "", events[0], 5); err != nil {
			t.Error(err)
		}
		if got := s.receipts(room, alice, 0, events); got != "read bob 1; main read bob 0" {
			t.Errorf("alice sees %q", got)
		}
	})
}

// TestReceiptsOfUnknownEvents: who has no receipt yet is shown to have read something that this server does not know; where
// that is, the event will tell.
func TestReceiptsOfUnknownEvents(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		events := []string{s.send(room, alice, ""), s.send(room, alice, "")}
		s.announced()
		receive := func(user, event, thread, shown, announced string) {
			t.Helper()
			if err := s.Receive(t.Context(), room.ID, user, thread, event, 5); err != nil {
				t.Fatal(err)
			}
			if got := s.receipts(room, alice, 0, events); got != shown {
				t.Errorf("alice sees %q, want %q", got, shown)
			}
			if got := strings.Join(s.announced(), ", "); got != announced {
				t.Errorf("announced %q, want %q", got, announced)
			}
		}
		receive(carol, "$unknown", "", "", "") // is not in the room
		receive(bob, "", "", "", "")
		receive(bob, "$unknown", "", "read bob -1", "receipt @bob:hs")
		receive(bob, "$unknown", "", "read bob -1", "")
		receive(bob, "$else", "", "read bob -1", "") // which of the two is later is not known
		receive(bob, "$unknown", "main", "read bob -1; main read bob -1", "receipt @bob:hs")
		receive(bob, events[0], "", "main read bob -1; read bob 0", "receipt @bob:hs")
		receive(bob, "$unknown", "", "main read bob -1; read bob 0", "")
		if upTo, err := s.ReadUpTo(t.Context(), room.NID, bob, Main); err != nil || upTo != 0 {
			t.Errorf("bob has read up to %d (%v)", upTo, err)
		}
		if n := s.waits(); n != 2 {
			t.Errorf("%d receipts wait", n)
		}
		// As if the event had not been there a moment ago.
		if err := s.wait(t.Context(), room, &Receipt{User: bob, Kind: Read, Thread: Main, EventID: events[1], TS: 6}); err != nil {
			t.Fatal(err)
		}
		s.pass(settlePause)
		receive(bob, events[0], "main", "read bob 0; main read bob 1", "receipt @bob:hs")
	})
}

// TestManyReceiptsOfUnknownEvents bounds what another server can make this one keep.
func TestManyReceiptsOfUnknownEvents(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		room := s.room(alice, bob)
		events := []string{s.send(room, alice, "")}
		if err := s.Receive(t.Context(), room.ID, bob, "a", events[0], 0); err != nil {
			t.Fatal(err)
		}
		for i := range maxWaiting + 10 {
			if err := s.Receive(t.Context(), room.ID, bob, string(rune('a'+i)), "$unknown", int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		s.pass(time.Minute)
		var placeless, all int64
		if _, err := s.db.Get(t.Context(), `SELECT count(*) FILTER (WHERE anchor = 0), count(*) FROM receipts`, nil, &placeless, &all); err != nil {
			t.Fatal(err)
		}
		if n := s.waits(); n != maxWaiting || placeless != maxWaiting || all != maxWaiting+1 {
			t.Errorf("%d receipts wait, %d of %d have no place", n, placeless, all)
		}
	})
}

// TestWaitingReceipts settles what waits when its event is known: at once, when something arrives, and after a restart.
func TestWaitingReceipts(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		room := s.room(alice, bob)
		events := []string{s.send(room, alice, ""), s.send(room, alice, ""), s.send(room, alice, "")}
		s.pass(0)
		expect := func(want string) {
			t.Helper()
			if got := s.receipts(room, alice, 0, events); got != want || s.waits() > 0 {
				t.Errorf("alice sees %q, %d wait; want %q", got, s.waits(), want)
			}
		}
		// The event came while the receipt was being kept.
		if err := s.wait(t.Context(), room, &Receipt{User: bob, Kind: Read, EventID: events[0], TS: 1}); err != nil {
			t.Fatal(err)
		}
		s.pass(settlePause)
		expect("read bob 0")
		s.pass(settlePause) // finds that none is left
		put := func(event string) {
			t.Helper()
			err := db.Write(t.Context(), func(tx *storage.Tx) error {
				_, err := tx.Exec(`INSERT INTO waiting_receipts (room, user_id, thread, event_id, ts) VALUES ($1, $2, $3, $4, $5)`, room.NID, bob, "", event, int64(1))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		put(events[1])
		s.API.waiting.add(room.NID)
		s.pass(settlePause)
		if s.waits() != 1 {
			t.Error("settled though nothing arrived")
		}
		s.send(room, alice, "")
		s.pass(settlePause)
		expect("read bob 1")
		s.pass(settlePause) // finds that none is left
		if s.API.waiting.arrived(room.NID) {
			t.Error("the room is still watched")
		}
		put(events[2])
		s = newServer(t, db)
		var err error
		if room, err = s.rooms.Room(t.Context(), room.ID); err != nil {
			t.Fatal(err)
		}
		s.pass(0)
		expect("read bob 2")
		s.member(room.ID, bob, roomserver.Leave)
		expect("read bob 2")
	})
}

// A receipt that begins to wait while its room is found to have none is not forgotten.
func TestWaitingRoomIsKeptForWhoComesMeanwhile(t *testing.T) {
	var w waitingRooms
	w.add(1)
	looked := w.added(1)
	w.add(1)
	w.remove(1, looked)
	if !w.arrived(1) {
		t.Error("a room that was added again was forgotten")
	}
	w.remove(1, w.added(1))
	if w.arrived(1) {
		t.Error("a room in which nothing waits is remembered")
	}
}
