package snapshot

const (
	slotBits  = 8
	partBits  = 12
	indexBits = slotBits + partBits
	rowNodes  = 1 << slotBits

	// MaxPack is the largest number of a pack; it leaves room for part and slot in a
	// positive int64.
	MaxPack = 1<<(63-indexBits) - 1
)

// Ref is the address of a node and so of a state; 0 is the empty state. It is
// meaningful only together with its room, and fits a signed 64-bit column.
type Ref uint64

func makeRef(pack int64, index int) Ref { return Ref(pack)<<indexBits | Ref(index) }

// pack is the number of the pack that holds the node.
func (r Ref) pack() int64 { return int64(r >> indexBits) }

// index is the place of the node in its pack: part and slot.
func (r Ref) index() int { return int(r & (1<<indexBits - 1)) }

// Row is the identifier of the row that holds the node.
func (r Ref) Row() int64 { return int64(r >> slotBits) }

// slot is the place of the node in its row.
func (r Ref) slot() int { return int(r & (rowNodes - 1)) }

// Row is one stored piece of a pack. ID is unique within the room.
type Row struct {
	ID   int64
	Data []byte
}
