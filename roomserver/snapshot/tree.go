package snapshot

import (
	"context"
	"fmt"
	"math/bits"
)

// Tree is one state of a room. It is an immutable value and safe for concurrent use.
type Tree struct {
	store *Store
	room  int64
	seed  [16]byte
	root  Ref
	edit  *Edit // of a tree that an edit reads: its new nodes are not in the store yet
}

// At returns the state of a room at a root. The seed is the room's: the one with
// which all its states are made.
func (s *Store) At(room int64, seed [16]byte, root Ref) Tree {
	return Tree{store: s, room: room, seed: seed, root: root}
}

// Root returns the address of the state, which is the same for the life of the room.
func (t Tree) Root() Ref { return t.root }

// Get returns the event of a type and state key, 0 if the state has none.
func (t Tree) Get(ctx context.Context, typ, key string) (nid int64, err error) {
	nid, err = t.get(ctx, t.store.hash(t.seed, typ), t.store.hash(t.seed, key))
	if err != nil {
		return 0, fmt.Errorf("read %s of room state: %w", typ, err)
	}
	return nid, nil
}

// node returns the bytes of one node.
func (t *Tree) node(ctx context.Context, ref Ref) ([]byte, error) {
	if t.edit != nil && ref.pack() == t.edit.pack.id {
		return t.edit.pack.node(ref)
	}
	row, err := t.store.row(ctx, t.room, ref.Row())
	if err != nil {
		return nil, err
	}
	return rowNode(row, ref)
}

// decode reads the node ref at a depth of the keys of a type.
func (t *Tree) decode(ctx context.Context, n *node, ref Ref, depth int, path uint64) error {
	data, err := t.node(ctx, ref)
	if err != nil {
		return err
	}
	return decodeNode(n, data, ref, depth, path)
}

// typed finds the node of a type; data is nil if the state has none.
func (t *Tree) typed(ctx context.Context, typ uint64) (ref Ref, data []byte, err error) {
	ref = t.root
	for depth := 0; ref != 0 && depth <= hashNibbles; depth++ {
		if data, err = t.node(ctx, ref); err != nil {
			return 0, nil, err
		}
		var n node
		r := reader{data: data}
		r.head(&n)
		if n.typed && n.typ == typ {
			return ref, data, nil
		}
		if n.typed || !n.branch || depth == hashNibbles {
			break
		}
		if ref, err = r.find(&n, ref, nibble(typ, depth)); err != nil {
			return 0, nil, err
		}
	}
	return 0, nil, nil
}

// find reads the references of a branch up to that of a slot; 0 if it has none.
func (r *reader) find(n *node, ref Ref, slot int) (Ref, error) {
	if n.bitmap&(1<<slot) == 0 {
		return 0, nil
	}
	var child Ref
	own := ref.pack()
	last := own
	for range bits.OnesCount16(n.bitmap&(1<<slot-1)) + 1 {
		child = r.ref(own, &last)
	}
	if r.bad {
		return 0, fmt.Errorf("node %d of row %d: %w", ref.slot(), ref.Row(), ErrCorrupt)
	}
	return child, nil
}

func (t *Tree) get(ctx context.Context, typ, key uint64) (int64, error) {
	ref, data, err := t.typed(ctx, typ)
	if err != nil || data == nil {
		return 0, err
	}
	for depth := 0; depth <= hashNibbles; depth++ {
		var n node
		r := reader{data: data}
		r.head(&n)
		if !n.branch {
			return r.leafOf(&n, ref, depth, key)
		}
		if depth == hashNibbles {
			break
		}
		if ref, err = r.find(&n, ref, nibble(key, depth)); err != nil || ref == 0 {
			return 0, err
		}
		if data, err = t.node(ctx, ref); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("row %d: too deep: %w", ref.Row(), ErrCorrupt)
}

// leafOf reads the event of a key from a bucket; 0 if it is not there.
func (r *reader) leafOf(n *node, ref Ref, depth int, key uint64) (int64, error) {
	own, open := ref.pack(), ^prefixMask(depth&^1)
	for range n.n {
		hash, nid := r.suffix(depth), own-r.varint()
		if r.bad {
			return 0, fmt.Errorf("node %d of row %d: %w", ref.slot(), ref.Row(), ErrCorrupt)
		}
		if hash == key&open {
			return nid, nil
		}
	}
	return 0, nil
}

// batchSize is how many nodes Walk and Diff look at in one step. It bounds what they
// hold in memory, and how many rows one call of the loader brings.
const batchSize = 128

// Walk calls fn for each event of the state, in no order that means anything, and
// stops at its first error.
func (t Tree) Walk(ctx context.Context, fn func(nid int64) error) error {
	return t.Diff(ctx, 0, func(old, _ int64) error { return fn(old) })
}

// WalkOthers is Walk for the events of all types but one, whose part of the trie is not looked at.
func (t Tree) WalkOthers(ctx context.Context, typ string, fn func(nid int64) error) error {
	d := differ{tree: &t, fn: func(old, _ int64) error { return fn(old) }, skips: true, skip: t.store.hash(t.seed, typ)}
	d.push(pair{a: side{ref: t.root}, types: true})
	if err := d.run(ctx); err != nil {
		return d.wrap(err)
	}
	return nil
}

// WalkType is Walk for the events of one type.
func (t Tree) WalkType(ctx context.Context, typ string, fn func(nid int64) error) error {
	return t.DiffType(ctx, 0, typ, func(old, _ int64) error { return fn(old) })
}
