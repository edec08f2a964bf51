package authchain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// stored is the table of rows as a database would hold it.
type stored struct {
	byNID   map[int64]Row
	loads   int
	scanned int
}

func newStored() *stored { return &stored{byNID: map[int64]Row{}} }

func (s *stored) LoadRows(_ context.Context, _ int64, nids []int64, put func(int64, []byte)) error {
	s.loads++
	for _, nid := range nids {
		if r, ok := s.byNID[nid]; ok {
			put(nid, r.Data)
		}
	}
	return nil
}

func (s *stored) RowsAfter(_ context.Context, _, after int64, limit int, put func(int64, []byte)) error {
	var nids []int64
	for nid, r := range s.byNID {
		if r.Order > after {
			nids = append(nids, nid)
		}
	}
	slices.SortFunc(nids, func(a, b int64) int { return cmp.Compare(s.byNID[a].Order, s.byNID[b].Order) })
	for _, nid := range nids[:min(limit, len(nids))] {
		s.scanned++
		put(nid, s.byNID[nid].Data)
	}
	return nil
}

func (s *stored) LastOrder(context.Context, int64) (last int64, err error) {
	for _, r := range s.byNID {
		last = max(last, r.Order)
	}
	return last, nil
}

// graph is the oracle: full chains as sets.
type graph struct {
	chain map[int64]map[int64]bool // an event and all it rests on
	auth  map[int64][]int64
	key   map[int64]int // stands for type and state key
	nids  []int64       // in the order of arrival
}

func newGraph() *graph {
	return &graph{chain: map[int64]map[int64]bool{}, auth: map[int64][]int64{}, key: map[int64]int{}}
}

func (g *graph) add(nid int64, auth []int64, key int) {
	c := map[int64]bool{nid: true}
	for _, p := range auth {
		maps.Copy(c, g.chain[p])
	}
	g.chain[nid], g.auth[nid], g.key[nid] = c, auth, key
	g.nids = append(g.nids, nid)
}

func (g *graph) full(set []int64) map[int64]bool {
	out := map[int64]bool{}
	for _, nid := range set {
		maps.Copy(out, g.chain[nid])
	}
	return out
}

// difference is the definition: the union of the full chains less their intersection.
func (g *graph) difference(sets [][]int64) []int64 {
	count := map[int64]int{}
	for _, set := range sets {
		for nid := range g.full(set) {
			count[nid]++
		}
	}
	var out []int64
	for nid, n := range count {
		if n < len(sets) {
			out = append(out, nid)
		}
	}
	slices.Sort(out)
	return out
}

