package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// Edit is a series of changes to a state, whose new nodes become one pack. Changes
// cost nothing until Root or Commit apply them together: setting a single key and
// building a state of 100,000 are the same operation. It is for one goroutine.
type Edit struct {
	tree    Tree
	pack    packWriter
	changes []change
	index   map[[2]uint64]int // place of a key in changes, once there are many
	err     error
}

// change sets a key to an event; nid 0 removes it.
type change struct {
	typ, key uint64
	nid      int64
}

// Edit begins a change of the state. pack, in 1 to MaxPack, names the pack and must
// be new in the room.
func (t Tree) Edit(pack int64) *Edit {
	e := &Edit{tree: t, pack: packWriter{id: pack}}
	e.tree.edit = e
	if pack <= 0 || pack > MaxPack {
		e.err = fmt.Errorf("pack number %d is out of range", pack)
	}
	return e
}

// Set makes nid the event of a type and state key. Setting what the state has
// already makes no nodes.
func (e *Edit) Set(typ, key string, nid int64) {
	if nid <= 0 && e.err == nil {
		e.err = fmt.Errorf("event number %d is out of range", nid)
	}
	e.put(typ, key, nid)
}

// Delete removes a type and state key, if the state has them.
func (e *Edit) Delete(typ, key string) { e.put(typ, key, 0) }

// indexFrom is the number of changes from which Get looks them up in a map.
const indexFrom = 16

func (e *Edit) put(typ, key string, nid int64) {
	c := change{e.tree.hash(typ), e.tree.hash(key), nid}
	e.changes = append(e.changes, c)
	if e.index != nil {
		e.index[[2]uint64{c.typ, c.key}] = len(e.changes) - 1
	}
}

func (t *Tree) hash(s string) uint64 { return t.store.hash(t.seed, s) }

// Get returns the event of a type and state key with all changes so far, 0 if there
// is none.
func (e *Edit) Get(ctx context.Context, typ, key string) (nid int64, err error) {
	k := [2]uint64{e.tree.hash(typ), e.tree.hash(key)}
	if len(e.changes) >= indexFrom && e.index == nil {
		e.index = make(map[[2]uint64]int, 2*len(e.changes))
		for i, c := range e.changes {
			e.index[[2]uint64{c.typ, c.key}] = i
		}
	}
	if e.index != nil {
		if i, ok := e.index[k]; ok {
			return e.changes[i].nid, nil
		}
	} else {
		for i := len(e.changes) - 1; i >= 0; i-- {
			if c := e.changes[i]; c.typ == k[0] && c.key == k[1] {
				return c.nid, nil
			}
		}
	}
	if nid, err = e.tree.get(ctx, k[0], k[1]); err != nil {
		return 0, fmt.Errorf("read %s of room state: %w", typ, err)
	}
	return nid, nil
}

// Root applies the changes so far and returns the state with them. Further changes
// go on from it, in the same pack, so that one pack can hold for example the state
// before an event and the one after it. The state can be read, except by this edit,
// only after Commit.
func (e *Edit) Root(ctx context.Context) (Ref, error) {
	if e.err == nil && len(e.changes) > 0 {
		e.err = e.apply(ctx)
	}
	if e.err != nil {
		return 0, fmt.Errorf("change room state: %w", e.err)
	}
	return e.tree.root, nil
}

// Commit applies the changes and returns the new state and the rows of its pack, none
// if the edit made no new nodes. The rows can be read from the store at once, so that
// the room's next change can build on them; they stay in memory until the caller
// says Durable, after storing them, or Drop. The edit must not be used any further.
func (e *Edit) Commit(ctx context.Context) (root Ref, rows []Row, err error) {
	if root, err = e.Root(ctx); err != nil {
		return 0, nil, err
	}
	rows = e.pack.finish()
	e.tree.store.pin(e.tree.room, rows)
	e.err = errors.New("edit is committed")
	return root, rows, nil
}

func (e *Edit) apply(ctx context.Context) error {
	changes := e.changes
	if len(changes) > 1 {
		slices.SortStableFunc(changes, func(a, b change) int {
			return cmp.Or(cmp.Compare(a.typ, b.typ), cmp.Compare(a.key, b.key))
		})
		changes = lastOfEach(changes)
	}
	root, _, err := e.types(ctx, e.tree.root, 0, changes)
	if err != nil {
		return err
	}
	e.tree.root = root
	e.changes, e.index = e.changes[:0], nil
	return nil
}

// lastOfEach keeps the last change of each key of a sorted list.
func lastOfEach(changes []change) []change {
	out := changes[:0]
	for i, c := range changes {
		if i+1 == len(changes) || changes[i+1].typ != c.typ || changes[i+1].key != c.key {
			out = append(out, c)
		}
	}
	return out
}

