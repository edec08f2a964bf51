package roomserver

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const (
	creator = "@creator:hs"
	remote  = "remote"
)

var ctx = context.Background()

func eachServer(t *testing.T, fn func(t *testing.T, s *Server)) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) { fn(t, testServer(t, db, "hs")) })
}

func testServer(t testing.TB, db *storage.DB, name string) *Server {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := New(db, Options{ServerName: name, KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: logrus.NewEntry(log)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// world builds events of remote users on a room.
type world struct {
	t    testing.TB
	s    *Server
	room *Room
	key  ed25519.PrivateKey
	ts   int64

	sticky *int64 // how long what is built is sticky, in milliseconds
}

// newWorld is a public room of a local creator with power levels for two remote users.
func newWorld(t testing.TB, s *Server, version string) *world {
	t.Helper()
	v, _ := pdu.Lookup(version)
	levels := fmt.Sprintf(`{"@a:%[1]s":50,"@b:%[1]s":50}`, remote)
	if !v.CreatorsPrivileged {
		levels = fmt.Sprintf(`{"%[2]s":100,"@a:%[1]s":50,"@b:%[1]s":50}`, remote, creator)
	}
	id, err := s.CreateRoom(ctx, NewRoom{Creator: creator, Version: v, Preset: PublicChat, PowerLevels: map[string]json.RawMessage{"users": json.RawMessage(levels)}})
	if err != nil {
		t.Fatal(err)
	}
	room, err := s.Room(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, s: s, room: room, key: ed25519.NewKeyFromSeed(slices.Repeat([]byte{1}, 32)), ts: 1_700_000_000_000}
	for _, u := range []string{"@a:remote", "@b:remote", "@c:remote", "@d:remote"} {
		w.accept(w.build(nil, u, "m.room.member", u, `{"membership":"join"}`))
	}
	return w
}

// state reads the resolved state after some events (nil: after the room's extremities).
func (w *world) state(prev []*Event) (root snapshot.Ref) {
	w.t.Helper()
	if prev == nil {
		return w.room.Head().State
	}
	_, err := w.s.Turn(ctx, w.room.ID, func(t *Turn) (err error) {
		root, err = t.resolve(statesAfter(prev))
		if err == nil && len(t.packs) > 0 {
			// The state is needed for a moment only, but its nodes must stay readable.
			_, err = t.Append(Draft{Sender: creator, Type: "m.keep", Content: []byte(`{}`)})
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return root
}

// build makes an event on top of prev (nil: the extremities) that cites the auth events of the state there; an empty
// key with type m.room.message is no state key.
func (w *world) build(prev []*Event, sender, typ, key, content string) *pdu.Event {
	w.t.Helper()
	return w.buildOn(prev, w.state(prev), sender, typ, key, content)
}

func (w *world) buildOn(prev []*Event, root snapshot.Ref, sender, typ, key, content string) *pdu.Event {
	w.t.Helper()
	if prev == nil {
		prev = w.room.Head().Extremities
	}
	w.ts++
	proto := &pdu.Proto{RoomID: w.room.ID, Sender: sender, Type: typ, Content: json.RawMessage(content), OriginServerTS: w.ts, StickyMS: w.sticky}
	if typ != "m.room.message" && typ != "m.room.redaction" {
		proto.StateKey = &key
	} else if typ == "m.room.redaction" {
		proto.Redacts = key
	}
	for _, p := range prev {
		proto.PrevEvents = append(proto.PrevEvents, p.Ref())
		proto.Depth = max(proto.Depth, p.Depth+1)
	}
	for _, k := range authrules.Required(w.room.Version, authrules.Header{Type: typ, StateKey: proto.StateKey, Sender: sender, Content: proto.Content}) {
		e, err := w.s.StateEvent(ctx, w.room, root, k.Type, k.StateKey)
		if err != nil {
			w.t.Fatal(err)
		}
		if e != nil {
			proto.AuthEvents = append(proto.AuthEvents, e.Ref())
		}
	}
	p, err := w.room.Version.Build(proto, remote, "ed25519:r", w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// receiveAll takes events into a room of which nothing more is to be said.
func receiveAll(s *Server, roomID string, events []*pdu.Event) ([]Received, error) {
	in := make([]Incoming, len(events))
	for i, p := range events {
		in[i].Event = p
	}
	return s.Take(ctx, roomID, in)
}

func (w *world) receive(p *pdu.Event) Received {
	w.t.Helper()
	out, err := receiveAll(w.s, w.room.ID, []*pdu.Event{p})
	if err != nil {
		w.t.Fatal(err)
	}
	return out[0]
}

func (w *world) want(p *pdu.Event, outcome Outcome) *Event {
	w.t.Helper()
	got := w.receive(p)
	if got.Outcome != outcome {
		w.t.Fatalf("%s %s by %s: outcome %d (%v, %v), want %d", p.Type, p.ID, p.Sender, got.Outcome, got.Reason, got.Err, outcome)
	}
	return w.event(p.ID)
}

func (w *world) accept(p *pdu.Event) *Event {
	w.t.Helper()
	return w.want(p, Accepted)
}

func (w *world) event(id string) *Event {
	w.t.Helper()
	e, err := w.s.Event(ctx, w.room, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// timeline lists the ids of the room's timeline.
func (w *world) timeline() (ids []string) {
	w.t.Helper()
	events, err := w.s.HistoryBefore(ctx, w.room, AfterPosition(1<<60), 10_000)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	slices.Reverse(ids)
	return ids
}

// stateIDs is the state at a root by place.
func (w *world) stateIDs(root snapshot.Ref) map[string]string {
	w.t.Helper()
	events, err := w.s.StateEvents(ctx, w.room, root)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range events {
		out[e.Type+"|"+*e.StateKey] = e.ID
	}
	return out
}

const text = `{"body":"hi","msgtype":"m.text"}`

func TestUnknownParentsKeepAnEventOut(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		first := w.build(nil, "@a:remote", "m.room.message", "", text)
		// The second builds on the first, which has not arrived.
		head := *w.room.Head()
		second := w.buildOn([]*Event{{Event: first}}, head.State, "@a:remote", "m.room.message", "", text)
		got := w.receive(second)
		var missing *MissingError
		if !errors.As(got.Err, &missing) || !slices.Equal(missing.Prev, []string{first.ID}) {
			t.Fatalf("got %+v, want the parent to be missing", got)
		}
		if _, err := s.Event(ctx, w.room, second.ID); !errors.Is(err, ErrUnknownEvent) {
			t.Fatalf("the event was kept: %v", err)
		}
		w.accept(first)
		w.accept(second) // delivered again
		if got := w.receive(second); got.Outcome != Known {
			t.Errorf("a third delivery gives %+v", got)
		}
	})
}

func TestRejectedEvents(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		before := w.timeline()
		// @c has no power to set the topic.
		bad := w.want(w.build(nil, "@c:remote", "m.room.topic", "", `{"topic":"mine"}`), Rejected)
		if bad.StateAfter != bad.StateBefore {
			t.Error("a rejected state event changed the state after it")
		}
		if got := w.timeline(); !slices.Equal(got, before) {
			t.Error("a rejected event is in the timeline")
		}
		if len(w.room.Head().Extremities) != 1 || w.room.Head().Extremities[0].ID == bad.ID {
			t.Error("a rejected event became a forward extremity")
		}
		// A child of it has the state before it, and takes the parents behind it from the extremities.
		child := w.accept(w.build([]*Event{bad}, "@a:remote", "m.room.message", "", text))
		if child.StateBefore != bad.StateBefore {
			t.Error("the state after a rejected event is not the state before it")
		}
		if x := w.room.Head().Extremities; len(x) != 1 || x[0].ID != child.ID {
			t.Errorf("extremities %v, want the child alone", ids(x))
		}
		// An event that cites a rejected auth event is rejected.
		join := w.want(w.buildOn(nil, w.room.Head().State, "@e:remote", "m.room.member", "@e:remote", `{"membership":"ban"}`), Rejected)
		proto := w.buildCiting(join, "@e:remote", "m.room.message", text)
		w.want(proto, Rejected)
	})
}

// buildCiting makes a message that cites one more auth event than it should.
func (w *world) buildCiting(extra *Event, sender, typ, content string) *pdu.Event {
	w.t.Helper()
	w.ts++
	proto := &pdu.Proto{RoomID: w.room.ID, Sender: sender, Type: typ, Content: json.RawMessage(content), OriginServerTS: w.ts}
	for _, p := range w.room.Head().Extremities {
		proto.PrevEvents = append(proto.PrevEvents, p.Ref())
		proto.Depth = max(proto.Depth, p.Depth+1)
	}
	pl, err := w.s.StateEvent(ctx, w.room, w.room.Head().State, "m.room.power_levels", "")
	if err != nil {
		w.t.Fatal(err)
	}
	proto.AuthEvents = []pdu.Ref{pl.Ref(), extra.Ref()}
	p, err := w.room.Version.Build(proto, remote, "ed25519:r", w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func ids(events []*Event) (out []string) {
	for _, e := range events {
		out = append(out, e.ID)
	}
	return out
}

func TestSoftFailedEvents(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "11")
		fork := w.room.Head().Extremities
		w.accept(w.build(nil, "@a:remote", "m.room.member", "@c:remote", `{"membership":"ban"}`))
		before, head := w.timeline(), w.room.Head()
		// @c sends on the old branch, where it is not banned.
		evasion := w.want(w.build(fork, "@c:remote", "m.room.message", "", text), SoftFailed)
		if got := w.timeline(); !slices.Equal(got, before) {
			t.Error("a soft-failed event is in the timeline")
		}
		if !slices.Equal(ids(w.room.Head().Extremities), ids(head.Extremities)) {
			t.Error("a soft-failed event became a forward extremity")
		}
		v, err := s.Viewer(ctx, w.room, creator, w.room.Head().Pos)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := v.Sees(ctx, evasion); ok || err != nil {
			t.Errorf("a member sees a soft-failed event (%v)", err)
		}
		// It carries state for its descendants: an event of someone else on it is accepted.
		child := w.accept(w.build([]*Event{evasion}, "@b:remote", "m.room.message", "", text))
		if child.StateBefore != evasion.StateAfter {
			t.Error("the child does not have the soft-failed event's state")
		}
	})
}

func TestOutliersHaveNoPlace(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		here := testServer(t, storagetest.Open(t, storage.SQLite, Schema), "hs")
		w := newWorld(t, here, "12")
		join := w.accept(w.build(nil, "@u:there", "m.room.member", "@u:there", `{"membership":"join"}`))
		there := testServer(t, db, "there")
		entry := w.entry(join)
		if _, err := there.Enter(ctx, entry); err != nil {
			t.Fatal(err)
		}
		room, err := there.Room(ctx, w.room.ID)
		if err != nil {
			t.Fatal(err)
		}
		o := &world{t: t, s: there, room: room, key: w.key, ts: w.ts}
		if got := o.timeline(); !slices.Equal(got, []string{join.ID}) {
			t.Errorf("timeline %v, want the join alone", got)
		}
		if !maps.Equal(o.stateIDs(room.Head().State), w.stateIDs(w.room.Head().State)) {
			t.Error("the state differs from the one that was given")
		}
		create, err := there.StateEvent(ctx, room, room.Head().State, "m.room.create", "")
		if err != nil || !create.Outlier() || create.Anchor != 0 {
			t.Errorf("m.room.create is no outlier: %+v, %v", create, err)
		}
		if joined, _ := room.MemberCounts(); joined != 6 {
			t.Errorf("%d joined members, want 6", joined)
		}
		message := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
		o.accept(message.Event)
	})
}

// entry describes the room as another server would that accepts e as the first event there.
func (w *world) entry(e *Event) Entry {
	w.t.Helper()
	events, err := w.s.StateEvents(ctx, w.room, e.StateBefore)
	if err != nil {
		w.t.Fatal(err)
	}
	entry := Entry{RoomID: w.room.ID, Version: w.room.Version, Event: e.Event}
	for _, s := range events {
		entry.State = append(entry.State, s.Event)
	}
	for _, id := range w.timeline() {
		if a := w.event(id); a.IsState() && a.NID != e.NID {
			entry.Auth = append(entry.Auth, a.Event)
		}
	}
	return entry
}

func TestRedactionBeforeItsTarget(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		for _, version := range []string{"10", "12"} {
			w := newWorld(t, s, version)
			secret := w.build(nil, "@a:remote", "m.room.message", "", `{"body":"secret","msgtype":"m.text"}`)
			other := w.build(nil, "@c:remote", "m.room.message", "", `{"body":"kept","msgtype":"m.text"}`)
			w.accept(w.build(nil, "@a:remote", "m.room.redaction", secret.ID, `{}`))
			w.accept(w.build(nil, "@d:remote", "m.room.redaction", other.ID, `{}`)) // has no right to it
			if e := w.accept(secret); strings.Contains(string(e.Content()), "secret") || e.redaction == nil {
				t.Errorf("version %s: the target shows %s", version, e.Content())
			}
			// v10 lets a server redact the events of its users, and all of them are of one server here.
			if e := w.accept(other); version == "12" && e.redaction == nil {
				t.Errorf("version %s: a redaction by the same server was not applied", version)
			}
		}
	})
}

func TestResolutionChangesMembershipWithoutAnEvent(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		fork := w.room.Head().Extremities
		// On one branch @a bans @d, on the other @d, not yet banned, changes its name.
		w.accept(w.build(nil, "@a:remote", "m.room.member", "@d:remote", `{"membership":"ban"}`))
		if joined, _ := w.room.MemberCounts(); joined != 4 {
			t.Fatalf("%d joined after the ban, want 4", joined)
		}
		rename := w.build(fork, "@d:remote", "m.room.member", "@d:remote", `{"membership":"join","displayname":"D"}`)
		w.want(rename, SoftFailed)
		pos := w.room.Head().Pos
		// The creator's server merges the branches.
		w.accept(w.build([]*Event{w.event(rename.ID), w.room.Head().Extremities[0]}, "@b:remote", "m.room.message", "", text))
		m, err := s.MembershipAt(ctx, w.room, w.room.Head().State, "@d:remote")
		if err != nil || m != Ban {
			t.Errorf("membership after the merge is %s (%v), want ban", m, err)
		}
		before, err := s.StateAt(ctx, w.room, pos)
		if err != nil {
			t.Fatal(err)
		}
		if m, _ := s.MembershipAt(ctx, w.room, before, "@d:remote"); m != Ban {
			t.Errorf("membership before the merge is %s, want ban", m)
		}
	})
}

