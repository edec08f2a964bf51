package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// partialEntry is entry as another server answers who asks for no members.
func (w *world) partialEntry(e *Event) Entry {
	w.t.Helper()
	state, err := w.s.StateEventsBut(ctx, w.room, e.StateBefore, pdu.TypeMember)
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.s.AuthChain(ctx, w.room, append(slices.Clip(state), e))
	if err != nil {
		w.t.Fatal(err)
	}
	entry := Entry{RoomID: w.room.ID, Version: w.room.Version, Event: e.Event, Partial: true, Via: remote, Servers: []string{remote, "silent"}}
	for _, s := range state {
		entry.State = append(entry.State, s.Event)
	}
	for _, a := range chain {
		entry.Auth = append(entry.Auth, a.Event)
	}
	return entry
}

// partial is a room that a server has entered without its members.
type partial struct {
	*world
	away *Server
	at   *Room
	join *Event // in the world
}

// enterPartially lets a server enter the room without members, among whom is one who left and one who is banned.
func (w *world) enterPartially(away *Server, user string) *partial {
	w.t.Helper()
	join := w.accept(w.sign(w.build(nil, user, "m.room.member", user, `{"membership":"join"}`)))
	if _, err := away.Enter(ctx, w.partialEntry(join)); err != nil {
		w.t.Fatal(err)
	}
	p := &partial{world: w, away: away, join: join}
	p.load()
	return p
}

func (p *partial) load() {
	p.t.Helper()
	var err error
	if p.at, err = p.away.Room(ctx, p.room.ID); err != nil {
		p.t.Fatal(err)
	}
}

// both lets the world and the other server receive an event, and checks what they make of it.
func (p *partial) both(event *pdu.Event, here, there Outcome) *Event {
	p.t.Helper()
	e := p.want(event, here)
	p.there(there, event)
	return e
}

func (p *partial) there(outcome Outcome, events ...*pdu.Event) {
	p.t.Helper()
	in := make([]Incoming, len(events))
	for i, event := range events {
		chain, err := p.s.AuthChain(ctx, p.room, []*Event{p.event(event.ID)})
		if err != nil {
			p.t.Fatal(err)
		}
		in[i] = Incoming{Event: event, Before: &Given{}}
		for _, a := range chain {
			in[i].Before.Events = append(in[i].Before.Events, a.Event)
		}
	}
	out, err := p.away.Take(ctx, p.room.ID, in)
	if err != nil {
		p.t.Fatal(err)
	}
	for i := range out {
		if out[i].Outcome != outcome {
			p.t.Fatalf("%s by %s: outcome %d (%v, %v), want %d", events[i].Type, events[i].Sender, out[i].Outcome, out[i].Reason, out[i].Err, outcome)
		}
	}
}

// fetch does what another server has to be asked for.
func (p *partial) fetch(lenient bool, leaveOut string) error {
	p.t.Helper()
	missing, err := p.away.Unfetched(ctx, p.at)
	if err != nil {
		p.t.Fatal(err)
	}
	if len(missing) != 1 || missing[0].Event.ID != p.join.ID || !slices.Equal(missing[0].Parents, p.join.PrevEventIDs()) {
		p.t.Fatalf("unfetched: %+v", missing)
	}
	given := p.given(p.join)
	given.Events = slices.DeleteFunc(given.Events, func(e *pdu.Event) bool { return e.ID == leaveOut })
	return p.away.PutFetched(ctx, p.room.ID, missing[0].Event, given, lenient)
}

// whole checks that the other server has the room as the world has it.
func (p *partial) whole() {
	p.t.Helper()
	if p.at.Partial() != nil {
		p.t.Error("the room is still partial")
	}
	if got, want := p.stateNow(p.away, p.at), p.stateIDs(p.room.Head().State); !equalMaps(got, want) {
		p.t.Errorf("state %v, want %v", got, want)
	}
	p.consistent(p.away)
}

