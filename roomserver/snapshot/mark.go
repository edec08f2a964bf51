package snapshot

import (
	"context"
	"errors"
	"fmt"
)

// ErrTooMany says that more nodes are in use than a Marker may remember.
var ErrTooMany = errors.New("snapshot: too many nodes to mark")

// Marker finds the stored rows that some states of one room need, so that the others can be deleted. It visits each
// node once, however many of the states share it. It is not safe for concurrent use.
type Marker struct {
	store *Store
	room  int64
	limit int
	nodes map[Ref]struct{}
	rows  map[int64]struct{}
}

// Mark returns a Marker for a room that remembers at most limit nodes, at about 40 bytes each.
func (s *Store) Mark(room int64, limit int) *Marker {
	return &Marker{store: s, room: room, limit: limit, nodes: map[Ref]struct{}{}, rows: map[int64]struct{}{}}
}

// Add marks what the state at a root needs. It fails with ErrTooMany beyond the limit.
func (m *Marker) Add(ctx context.Context, root Ref) error {
	level := m.fresh(nil, root)
	for len(level) > 0 {
		if len(m.nodes) > m.limit {
			return ErrTooMany
		}
		var below []Ref
		for len(level) > 0 {
			batch := level[:min(batchSize, len(level))]
			level = level[len(batch):]
			rows := make(map[int64][]byte, len(batch))
			if err := m.store.fetch(ctx, m.room, batch, rows); err != nil {
				return fmt.Errorf("mark room state: %w", err)
			}
			for _, ref := range batch {
				var err error
				if below, err = m.children(below, rows[ref.Row()], ref); err != nil {
					return fmt.Errorf("mark room state: %w", err)
				}
			}
		}
		level = below
	}
	return nil
}

// fresh appends ref to list if it is a node that was not marked before, and marks it.
func (m *Marker) fresh(list []Ref, ref Ref) []Ref {
	if ref == 0 {
		return list
	}
	if _, ok := m.nodes[ref]; ok {
		return list
	}
	m.nodes[ref] = struct{}{}
	m.rows[ref.Row()] = struct{}{}
	return append(list, ref)
}

// children appends the nodes to which a node refers.
func (m *Marker) children(list []Ref, row []byte, ref Ref) ([]Ref, error) {
	data, err := rowNode(row, ref)
	if err != nil {
		return nil, err
	}
	var n node
	r := reader{data: data}
	r.head(&n)
	if n.branch {
		last := ref.pack()
		for range n.n {
			child := r.ref(ref.pack(), &last)
			if r.bad {
				break
			}
			list = m.fresh(list, child)
		}
	}
	if r.bad {
		return nil, fmt.Errorf("node %d of row %d: %w", ref.slot(), ref.Row(), ErrCorrupt)
	}
	return list, nil
}

// Needs tells whether a row, by its id, holds a node that was marked.
func (m *Marker) Needs(row int64) bool {
	_, ok := m.rows[row]
	return ok
}
