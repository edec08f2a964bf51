package roomserver

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// stickyWorld is a world whose clock stands still, just after its events. Each event from now on is sticky for a minute.
func stickyWorld(t *testing.T, s *Server) *world {
	w := newWorld(t, s, "11")
	minute := time.Minute.Milliseconds()
	w.sticky = &minute
	s.now = func() time.Time { return time.UnixMilli(w.ts) }
	return w
}

// stuck lists the events that are sticky now.
func (w *world) stuck() (ids []string) {
	w.t.Helper()
	events, err := w.s.StickyEvents(ctx, w.room, 0, 1<<60, w.s.now().UnixMilli())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return ids
}

// judgesAgain runs what is due, until nothing is, and tells which sticky events there are more than before.
func (w *world) judgesAgain(what string, want ...string) {
	w.t.Helper()
	before := w.stuck()
	for len(w.s.sticky.held.wake) > 0 {
		<-w.s.sticky.held.wake
		w.s.releaseSticky(ctx)
	}
	got := slices.DeleteFunc(w.stuck(), func(id string) bool { return slices.Contains(before, id) })
	if !slices.Equal(got, want) {
		w.t.Errorf("%s: %v became sticky, want %v", what, got, want)
	}
	if err := w.s.CheckConsistency(ctx); err != nil {
		w.t.Errorf("%s: %v", what, err)
	}
}

// memberC sets the membership of @c.
func (w *world) memberC(sender, membership string) *Event {
	w.t.Helper()
	return w.accept(w.build(nil, sender, "m.room.member", "@c:remote", `{"membership":"`+membership+`"}`))
}

// TestStickyEventsAreJudgedAgain: whether a sticky event counts must not depend on what a server heard of first.
func TestStickyEventsAreJudgedAgain(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := stickyWorld(t, s)
		fork := w.room.Head().Extremities
		send := func(prev []*Event, outcome Outcome) *Event {
			t.Helper()
			return w.want(w.build(prev, "@c:remote", "m.room.message", "", text), outcome)
		}
		w.memberC("@a:remote", "ban")
		evasion := send(fork, SoftFailed)
		next := send([]*Event{evasion}, SoftFailed)
		w.sticky = nil
		plain := send(fork, SoftFailed)
		none := w.build(nil, "@a:remote", "m.room.topic", "", `{"topic":"x"}`)
		w.judgesAgain("nothing has changed")
		w.accept(none)
		w.judgesAgain("something else has changed")
		w.memberC("@a:remote", "leave")
		w.judgesAgain("not banned, but not joined")
		back := w.memberC("@c:remote", "join")
		w.judgesAgain("back again", evasion.ID, next.ID)

		for id, there := range map[string]bool{evasion.ID: true, next.ID: true, plain.ID: false} {
			if slices.Contains(w.timeline(), id) != there || w.event(id).SoftFailed() == there {
				t.Errorf("%s is in the timeline: %v", id, !there)
			}
		}
		if got := ids(w.room.Head().Extremities); len(got) != 2 || !slices.Contains(got, next.ID) || !slices.Contains(got, back.ID) {
			t.Errorf("the forward extremities are %v, want %s and %s", got, back.ID, next.ID)
		}
		v, err := s.Viewer(ctx, w.room, creator, w.room.Head().Pos)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := v.Sees(ctx, w.event(evasion.ID)); !ok || err != nil {
			t.Errorf("a member does not see what was let in (%v)", err)
		}
		w.memberC("@a:remote", "ban")
		w.judgesAgain("what was let in stays")
		if rows := w.heldRows(); rows != 0 {
			t.Errorf("%d events are still held", rows)
		}
	})
}

