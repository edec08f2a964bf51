package snapshot

import (
	"context"
	"errors"
	"fmt"
)

// Diff calls fn for each key in which the state differs from another state of the
// same room: with its event here and there, 0 where it has none. The order means
// nothing. It stops at the first error of fn. What the two share is not looked at.
func (t Tree) Diff(ctx context.Context, other Ref, fn func(oldNID, newNID int64) error) error {
	d := differ{tree: &t, fn: fn}
	d.push(pair{a: side{ref: t.root}, b: side{ref: other}, types: true})
	if err := d.run(ctx); err != nil {
		return d.wrap(err)
	}
	return nil
}

// DiffType is Diff for the keys of one type.
func (t Tree) DiffType(ctx context.Context, other Ref, typ string, fn func(oldNID, newNID int64) error) error {
	hash := t.store.hash(t.seed, typ)
	d := differ{tree: &t, fn: fn}
	o := t
	o.root = other
	a, _, err := t.typed(ctx, hash)
	if err != nil {
		return d.wrap(err)
	}
	b, _, err := o.typed(ctx, hash)
	if err != nil {
		return d.wrap(err)
	}
	d.push(pair{a: side{ref: a}, b: side{ref: b}})
	if err := d.run(ctx); err != nil {
		return d.wrap(err)
	}
	return nil
}

// differ compares two tries step by step. Pairs of subtrees wait on a stack, from
// which batches are taken, so that their rows are loaded together and no more than
// about depth · batchSize · 16 pairs wait at any time.
type differ struct {
	tree    *Tree
	fn      func(oldNID, newNID int64) error
	pending []pair
	// skips tells that the keys of one type, skip, are left out.
	skips bool
	skip  uint64
}

// side is one side of a comparison: a node, or a few leaves that the other side
// holds deeper down, or nothing.
type side struct {
	ref    Ref
	leaves []leaf
}

func (s side) empty() bool { return s.ref == 0 && len(s.leaves) == 0 }

// pair is two subtrees at the same path: of the level of types, or below one type.
type pair struct {
	a, b  side
	types bool
	depth int
	path  uint64
}

// errFn marks an error that came from the caller's function.
type errFn struct{ error }

func (d *differ) wrap(err error) error {
	if f := (errFn{}); errors.As(err, &f) {
		return f.error
	}
	return fmt.Errorf("compare room states: %w", err)
}

func (d *differ) report(old, new int64) error {
	if err := d.fn(old, new); err != nil {
		return errFn{err}
	}
	return nil
}

func (d *differ) push(p pair) {
	if p.a.ref == p.b.ref && len(p.a.leaves) == 0 && len(p.b.leaves) == 0 {
		return
	}
	d.pending = append(d.pending, p)
}

func (d *differ) run(ctx context.Context) error {
	var batch []pair
	var refs []Ref
	rows := map[int64][]byte{}
	for len(d.pending) > 0 {
		rest := max(0, len(d.pending)-batchSize)
		batch = append(batch[:0], d.pending[rest:]...)
		d.pending = d.pending[:rest]
		refs = refs[:0]
		for _, p := range batch {
			refs = append(refs, p.a.ref, p.b.ref)
		}
		clear(rows)
		if err := d.tree.store.fetch(ctx, d.tree.room, refs, rows); err != nil {
			return err
		}
		for i := range batch {
			if err := d.step(&batch[i], rows); err != nil {
				return err
			}
		}
	}
	return nil
}

// step compares the top nodes of a pair and leaves their subtrees for later.
func (d *differ) step(p *pair, rows map[int64][]byte) error {
	var a, b node
	if err := d.read(&a, &p.a, p, rows); err != nil {
		return err
	}
	if err := d.read(&b, &p.b, p, rows); err != nil {
		return err
	}
	if p.types {
		return d.stepTypes(p, &a, &b)
	}
	return d.stepKeys(p, &a, &b)
}

// read decodes one side of a pair; an empty one becomes a bucket without leaves.
func (d *differ) read(n *node, s *side, p *pair, rows map[int64][]byte) error {
	if s.ref == 0 {
		n.n = copy(n.leaves[:], s.leaves)
		return nil
	}
	data, err := rowNode(rows[s.ref.Row()], s.ref)
	if err != nil {
		return err
	}
	depth := p.depth
	if p.types {
		depth = 0
	}
	return decodeNode(n, data, s.ref, depth, p.path)
}

func (d *differ) stepTypes(p *pair, a, b *node) error {
	keys := pair{a: p.a, b: p.b}
	switch {
	case a.typed && b.typed && a.typ == b.typ:
		if d.skipped(a) {
			return nil
		}
		return d.stepKeys(&keys, a, b)
	case (a.typed || p.a.empty()) && (b.typed || p.b.empty()):
		if !d.skipped(a) {
			if err := d.stepKeys(&keys, a, &node{}); err != nil {
				return err
			}
		}
		if d.skipped(b) {
			return nil
		}
		return d.stepKeys(&keys, &node{}, b)
	case p.depth == hashNibbles:
		return fmt.Errorf("row %d: too deep: %w", p.a.ref.Row(), ErrCorrupt)
	}
	for slot := range 16 {
		d.push(pair{a: typeSide(p.a, a, slot, p.depth), b: typeSide(p.b, b, slot, p.depth), types: true, depth: p.depth + 1})
	}
	return nil
}

// skipped tells whether a node holds the keys of the type that is left out.
func (d *differ) skipped(n *node) bool { return d.skips && n.typed && n.typ == d.skip }

// typeSide is what one side has in a slot of the level of types. A single type
// stands for itself: its node says nothing of its depth.
func typeSide(s side, n *node, slot, depth int) side {
	switch {
	case s.empty():
		return s
	case !n.typed:
		return side{ref: n.child(slot)}
	case nibble(n.typ, depth) == slot:
		return s
	}
	return side{}
}

func (d *differ) stepKeys(p *pair, a, b *node) error {
	if !a.branch && !b.branch {
		return d.mergeLeaves(a, b)
	}
	if p.depth == hashNibbles {
		return fmt.Errorf("row %d: too deep: %w", p.a.ref.Row(), ErrCorrupt)
	}
	for slot := range 16 {
		d.push(pair{
			a: keySide(a, slot, p.depth), b: keySide(b, slot, p.depth),
			depth: p.depth + 1, path: p.path&prefixMask(p.depth) | uint64(slot)<<(60-4*p.depth),
		})
	}
	return nil
}

// keySide is what a node has in a slot.
func keySide(n *node, slot, depth int) side {
	if n.branch {
		return side{ref: n.child(slot)}
	}
	var s side
	for _, l := range n.leaves[:n.n] {
		if nibble(l.hash, depth) == slot {
			s.leaves = append(s.leaves, l)
		}
	}
	return s
}

// mergeLeaves compares two buckets, whose leaves are in the order of their hashes.
func (d *differ) mergeLeaves(a, b *node) error {
	i, j := 0, 0
	for i < a.n || j < b.n {
		var old, new int64
		switch {
		case j == b.n || i < a.n && a.leaves[i].hash < b.leaves[j].hash:
			old, i = a.leaves[i].nid, i+1
		case i == a.n || b.leaves[j].hash < a.leaves[i].hash:
			new, j = b.leaves[j].nid, j+1
		default:
			old, new, i, j = a.leaves[i].nid, b.leaves[j].nid, i+1, j+1
		}
		if old != new {
			if err := d.report(old, new); err != nil {
				return err
			}
		}
	}
	return nil
}
