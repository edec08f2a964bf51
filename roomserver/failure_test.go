package roomserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

var errRefused = errors.New("refused by the test")

// onSQLite runs a test of memory only, for which one database is enough.
func onSQLite(t *testing.T, fn func(t *testing.T, s *Server)) {
	t.Helper()
	db := storagetest.Open(t, storage.SQLite, Schema)
	fn(t, testServer(t, db, "hs"))
}

// evict drops a room from memory.
func evict(t *testing.T, s *Server, r *Room) {
	t.Helper()
	for range 60_000 {
		r.turn.Lock()
		r.mu.Lock()
		idle := r.flying == 0
		r.mu.Unlock()
		r.turn.Unlock()
		if idle {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.rooms.mu.Lock()
	defer s.rooms.mu.Unlock()
	s.rooms.evictLocked(len(s.rooms.byID))
	if s.rooms.byID[r.ID] != nil {
		t.Fatal("the room was not evicted")
	}
}

// in fails the test if fn takes too long.
func in(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s hangs", what)
	}
}

func say(s *Server, room, body string) (string, error) {
	return s.Send(ctx, room, Draft{Sender: creator, Type: "m.room.message", Content: []byte(fmt.Sprintf(`{"body":%q,"msgtype":"m.text"}`, body))})
}

func TestRedactionWhileTimelineIsLoaded(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		id, err := say(s, w.room.ID, "x")
		if err != nil {
			t.Fatal(err)
		}
		evict(t, s, w.room)
		room, err := s.Room(ctx, w.room.ID)
		if err != nil {
			t.Fatal(err)
		}
		s.events.Clear()
		// A reader keeps the redaction waiting until the load of the timeline has begun.
		s.redactionLock.RLock()
		in(t, "the redaction", func() {
			redacted := make(chan error, 1)
			go func() {
				_, err := s.Send(ctx, room.ID, Draft{Sender: creator, Type: "m.room.redaction", Content: []byte(`{}`), Redacts: id})
				redacted <- err
			}()
			time.Sleep(100 * time.Millisecond)
			loaded := make(chan error, 1)
			go func() { loaded <- s.fillRecent(ctx, room) }()
			time.Sleep(100 * time.Millisecond)
			s.redactionLock.RUnlock()
			if err := errors.Join(<-redacted, <-loaded); err != nil {
				t.Error(err)
			}
		})
		if e, err := s.Event(ctx, room, id); err != nil || e.redaction == nil {
			t.Errorf("the event is not redacted: %v", err)
		}
	})
}

func TestEventsThatRedactThemselves(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "1")
		p := w.build(nil, "@a:remote", "m.room.redaction", "$self:remote", `{"reason":"x"}`)
		// The first room versions let the sender choose the id of an event.
		raw := strings.Replace(string(p.JSON()), p.ID, "$self:remote", 1)
		p, err := pdu.FromStore(w.room.Version, []byte(raw), "$self:remote", false)
		if err != nil {
			t.Fatal(err)
		}
		w.accept(p)
		s.events.Clear()
		evict(t, s, w.room)
		if w.room, err = s.Room(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		e := w.event(p.ID)
		if _, err := s.AppendClientEvent(ctx, nil, w.room, e, &Reader{}); err != nil {
			t.Error(err)
		}
	})
}

func TestPanicInTurnLeavesTheRoomUsable(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		func() {
			defer func() { recover() }()
			_, _ = s.Turn(ctx, w.room.ID, func(*Turn) error { panic("by the test") })
		}()
		in(t, "the room", func() {
			if _, err := say(s, w.room.ID, "x"); err != nil {
				t.Error(err)
			}
		})
	})
}

// hold keeps the committer busy until the returned function is called.
func hold(s *Server) (release func()) {
	started, end := make(chan struct{}), make(chan struct{})
	go func() {
		_ = s.db.Write(context.Background(), func(*storage.Tx) error {
			select {
			case <-started:
			default:
				close(started)
			}
			<-end
			return nil
		})
	}()
	<-started
	return func() { close(end) }
}