// TestStickyEventsThatOthersFollow: an event on which somebody has built already is no end of the room when it is let in.
func TestStickyEventsThatOthersFollow(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := stickyWorld(t, s)
		fork := w.room.Head().Extremities
		w.memberC("@a:remote", "ban")
		evasion := w.want(w.build(fork, "@c:remote", "m.room.message", "", text), SoftFailed)
		w.sticky = nil
		w.accept(w.build([]*Event{evasion}, "@b:remote", "m.room.message", "", text))
		w.memberC("@a:remote", "leave")
		last := w.memberC("@c:remote", "join")
		w.judgesAgain("back again", evasion.ID)
		if got := ids(w.room.Head().Extremities); !slices.Equal(got, []string{last.ID}) {
			t.Errorf("the forward extremities are %v, want %s", got, last.ID)
		}
	})
}

// TestStickyEventsAreNotJudgedAgain: not when they are sticky no more, and not spam.
func TestStickyEventsAreNotJudgedAgain(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := stickyWorld(t, s)
		fork := w.room.Head().Extremities
		spam := w.build(nil, "@c:remote", "m.room.message", "", text)
		if out, err := s.Take(ctx, w.room.ID, []Incoming{{Event: spam, Spam: errors.New("spam")}}); err != nil || out[0].Outcome != SoftFailed {
			t.Fatalf("spam: %v, %v", out, err)
		}
		w.memberC("@a:remote", "ban")
		w.want(w.build(fork, "@c:remote", "m.room.message", "", text), SoftFailed)
		if rows := w.heldRows(); rows != 1 {
			t.Errorf("%d events are held", rows)
		}
		w.ts += *w.sticky
		w.sticky = nil
		w.memberC("@a:remote", "leave")
		w.memberC("@c:remote", "join")
		w.judgesAgain("too late")
		if err := s.forgetSticky(ctx); err != nil {
			t.Fatal(err)
		}
		if rows := w.heldRows(); rows != 0 || len(s.sticky.held.rooms) != 0 {
			t.Errorf("%d events are held for ever", rows)
		}
	})
}

// TestStickyEventsAreJudgedAgainAfterARestart includes a change of the state that came just before it.
func TestStickyEventsAreJudgedAgainAfterARestart(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		w := stickyWorld(t, testServer(t, db, "hs"))
		fork := w.room.Head().Extremities
		w.memberC("@a:remote", "ban")
		// Its own time is in the future, which makes it sticky for no longer.
		w.ts += 2 * *w.sticky
		event := w.build(fork, "@c:remote", "m.room.message", "", text)
		w.ts -= 2 * *w.sticky
		evasion := w.want(event, SoftFailed)
		w.memberC("@a:remote", "leave")
		w.memberC("@c:remote", "join")

		log, now := w.s.log, w.s.now
		s, err := New(db, Options{ServerName: "hs", KeyID: w.s.keyID, Key: w.s.key, Log: log, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		w.s = s
		if w.room, err = s.Room(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		background, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			s.Run(background)
			close(ended)
		}()
		for end := time.Now().Add(30 * time.Second); !slices.Contains(w.stuck(), evasion.ID); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the event is not let in")
			}
		}
		stop()
		<-ended
		w.ts += *w.sticky
		if slices.Contains(w.stuck(), evasion.ID) {
			t.Error("the event is sticky for longer than it said")
		}
	})
}

// TestHeldStickyEventsAreBounded floods a room with what its state refuses.
func TestHeldStickyEventsAreBounded(t *testing.T) {
	x := &stickyIndex{held: heldSticky{rooms: map[int64][]stickyEvent{}}}
	for i := range int64(maxHeld + 10) {
		x.hold(1, stickyEvent{0, i, pdu.MaxStickyMS}, false)
	}
	if list := x.heldIn(1, 0); len(list) != maxHeld || list[0].nid != 10 {
		t.Errorf("%d events are held, the first %d", len(list), list[0].nid)
	}
}

// heldRows is how many events wait to be judged again after a restart.
func (w *world) heldRows() (n int64) {
	w.t.Helper()
	if _, err := w.s.db.Get(ctx, `SELECT count(*) FROM held_sticky_events`, nil, &n); err != nil {
		w.t.Fatal(err)
	}
	return n
}
