package roomserver

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// eachPair runs fn with a world on a server of its own and another server, named away, on each kind of database.
func eachPair(t *testing.T, version string, fn func(t *testing.T, w *world, away *Server)) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, testServer(t, storagetest.Open(t, storage.SQLite, Schema), "hs"), version)
		fn(t, w, testServer(t, db, "away"))
	})
}

// joinFrom makes a user of another server join, and lets that server enter the room.
func (w *world) joinFrom(away *Server, user string) *Event {
	w.t.Helper()
	join := w.accept(w.sign(w.build(nil, user, "m.room.member", user, `{"membership":"join"}`)))
	if _, err := away.Enter(ctx, w.entry(join)); err != nil {
		w.t.Fatal(err)
	}
	return join
}

// sign adds the signature of the other server.
func (w *world) sign(p *pdu.Event) *pdu.Event {
	w.t.Helper()
	p, err := p.Sign("away", "ed25519:1", ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// given is the state before one of the world's events, for another server.
func (w *world) given(e *Event) *Given {
	w.t.Helper()
	entry := w.entry(e)
	return entry.given()
}

// history lists what a server has of the room's history, oldest first.
func (w *world) history(s *Server) (ids []string) {
	w.t.Helper()
	room, err := s.Room(ctx, w.room.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	events, err := s.HistoryBefore(ctx, room, AfterPosition(1<<60), 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range slices.Backward(events) {
		ids = append(ids, e.ID)
	}
	return ids
}

func (w *world) gap(s *Server) (Gap, bool) {
	w.t.Helper()
	room, err := s.Room(ctx, w.room.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return room.GapBefore(AfterPosition(1 << 60))
}

// backfill gives a server events of the world before its newest gap.
func (w *world) backfill(s *Server, ids []string, from int) []*Event {
	w.t.Helper()
	g, ok := w.gap(s)
	if !ok {
		w.t.Fatal("there is no gap")
	}
	var in []Incoming
	for i, id := range ids {
		in = append(in, Incoming{Event: w.event(id).Event})
		if i == 0 && from > 0 {
			in[0].Before = w.given(w.event(id))
		}
	}
	placed, err := s.Backfill(ctx, w.room.ID, g, in)
	if err != nil {
		w.t.Fatal(err)
	}
	return placed
}

func (w *world) consistent(s *Server) {
	w.t.Helper()
	if err := s.CheckConsistency(ctx); err != nil {
		w.t.Error(err)
	}
}

func TestBackfill(t *testing.T) {
	for _, version := range []string{"2", "10", "12"} {
		t.Run(version, func(t *testing.T) {
			eachPair(t, version, func(t *testing.T, w *world, away *Server) {
				target := w.accept(w.build(nil, "@a:remote", "m.room.message", "", `{"body":"secret","msgtype":"m.text"}`))
				w.accept(w.build(nil, "@a:remote", "m.room.redaction", target.ID, `{}`))
				w.accept(w.build(nil, "@b:remote", "m.room.message", "", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, target.ID)))
				for range 5 {
					w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
				}
				join := w.joinFrom(away, "@u:away")
				later := w.accept(w.build(nil, "@b:remote", "m.room.message", "", text))
				if out, err := receiveAll(away, w.room.ID, []*pdu.Event{later.Event}); err != nil || out[0].Outcome != Accepted {
					t.Fatalf("the event after the join: %+v, %v", out, err)
				}
				all := w.timeline()
				n := slices.Index(all, join.ID)
				if got, want := w.history(away), all[n:]; !slices.Equal(got, want) {
					t.Fatalf("before backfill: %v, want %v", got, want)
				}
				room, err := away.Room(ctx, w.room.ID)
				if err != nil {
					t.Fatal(err)
				}
				pos := room.Head().Pos
				// In two pieces, of which the older ends at the creation.
				if placed := w.backfill(away, all[n-4:n], n-4); len(placed) != 4 {
					t.Fatalf("%d events got a place, want 4", len(placed))
				}
				if got, want := w.history(away), all[n-4:]; !slices.Equal(got, want) {
					t.Fatalf("after the first piece: %v, want %v", got, want)
				}
				if events, more, err := away.Timeline(ctx, room, 0, pos, 20); err != nil || !more || len(events) != 6 {
					t.Errorf("timeline of %d events, more %v, %v; want the 6 after the gap", len(events), more, err)
				}
				w.backfill(away, all[:n-4], 0)
				if got := w.history(away); !slices.Equal(got, all) {
					t.Fatalf("at the end: %v, want %v", got, all)
				}
				if g, ok := w.gap(away); ok {
					t.Errorf("there is still a gap: %v", g)
				}
				if room.Head().Pos != pos {
					t.Errorf("backfill moved the head from %d to %d", pos, room.Head().Pos)
				}
				if events, err := away.Arrived(ctx, room, 0, pos, 100); err != nil || len(events) != 2 {
					t.Errorf("%d events arrived, %v; want 2", len(events), err)
				}
				e, err := away.Event(ctx, room, target.ID)
				if err != nil || e.redaction == nil {
					t.Errorf("the target of the redaction: %+v, %v", e, err)
				}
				for _, id := range all {
					e, err := away.Event(ctx, room, id)
					if err != nil {
						t.Fatal(err)
					}
					got := (&world{t: t, s: away, room: room}).stateIDs(e.StateAfter)
					if want := w.stateIDs(w.event(id).StateAfter); !equalMaps(got, want) {
						t.Errorf("state after %s: %v, want %v", id, got, want)
					}
				}
				w.consistent(away)
			})
		})
	}
}

func equalMaps(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// A server that was cut off gets an event whose parents it lacks, and the state before it. What it missed belongs
// into the middle.
func TestGapInTheMiddle(t *testing.T) {
	eachPair(t, "12", func(t *testing.T, w *world, away *Server) {
		w.joinFrom(away, "@u:away")
		room, err := away.Room(ctx, w.room.ID)
		if err != nil {
			t.Fatal(err)
		}
		before := room.Head().Pos
		var missed []string
		missed = append(missed, w.accept(w.build(nil, "@a:remote", "m.room.message", "", text)).ID)
		missed = append(missed, w.accept(w.build(nil, "@d:remote", "m.room.member", "@d:remote", `{"membership":"leave"}`)).ID)
		missed = append(missed, w.accept(w.build(nil, "@a:remote", "m.room.message", "", text)).ID)
		last := w.accept(w.build(nil, "@b:remote", "m.room.message", "", text))
		out, err := receiveAll(away, w.room.ID, []*pdu.Event{last.Event})
		var missing *MissingError
		if err != nil || !errors.As(out[0].Err, &missing) || len(missing.Prev) != 1 {
			t.Fatalf("without its parent: %+v, %v", out, err)
		}
		out, err = away.Take(ctx, w.room.ID, []Incoming{{Event: last.Event, Before: w.given(last)}})
		if err != nil || out[0].Outcome != Accepted {
			t.Fatalf("with the state before it: %+v, %v", out, err)
		}
		if m, err := away.MembershipAt(ctx, room, room.Head().State, "@d:remote"); err != nil || m != Leave {
			t.Errorf("@d:remote is %s, %v; want leave", m, err)
		}
		events, more, err := away.Timeline(ctx, room, before, room.Head().Pos, 10)
		if err != nil || !more || len(events) != 1 || events[0].ID != last.ID {
			t.Errorf("timeline %v, more %v, %v; want the last event alone", events, more, err)
		}
		events, more, err = away.Timeline(ctx, room, 0, room.Head().Pos, 10)
		if err != nil || !more || len(events) != 1 || events[0].ID != last.ID {
			t.Errorf("first timeline %v, more %v, %v; want the last event alone", events, more, err)
		}
		w.backfill(away, missed, 0)
		all := w.timeline()
		if got, want := w.history(away), all[len(all)-5:]; !slices.Equal(got, want) {
			t.Errorf("history %v, want %v", got, want)
		}
		events, more, err = away.Timeline(ctx, room, 0, room.Head().Pos, 4)
		if err != nil || !more || len(events) != 4 || events[0].ID != missed[0] {
			t.Errorf("first timeline %v, more %v, %v; want what was missed and the last event", events, more, err)
		}
		w.consistent(away)
	})
}

// The last user of a server leaves and comes back: the room goes on with what happened meanwhile as a gap.
func TestComeBack(t *testing.T) {
	eachPair(t, "12", func(t *testing.T, w *world, away *Server) {
		w.joinFrom(away, "@u:away")
		leave := w.accept(w.sign(w.build(nil, "@u:away", "m.room.member", "@u:away", `{"membership":"leave"}`)))
		if out, err := receiveAll(away, w.room.ID, []*pdu.Event{leave.Event}); err != nil || out[0].Outcome != Accepted {
			t.Fatalf("leave: %+v, %v", out, err)
		}
		room, err := away.Room(ctx, w.room.ID)
		if err != nil {
			t.Fatal(err)
		}
		if room.Resident() {
			t.Error("the server is still resident after its last user left")
		}
		w.accept(w.build(nil, "@c:remote", "m.room.member", "@c:remote", `{"membership":"leave"}`))
		join := w.joinFrom(away, "@u:away")
		if !room.Resident() {
			t.Error("the server is not resident after its user came back")
		}
		if got := w.stateNow(away, room); !equalMaps(got, w.stateIDs(w.room.Head().State)) {
			t.Errorf("state %v, want %v", got, w.stateIDs(w.room.Head().State))
		}
		if h := room.Head(); len(h.Extremities) != 1 || h.Extremities[0].ID != join.ID {
			t.Errorf("extremities %v", h.Extremities)
		}
		w.consistent(away)
	})
}

func (w *world) stateNow(s *Server, room *Room) map[string]string {
	return (&world{t: w.t, s: s, room: room}).stateIDs(room.Head().State)
}

func TestPrepareAndAccept(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		p, err := s.PrepareMembership(ctx, MembershipChange{RoomID: w.room.ID, Sender: creator, Target: "@x:elsewhere", Membership: Invite})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Event(ctx, w.room, p.ID); !errors.Is(err, ErrUnknownEvent) {
			t.Errorf("the prepared event is known: %v", err)
		}
		e, err := s.Accept(ctx, w.room.ID, Incoming{Event: p})
		if err != nil || e.ID != p.ID || e.Anchor == 0 {
			t.Fatalf("accept: %+v, %v", e, err)
		}
		_, err = s.PrepareMembership(ctx, MembershipChange{RoomID: w.room.ID, Sender: "@stranger:hs", Target: "@y:elsewhere", Membership: Invite})
		if me := mxerr.As(err); me == nil || me.Code != "M_FORBIDDEN" {
			t.Errorf("a stranger's invite gives %v", err)
		}
		w.consistent(s)
	})
}

func TestTemplate(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		v, raw, err := s.Template(ctx, MembershipChange{RoomID: w.room.ID, Target: "@n:new", Membership: Join})
		if err != nil {
			t.Fatal(err)
		}
		proto, err := pdu.ParseTemplate(v, raw)
		if err != nil {
			t.Fatal(err)
		}
		p, err := v.Build(proto, "new", "ed25519:n", w.key)
		if err != nil {
			t.Fatal(err)
		}
		e, err := s.Accept(ctx, w.room.ID, Incoming{Event: p, Relay: true})
		if err != nil || !e.Relayed() {
			t.Errorf("accept: %+v, %v", e, err)
		}
		_, _, err = s.Template(ctx, MembershipChange{RoomID: w.room.ID, Target: "@k:new", Membership: Knock})
		if me := mxerr.As(err); me == nil || me.Code != "M_FORBIDDEN" {
			t.Errorf("a knock on a public room gives %v", err)
		}
	})
}

func TestRestrictedTemplate(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		space := newWorld(t, s, "12")
		w := newWorld(t, s, "12")
		set := func(room string) {
			t.Helper()
			empty := ""
			content := fmt.Sprintf(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, room)
			_, err := s.Send(ctx, w.room.ID, Draft{Sender: creator, Type: "m.room.join_rules", StateKey: &empty, Content: []byte(content)})
			if err != nil {
				t.Fatal(err)
			}
		}
		code := func(user string) string {
			t.Helper()
			_, _, err := s.Template(ctx, MembershipChange{RoomID: w.room.ID, Target: user, Membership: Join})
			if err == nil {
				return ""
			}
			if me := mxerr.As(err); me != nil {
				return me.Code
			}
			return err.Error()
		}
		set(space.room.ID)
		space.accept(space.build(nil, "@member:remote", "m.room.member", "@member:remote", `{"membership":"join"}`))
		for user, want := range map[string]string{"@member:remote": "", "@stranger:remote": "M_FORBIDDEN", "@a:remote": ""} {
			if got := code(user); got != want {
				t.Errorf("%s gets %q, want %q", user, got, want)
			}
		}
		set("!unknown:elsewhere")
		if got := code("@member:remote"); got != "M_UNABLE_TO_AUTHORISE_JOIN" {
			t.Errorf("a condition that cannot be checked gives %q", got)
		}
	})
}

