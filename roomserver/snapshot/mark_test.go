package snapshot

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// What a marker needs is enough to read the states that were marked, and most of what only others need is not among it.
func TestMark(t *testing.T) {
	ctx := t.Context()
	r := rand.New(rand.NewPCG(1, 2))
	disk := newDisk()
	s := NewStore(disk, 1<<20)
	const room = 7
	var roots []Ref
	var states []map[stateKey]int64
	state := map[stateKey]int64{}
	root := Ref(0)
	for pack := int64(1); pack <= 600; pack++ {
		k := stateKey{fmt.Sprint("type", r.IntN(5)), fmt.Sprint("key", r.IntN(200))}
		e := s.At(room, [16]byte{}, root).Edit(pack)
		e.Set(k.typ, k.key, pack)
		root, _ = disk.save(t, s, room, pack, e)
		next := make(map[stateKey]int64, len(state)+1)
		for k, v := range state {
			next[k] = v
		}
		next[k] = pack
		state = next
		roots, states = append(roots, root), append(states, state)
	}
	keep := []int{299, 550, 599}
	m := s.Mark(room, 1_000_000)
	for _, i := range keep {
		for range 2 { // a state that was marked costs nothing
			if err := m.Add(ctx, roots[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := len(disk.rows)
	for k := range disk.rows {
		if !m.Needs(k.id) {
			delete(disk.rows, k)
		}
	}
	if left := len(disk.rows); left == all || left > all*3/4 {
		t.Errorf("%d of %d rows are needed for 3 of 600 states", left, all)
	}
	fresh := NewStore(disk, 1<<20)
	for _, i := range keep {
		seen := 0
		tree := fresh.At(room, [16]byte{}, roots[i])
		if err := tree.Walk(ctx, func(int64) error { seen++; return nil }); err != nil || seen != len(states[i]) {
			t.Errorf("state %d has %d keys, want %d: %v", i, seen, len(states[i]), err)
		}
		for k, want := range states[i] {
			if got, err := tree.Get(ctx, k.typ, k.key); err != nil || got != want {
				t.Errorf("state %d has %v at %v, want %d: %v", i, got, k, want, err)
			}
		}
	}
	if err := fresh.Mark(room, 10).Add(ctx, roots[599]); !errors.Is(err, ErrTooMany) {
		t.Errorf("beyond the limit: %v", err)
	}
	delete(disk.rows, rowKey{room, roots[599].Row()})
	if err := NewStore(disk, 1<<20).Mark(room, 1000).Add(ctx, roots[599]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a missing row: %v", err)
	}
}
