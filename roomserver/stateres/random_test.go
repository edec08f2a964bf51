package stateres

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

func lookup(t testing.TB, n int) *pdu.Version {
	t.Helper()
	v, ok := pdu.Lookup(strconv.Itoa(n))
	if !ok {
		t.Fatalf("no room version %d", n)
	}
	return v
}

// history makes a random room: users join, leave, ban, change levels, rules and topics, on
// several branches that meet again now and then.
type history struct {
	s      *server
	rng    *rand.Rand
	roomID string
	users  []string
	events []*pdu.Event // as they were made
	heads  []string
}

func newHistory(t testing.TB, v *pdu.Version, rng *rand.Rand) *history {
	h := &history{s: newServer(t, v), rng: rng, roomID: "!room:s0"}
	for i := range 5 {
		h.users = append(h.users, fmt.Sprintf("@u%d:s%d", i, i%3))
	}
	empty := ""
	creator := h.users[0]
	create := makeEvent(t, v, "", draft{seed: "create", sender: creator, typ: pdu.TypeCreate, key: &empty, content: map[string]any{"creator": creator}, ts: 1, depth: 1})
	if !v.RoomIDIsCreateHash {
		create = makeEvent(t, v, h.roomID, draft{seed: "create", sender: creator, typ: pdu.TypeCreate, key: &empty, content: map[string]any{"creator": creator}, ts: 1, depth: 1})
	}
	h.roomID = create.RoomID
	h.take(create)
	h.append(draft{sender: creator, typ: pdu.TypeMember, key: &creator, content: map[string]any{"membership": "join"}})
	h.append(draft{sender: creator, typ: pdu.TypePowerLevels, key: &empty, content: h.levels(100, 50)})
	h.append(draft{sender: creator, typ: pdu.TypeJoinRules, key: &empty, content: map[string]any{"join_rule": "public"}})
	for _, ev := range h.events {
		if h.s.byID[ev.ID].rejected {
			t.Fatalf("the room cannot begin: %s is rejected", ev.Type)
		}
	}
	return h
}

// levels gives the first users power; from version 12 on the creator is not named.
func (h *history) levels(powers ...int) map[string]any {
	users := map[string]any{}
	for i, p := range powers {
		if i > 0 || !h.s.v.CreatorsPrivileged {
			users[h.users[i]] = p
		}
	}
	return map[string]any{"users": users}
}

func (h *history) take(ev *pdu.Event) *record {
	r := h.s.receive(ev)
	h.events = append(h.events, ev)
	h.heads = slices.DeleteFunc(h.heads, func(id string) bool { return slices.Contains(ev.PrevEventIDs(), id) })
	h.heads = append(h.heads, ev.ID)
	return r
}

// append makes the next event, on top of one or several earlier ones.
func (h *history) append(d draft) *record {
	switch {
	case d.prev != nil:
	case len(h.events) < 4:
		d.prev = h.heads
	default:
		d.prev = h.parents()
	}
	d.seed = fmt.Sprintf("event%d", len(h.events))
	d.ts = int64(h.rng.IntN(8))
	for _, id := range d.prev {
		d.depth = max(d.depth, h.s.byID[id].Depth+1)
	}
	root := h.s.before(d.prev)
	d.auth = h.s.authFor(root, &d)
	return h.take(makeEvent(h.s.t, h.s.v, h.roomID, d))
}

func (h *history) parents() []string {
	out := []string{h.heads[h.rng.IntN(len(h.heads))]}
	switch h.rng.IntN(5) {
	case 0: // fork
		out[0] = h.events[len(h.events)-1-h.rng.IntN(min(len(h.events), 8))].ID
	case 1, 2: // merge
		for _, id := range h.heads {
			if h.rng.IntN(2) == 0 && !slices.Contains(out, id) && len(out) < 4 {
				out = append(out, id)
			}
		}
	}
	return out
}