// What a server takes in of a room whose members it does not know is judged again when it does.
func TestPartialRoomIsJudgedAgain(t *testing.T) {
	for _, version := range []string{"9", "12"} {
		t.Run(version, func(t *testing.T) {
			storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
				w := newWorld(t, testServer(t, storagetest.Open(t, storage.SQLite, Schema), "hs"), version)
				old := w.room.Head().State
				w.accept(w.build(nil, "@b:remote", "m.room.member", "@b:remote", `{"membership":"leave"}`))
				p := w.enterPartially(testServer(t, db, "away"), "@u:away")
				if joined, _ := p.at.MemberCounts(); joined != 1 || p.at.Partial() == nil || !p.at.Resident() || !p.at.HasServer("silent") {
					t.Fatalf("%d members, partial %v", joined, p.at.Partial())
				}
				during := p.at.Head().Pos

				first := p.both(w.build(nil, "@a:remote", "m.room.message", "", text), Accepted, Accepted)
				// Nobody there knows that b has left, nor that so nobody was kicked.
				bad := p.both(w.buildOn(nil, old, "@b:remote", "m.room.member", "@c:remote", `{"membership":"ban"}`), Rejected, Accepted)
				unsaid := p.both(w.buildOn([]*Event{bad}, old, "@b:remote", "m.room.redaction", first.ID, `{}`), Rejected, Accepted)
				if e, err := p.away.Event(ctx, p.at, first.ID); err != nil || e.redaction == nil {
					t.Fatalf("not redacted: %+v, %v", e, err)
				}
				lost := p.both(w.buildOn([]*Event{bad}, w.room.Head().State, "@c:remote", "m.room.message", "", text), Accepted, Rejected)
				topic := p.both(w.build([]*Event{lost}, "@a:remote", "m.room.topic", "", `{"topic":"x"}`), Accepted, Accepted)
				own, err := p.away.Send(ctx, w.room.ID, Draft{Sender: "@u:away", Type: "m.room.message", Content: []byte(text)})
				if err != nil {
					t.Fatal(err)
				}
				if e, err := p.away.Event(ctx, p.at, own); err != nil || !e.Partial() {
					t.Fatalf("the own event: %+v, %v", e, err)
				} else {
					w.accept(e.Event)
				}
				if servers, err := p.away.Recipients(ctx, p.at, p.at.Head().Extremities[0]); err != nil || !slices.Contains(servers, "silent") {
					t.Errorf("recipients %v, %v", servers, err)
				}

				if err := p.away.MakeWhole(ctx, w.room.ID); !errors.Is(err, ErrUnfetched) {
					t.Errorf("completed without the state: %v", err)
				}
				var missing *MissingError
				if err := p.fetch(false, w.stateIDs(p.join.StateBefore)["m.room.member|@d:remote"]); !errors.As(err, &missing) {
					t.Errorf("took a state with a hole: %v", err)
				}
				p.away = testServer(t, db, "away") // which knows no more than what is written
				p.load()
				if list := p.away.PartialRooms(); len(list) != 1 || list[0].RoomID != w.room.ID || list[0].Via != remote {
					t.Fatalf("after a restart: %+v", list)
				}
				waited := make(chan error, 1)
				go func() { waited <- p.away.AwaitWhole(context.Background(), p.at) }()
				if err := p.fetch(false, ""); err != nil {
					t.Fatal(err)
				}
				if err := p.away.MakeWhole(ctx, w.room.ID); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-waited:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(time.Minute):
					t.Error("who waited for the members still waits")
				}
				p.whole()
				if got, want := w.history(p.away), []string{p.join.ID, first.ID, topic.ID, own, lost.ID}; !slices.Equal(got, want) {
					t.Errorf("history %v, want %v", got, want)
				}
				if e, err := p.away.Event(ctx, p.at, first.ID); err != nil || e.redaction != nil || string(e.Content()) != text {
					t.Errorf("still redacted: %+v, %v", e, err)
				}
				for id, rejected := range map[string]bool{bad.ID: true, unsaid.ID: true, lost.ID: false} {
					if e, err := p.away.Event(ctx, p.at, id); err != nil || e.Rejected() != rejected || e.Partial() {
						t.Errorf("%s: %+v, %v", id, e, err)
					}
				}
				if !p.at.PartialAt(during) || p.at.PartialAt(p.at.Head().Pos) || p.at.WholeFrom(during) != p.at.Head().Pos {
					t.Error("the room was not partial when it was")
				}
				p.completion()
			})
		})
	}
}