// refuse fails the unit of a turn.
func refuse(t *Turn) error {
	_, err := t.Append(Draft{Sender: creator, Type: "m.room.topic", StateKey: new(string), Content: []byte(`{"topic":"never"}`)})
	t.unit.Require(`DELETE FROM rooms WHERE nid = $1`, []any{int64(-1)}, 1, errRefused)
	return err
}

func TestTurnOnTopOfFailedUnitRunsAgain(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		release := hold(s)
		failed := make(chan error, 1)
		submitted := make(chan struct{})
		go func() {
			_, err := s.Turn(ctx, w.room.ID, func(t *Turn) error { defer close(submitted); return refuse(t) })
			failed <- err
		}()
		<-submitted
		runs := 0
		_, err := s.Turn(ctx, w.room.ID, func(turn *Turn) error {
			if runs++; runs == 1 {
				if e, err := turn.State("m.room.topic", ""); err != nil || e == nil {
					t.Errorf("the turn does not see the turn before: %v", err)
				}
				release()
				if err := <-failed; !errors.Is(err, errRefused) {
					t.Errorf("the first turn ended with %v", err)
				}
			}
			e, err := turn.State("m.room.topic", "")
			if err != nil {
				return err
			}
			if e != nil && runs > 1 {
				t.Error("a later run sees what failed")
			}
			_, err = turn.Append(Draft{Sender: creator, Type: "m.room.message", Content: []byte(text)})
			return err
		})
		if err != nil || runs != 2 {
			t.Errorf("the second turn ended with %v after %d runs", err, runs)
		}
	})
}

func TestAnswerWithoutEventWaitsForWhatItIsBuiltOn(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		release := hold(s)
		set := func() error {
			_, err := s.Send(ctx, w.room.ID, Draft{Sender: creator, Type: "m.room.topic", StateKey: new(string), Content: []byte(`{"topic":"t"}`)})
			return err
		}
		answers := make(chan error, 2)
		go func() { answers <- set() }()
		time.Sleep(50 * time.Millisecond)
		go func() { answers <- set() }()
		select {
		case err := <-answers:
			t.Errorf("answered before anything was on disk: %v", err)
			answers <- nil
		case <-time.After(200 * time.Millisecond):
		}
		release()
		for range 2 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestRetryAfterTheFirstRequestHungUp(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		txn := &Txn{User: creator, Device: "A", Path: "p", ID: "1"}
		w.room.turn.Lock()
		first, hangUp := context.WithCancel(ctx)
		answers := make(chan error, 2)
		entered := make(chan struct{})
		go func() {
			_, err := s.once(first, txn, w.room.ID, func() (string, error) { close(entered); <-first.Done(); return "", first.Err() })
			answers <- err
		}()
		<-entered
		w.room.turn.Unlock()
		retried := make(chan error, 1)
		go func() {
			_, err := s.Send(ctx, w.room.ID, Draft{Sender: creator, Type: "m.room.message", Content: []byte(text), Txn: txn})
			retried <- err
		}()
		time.Sleep(50 * time.Millisecond)
		hangUp()
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("the first request ended with %v", err)
		}
		if err := <-retried; err != nil {
			t.Errorf("the retry ended with %v", err)
		}
	})
}

func TestManyExtremities(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		base := w.room.Head().Extremities
		for range 30 {
			w.accept(w.build(base, "@a:remote", "m.room.message", "", text))
		}
		for range 3 {
			id, err := say(s, w.room.ID, "x")
			if err != nil {
				t.Fatal(err)
			}
			e := w.event(id)
			if n := len(e.PrevEventIDs()); n > pdu.MaxPrevEvents {
				t.Fatalf("an event with %d parents", n)
			}
			if _, err := pdu.Parse(w.room.Version, e.JSON()); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(w.room.Head().Extremities); n != 1 {
			t.Errorf("%d extremities are left", n)
		}
	})
}

