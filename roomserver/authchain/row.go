package authchain

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt says that a stored row is not what this package wrote, or missing.
var ErrCorrupt = errors.New("authchain: corrupt row")

const rowVersion = 1

// Row is what is stored for an event.
type Row struct {
	// Order grows with every event added to the room; rows must be found by it.
	Order int64
	// Data is opaque.
	Data []byte
}

// node is one event of the graph. Only the fields at the end ever change.
type node struct {
	nid, order int64
	gen        int64
	chain      int64   // nid of the first event of its chain
	seq        int64   // place in the chain, from 1
	parents    []int64 // auth events; if seq > 1 the first one is its predecessor in the chain
	table      []int64 // if any: where events of the chain up to this one lead out of it

	// Known of nodes in the window, guarded by Index.mu.
	last    bool // no event of the chain comes after it
	durable bool // its row is stored
}

// predecessor returns the event before n in its chain, 0 if n is the first.
func (n *node) predecessor() int64 {
	if n.seq == 1 {
		return 0
	}
	return n.parents[0]
}

func (n *node) encode() []byte {
	b := make([]byte, 0, 16+4*(len(n.parents)+len(n.table)))
	b = append(b, rowVersion)
	b = binary.AppendUvarint(b, uint64(n.order))
	b = binary.AppendUvarint(b, uint64(n.gen))
	b = binary.AppendUvarint(b, uint64(n.seq))
	b = binary.AppendVarint(b, n.nid-n.chain)
	for _, list := range [][]int64{n.parents, n.table} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, p := range list {
			b = binary.AppendVarint(b, n.nid-p)
		}
	}
	return b
}

func decodeRow(nid int64, b []byte) (*node, error) {
	bad := len(b) == 0 || b[0] != rowVersion
	next := func() int64 {
		if bad {
			return 0
		}
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<63-1 {
			bad = true
			return 0
		}
		b = b[n:]
		return int64(v)
	}
	distance := func() int64 {
		if bad {
			return 0
		}
		v, n := binary.Varint(b)
		if n <= 0 {
			bad = true
			return 0
		}
		b = b[n:]
		return nid - v
	}
	list := func() []int64 {
		n := next()
		if n > int64(len(b)) { // each entry has at least a byte
			bad = true
		}
		if bad || n == 0 {
			return nil
		}
		out := make([]int64, n)
		for i := range out {
			out[i] = distance()
		}
		return out
	}
	if !bad {
		b = b[1:]
	}
	n := &node{nid: nid, durable: true}
	n.order, n.gen, n.seq = next(), next(), next()
	n.chain = distance()
	n.parents, n.table = list(), list()
	if bad || len(b) > 0 || n.seq < 1 || n.gen < 1 || n.seq > 1 && len(n.parents) == 0 {
		return nil, fmt.Errorf("row of event %d: %w", nid, ErrCorrupt)
	}
	return n, nil
}