// A state that does not allow the join which others have accepted is not the one before it.
func TestPartialRoomRefusesAnotherState(t *testing.T) {
	eachPair(t, "10", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		missing, err := away.Unfetched(ctx, p.at)
		if err != nil || len(missing) != 1 {
			t.Fatalf("%+v, %v", missing, err)
		}
		given := p.given(p.join)
		rules := w.stateIDs(p.join.StateBefore)["m.room.join_rules|"]
		given.States[0] = slices.DeleteFunc(given.States[0], func(id string) bool { return id == rules })
		if err := away.PutFetched(ctx, w.room.ID, missing[0].Event, given, true); err == nil {
			t.Error("took a state without the rule by which the join was allowed")
		}
		if err := p.fetch(false, ""); err != nil {
			t.Fatal(err)
		}
		if err := away.MakeWhole(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		p.whole()
	})
}

// completion checks that others are told once.
func (p *partial) completion() {
	p.t.Helper()
	list, err := p.away.Completions(ctx)
	if err != nil || len(list) != 1 || list[0].RoomID != p.room.ID || !slices.Contains(list[0].Servers, remote) || slices.Contains(list[0].Servers, "silent") ||
		list[0].Since >= list[0].Until || slices.Contains(list[0].Found, remote) || !slices.Contains(list[0].Found, "hs") {
		p.t.Fatalf("completions %+v, %v", list, err)
	}
	if err := p.away.CompletionTold(ctx, p.room.ID); err != nil {
		p.t.Fatal(err)
	}
	if list, err := p.away.Completions(ctx); err != nil || len(list) != 0 {
		p.t.Errorf("completions %+v, %v", list, err)
	}
}