// paths is the definition: what lies on a path from one event to another.
func (g *graph) paths(events []int64) []int64 {
	var out []int64
	for nid := range g.full(events) {
		for _, e := range events {
			if g.chain[nid][e] {
				out = append(out, nid)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

// sharedSet is the part that all states have in common.
type sharedSet struct {
	g     *graph
	byKey map[int]int64
}

func (s sharedSet) Same(_ context.Context, nid int64) (int64, error) {
	return s.byKey[s.g.key[nid]], nil
}

func small(x *Index, window, cache, every, size, page int) *Index {
	x.windowSize, x.cacheSize, x.tableEvery, x.tableSize, x.pageSize = window, cache, every, size, page
	return x
}

// drawer is what the random graphs are drawn from: rapid's bits or a fuzzer's bytes.
type drawer func(lo, hi int) int

// Random graphs that arrive in random order, are forgotten, dropped and read again:
// all answers are those of the oracle.
func checkGraph(t interface{ Fatalf(string, ...any) }, draw drawer) {
	ctx := context.Background()
	disk, g := newStored(), newGraph()
	open := func() *Index {
		return small(New(disk, 1), draw(1, 40), draw(1, 10), draw(2, 5), draw(1, 6), draw(1, 7))
	}
	x := open()
	nids := make([]int64, draw(1, 60))
	for i := range nids {
		nids[i] = int64(i*3 + 1)
	}
	for i := range nids { // numbers come in any order
		j := draw(0, i)
		nids[i], nids[j] = nids[j], nids[i]
	}
	keys := draw(1, 12)
	for _, nid := range nids {
		key := draw(0, keys)
		var auth []int64
		replaces := int64(0)
		for range draw(0, 4) {
			if len(g.nids) > 0 {
				// Mostly recent ones, sometimes any.
				lo := 0
				if draw(0, 3) > 0 {
					lo = max(0, len(g.nids)-8)
				}
				auth = append(auth, g.nids[draw(lo, len(g.nids)-1)])
			}
		}
		for _, p := range auth {
			if g.key[p] == key {
				replaces = p
			}
		}
		row, err := x.Add(ctx, nid, auth, replaces)
		if err != nil {
			t.Fatalf("add: %v", err)
		}
		if draw(0, 9) == 0 { // its unit failed
			x.Drop(nid)
			continue
		}
		g.add(nid, auth, key)
		disk.byNID[nid] = row
		if draw(0, 5) > 0 {
			x.Durable(nid)
		}
		if draw(0, 19) == 0 {
			x = open()
		}
	}
	if len(g.nids) == 0 {
		return
	}
	any := func() int64 { return g.nids[draw(0, len(g.nids)-1)] }
	for range 6 {
		if draw(0, 3) == 0 {
			x = open()
		}
		a, b := any(), any()
		got, err := x.restsOn(ctx, a, b)
		if err != nil || got != g.chain[a][b] {
			t.Fatalf("%d reaches %d: %v, %v", a, b, got, err)
		}
		auth, err := x.AuthEvents(ctx, a)
		if want := slices.Compact(slices.Sorted(slices.Values(g.auth[a]))); err != nil || !slices.Equal(slices.Sorted(slices.Values(auth)), want) {
			t.Fatalf("auth events of %d: %v, %v, want %v", a, auth, err, want)
		}
		var ends []int64
		for range draw(1, 5) {
			ends = append(ends, any())
		}
		paths, err := x.Paths(ctx, ends)
		slices.Sort(paths)
		if want := g.paths(ends); err != nil || !slices.Equal(paths, want) {
			t.Fatalf("paths of %v: %v, %v, want %v", ends, paths, err, want)
		}
		checkDifference(t, x, g, draw)
	}
}

func checkDifference(t interface{ Fatalf(string, ...any) }, x *Index, g *graph, draw drawer) {
	ctx := context.Background()
	shared := sharedSet{g, map[int]int64{}}
	conflicted := map[int]bool{}
	sets := make([][]int64, draw(1, 4))
	full := make([][]int64, len(sets))
	for range draw(0, 6) {
		nid := g.nids[draw(0, len(g.nids)-1)]
		i := draw(0, len(sets)-1)
		if !slices.ContainsFunc(sets[i], func(o int64) bool { return g.key[o] == g.key[nid] }) {
			sets[i] = append(sets[i], nid)
			conflicted[g.key[nid]] = true
		}
	}
	for range draw(0, 8) {
		nid := g.nids[draw(0, len(g.nids)-1)]
		if !conflicted[g.key[nid]] {
			shared.byKey[g.key[nid]] = nid
		}
	}
	for i := range sets {
		full[i] = append(slices.Collect(maps.Values(shared.byKey)), sets[i]...)
	}
	got, err := x.Difference(ctx, sets, shared)
	slices.Sort(got)
	if want := g.difference(full); err != nil || !slices.Equal(got, want) {
		t.Fatalf("difference of %v with shared %v: %v, %v, want %v", sets, shared.byKey, got, err, want)
	}
	got, err = x.Difference(ctx, full, nil)
	slices.Sort(got)
	if want := g.difference(full); err != nil || !slices.Equal(got, want) {
		t.Fatalf("difference of %v: %v, %v, want %v", full, got, err, want)
	}
}

func TestAgreesWithFullChains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkGraph(t, func(lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, "n") })
	})
	// More of them than rapid makes, and larger.
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 0))
		checkGraph(t, func(lo, hi int) int { return lo + rng.IntN(hi-lo+1) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzGraph(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkGraph(t, func(lo, hi int) int {
			if len(data) == 0 || hi <= lo {
				return lo
			}
			v := int(data[0])
			data = data[1:]
			return lo + v%(hi-lo+1)
		})
	})
}

