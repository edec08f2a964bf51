package authchain

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
)

// MaxSets is how many states Difference can compare.
const MaxSets = 64

// Shared is the part of the states that all of them have in common. It must not call
// the Index.
type Shared interface {
	// Same returns the event that all states have under the type and state key of the
	// event nid: nid itself if that is in all of them; 0 if there is none.
	Same(ctx context.Context, nid int64) (int64, error)
}

// Difference returns the auth difference of up to MaxSets states: the events that are
// in the full auth chain of some of the states, but not of all; an event belongs to
// its own chain. sets holds for each state the events that are not in all of them;
// shared (nil for nothing) knows the others. Their order means nothing.
//
// spec: rooms/v2 "Auth difference"
func (x *Index) Difference(ctx context.Context, sets [][]int64, shared Shared) ([]int64, error) {
	if len(sets) > MaxSets {
		return nil, fmt.Errorf("auth difference of %d states: more than %d", len(sets), MaxSets)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	err := x.open(ctx)
	if err == nil {
		d := &difference{x: x, shared: shared, all: ^uint64(0) >> (64 - len(sets)), known: make(map[int64]*visit, sizeHint)}
		if err = d.run(ctx, sets); err == nil {
			return d.out, nil
		}
	}
	return nil, fmt.Errorf("auth difference of %d states: %w", len(sets), err)
}

// sizeHint is about how many events the difference of a fork that others are still adding to has to look at.
const sizeHint = 64

// difference is one computation of an auth difference.
type difference struct {
	x      *Index
	shared Shared
	all    uint64 // the bits of all sets
	queue  byGeneration
	known  map[int64]*visit // by event
	out    []int64
}

// visit is what a computation knows of an event.
type visit struct {
	*node
	in  uint64 // from which sets the walk reached it
	met bool   // the walk did
	// everywhere says that it is known to be in every chain, beside the shared ones, bare that nothing rests on it that
	// is in every chain.
	everywhere, bare bool
}

// of returns what is known of an event.
func (d *difference) of(n *node) *visit {
	v := d.known[n.nid]
	if v == nil {
		v = &visit{node: n}
		d.known[n.nid] = v
	}
	return v
}

// run walks down from the events of all sets at once. Events are taken by descending
// generation, so that when one is taken, all that rest on it and could be reached
// have been, and the sets it was reached from are final. The walk does not go on below
// an event that is in every chain, for then all it rests on is.
func (d *difference) run(ctx context.Context, sets [][]int64) error {
	for i, set := range sets {
		nodes, err := d.x.nodes(ctx, set)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			d.reach(d.of(n), 1<<i)
		}
	}
	var unknown []int64
	for len(d.queue) > 0 {
		v := heap.Pop(&d.queue).(*visit)
		if v.in == d.all {
			v.everywhere = true
			continue
		}
		var err error
		if v.everywhere, err = d.covered(ctx, v); err != nil {
			return err
		}
		if v.everywhere {
			continue
		}
		d.out = append(d.out, v.nid)
		unknown = unknown[:0]
		for _, p := range v.parents {
			if known := d.known[p]; known != nil {
				d.reach(known, v.in)
			} else {
				unknown = append(unknown, p)
			}
		}
		parents, err := d.x.nodes(ctx, unknown)
		if err != nil {
			return err
		}
		for _, p := range parents {
			d.reach(d.of(p), v.in)
		}
	}
	return nil
}

func (d *difference) reach(v *visit, mask uint64) {
	v.in |= mask
	if !v.met {
		v.met = true
		heap.Push(&d.queue, v)
	}
}

// covered reports whether v is in every chain because something that is rests on it.
func (d *difference) covered(ctx context.Context, v *visit) (bool, error) {
	if in, err := d.inAll(ctx, v, v.node); in || err != nil {
		return in, err
	}
	if v.order > d.x.low && len(d.x.kids[v.nid]) == 0 {
		v.bare = true
		return false, nil
	}
	return d.coveredFromAbove(ctx, v)
}