// A parent that comes after its child is no end of the graph: it slips into the gap before the child.
func TestParentAfterItsChild(t *testing.T) {
	eachPair(t, "12", func(t *testing.T, w *world, away *Server) {
		w.joinFrom(away, "@u:away")
		room, err := away.Room(ctx, w.room.ID)
		if err != nil {
			t.Fatal(err)
		}
		first := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
		parent := w.accept(w.build(nil, "@d:remote", "m.room.member", "@d:remote", `{"membership":"leave"}`))
		child := w.accept(w.build(nil, "@b:remote", "m.room.message", "", text))
		out, err := away.Take(ctx, w.room.ID, []Incoming{{Event: child.Event, Before: w.given(child)}})
		if err != nil || out[0].Outcome != Accepted {
			t.Fatalf("the child: %+v, %v", out, err)
		}
		if out, err = receiveAll(away, w.room.ID, []*pdu.Event{first.Event, parent.Event}); err != nil || out[1].Outcome != Accepted {
			t.Fatalf("its parents: %+v, %v", out, err)
		}
		got := w.history(away)
		if i := slices.Index(got, child.ID); len(got) != 4 || i < 1 || got[i-1] != parent.ID {
			t.Errorf("history %v, want %s right before %s", got, parent.ID, child.ID)
		}
		for _, e := range room.Head().Extremities {
			if e.ID == parent.ID {
				t.Error("the parent is a forward extremity")
			}
		}
		w.consistent(away)
	})
}
