package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrTooLarge says that a change has more nodes than one pack can hold.
var ErrTooLarge = errors.New("snapshot: too many nodes for one pack")

// packWriter collects the nodes of one pack. Children come before their parents, so
// that a bulk build puts what lies together in the trie into the same rows.
type packWriter struct {
	id   int64
	rows []Row    // full ones
	data []byte   // nodes of the last row
	ends []uint16 // where they end
}

// add writes a node and returns its address.
func (p *packWriter) add(n *node, depth int) (Ref, error) {
	if len(p.ends) == rowNodes {
		p.seal()
	}
	if len(p.rows) == 1<<partBits {
		return 0, ErrTooLarge
	}
	if p.data == nil {
		p.data, p.ends = make([]byte, 0, 512), make([]uint16, 0, 8)
	}
	p.data = appendNode(p.data, n, p.id, depth)
	p.ends = append(p.ends, uint16(len(p.data)))
	return makeRef(p.id, len(p.rows)<<slotBits|(len(p.ends)-1)), nil
}

// node returns the bytes of a node of the unfinished pack.
func (p *packWriter) node(ref Ref) ([]byte, error) {
	part, slot := ref.index()>>slotBits, ref.slot()
	switch {
	case part < len(p.rows):
		return rowNode(p.rows[part].Data, ref)
	case part > len(p.rows) || slot >= len(p.ends):
		return nil, fmt.Errorf("slot %d of row %d: %w", slot, ref.Row(), ErrCorrupt)
	case slot == 0:
		return p.data[:p.ends[0]], nil
	}
	return p.data[p.ends[slot-1]:p.ends[slot]], nil
}

// seal ends the last row. A row stays below 64 KiB, what its offsets can say: the
// largest node, a branch whose children all lie in other packs, has 171 bytes.
func (p *packWriter) seal() {
	row := make([]byte, 0, 2+2*len(p.ends)+len(p.data))
	row = append(row, formatVersion, byte(len(p.ends)-1))
	for _, end := range p.ends {
		row = binary.LittleEndian.AppendUint16(row, end)
	}
	row = append(row, p.data...)
	p.rows = append(p.rows, Row{ID: p.id<<partBits | int64(len(p.rows)), Data: row})
	p.data, p.ends = p.data[:0], p.ends[:0]
}

func (p *packWriter) finish() []Row {
	if len(p.ends) > 0 {
		p.seal()
	}
	return p.rows
}