// Many events take several turns, and others come in between.
func TestPartialRoomWithManyEvents(t *testing.T) {
	eachPair(t, "10", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		var events []*pdu.Event
		for i := range recastBatch + 20 {
			events = append(events, w.accept(w.build(nil, "@a:remote", "m.state", fmt.Sprint(i%7), fmt.Sprintf(`{"n":%d}`, i))).Event)
		}
		p.there(Accepted, events...)
		if err := p.fetch(false, ""); err != nil {
			t.Fatal(err)
		}
		step := func(want bool) {
			t.Helper()
			if _, err := away.Turn(ctx, w.room.ID, func(turn *Turn) error {
				whole, err := turn.complete(false)
				if whole != want {
					t.Errorf("whole: %v", whole)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		step(false)
		p.both(w.build(nil, "@b:remote", "m.room.message", "", text), Accepted, Accepted)
		step(true)
		p.whole()
	})
}

// An event whose parents are unknown brings the state before it along, which is needed again.
func TestPartialRoomWithAGap(t *testing.T) {
	eachPair(t, "10", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		unknown := w.accept(w.build([]*Event{p.join}, "@c:remote", "m.room.member", "@c:remote", `{"membership":"leave"}`))
		after := w.accept(w.build([]*Event{p.join, unknown}, "@a:remote", "m.room.message", "", text))
		given := w.given(after)
		out, err := away.Take(ctx, w.room.ID, []Incoming{{Event: after.Event, Before: given}})
		if err != nil || out[0].Outcome != Accepted {
			t.Fatalf("%+v, %v", out, err)
		}
		if err := p.fetch(false, ""); err != nil {
			t.Fatal(err)
		}
		if err := away.MakeWhole(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		p.whole()
	})
}

// The only local user leaves before the members are known, and comes back.
func TestPartialRoomIsLeft(t *testing.T) {
	eachPair(t, "12", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		leave, err := away.SetMembership(ctx, MembershipChange{RoomID: w.room.ID, Sender: "@u:away", Target: "@u:away", Membership: Leave})
		if err != nil {
			t.Fatal(err)
		}
		w.accept(leave.Event)
		if p.at.Resident() {
			t.Error("the server is still resident after its last user left")
		}
		// Nothing has happened there meanwhile, so that the state goes on from what is known.
		again := w.accept(w.sign(w.build(nil, "@u:away", "m.room.member", "@u:away", `{"membership":"join"}`)))
		if _, err := away.Enter(ctx, w.partialEntry(again)); err != nil {
			t.Fatal(err)
		}
		if err := p.fetch(false, ""); err != nil {
			t.Fatal(err)
		}
		if err := away.MakeWhole(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		p.whole()
	})
}

// Nobody tells the members of a room that is left; who comes back asks again.
func TestPartialRoomIsAbandoned(t *testing.T) {
	eachPair(t, "10", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		leave, err := away.SetMembership(ctx, MembershipChange{RoomID: w.room.ID, Sender: "@u:away", Target: "@u:away", Membership: Leave})
		if err != nil {
			t.Fatal(err)
		}
		w.accept(leave.Event)
		if err := away.Abandon(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		if p.at.Partial() != nil || p.at.Resident() {
			t.Error("the room is still wanted")
		}
		w.consistent(away)
		w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
		p = w.enterPartially(away, "@u:away")
		if p.at.Partial() == nil || !p.at.Resident() {
			t.Error("the room is not entered again")
		}
		if err := p.fetch(false, ""); err != nil {
			t.Fatal(err)
		}
		if err := away.MakeWhole(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		p.whole()
	})
}

// What is on its way to the database when the members become known gets its place all the same.
func TestPartialRoomWithAnEventInFlight(t *testing.T) {
	eachPair(t, "10", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		if err := p.fetch(false, ""); err != nil {
			t.Fatal(err)
		}
		release := hold(away)
		sent, whole := make(chan string, 1), make(chan error, 1)
		go func() {
			id, err := away.Send(ctx, w.room.ID, Draft{Sender: "@u:away", Type: "m.room.message", Content: []byte(text)})
			if err != nil {
				t.Error(err)
			}
			sent <- id
		}()
		soon(t, func() bool { return p.flying() == 1 })
		go func() { whole <- away.MakeWhole(ctx, w.room.ID) }()
		soon(t, func() bool {
			if p.at.turn.TryLock() {
				p.at.turn.Unlock()
				return p.flying() > 1
			}
			return true
		})
		release()
		if err := <-whole; err != nil {
			t.Fatal(err)
		}
		if got, want := w.history(away), []string{p.join.ID, <-sent}; !slices.Equal(got, want) {
			t.Errorf("history %v, want %v", got, want)
		}
		w.consistent(away)
	})
}

// flying is how many units of the room are on their way to the database.
func (p *partial) flying() int {
	p.at.mu.Lock()
	defer p.at.mu.Unlock()
	return p.at.flying
}

// soon waits until a condition holds.
func soon(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing happens")
		}
	}
}

// A state is kept although what was written before it, and on which it was built, fails.
func TestFetchedStateAfterAUnitThatFails(t *testing.T) {
	eachPair(t, "10", func(t *testing.T, w *world, away *Server) {
		p := w.enterPartially(away, "@u:away")
		release := hold(away)
		lost, fetched := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := away.Turn(ctx, w.room.ID, func(t *Turn) error {
				t.unit.Require(`DELETE FROM rooms WHERE nid = $1`, []any{int64(-1)}, 1, errRefused)
				_, err := t.Append(Draft{Sender: "@u:away", Type: "m.room.message", Content: []byte(text)})
				return err
			})
			lost <- err
		}()
		soon(t, func() bool { return p.flying() == 1 })
		go func() { fetched <- p.fetch(false, "") }()
		soon(t, func() bool { return p.flying() == 2 })
		release()
		if err := <-lost; !errors.Is(err, errRefused) {
			t.Fatalf("the unit that is to fail: %v", err)
		}
		if err := errors.Join(<-fetched, away.MakeWhole(ctx, w.room.ID)); err != nil {
			t.Fatal(err)
		}
		p.whole()
	})
}
