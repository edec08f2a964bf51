package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// rowsOnDisk is the table of rows as a database would hold it.
type rowsOnDisk struct {
	rows  map[rowKey][]byte
	calls int
}

func (d *rowsOnDisk) LoadPacks(_ context.Context, room int64, ids []int64, put func(int64, []byte)) error {
	d.calls++
	if len(ids) == 0 || len(ids) > rowNodes {
		return fmt.Errorf("asked for %d rows", len(ids))
	}
	for _, id := range ids {
		if data := d.rows[rowKey{room, id}]; data != nil {
			put(id, data)
		}
	}
	return nil
}

func newDisk() *rowsOnDisk { return &rowsOnDisk{rows: map[rowKey][]byte{}} }

// save stores what an edit made and returns the new root and the bytes of its rows.
func (d *rowsOnDisk) save(t testing.TB, s *Store, room, pack int64, e *Edit) (Ref, int) {
	t.Helper()
	root, rows, err := e.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, r := range rows {
		k := rowKey{room, r.ID}
		if d.rows[k] != nil {
			t.Fatalf("row %d written twice", r.ID)
		}
		d.rows[k] = r.Data
		size += len(r.Data)
	}
	s.Durable(room, pack)
	return root, size
}

// The vectors of the reference implementation: key 00..0f, message 00..(n-1).
func TestSipHash(t *testing.T) {
	var seed [16]byte
	for i := range seed {
		seed[i] = byte(i)
	}
	want := []string{
		0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 2: "5a4fa9d909806c0d", 7: "37d1018bf50002ab",
		8: "6224939a79f5f593", 15: "e545be4961ca29a1", 16: "db9bc2577fcc2a3f", 63: "724506eb4c328a95",
	}
	msg := make([]byte, 64)
	for i := range msg {
		msg[i] = byte(i)
	}
	for n, w := range want {
		if w == "" {
			continue
		}
		h := sipHash(seed, string(msg[:n]))
		var le [8]byte
		for i := range le {
			le[i] = byte(h >> (8 * i))
		}
		if got := hex.EncodeToString(le[:]); got != w {
			t.Errorf("%d bytes: %s, want %s", n, got, w)
		}
	}
}

type stateKey struct{ typ, key string }

// weakHash gives hashes that share long prefixes: an index in the lowest bits.
func weakHash(shift int) hasher {
	seen := map[string]uint64{}
	return func(_ [16]byte, s string) uint64 {
		h, ok := seen[s]
		if !ok {
			h = uint64(len(seen)+1) << shift
			seen[s] = h
		}
		return h
	}
}

func checkState(t *rapid.T, tree Tree, want map[stateKey]int64, keys []stateKey) {
	ctx := context.Background()
	for _, k := range keys {
		got, err := tree.Get(ctx, k.typ, k.key)
		if err != nil {
			t.Fatalf("get %v: %v", k, err)
		}
		if got != want[k] {
			t.Fatalf("get %v = %d, want %d", k, got, want[k])
		}
	}
	got := map[int64]int{}
	if err := tree.Walk(ctx, func(nid int64) error { got[nid]++; return nil }); err != nil {
		t.Fatalf("walk: %v", err)
	}
	all := map[int64]int{}
	types := map[string]map[int64]int{}
	for k, nid := range want {
		all[nid]++
		if types[k.typ] == nil {
			types[k.typ] = map[int64]int{}
		}
		types[k.typ][nid]++
	}
	if !maps.Equal(got, all) {
		t.Fatalf("walk = %v, want %v", got, all)
	}
	for _, k := range slices.CompactFunc(slices.SortedFunc(slices.Values(keys), func(a, b stateKey) int { return cmp.Compare(a.typ, b.typ) }),
		func(a, b stateKey) bool { return a.typ == b.typ }) {
		of := map[int64]int{}
		if err := tree.WalkType(ctx, k.typ, func(nid int64) error { of[nid]++; return nil }); err != nil {
			t.Fatalf("walk %s: %v", k.typ, err)
		}
		if !maps.Equal(of, types[k.typ]) {
			t.Fatalf("walk %s = %v, want %v", k.typ, of, types[k.typ])
		}
		others := map[int64]int{}
		if err := tree.WalkOthers(ctx, k.typ, func(nid int64) error { others[nid]++; return nil }); err != nil {
			t.Fatalf("walk all but %s: %v", k.typ, err)
		}
		for nid, times := range of {
			others[nid] += times
		}
		if !maps.Equal(others, all) {
			t.Fatalf("walk all but %s and then it = %v, want %v", k.typ, others, all)
		}
	}
}