// step appends a random event; some are not authorised.
func (h *history) step() {
	pick := func() string { return h.users[h.rng.IntN(len(h.users))] }
	empty := ""
	a, b := pick(), pick()
	if h.rng.IntN(2) == 0 {
		a = h.users[h.rng.IntN(2)] // those who have power
	}
	d := draft{sender: a, typ: pdu.TypeMember, key: &b}
	switch h.rng.IntN(12) {
	case 0, 1, 2:
		d.key, d.content = &a, map[string]any{"membership": "join", "n": h.rng.IntN(100)}
	case 3:
		d.content = map[string]any{"membership": "ban"}
	case 4:
		d.content = map[string]any{"membership": "leave"}
	case 5:
		d.content = map[string]any{"membership": "invite"}
	case 6, 7:
		d.typ, d.key = pdu.TypePowerLevels, &empty
		levels := []int{100, 50, 0, 0}
		for i := range levels {
			if h.rng.IntN(3) == 0 {
				levels[i] = []int{0, 50, 100}[h.rng.IntN(3)]
			}
		}
		d.content = h.levels(levels...)
	case 8:
		d.typ, d.key = pdu.TypeJoinRules, &empty
		d.content = map[string]any{"join_rule": []string{"public", "invite"}[h.rng.IntN(2)]}
	default:
		d.typ, d.key = []string{"m.room.topic", "m.room.name"}[h.rng.IntN(2)], &empty
		d.content = map[string]any{"n": h.rng.IntN(100)}
	}
	h.append(d)
}

func (h *history) oracle() *oracle { return &oracle{h.s.t, h.s.v, h.s.byID} }