// hasDelete reports whether nodes may have to be joined after the changes.
func hasDelete(changes []change) bool {
	return slices.ContainsFunc(changes, func(c change) bool { return c.nid == 0 })
}

// runOf returns how many changes from the first on have the same nibble of a hash.
func runOf(changes []change, hash func(*change) uint64, depth int) int {
	n := 1
	for first := nibble(hash(&changes[0]), depth); n < len(changes) && nibble(hash(&changes[n]), depth) == first; n++ {
	}
	return n
}

func typeHash(c *change) uint64 { return c.typ }
func keyHash(c *change) uint64  { return c.key }

// types applies changes to the subtree ref of the level of types and returns what
// it becomes; single says that this is the node of one type.
func (e *Edit) types(ctx context.Context, ref Ref, depth int, changes []change) (out Ref, single bool, err error) {
	var n node
	if ref != 0 {
		if err := e.tree.decode(ctx, &n, ref, 0, 0); err != nil {
			return 0, false, err
		}
	}
	if ref == 0 || n.typed {
		return e.typeList(ctx, ref, &n, depth, changes)
	}
	if depth == hashNibbles {
		return 0, false, fmt.Errorf("row %d: too deep: %w", ref.Row(), ErrCorrupt)
	}
	changed, join := false, hasDelete(changes)
	known := map[Ref]bool(nil) // children of which we know whether they are one type
	for len(changes) > 0 {
		run, slot := runOf(changes, typeHash, depth), nibble(changes[0].typ, depth)
		old := n.child(slot)
		child, one, err := e.types(ctx, old, depth+1, changes[:run])
		if err != nil {
			return 0, false, err
		}
		if child != old {
			changed = true
			n.setChild(slot, child)
		}
		if join && child != 0 {
			if known == nil {
				known = map[Ref]bool{}
			}
			known[child] = one
		}
		changes = changes[run:]
	}
	switch {
	case !changed:
		return ref, false, nil
	case n.n == 0:
		return 0, false, nil
	case n.n == 1 && join:
		one, ok := known[n.refs[0]]
		if !ok {
			var c node
			if err := e.tree.decode(ctx, &c, n.refs[0], 0, 0); err != nil {
				return 0, false, err
			}
			one = c.typed
		}
		if one {
			return n.refs[0], true, nil
		}
	}
	out, err = e.pack.add(&n, 0)
	return out, false, err
}

// typeItem is the node of one type.
type typeItem struct {
	typ uint64
	ref Ref
}

// typeList applies changes where there was at most one type, n at ref.
func (e *Edit) typeList(ctx context.Context, ref Ref, n *node, depth int, changes []change) (Ref, bool, error) {
	var items []typeItem
	pending := ref != 0
	for len(changes) > 0 || pending {
		var c node
		var old Ref
		run := 0
		if len(changes) > 0 {
			for run = 1; run < len(changes) && changes[run].typ == changes[0].typ; run++ {
			}
		}
		switch {
		case pending && (run == 0 || n.typ < changes[0].typ):
			items, pending = append(items, typeItem{n.typ, ref}), false
			continue
		case pending && n.typ == changes[0].typ:
			c, old, pending = *n, ref, false
		default:
			c = node{typed: true, typ: changes[0].typ}
		}
		changed, delta, err := e.keys(ctx, &c, 0, 0, changes[:run])
		if err != nil {
			return 0, false, err
		}
		if c.count += delta; changed && c.n > 0 {
			if old, err = e.pack.add(&c, 0); err != nil {
				return 0, false, err
			}
		}
		if c.n > 0 {
			items = append(items, typeItem{c.typ, old})
		}
		changes = changes[run:]
	}
	return e.typeTrie(items, depth)
}

// typeTrie builds the trie of a sorted list of types.
func (e *Edit) typeTrie(items []typeItem, depth int) (ref Ref, single bool, err error) {
	switch len(items) {
	case 0:
		return 0, false, nil
	case 1:
		return items[0].ref, true, nil
	}
	n := node{branch: true}
	for len(items) > 0 {
		slot, run := nibble(items[0].typ, depth), 1
		for run < len(items) && nibble(items[run].typ, depth) == slot {
			run++
		}
		child, _, err := e.typeTrie(items[:run], depth+1)
		if err != nil {
			return 0, false, err
		}
		n.setChild(slot, child)
		items = items[run:]
	}
	ref, err = e.pack.add(&n, 0)
	return ref, false, err
}

