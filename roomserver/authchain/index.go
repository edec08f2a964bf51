package authchain

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Loader reads stored rows of a room.
type Loader interface {
	// LoadRows calls put for each of the given events that has a row, in any order.
	LoadRows(ctx context.Context, room int64, nids []int64, put func(nid int64, row []byte)) error
	// RowsAfter calls put for the rows with an order greater than after, in ascending
	// order, for at most limit of them.
	RowsAfter(ctx context.Context, room, after int64, limit int, put func(nid int64, row []byte)) error
	// LastOrder returns the highest order of a row of the room, 0 if it has none.
	LastOrder(ctx context.Context, room int64) (int64, error)
}

const (
	// windowSize is how many of the newest events are kept with their children; events
	// whose rows are not yet stored come on top. A few hundred bytes each.
	windowSize = 8192
	// cacheSize is how many older events are kept.
	cacheSize = 8192
	// tableEvery is after how many events of a chain one holds a table.
	tableEvery = 16
	// tableSize is how many entries a table has at most.
	tableSize = 64
	// pageSize is how many rows a scan reads at once.
	pageSize = 512
)

// Index is the auth graph of one room. It is safe for concurrent use; one question is
// answered at a time.
type Index struct {
	loader Loader
	room   int64

	windowSize, cacheSize, tableEvery, tableSize, pageSize int

	mu     sync.Mutex
	loaded bool  // low and order are known
	order  int64 // highest order given to an event
	low    int64 // all events with a greater order are in the window
	window []*node
	recent map[int64]*node   // the events of the window
	kids   map[int64][]*node // events of the window by auth event, in ascending order
	// young and old hold events outside of the window. When young is full it becomes
	// old and what was old is forgotten.
	young, old map[int64]*node
}

// New returns the index of a room, which reads what it needs from loader.
func New(loader Loader, room int64) *Index {
	return &Index{
		loader: loader, room: room,
		windowSize: windowSize, cacheSize: cacheSize, tableEvery: tableEvery, tableSize: tableSize, pageSize: pageSize,
		recent: map[int64]*node{}, kids: map[int64][]*node{}, young: map[int64]*node{},
	}
}

// Add enters an accepted state event with the events it cites in auth_events, all of
// which must have been added before. replaces names the one of them that has the
// same type and state key as the event, 0 if there is none; it makes the index
// compact and does not affect answers. The row is to be stored with the event; call
// Durable once it is, or Drop if it never will be. Adding an event again is an error
// while the index has it in memory, and otherwise must not be done.
func (x *Index) Add(ctx context.Context, nid int64, authEvents []int64, replaces int64) (Row, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	row, err := x.add(ctx, nid, authEvents, replaces)
	if err != nil {
		return Row{}, fmt.Errorf("enter event %d into the auth graph: %w", nid, err)
	}
	return row, nil
}

func (x *Index) add(ctx context.Context, nid int64, authEvents []int64, replaces int64) (Row, error) {
	if err := x.open(ctx); err != nil {
		return Row{}, err
	}
	if x.cached(nid) != nil || slices.Contains(authEvents, nid) {
		return Row{}, fmt.Errorf("event %d is there already", nid)
	}
	n := &node{nid: nid, order: x.order + 1, gen: 1, chain: nid, seq: 1, last: true}
	n.parents = slices.Compact(slices.Sorted(slices.Values(authEvents)))
	parents, err := x.nodes(ctx, n.parents)
	if err != nil {
		return Row{}, err
	}
	for _, p := range parents {
		n.gen = max(n.gen, p.gen+1)
	}
	if i := slices.Index(n.parents, replaces); i >= 0 && parents[i].last {
		if err := x.extend(ctx, n, parents[i]); err != nil {
			return Row{}, err
		}
	}
	x.order = n.order
	x.window = append(x.window, n)
	x.recent[nid] = n
	x.link(n)
	x.trim()
	return Row{Order: n.order, Data: n.encode()}, nil
}

// extend makes n the next event of the chain of prev, unless a table would get too long.
func (x *Index) extend(ctx context.Context, n, prev *node) error {
	at := slices.Index(n.parents, prev.nid)
	n.parents = slices.Concat([]int64{prev.nid}, n.parents[:at], n.parents[at+1:])
	n.chain, n.seq = prev.chain, prev.seq+1
	if n.seq%int64(x.tableEvery) == 0 {
		table, err := x.tableOf(ctx, n)
		if err != nil {
			return err
		}
		if len(table) > x.tableSize {
			n.chain, n.seq = n.nid, 1
			return nil
		}
		n.table = table
	}
	prev.last = false
	return nil
}

// tableOf collects where the chain up to n leads: the last event reached in each
// other chain by one step.
func (x *Index) tableOf(ctx context.Context, n *node) ([]int64, error) {
	best := map[int64]*node{} // by chain
	for at := n; ; {
		out := at.parents
		if at.seq > 1 {
			out = out[1:]
		}
		if at.table != nil {
			out = at.table
		}
		nodes, err := x.nodes(ctx, out)
		if err != nil {
			return nil, err
		}
		for _, p := range nodes {
			if p.chain != n.chain && (best[p.chain] == nil || best[p.chain].seq < p.seq) {
				best[p.chain] = p
			}
		}
		if at.table != nil || at.seq == 1 {
			break
		}
		if at, err = x.node(ctx, at.predecessor()); err != nil {
			return nil, err
		}
	}
	table := make([]int64, 0, len(best))
	for _, p := range best {
		table = append(table, p.nid)
	}
	slices.Sort(table)
	return table, nil
}