// TestAnyOrder delivers the same forked history to several servers in random orders, parents first: each must
// find the same state at each event, and the same current state after one event that references every head.
func TestAnyOrder(t *testing.T) {
	for _, version := range []string{"1", "2", "6", "11", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			for seed := range uint64(4) {
				anyOrder(t, version, seed)
			}
		})
	}
}

func anyOrder(t *testing.T, version string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	w := newWorld(t, testServer(t, storagetest.Open(t, storage.SQLite, Schema), "hs"), version)
	first := w.accept(w.build(nil, "@u:there", "m.room.member", "@u:there", `{"membership":"join"}`))
	entry := w.entry(first)
	history := randomHistory(w, first, r, 25)
	merge := w.mergeAll(history)
	want := map[string]map[string]string{}
	for _, e := range append(history, merge) {
		e = w.event(e.ID)
		want[e.ID] = w.stateIDs(e.StateAfter)
	}
	for range 3 {
		other := testServer(t, storagetest.Open(t, storage.SQLite, Schema), "there")
		if _, err := other.Enter(ctx, entry); err != nil {
			t.Fatal(err)
		}
		room, err := other.Room(ctx, w.room.ID)
		if err != nil {
			t.Fatal(err)
		}
		o := &world{t: t, s: other, room: room}
		for _, e := range shuffled(history, first.ID, r) {
			if got := o.receive(e.Event); got.Err != nil {
				t.Fatalf("seed %d: %v", seed, got.Err)
			}
		}
		if got := o.receive(merge.Event); got.Outcome != Accepted {
			t.Fatalf("seed %d: the merge gives %+v", seed, got)
		}
		for id, state := range want {
			if got := o.stateIDs(o.event(id).StateAfter); !maps.Equal(got, state) {
				t.Fatalf("seed %d: state after %s is\n%v\nwant\n%v", seed, id, got, state)
			}
		}
		if got := o.stateIDs(o.room.Head().State); !maps.Equal(got, want[merge.ID]) {
			t.Fatalf("seed %d: current state is\n%v\nwant\n%v", seed, got, want[merge.ID])
		}
	}
}