type change2 struct{ old, new int64 }

func modelDiff(a, b map[stateKey]int64, typ string) map[change2]int {
	out := map[change2]int{}
	add := func(k stateKey) {
		if a[k] != b[k] && (typ == "" || k.typ == typ) {
			out[change2{a[k], b[k]}]++
		}
	}
	for k := range a {
		add(k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			add(k)
		}
	}
	return out
}

// Any series of changes agrees with a map: what is read, walked and compared, in one
// store and in one that begins with nothing but the stored rows.
func TestAgreesWithMap(t *testing.T) {
	for _, hash := range []struct {
		name string
		make func() hasher
	}{
		{"siphash", func() hasher { return sipHash }},
		{"equal upper bits", func() hasher { return weakHash(0) }},
		{"equal lower bits", func() hasher { return weakHash(56) }},
		{"equal ends", func() hasher { return weakHash(29) }},
	} {
		t.Run(hash.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { agreesWithMap(t, hash.make()) })
		})
	}
}

func agreesWithMap(t *rapid.T, hash hasher) {
	ctx := context.Background()
	const room = 7
	var seed [16]byte
	copy(seed[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "seed"))
	disk := newDisk()
	store := NewStore(disk, 1<<20)
	store.hash = hash

	var keys []stateKey
	nTypes, nKeys := rapid.IntRange(1, 6).Draw(t, "types"), rapid.IntRange(1, 40).Draw(t, "keys")
	for i := range nTypes * nKeys {
		keys = append(keys, stateKey{fmt.Sprint("type", i%nTypes), fmt.Sprint("key", i/nTypes)})
	}
	type version struct {
		root  Ref
		state map[stateKey]int64
	}
	history := []version{{0, map[stateKey]int64{}}}
	pack := int64(0)
	for range rapid.IntRange(1, 15).Draw(t, "edits") {
		from := rapid.SampledFrom(history).Draw(t, "from")
		pack += rapid.Int64Range(1, 1000).Draw(t, "step")
		state := maps.Clone(from.state)
		edit := store.At(room, seed, from.root).Edit(pack)
		for range rapid.IntRange(1, 2).Draw(t, "roots") {
			for range rapid.IntRange(0, 30).Draw(t, "changes") {
				k := rapid.SampledFrom(keys).Draw(t, "key")
				if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
					edit.Delete(k.typ, k.key)
					delete(state, k)
				} else {
					nid := rapid.Int64Range(1, 50).Draw(t, "nid")
					edit.Set(k.typ, k.key, nid)
					state[k] = nid
				}
				k = rapid.SampledFrom(keys).Draw(t, "read")
				if got, err := edit.Get(ctx, k.typ, k.key); err != nil || got != state[k] {
					t.Fatalf("edit: get %v = %d, %v, want %d", k, got, err, state[k])
				}
			}
			root, err := edit.Root(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if (len(state) == 0) != (root == 0) {
				t.Fatalf("%d keys have root %d", len(state), root)
			}
			history = append(history, version{root, maps.Clone(state)})
		}
		root, rows, err := edit.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if root != history[len(history)-1].root {
			t.Fatal("Commit does not return the last root")
		}
		if maps.Equal(state, from.state) && len(history) == 2 && root != from.root {
			t.Fatal("equal state has a new root")
		}
		for _, r := range rows {
			disk.rows[rowKey{room, r.ID}] = bytes.Clone(r.Data)
		}
		checkState(t, store.At(room, seed, root), state, keys) // before it is durable
		store.Durable(room, pack)
	}
	// A second store has nothing but the rows, and hardly any cache.
	cold := NewStore(disk, 2000)
	cold.hash = hash
	for _, v := range history {
		checkState(t, cold.At(room, seed, v.root), v.state, keys)
	}
	for _, a := range history {
		b := rapid.SampledFrom(history).Draw(t, "other")
		got := map[change2]int{}
		if err := cold.At(room, seed, a.root).Diff(ctx, b.root, func(o, n int64) error { got[change2{o, n}]++; return nil }); err != nil {
			t.Fatal(err)
		}
		if want := modelDiff(a.state, b.state, ""); !maps.Equal(got, want) {
			t.Fatalf("diff = %v, want %v", got, want)
		}
		clear(got)
		if err := cold.At(room, seed, a.root).DiffType(ctx, b.root, keys[0].typ, func(o, n int64) error { got[change2{o, n}]++; return nil }); err != nil {
			t.Fatal(err)
		}
		if want := modelDiff(a.state, b.state, keys[0].typ); !maps.Equal(got, want) {
			t.Fatalf("diff of one type = %v, want %v", got, want)
		}
	}
}