// Durable says that the row of an event is stored, so that the event can be forgotten
// and read again.
func (x *Index) Durable(nid int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := x.recent[nid]; n != nil {
		n.durable = true
		x.trim()
	}
}

// Drop forgets an event whose row will not be stored. Those that rest on it must be
// dropped too.
func (x *Index) Drop(nid int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.recent[nid]
	if n == nil || n.durable {
		return
	}
	for _, p := range n.parents {
		x.kids[p] = slices.DeleteFunc(x.kids[p], func(k *node) bool { return k == n })
		if len(x.kids[p]) == 0 {
			delete(x.kids, p)
		}
	}
	if prev := x.recent[n.predecessor()]; prev != nil {
		prev.last = true
	}
	x.window = slices.DeleteFunc(x.window, func(k *node) bool { return k == n })
	delete(x.recent, nid)
}

// AuthEvents returns the events that an event cites in auth_events.
func (x *Index) AuthEvents(ctx context.Context, nid int64) ([]int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n, err := x.node(ctx, nid)
	if err != nil {
		return nil, err
	}
	return n.parents[:len(n.parents):len(n.parents)], nil
}

// Generation returns 1 + the highest generation of the auth events of an event: an
// event has a higher one than all it rests on.
func (x *Index) Generation(ctx context.Context, nid int64) (int64, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n, err := x.node(ctx, nid)
	if err != nil {
		return 0, err
	}
	return n.gen, nil
}

// open finds out where the room's orders stand.
func (x *Index) open(ctx context.Context) error {
	if x.loaded {
		return nil
	}
	last, err := x.loader.LastOrder(ctx, x.room)
	if err != nil {
		return fmt.Errorf("last order of room %d: %w", x.room, err)
	}
	x.order, x.low, x.loaded = last, last, true
	return nil
}

func (x *Index) link(n *node) {
	for _, p := range n.parents {
		x.kids[p] = append(x.kids[p], n)
	}
}

// trim forgets the oldest events of the window while it is too large.
func (x *Index) trim() {
	for len(x.window) > x.windowSize && x.window[0].durable {
		n := x.window[0]
		x.window[0] = nil
		x.window = x.window[1:]
		x.low = n.order
		delete(x.recent, n.nid)
		for _, p := range n.parents {
			if x.kids[p] = x.kids[p][1:]; len(x.kids[p]) == 0 {
				delete(x.kids, p)
			}
		}
		n.last = false // no longer known
		x.keep(n)
	}
}

// keep remembers an event outside of the window for a while.
func (x *Index) keep(n *node) {
	if len(x.young) >= x.cacheSize {
		x.old, x.young = x.young, make(map[int64]*node, x.cacheSize/4)
	}
	x.young[n.nid] = n
}

// cached returns an event that is in memory, or nil.
func (x *Index) cached(nid int64) *node {
	if n := x.recent[nid]; n != nil {
		return n
	}
	if n := x.young[nid]; n != nil {
		return n
	}
	n := x.old[nid]
	if n != nil {
		x.keep(n)
	}
	return n
}

func (x *Index) node(ctx context.Context, nid int64) (*node, error) {
	if n := x.cached(nid); n != nil {
		return n, nil
	}
	nodes, err := x.nodes(ctx, []int64{nid})
	if err != nil {
		return nil, err
	}
	return nodes[0], nil
}

// nodes returns events in the order of nids; what is not in memory is loaded at once.
func (x *Index) nodes(ctx context.Context, nids []int64) ([]*node, error) {
	if len(nids) == 0 {
		return nil, nil
	}
	out := make([]*node, len(nids))
	var missing []int64
	for i, nid := range nids {
		if out[i] = x.cached(nid); out[i] == nil {
			missing = append(missing, nid)
		}
	}
	if missing == nil {
		return out, nil
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	found := make(map[int64]*node, len(missing))
	for chunk := range slices.Chunk(missing, x.pageSize) {
		var bad error
		err := x.loader.LoadRows(ctx, x.room, chunk, func(nid int64, row []byte) {
			n, err := decodeRow(nid, row)
			if err != nil {
				bad = err
				return
			}
			found[nid] = n
			x.keep(n)
		})
		if err == nil {
			err = bad
		}
		if err != nil {
			return nil, fmt.Errorf("load auth graph of room %d: %w", x.room, err)
		}
	}
	for i, nid := range nids {
		if out[i] != nil {
			continue
		}
		if out[i] = found[nid]; out[i] == nil {
			return nil, fmt.Errorf("event %d is not in the auth graph of room %d: %w", nid, x.room, ErrCorrupt)
		}
	}
	return out, nil
}