// randomHistory grows a forked history on first; some of it is rejected or soft-failed.
func randomHistory(w *world, first *Event, r *rand.Rand, n int) []*Event {
	pool := []*Event{first}
	users := []string{"@a:remote", "@b:remote", "@c:remote", "@d:remote"}
	var history []*Event
	for range n {
		prev := []*Event{pool[max(0, len(pool)-1-r.IntN(4))]}
		if p := pool[r.IntN(len(pool))]; r.IntN(3) == 0 && p.NID != prev[0].NID {
			prev = append(prev, p)
		}
		sender, target := users[r.IntN(4)], users[r.IntN(4)]
		typ, key, content := "m.room.message", "", text
		switch r.IntN(8) {
		case 0:
			typ, content = "m.room.topic", fmt.Sprintf(`{"topic":"%d"}`, r.IntN(100))
		case 1:
			typ, key, content = "m.room.member", target, `{"membership":"ban"}`
		case 2:
			typ, key, content = "m.room.member", target, `{"membership":"leave"}`
		case 3:
			typ, key, content = "m.room.member", sender, `{"membership":"join"}`
		case 4:
			users := fmt.Sprintf(`"@a:remote":50,"@b:remote":50,"%s":%d`, users[2+r.IntN(2)], []int{0, 50}[r.IntN(2)])
			if !w.room.Version.CreatorsPrivileged {
				users += `,"` + creator + `":100`
			}
			typ, content = "m.room.power_levels", `{"state_default":50,"ban":50,"kick":50,"users":{`+users+`},"events":{"m.room.power_levels":50}}`
		case 5:
			typ, content = "m.room.join_rules", `{"join_rule":"`+[]string{"public", "invite"}[r.IntN(2)]+`"}`
		}
		p := w.build(prev, sender, typ, key, content)
		if got := w.receive(p); got.Err != nil {
			w.t.Fatal(got.Err)
		}
		e := w.event(p.ID)
		pool, history = append(pool, e), append(history, e)
	}
	return history
}