// Equal states have equal shapes, however they were made: so what a comparison costs
// is bounded by what differs.
func TestCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		disk := newDisk()
		store := NewStore(disk, 1<<20)
		n := rapid.IntRange(0, 120).Draw(t, "keys")
		// One by one with detours, against all at once.
		slow := store.At(1, [16]byte{1}, 0)
		pack := int64(1)
		step := func(change func(e *Edit)) {
			e := slow.Edit(pack)
			change(e)
			root, _, err := e.Commit(ctx)
			if err != nil {
				t.Fatal(err)
			}
			slow = store.At(1, [16]byte{1}, root)
			pack++
		}
		bulk := store.At(1, [16]byte{1}, 0).Edit(1 << 30)
		typ := func(i int) string { return fmt.Sprint("t", i%5) }
		order := rapid.Permutation(slices.Collect(func(yield func(int) bool) {
			for i := range n {
				if !yield(i) {
					return
				}
			}
		})).Draw(t, "order")
		for _, i := range order {
			step(func(e *Edit) { e.Set(typ(i), fmt.Sprint(i), int64(i+1)) })
			step(func(e *Edit) { e.Set(typ(i+1), fmt.Sprint("x", i), 5000) })
			bulk.Set(typ(i), fmt.Sprint(i), int64(i+1))
		}
		for _, i := range order {
			step(func(e *Edit) { e.Delete(typ(i+1), fmt.Sprint("x", i)) })
		}
		root, _, err := bulk.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		a, b := shape(t, slow, slow.root, true, 0), shape(t, slow, root, true, 0)
		if a != b {
			t.Fatalf("shapes differ:\n%s\n%s", a, b)
		}
	})
}

// shape prints a subtree without its addresses.
func shape(t *rapid.T, tree Tree, ref Ref, types bool, depth int) string {
	if ref == 0 {
		return "-"
	}
	var n node
	d := depth
	if types {
		d = 0
	}
	if err := tree.decode(context.Background(), &n, ref, d, 0); err != nil {
		t.Fatal(err)
	}
	out := ""
	if n.typed {
		out, types, depth = fmt.Sprintf("%x*%d", n.typ, n.count), false, 0
	}
	if !n.branch {
		return out + fmt.Sprint(n.leaves[:n.n])
	}
	out += fmt.Sprintf("(%x", n.bitmap)
	for _, r := range n.refs[:n.n] {
		out += " " + shape(t, tree, r, types, depth+1)
	}
	return out + ")"
}

func TestEqualValueMakesNothing(t *testing.T) {
	disk := newDisk()
	store := NewStore(disk, 1<<20)
	root, _ := disk.save(t, store, 1, 10, members(store, 0, 1000, 10))
	e := store.At(1, testSeed, root).Edit(11)
	e.Set("m.room.member", "@user5:example.org", 6)
	e.Delete("m.room.member", "@nobody:example.org")
	e.Delete("m.room.pinned_events", "")
	again, rows, err := e.Commit(t.Context())
	if err != nil || again != root || rows != nil {
		t.Fatalf("root %d, %d rows, %v; want root %d and no rows", again, len(rows), err, root)
	}
}

var testSeed = [16]byte{4, 8, 15, 16, 23, 42}

func member(i int) string { return fmt.Sprintf("@user%d:example.org", i) }