// histories runs fn for random histories of room versions with each algorithm.
func histories(t *testing.T, each, steps int, fn func(t *testing.T, h *history)) {
	for _, version := range []int{1, 2, 6, 10, 11, 12} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			for seed := range uint64(each) {
				h := newHistory(t, lookup(t, version), rand.New(rand.NewPCG(seed, uint64(version))))
				for range steps {
					h.step()
				}
				if fn(t, h); t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// The result is that of the specification's text, for the states of any events and for
// states as a faulty or malicious server might claim them: with old events, gaps, and
// events from elsewhere.
func TestAgreesWithOracle(t *testing.T) {
	histories(t, 12, 60, func(t *testing.T, h *history) {
		for range 25 {
			roots := make([]snapshot.Ref, 1+h.rng.IntN(4))
			for i := range roots {
				roots[i] = h.claimedState()
			}
			if h.rng.IntN(4) == 0 { // an event that was accepted and is rejected now
				h.s.byID[h.events[4+h.rng.IntN(len(h.events)-4)].ID].rejected = true
			}
			compareWithOracle(t, h, roots)
		}
	})
}

// What earlier resolutions have left changes no result: of some branches one goes on, and all are merged again.
func TestMemoryChangesNothing(t *testing.T) {
	histories(t, 6, 60, func(t *testing.T, h *history) {
		h.s.memory = NewMemory()
		roots := []snapshot.Ref{h.claimedState(), h.claimedState(), h.claimedState()}
		for range 25 {
			roots[h.rng.IntN(len(roots))] = h.claimedState()
			compareWithOracle(t, h, roots)
		}
		if m := h.s.memory; h.s.v.StateRes > 1 && (len(m.vertices) == 0 || len(m.diffs) == 0) {
			t.Error("nothing was remembered")
		}
	})
}

// claimedState is the state after some event, with a few places tampered with.
func (h *history) claimedState() snapshot.Ref {
	root := h.s.byID[h.events[h.rng.IntN(len(h.events))].ID].after
	if h.rng.IntN(2) == 0 {
		return root
	}
	h.s.nid++
	pack := h.s.nid
	e := h.s.tree(root).Edit(pack)
	for range 1 + h.rng.IntN(4) {
		ev := h.events[1+h.rng.IntN(len(h.events)-1)]
		r := h.s.byID[ev.ID]
		switch {
		case h.rng.IntN(5) == 0:
			e.Delete(ev.Type, *ev.StateKey)
		case !r.rejected:
			e.Set(ev.Type, *ev.StateKey, r.nid)
		}
	}
	return h.s.commit(e, pack)
}

func compareWithOracle(t *testing.T, h *history, roots []snapshot.Ref) {
	t.Helper()
	states := make([]stateMap, len(roots))
	for i, r := range roots {
		states[i] = h.s.stateOf(r)
	}
	got := h.s.stateOf(h.s.resolve(roots))
	want := h.oracle().resolve(states)
	if !maps.Equal(got, want) {
		t.Errorf("resolved to\n%s\nwant\n%s", h.show(got), h.show(want))
	}
	// In any order, and with states that are there twice.
	again := append(slices.Clone(roots), roots[0])
	h.rng.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	if other := h.s.stateOf(h.s.resolve(again)); !maps.Equal(got, other) {
		t.Errorf("in another order\n%s\nwas\n%s", h.show(other), h.show(got))
	}
}

func (h *history) show(s stateMap) string {
	out := ""
	for _, p := range slices.SortedFunc(maps.Keys(s), func(a, b place) int { return slices.Compare([]string{a.typ, a.key}, []string{b.typ, b.key}) }) {
		e := h.s.byID[s[p]]
		out += fmt.Sprintf("  %s %q: event %d by %s %s\n", p.typ, p.key, e.nid, e.Sender, e.Content())
	}
	return out
}

// The same events in any order of arrival give the same verdict and the same state at each
// event, and the same state after an event that references every head.
func TestAnyArrivalOrder(t *testing.T) {
	histories(t, 6, 50, func(t *testing.T, h *history) {
		final := h.append(draft{sender: h.users[0], typ: "m.room.message", prev: slices.Clone(h.heads), content: map[string]any{}})
		want := map[string]stateMap{}
		for _, ev := range h.events {
			want[ev.ID] = h.s.stateOf(h.s.byID[ev.ID].after)
		}
		for range 3 {
			other := newServer(t, h.s.v)
			for _, ev := range h.shuffled() {
				r := other.receive(ev)
				if r.rejected != h.s.byID[ev.ID].rejected {
					t.Fatalf("%s %s: rejected %v, was %v", ev.Type, ev.Content(), r.rejected, !r.rejected)
				}
				if got := other.stateOf(r.after); !maps.Equal(got, want[ev.ID]) {
					t.Fatalf("after %s %s:\n%s\nwas\n%s", ev.Type, ev.Content(), h.show(got), h.show(want[ev.ID]))
				}
			}
			if got := other.stateOf(other.byID[final.ID].after); !maps.Equal(got, want[final.ID]) {
				t.Fatal("states of the last event differ")
			}
		}
	})
}

// shuffled is another order in which the events could arrive.
func (h *history) shuffled() []*pdu.Event {
	left := slices.Clone(h.events)
	seen := map[string]bool{}
	var out []*pdu.Event
	for len(left) > 0 {
		i := h.rng.IntN(len(left))
		ready := true
		for _, id := range slices.Concat(left[i].PrevEventIDs(), left[i].AuthEventIDs()) {
			ready = ready && seen[id]
		}
		if ready {
			seen[left[i].ID] = true
			out = append(out, left[i])
			left = slices.Delete(left, i, i+1)
		}
	}
	return out
}

func TestOneState(t *testing.T) {
	h := newHistory(t, lookup(t, 10), rand.New(rand.NewPCG(1, 1)))
	root := h.s.byID[h.heads[0]].after
	edit, err := Resolve(context.Background(), h.s.input([]snapshot.Ref{root, root}), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if got, rows, err := edit.Commit(context.Background()); err != nil || got != root || rows != nil {
		t.Errorf("root %d, %d rows, %v, want root %d and no rows", got, len(rows), err, root)
	}
	if _, err := Resolve(context.Background(), h.s.input(nil), 1000); err == nil {
		t.Error("no states are resolved")
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint8(9))
	f.Add(uint64(3), uint64(4), uint8(11))
	f.Add(uint64(5), uint64(6), uint8(0))
	f.Fuzz(func(t *testing.T, a, b uint64, version uint8) {
		h := newHistory(t, lookup(t, 1+int(version)%12), rand.New(rand.NewPCG(a, b)))
		for range 40 {
			h.step()
		}
		for range 10 {
			compareWithOracle(t, h, []snapshot.Ref{h.claimedState(), h.claimedState(), h.claimedState()})
		}
	})
}