// keys applies changes to the node n, in place, at a depth of the keys of a type.
// delta is by how many keys it grew. Afterwards n.n is 0 if nothing is left.
func (e *Edit) keys(ctx context.Context, n *node, depth int, path uint64, changes []change) (changed bool, delta int, err error) {
	if !n.branch {
		return e.bucket(n, depth, changes)
	}
	if depth == hashNibbles {
		return false, 0, fmt.Errorf("branch below the last bit of a hash: %w", ErrCorrupt)
	}
	var held *[16]*node // children that are not written yet, because they may be joined
	if hasDelete(changes) {
		held = new([16]*node)
	}
	for len(changes) > 0 {
		run, slot := runOf(changes, keyHash, depth), nibble(changes[0].key, depth)
		var c node
		old, below := n.child(slot), path&prefixMask(depth)|uint64(slot)<<(60-4*depth)
		if old != 0 {
			if err := e.tree.decode(ctx, &c, old, depth+1, below); err != nil {
				return false, 0, err
			}
		}
		childChanged, d, err := e.keys(ctx, &c, depth+1, below, changes[:run])
		if err != nil {
			return false, 0, err
		}
		changes = changes[run:]
		if !childChanged {
			continue
		}
		changed, delta = true, delta+d
		switch {
		case c.n == 0:
			n.setChild(slot, 0)
		case held != nil:
			held[slot] = &c
			n.setChild(slot, heldRef)
		default:
			ref, err := e.pack.add(&c, depth+1)
			if err != nil {
				return false, 0, err
			}
			n.setChild(slot, ref)
		}
	}
	if changed && held != nil {
		err = e.join(ctx, n, depth, path, held)
	}
	return changed, delta, err
}

// heldRef stands for a child that is not written yet.
const heldRef = ^Ref(0)

// join turns a branch that has become small into a bucket, so that equal states keep
// equal shapes; else it writes the children that were held back for that.
func (e *Edit) join(ctx context.Context, n *node, depth int, path uint64, held *[16]*node) error {
	if n.n <= bucketSize {
		small, err := e.joined(ctx, n, depth, path, held)
		if err != nil {
			return err
		}
		if small != nil {
			n.branch, n.bitmap, n.n = false, 0, copy(n.leaves[:], small)
			return nil
		}
	}
	for slot, c := range held {
		if c == nil {
			continue
		}
		ref, err := e.pack.add(c, depth+1)
		if err != nil {
			return err
		}
		n.setChild(slot, ref)
	}
	return nil
}

// joined returns the leaves of a branch if they fit a bucket, else nil.
func (e *Edit) joined(ctx context.Context, n *node, depth int, path uint64, held *[16]*node) ([]leaf, error) {
	leaves := make([]leaf, 0, bucketSize)
	for slot := range 16 {
		ref, c := n.child(slot), held[slot]
		if ref == 0 {
			continue
		}
		if c == nil {
			c = new(node)
			if err := e.tree.decode(ctx, c, ref, depth+1, path&prefixMask(depth)|uint64(slot)<<(60-4*depth)); err != nil {
				return nil, err
			}
		}
		if c.branch || len(leaves)+c.n > bucketSize {
			return nil, nil
		}
		leaves = append(leaves, c.leaves[:c.n]...)
	}
	return leaves, nil
}

// bucket applies changes to a bucket, which may become a branch.
func (e *Edit) bucket(n *node, depth int, changes []change) (changed bool, delta int, err error) {
	old := n.leaves[:n.n]
	var few [2 * bucketSize]leaf
	leaves := few[:0]
	if len(old)+len(changes) > len(few) {
		leaves = make([]leaf, 0, len(old)+len(changes))
	}
	i := 0
	for _, c := range changes {
		for ; i < len(old) && old[i].hash < c.key; i++ {
			leaves = append(leaves, old[i])
		}
		was := int64(0)
		if i < len(old) && old[i].hash == c.key {
			was, i = old[i].nid, i+1
		}
		if c.nid != 0 {
			leaves = append(leaves, leaf{c.key, c.nid})
		}
		changed = changed || was != c.nid
	}
	leaves = append(leaves, old[i:]...)
	if !changed {
		return false, 0, nil
	}
	delta = len(leaves) - n.n
	return true, delta, e.build(n, leaves, depth)
}

// build makes n the node of a sorted list of leaves.
func (e *Edit) build(n *node, leaves []leaf, depth int) error {
	if len(leaves) <= bucketSize {
		n.branch, n.n = false, copy(n.leaves[:], leaves)
		return nil
	}
	n.branch, n.bitmap, n.n = true, 0, 0
	for len(leaves) > 0 {
		slot, run := nibble(leaves[0].hash, depth), 1
		for run < len(leaves) && nibble(leaves[run].hash, depth) == slot {
			run++
		}
		var c node
		if err := e.build(&c, leaves[:run], depth+1); err != nil {
			return err
		}
		ref, err := e.pack.add(&c, depth+1)
		if err != nil {
			return err
		}
		n.setChild(slot, ref)
		leaves = leaves[run:]
	}
	return nil
}