// members edits a state of n members with the nids 1 to n and the usual other state.
func members(s *Store, root Ref, n int, pack int64) *Edit {
	e := s.At(1, testSeed, root).Edit(pack)
	for i := range n {
		e.Set("m.room.member", member(i), int64(i+1))
	}
	for _, typ := range []string{
		"m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "m.room.name",
		"m.room.topic", "m.room.avatar", "m.room.canonical_alias", "m.room.encryption", "m.room.guest_access",
		"m.room.server_acl",
	} {
		e.Set(typ, "", 1)
	}
	return e
}

// A pack that is not durable survives any pressure on the cache; a dropped one is gone.
func TestPinning(t *testing.T) {
	ctx := t.Context()
	disk := newDisk()
	store := NewStore(disk, 0)
	root, rows, err := members(store, 0, 2000, 10).Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 2 {
		t.Fatalf("%d rows, want a pack of several", len(rows))
	}
	tree := store.At(1, testSeed, root)
	if nid, err := tree.Get(ctx, "m.room.member", member(1234)); err != nil || nid != 1235 {
		t.Fatalf("before it is durable: %d, %v", nid, err)
	}
	if st := memoryOf(store); st.pinned == 0 || st.bytes != 0 {
		t.Fatalf("stats %+v", st)
	}
	store.Durable(1, 10)
	if st := memoryOf(store); st.pinned != 0 || st.bytes != 0 {
		t.Fatalf("stats after Durable %+v", st)
	}
	if _, err := tree.Get(ctx, "m.room.member", member(1234)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("rows are neither stored nor in memory: %v", err)
	}
	for _, r := range rows {
		disk.rows[rowKey{1, r.ID}] = r.Data
	}
	if nid, err := tree.Get(ctx, "m.room.member", member(1234)); err != nil || nid != 1235 {
		t.Fatalf("from disk: %d, %v", nid, err)
	}

	e := tree.Edit(11)
	e.Set("m.room.topic", "", 11)
	next, _, err := e.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	store.Drop(1, 11)
	if st := memoryOf(store); st.pinned != 0 {
		t.Fatalf("stats after Drop %+v", st)
	}
	if _, err := store.At(1, testSeed, next).Get(ctx, "m.room.topic", ""); err == nil {
		t.Fatal("a dropped state can be read")
	}
}

// inMemory is the memory taken by rows that can be evicted, and by those whose pack is not yet durable.
type inMemory struct{ bytes, pinned int64 }

func memoryOf(s *Store) (sum inMemory) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sum.bytes += sh.bytes
		sum.pinned += sh.pinned
		sh.mu.Unlock()
	}
	return sum
}

func TestCacheIsBounded(t *testing.T) {
	disk := newDisk()
	store := NewStore(disk, 1<<30)
	root, _ := disk.save(t, store, 1, 100_000, members(store, 0, 20_000, 100_000))
	small := NewStore(disk, 64<<10)
	n := 0
	if err := small.At(1, testSeed, root).Walk(t.Context(), func(int64) error { n++; return nil }); err != nil || n != 20_011 {
		t.Fatalf("%d events, %v", n, err)
	}
	if st := memoryOf(small); st.bytes > 64<<10 || st.bytes == 0 {
		t.Fatalf("stats %+v", st)
	}
}

func TestRefuses(t *testing.T) {
	store := NewStore(newDisk(), 1<<20)
	for _, pack := range []int64{-1, 0, MaxPack + 1} {
		e := store.At(1, testSeed, 0).Edit(pack)
		e.Set("t", "", 1)
		if _, _, err := e.Commit(t.Context()); err == nil {
			t.Errorf("pack %d is taken", pack)
		}
	}
	for _, nid := range []int64{-1, 0} {
		e := store.At(1, testSeed, 0).Edit(1)
		e.Set("t", "", nid)
		if _, _, err := e.Commit(t.Context()); err == nil {
			t.Errorf("nid %d is taken", nid)
		}
	}
	full := store.At(1, testSeed, 0).Edit(2)
	full.pack.rows = make([]Row, 1<<partBits) // as after a million nodes
	full.Set("t", "", 1)
	if _, _, err := full.Commit(t.Context()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a full pack: %v", err)
	}
	e := store.At(1, testSeed, 0).Edit(MaxPack)
	e.Set("t", "", MaxPack)
	root, _, err := e.Commit(t.Context())
	if err != nil || int64(root) <= 0 {
		t.Errorf("largest pack: root %d, %v", int64(root), err)
	}
}