func TestRedactionBeforeItsTargetInOneBatch(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		target := w.build(nil, "@b:remote", "m.room.message", "", text)
		redaction := w.build(nil, "@a:remote", "m.room.redaction", target.ID, `{"redacts":"`+target.ID+`"}`)
		out, err := receiveAll(s, w.room.ID, []*pdu.Event{redaction, target})
		if err != nil || out[0].Outcome != Accepted || out[1].Outcome != Accepted {
			t.Fatal(out, err)
		}
		if w.event(target.ID).redaction == nil {
			t.Error("the event is not redacted")
		}
	})
}

func TestEventOfAnotherRoomHarmsNoOther(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w, other := newWorld(t, s, "11"), newWorld(t, s, "11")
		stray := other.build(nil, "@a:remote", "m.room.message", "", text)
		good := w.build(nil, "@a:remote", "m.room.message", "", text)
		out, err := receiveAll(s, w.room.ID, []*pdu.Event{stray, good})
		if err != nil || out[0].Err == nil || out[1].Outcome != Accepted {
			t.Error(out, err)
		}
	})
}

func TestRepeatedTransactionDisturbsNobody(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		draft := Draft{Sender: creator, Type: "m.room.message", Content: []byte(text), Txn: &Txn{User: creator, Device: "A", Path: "p", ID: "1"}}
		first, err := s.Send(ctx, w.room.ID, draft)
		if err != nil {
			t.Fatal(err)
		}
		release := hold(s)
		defer release()
		in(t, "the repeated transaction", func() {
			if again, err := s.Send(ctx, w.room.ID, draft); again != first || err != nil {
				t.Errorf("it made %s, %v", again, err)
			}
		})
	})
}

func TestNobodyLoadsARoomThatIsBeingCreated(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		for range 100 { // after that many, numbers come in blocks that suffice for what follows
			if _, err := s.nids.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		for pause := 200 * time.Millisecond; !loadWhileCreated(t, s, pause); pause *= 2 {
			if pause > time.Minute {
				t.Fatal("the room is not committed together with another unit")
			}
		}
	})
}

// loadWhileCreated loads a room that is committed together with a unit whose publication takes long. It returns false if the room
// was not queued before the pause was over, and so committed later.
func loadWhileCreated(t *testing.T, s *Server, pause time.Duration) bool {
	t.Helper()
	release := hold(s)
	publishing, published := make(chan struct{}), make(chan struct{})
	s.db.Append(&storage.Unit{Apply: func(int64) {
		close(publishing)
		<-published
	}})
	v, _ := pdu.Lookup("12")
	created := make(chan string, 1)
	go func() {
		id, err := s.CreateRoom(ctx, NewRoom{Creator: creator, Version: v, Preset: PublicChat})
		if err != nil {
			t.Error(err)
		}
		created <- id
	}()
	soon(t, func() bool { // until the room is about to be written
		s.rooms.load.mu.Lock()
		defer s.rooms.load.mu.Unlock()
		return len(s.rooms.load.locks) > 0
	})
	time.Sleep(pause)
	release()
	<-publishing // and so on disk
	var id string
	if _, err := s.db.Get(ctx, `SELECT room_id FROM rooms`, nil, &id); err != nil {
		t.Fatal(err)
	}
	if id == "" {
		close(published)
		<-created
		if err := s.db.Write(ctx, func(tx *storage.Tx) error { _, err := tx.Exec(`DELETE FROM rooms`); return err }); err != nil {
			t.Fatal(err)
		}
		return false
	}
	found := make(chan *Room, 1)
	go func() {
		room, err := s.Room(ctx, id)
		if err != nil {
			t.Error(err)
		}
		found <- room
	}()
	time.Sleep(100 * time.Millisecond)
	close(published)
	if id != <-created || <-found != s.rooms.get(id) {
		t.Error("there are two values of one room")
	}
	return true
}
