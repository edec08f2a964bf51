package authchain

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// reaches reports whether a rests on b: whether b is a or in the auth chain of a.
func (x *Index) reaches(ctx context.Context, a, b *node) (bool, error) {
	if a.chain == b.chain {
		return a.seq >= b.seq, nil
	}
	return newTargets(b).reachedFrom(ctx, x, a)
}

// targets is a set of events that searches look for.
type targets struct {
	min    map[int64]int64 // by chain, the first place in it that is a target
	gen    int64           // lowest generation of a target
	order  int64           // lowest order of a target
	barren map[int64]int64 // by chain, up to which place no target is reached; kept between searches
}

func newTargets(events ...*node) *targets {
	t := &targets{min: make(map[int64]int64, len(events)), gen: math.MaxInt64, order: math.MaxInt64, barren: map[int64]int64{}}
	for _, n := range events {
		if seq, ok := t.min[n.chain]; !ok || n.seq < seq {
			t.min[n.chain] = n.seq
		}
		t.gen, t.order = min(t.gen, n.gen), min(t.order, n.order)
	}
	return t
}

// below reports whether n is so far down that it rests on no target: what it rests on has lower generations and orders.
func (t *targets) below(n *node) bool { return n.gen <= t.gen || n.order <= t.order }

// hit reports whether n is a target or follows one in its chain.
func (t *targets) hit(n *node) bool {
	seq, ok := t.min[n.chain]
	return ok && n.seq >= seq
}

// step is an event at which a search looks. floor is the place in its chain up to
// which the chain has been or will be searched otherwise.
type step struct {
	n     *node
	floor int64
}

// reachedFrom reports whether a is or rests on a target. It goes down the graph chain
// by chain: along a chain until it meets a table, which says at once where the rest
// of the chain leads.
func (t *targets) reachedFrom(ctx context.Context, x *Index, a *node) (bool, error) {
	var searched map[int64]int64 // as barren, if nothing is found
	var steps []step
	enter := func(n *node) bool {
		if t.hit(n) {
			return true
		}
		if t.below(n) {
			return false
		}
		if floor := max(searched[n.chain], t.barren[n.chain]); n.seq > floor {
			if searched == nil {
				searched = map[int64]int64{}
			}
			searched[n.chain] = n.seq
			steps = append(steps, step{n, floor})
		}
		return false
	}
	if enter(a) {
		return true, nil
	}
	var next []int64
	for len(steps) > 0 {
		// All steps at once, so that what they need is loaded together.
		next = next[:0]
		wave := steps
		steps = nil
		for _, s := range wave {
			next = append(next, s.n.exits(s.floor)...)
		}
		nodes, err := x.nodes(ctx, next)
		if err != nil {
			return false, err
		}
		at := 0
		for _, s := range wave {
			for range s.n.exits(s.floor) {
				n := nodes[at]
				at++
				if n.chain != s.n.chain {
					if enter(n) {
						return true, nil
					}
				} else if n.seq > s.floor && !t.below(n) && n.nid == s.n.predecessor() {
					steps = append(steps, step{n, s.floor})
				}
			}
		}
	}
	for chain, seq := range searched {
		t.barren[chain] = max(t.barren[chain], seq)
	}
	return false, nil
}

// exits returns where a search goes on from n: by the table of the chain if n has
// one, else by its auth events, among them the event before it in the chain.
func (n *node) exits(floor int64) []int64 {
	switch {
	case n.table != nil:
		return n.table
	case n.seq > 1 && n.seq-1 <= floor:
		return n.parents[1:]
	}
	return n.parents
}

// Paths returns all events on auth paths that begin and end at one of the given
// events, these included: the conflicted state subgraph of room version 12 when
// given the conflicted state set.
func (x *Index) Paths(ctx context.Context, events []int64) ([]int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	out, err := x.paths(ctx, events)
	if err != nil {
		return nil, fmt.Errorf("paths between %d events: %w", len(events), err)
	}
	return out, nil
}

// paths goes down from the events, but only to what itself leads to one of them.
func (x *Index) paths(ctx context.Context, events []int64) ([]int64, error) {
	ends, err := x.nodes(ctx, events)
	if err != nil {
		return nil, err
	}
	t := newTargets(ends...)
	leads := make(map[int64]bool, 2*len(ends)) // of those looked at, whether they do
	var out, unseen []int64
	var todo []*node
	for _, n := range ends {
		if !leads[n.nid] {
			leads[n.nid] = true
			out, todo = append(out, n.nid), append(todo, n)
		}
	}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		unseen = unseen[:0]
		for _, p := range n.parents {
			if _, seen := leads[p]; !seen {
				unseen = append(unseen, p)
			}
		}
		parents, err := x.nodes(ctx, unseen)
		if err != nil {
			return nil, err
		}
		for _, p := range parents {
			// Most that do cite one that is known to.
			found := slices.ContainsFunc(p.parents, func(nid int64) bool { return leads[nid] })
			if !found {
				if found, err = t.reachedFrom(ctx, x, p); err != nil {
					return nil, err
				}
			}
			if leads[p.nid] = found; found {
				out, todo = append(out, p.nid), append(todo, p)
			}
		}
	}
	return out, nil
}