// Damaged rows give errors, never a panic.
func TestCorruptRows(t *testing.T) {
	disk := newDisk()
	store := NewStore(disk, 1<<30)
	root, _ := disk.save(t, store, 1, 5000, members(store, 0, 300, 5000))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 800 {
		bad := newDisk()
		for k, v := range disk.rows {
			v = bytes.Clone(v)
			if rng.IntN(2) == 0 {
				v[rng.IntN(len(v))] ^= byte(1 << rng.IntN(8))
			} else {
				v = v[:rng.IntN(len(v))]
			}
			bad.rows[k] = v
		}
		tree := NewStore(bad, 1<<20).At(1, testSeed, root)
		n := 0
		stop := errors.New("enough")
		_ = tree.Walk(t.Context(), func(int64) error {
			if n++; n > 5000 {
				return stop
			}
			return nil
		})
		_, _ = tree.Get(t.Context(), "m.room.member", member(17))
		e := tree.Edit(6000)
		e.Set("m.room.member", member(18), 6000)
		e.Delete("m.room.member", member(19))
		_, _, _ = e.Commit(t.Context())
	}
}

func TestWalkStopsAtError(t *testing.T) {
	disk := newDisk()
	store := NewStore(disk, 1<<30)
	root, _ := disk.save(t, store, 1, 5000, members(store, 0, 300, 5000))
	stop, n := errors.New("stop"), 0
	err := store.At(1, testSeed, root).Walk(t.Context(), func(int64) error { n++; return stop })
	if !errors.Is(err, stop) || n != 1 {
		t.Fatalf("%v after %d calls", err, n)
	}
}

// A cold walk reads rows in batches.
func TestWalkLoadsBatches(t *testing.T) {
	disk := newDisk()
	store := NewStore(disk, 1<<30)
	root, _ := disk.save(t, store, 1, 1, members(store, 0, 0, 1))
	for i := range 2000 {
		e := store.At(1, testSeed, root).Edit(int64(i + 2))
		e.Set("m.room.member", member(i), int64(i+2))
		root, _ = disk.save(t, store, 1, int64(i+2), e)
	}
	cold := NewStore(disk, 1<<30)
	disk.calls = 0
	n := 0
	if err := cold.At(1, testSeed, root).Walk(t.Context(), func(int64) error { n++; return nil }); err != nil || n != 2011 {
		t.Fatalf("%d events, %v", n, err)
	}
	if disk.calls > 30 {
		t.Errorf("%d calls of the loader for 2,000 changes", disk.calls)
	}
}

// Readers of older states go on while a writer adds new ones, in a cache that is too small.
func TestConcurrentReaders(t *testing.T) {
	const n = 300
	disk := &lockedDisk{rowsOnDisk: newDisk()}
	store := NewStore(disk, 20_000)
	roots := make(chan Ref, n)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for root := range roots {
				tree, walked := store.At(1, testSeed, root), 0
				if nid, err := tree.Get(t.Context(), "m.room.member", member(0)); err != nil || nid != 1 {
					t.Errorf("get: %d, %v", nid, err)
				}
				if err := tree.Walk(t.Context(), func(int64) error { walked++; return nil }); err != nil || walked == 0 {
					t.Errorf("walk: %d, %v", walked, err)
				}
			}
		})
	}
	root := Ref(0)
	for i := range n {
		pack := int64(i + 1)
		e := store.At(1, testSeed, root).Edit(pack)
		e.Set("m.room.member", member(i), pack)
		var rows []Row
		var err error
		if root, rows, err = e.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		roots <- root // before it is stored
		disk.put(rows)
		store.Durable(1, pack)
	}
	close(roots)
	wg.Wait()
}

type lockedDisk struct {
	*rowsOnDisk
	mu sync.Mutex
}

func (d *lockedDisk) put(rows []Row) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range rows {
		d.rows[rowKey{1, r.ID}] = r.Data
	}
}

func (d *lockedDisk) LoadPacks(ctx context.Context, room int64, ids []int64, put func(int64, []byte)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rowsOnDisk.LoadPacks(ctx, room, ids, put)
}