// mergeAll adds an event on every event without a child.
func (w *world) mergeAll(history []*Event) *Event {
	children := map[string]bool{}
	for _, e := range history {
		if e.Rejected() {
			continue // nobody builds on it, so its parents stay heads
		}
		for _, p := range e.PrevEventIDs() {
			children[p] = true
		}
	}
	var heads []*Event
	for _, e := range history {
		if !children[e.ID] && !e.Rejected() && len(heads) < pdu.MaxPrevEvents {
			heads = append(heads, e)
		}
	}
	root := w.state(heads)
	for _, sender := range []string{"@a:remote", "@b:remote", "@c:remote", "@d:remote", "@u:there"} {
		if m, _ := w.s.MembershipAt(ctx, w.room, root, sender); m == Join {
			return w.accept(w.buildOn(heads, root, sender, "m.room.message", "", text))
		}
	}
	w.t.Fatal("nobody is left to merge the branches")
	return nil
}

// shuffled orders events at random, parents first.
func shuffled(events []*Event, base string, r *rand.Rand) (out []*Event) {
	done := map[string]bool{base: true}
	left := slices.Clone(events)
	for len(left) > 0 {
		r.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		for i, e := range left {
			if !slices.ContainsFunc(e.PrevEventIDs(), func(p string) bool { return !done[p] }) {
				done[e.ID] = true
				out, left = append(out, e), slices.Delete(left, i, i+1)
				break
			}
		}
	}
	return out
}