// inAll reports whether the event m, which is n or rests on it, shows that n is in
// every chain: because it is shared or known to be everywhere, or because the shared
// event of the same type and state key rests on n.
func (d *difference) inAll(ctx context.Context, m *visit, n *node) (bool, error) {
	if m.everywhere {
		return true, nil
	}
	if d.shared == nil {
		return false, nil
	}
	same, err := d.shared.Same(ctx, m.nid)
	if err != nil || same == 0 || same == m.nid {
		return same != 0, err
	}
	s, err := d.x.node(ctx, same)
	if err != nil {
		return false, err
	}
	if s.chain == m.chain {
		return s.seq > m.seq || s.chain == n.chain && s.seq >= n.seq, nil
	}
	if m.node != n || s.gen <= n.gen {
		return false, nil // a search for each event above would cost more than it finds
	}
	return newTargets(n).reachedFrom(ctx, d.x, s)
}

// errEnough ends a scan.
var errEnough = errors.New("enough")

// coveredFromAbove looks at all events that rest on n until one shows that n is in
// every chain. Below the window that is a scan of rows in ascending order; within it
// children are known.
func (d *difference) coveredFromAbove(ctx context.Context, n *visit) (bool, error) {
	above := map[int64]*visit{n.nid: n} // n and what rests on it
	todo := []*visit{n}                 // those of above whose children in the window were not looked at
	look := func(node *node) (bool, error) {
		m := d.of(node)
		if above[m.nid] != nil || m.bare {
			return false, nil
		}
		above[m.nid] = m
		todo = append(todo, m)
		return d.inAll(ctx, m, n.node)
	}
	var older []*node // rows of the scan, to extend the window by
	if n.order < d.x.low {
		covered := false
		err := d.x.scan(ctx, n.order, func(m *node) error {
			if len(older) <= d.x.windowSize {
				older = append(older, m)
			}
			if !slices.ContainsFunc(m.parents, func(p int64) bool { return above[p] != nil }) {
				return nil
			}
			var err error
			if covered, err = look(m); covered {
				return errEnough
			}
			return err
		})
		switch {
		case covered:
			return true, nil
		case err != nil:
			return false, err
		}
	}
	for len(todo) > 0 {
		m := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, k := range d.x.kids[m.nid] {
			if covered, err := look(k); covered || err != nil {
				return covered, err
			}
		}
	}
	for _, m := range above {
		m.bare = true
	}
	d.x.extendWindow(older)
	return false, nil
}

// scan calls fn for the events below the window that have an order greater than after,
// in ascending order.
func (x *Index) scan(ctx context.Context, after int64, fn func(*node) error) error {
	for after < x.low {
		limit := int(min(int64(x.pageSize), x.low-after))
		page := make([]*node, 0, limit)
		var bad error
		err := x.loader.RowsAfter(ctx, x.room, after, limit, func(nid int64, row []byte) {
			n, err := decodeRow(nid, row)
			if err != nil {
				bad = err
				return
			}
			page = append(page, n)
		})
		if err == nil {
			err = bad
		}
		if err != nil {
			return fmt.Errorf("scan auth graph of room %d: %w", x.room, err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, n := range page {
			if n.order > x.low {
				return nil
			}
			if n.order <= after {
				return fmt.Errorf("scan auth graph of room %d: rows out of order: %w", x.room, ErrCorrupt)
			}
			after = n.order
			if err := fn(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// extendWindow puts the events of a complete scan before the window, if it has space
// for them, so that the next search up the same part of the graph finds them there.
func (x *Index) extendWindow(older []*node) {
	if len(older) == 0 || len(older)+len(x.window) > x.windowSize {
		return
	}
	x.low = older[0].order - 1 // nothing lies between them
	x.window = append(older, x.window...)
	clear(x.kids)
	for _, n := range x.window {
		x.recent[n.nid] = n
		x.link(n)
	}
}

// byGeneration is a heap with the event of the highest generation on top.
type byGeneration []*visit

func (q byGeneration) Len() int { return len(q) }
func (q byGeneration) Less(i, j int) bool {
	if q[i].gen != q[j].gen {
		return q[i].gen > q[j].gen
	}
	return q[i].nid > q[j].nid
}
func (q byGeneration) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *byGeneration) Push(n any)   { *q = append(*q, n.(*visit)) }
func (q *byGeneration) Pop() any {
	old := *q
	n := old[len(old)-1]
	*q = old[:len(old)-1]
	return n
}