func FuzzRow(f *testing.F) {
	f.Add(int64(7), (&node{nid: 7, order: 9, gen: 3, chain: 4, seq: 2, parents: []int64{4, 12}, table: []int64{1}}).encode())
	f.Add(int64(1), []byte{1, 255, 255, 255})
	f.Fuzz(func(t *testing.T, nid int64, row []byte) {
		n, err := decodeRow(nid, row)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeRow(nid, n.encode())
		if err != nil || fmt.Sprint(n) != fmt.Sprint(again) {
			t.Fatalf("%+v becomes %+v, %v", n, again, err)
		}
	})
}

// The walk that stops where two chains meet is wrong: here it would miss that the old
// join rules, which only one conflicted event cites, belong to both chains because a
// member whom nobody disputes joined under them.
func TestSharedEventsCount(t *testing.T) {
	ctx := t.Context()
	x, g := New(newStored(), 1), newGraph()
	add := func(nid int64, key int, auth ...int64) {
		g.add(nid, auth, key)
		if _, err := x.Add(ctx, nid, auth, 0); err != nil {
			t.Fatal(err)
		}
	}
	const create, creator, power, rules, bob, carol, name = 0, 1, 2, 3, 4, 5, 6
	add(1, create)
	add(2, creator, 1)
	add(3, power, 1, 2)
	add(4, rules, 1, 2, 3) // the old rules
	add(5, bob, 1, 3, 4)   // undisputed
	add(6, rules, 1, 2, 3) // the new rules
	add(7, carol, 1, 3, 4) // joined under the old ones, on one side
	shared := sharedSet{g, map[int]int64{create: 1, creator: 2, power: 3, rules: 6, bob: 5}}
	got, err := x.Difference(ctx, [][]int64{{7}, {}}, shared)
	if err != nil || !slices.Equal(got, []int64{7}) {
		t.Errorf("difference %v, %v, want only the join", got, err)
	}
	delete(shared.byKey, bob)
	got, err = x.Difference(ctx, [][]int64{{7}, {}}, shared)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []int64{4, 7}) {
		t.Errorf("without bob: difference %v, %v, want the join and the old rules", got, err)
	}
}

func TestRefuses(t *testing.T) {
	ctx := t.Context()
	x := New(newStored(), 1)
	if _, err := x.Add(ctx, 1, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Add(ctx, 1, nil, 0); err == nil {
		t.Error("an event is added twice")
	}
	if _, err := x.Add(ctx, 2, []int64{2}, 0); err == nil {
		t.Error("an event cites itself")
	}
	if _, err := x.Add(ctx, 2, []int64{3}, 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an event cites an unknown one: %v", err)
	}
	if _, err := x.restsOn(ctx, 1, 5); !errors.Is(err, ErrCorrupt) {
		t.Errorf("unknown event: %v", err)
	}
	if _, err := x.Difference(ctx, make([][]int64, MaxSets+1), nil); err == nil {
		t.Error("too many sets")
	}
}

// Memory stays bounded, and what was forgotten is read again.
func TestBounded(t *testing.T) {
	ctx := t.Context()
	disk := newStored()
	x := small(New(disk, 1), 100, 50, 16, 64, 100)
	for nid := int64(1); nid <= 5000; nid++ {
		var auth []int64
		if nid > 1 {
			auth = []int64{nid - 1}
		}
		row, err := x.Add(ctx, nid, auth, nid-1)
		if err != nil {
			t.Fatal(err)
		}
		disk.byNID[nid] = row
		x.Durable(nid)
	}
	if len(x.window) > 100 || len(x.recent) > 100 || len(x.kids) > 101 || len(x.young)+len(x.old) > 100 {
		t.Errorf("window %d, recent %d, kids %d, cache %d", len(x.window), len(x.recent), len(x.kids), len(x.young)+len(x.old))
	}
	if ok, err := x.restsOn(ctx, 5000, 1); err != nil || !ok {
		t.Errorf("5000 reaches 1: %v, %v", ok, err)
	}
}
