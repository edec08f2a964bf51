package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// ErrCorrupt says that a stored row is not what this package wrote.
var ErrCorrupt = errors.New("snapshot: corrupt row")

const (
	formatVersion = 1
	hashNibbles   = 16 // levels that 64 bits of hash can tell apart

	// bucketSize is how many leaves one node holds before it becomes a branch. A leaf
	// takes about 11 bytes and a reference about 5, so that larger buckets cost more
	// in each change than the level they save.
	bucketSize = 4

	tagBranch  = 1
	tagTyped   = 2
	leavesBits = 2 // the number of leaves begins at this bit of the tag
)

// leaf is one entry of a state: the hash of its key and its event.
type leaf struct {
	hash uint64
	nid  int64
}

// node is the decoded form of one node; small enough to live on the stack.
type node struct {
	typed  bool
	branch bool
	typ    uint64 // hash of the event type, when typed
	count  int    // keys of the type, when typed
	bitmap uint16 // which children a branch has
	n      int    // children of a branch, leaves of a bucket
	refs   [16]Ref
	leaves [bucketSize]leaf
}

// nibble is the part of a hash that chooses the child at a depth.
func nibble(hash uint64, depth int) int { return int(hash>>(60-4*depth)) & 15 }

// prefixMask keeps what the path to a depth says of a hash.
func prefixMask(depth int) uint64 {
	if depth == 0 {
		return 0
	}
	return ^uint64(0) << (64 - 4*depth)
}

// position returns where the child of a slot stands among the children.
func (n *node) position(slot int) int {
	return bits.OnesCount16(n.bitmap & (1<<slot - 1))
}

// child returns the child in a slot, 0 if there is none.
func (n *node) child(slot int) Ref {
	if n.bitmap&(1<<slot) == 0 {
		return 0
	}
	return n.refs[n.position(slot)]
}

// setChild puts a child into a slot; ref 0 removes it.
func (n *node) setChild(slot int, ref Ref) {
	at, has := n.position(slot), n.bitmap&(1<<slot) != 0
	switch {
	case ref == 0 && has:
		copy(n.refs[at:n.n-1], n.refs[at+1:n.n])
		n.n--
		n.bitmap &^= 1 << slot
	case ref != 0 && has:
		n.refs[at] = ref
	case ref != 0:
		copy(n.refs[at+1:n.n+1], n.refs[at:n.n])
		n.refs[at] = ref
		n.n++
		n.bitmap |= 1 << slot
	}
}

// appendNode encodes n, which lies in the pack own, at a depth of its level.
func appendNode(dst []byte, n *node, own int64, depth int) []byte {
	tag := byte(0)
	if n.branch {
		tag |= tagBranch
	} else {
		tag |= byte(n.n) << leavesBits
	}
	if n.typed {
		tag |= tagTyped
	}
	dst = append(dst, tag)
	if n.typed {
		dst = binary.BigEndian.AppendUint64(dst, n.typ)
		dst = binary.AppendUvarint(dst, uint64(n.count))
	}
	if !n.branch {
		for _, l := range n.leaves[:n.n] {
			dst = appendSuffix(dst, l.hash, depth)
			dst = binary.AppendVarint(dst, own-l.nid)
		}
		return dst
	}
	dst = binary.LittleEndian.AppendUint16(dst, n.bitmap)
	last := own
	for _, r := range n.refs[:n.n] {
		if p := r.pack(); p != last {
			dst = binary.AppendUvarint(dst, uint64(r.index())<<1)
			dst = binary.AppendVarint(dst, own-p)
			last = p
		} else {
			dst = binary.AppendUvarint(dst, uint64(r.index())<<1|1)
		}
	}
	return dst
}

// appendSuffix writes the whole bytes of a hash that the path to depth leaves open.
func appendSuffix(dst []byte, hash uint64, depth int) []byte {
	for i := depth / 2; i < 8; i++ {
		dst = append(dst, byte(hash>>(56-8*i)))
	}
	return dst
}

// reader takes the parts of a node off its bytes. The first fault sticks.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.data) {
		r.bad, r.data = true, nil
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *reader) uvarint() uint64 {
	if len(r.data) > 0 && r.data[0] < 0x80 {
		v := r.data[0]
		r.data = r.data[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.bad, r.data = true, nil
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// suffix reads the open bytes of a hash.
func (r *reader) suffix(depth int) uint64 {
	var h uint64
	for _, b := range r.take(8 - depth/2) {
		h = h<<8 | uint64(b)
	}
	return h
}

// ref reads a reference; last is the pack of the one before.
func (r *reader) ref(own int64, last *int64) Ref {
	v := r.uvarint()
	if v&1 == 0 {
		*last = own - r.varint()
	}
	if v>>1 >= 1<<indexBits || *last <= 0 || *last > MaxPack {
		r.bad = true
		return 0
	}
	return makeRef(*last, int(v>>1))
}

// head reads the tag and what a typed node says of itself.
func (r *reader) head(n *node) {
	b := r.take(1)
	if r.bad {
		return
	}
	tag := b[0]
	n.branch, n.typed = tag&tagBranch != 0, tag&tagTyped != 0
	if n.typed {
		if t := r.take(8); t != nil {
			n.typ = binary.BigEndian.Uint64(t)
		}
		n.count = int(r.uvarint())
	}
	if n.branch {
		if m := r.take(2); m != nil {
			n.bitmap = binary.LittleEndian.Uint16(m)
		}
		n.n = bits.OnesCount16(n.bitmap)
	} else {
		n.n = int(tag >> leavesBits)
		r.bad = r.bad || n.n > bucketSize
	}
}

// decodeNode decodes the node ref. The hashes of its leaves begin as path does, at
// the depth where the node stands among the keys of its type (0 for a typed node).
func decodeNode(n *node, data []byte, ref Ref, depth int, path uint64) error {
	r, own := reader{data: data}, ref.pack()
	r.head(n)
	if n.branch {
		last := own
		for i := 0; i < n.n && !r.bad; i++ {
			n.refs[i] = r.ref(own, &last)
		}
	} else {
		path &= prefixMask(depth &^ 1)
		for i := 0; i < n.n && !r.bad; i++ {
			n.leaves[i] = leaf{hash: path | r.suffix(depth), nid: own - r.varint()}
		}
	}
	if r.bad || len(r.data) > 0 || n.n == 0 {
		return fmt.Errorf("node %d of row %d: %w", ref.slot(), ref.Row(), ErrCorrupt)
	}
	return nil
}

// rowNode cuts the node of a slot out of a row.
func rowNode(row []byte, ref Ref) ([]byte, error) {
	slot := ref.slot()
	if len(row) >= 2 && row[0] == formatVersion && slot <= int(row[1]) {
		start, base := 0, 2+2*(int(row[1])+1)
		if slot > 0 && len(row) >= base {
			start = int(binary.LittleEndian.Uint16(row[2*slot:]))
		}
		if len(row) >= base {
			end := int(binary.LittleEndian.Uint16(row[2+2*slot:]))
			if start <= end && base+end <= len(row) {
				return row[base+start : base+end], nil
			}
		}
	}
	return nil, fmt.Errorf("slot %d of row %d: %w", slot, ref.Row(), ErrCorrupt)
}
