package storage

import (
	"encoding/binary"
	"unsafe"
)

// rowsOnly reports whether the unit is nothing but rows of declared tables.
func (u *Unit) rowsOnly() bool { return u.fn == nil && !u.statements }

// appendKey appends an unambiguous encoding of a step's key. Positions are told apart from plain
// numbers and counted from first, the unit's offset in its batch.
func (s *step) appendKey(dst []byte, first int64) []byte {
	if s.delete {
		for _, v := range s.values {
			dst = appendKeyValue(dst, v, first)
		}
		return dst
	}
	for _, k := range s.table.keys {
		dst = appendKeyValue(dst, s.values[k], first)
	}
	return dst
}

func appendKeyValue(dst []byte, v any, first int64) []byte {
	switch v := v.(type) {
	case int64:
		return binary.LittleEndian.AppendUint64(append(dst, 'i'), uint64(v))
	case int:
		return binary.LittleEndian.AppendUint64(append(dst, 'i'), uint64(v))
	case Pos:
		return binary.LittleEndian.AppendUint64(append(dst, 'p'), uint64(first+int64(v)))
	case bool:
		if v {
			return append(dst, 't')
		}
		return append(dst, 'f')
	case string:
		return appendKeyBytes(dst, v)
	case []byte:
		return appendKeyBytes(dst, unsafe.String(unsafe.SliceData(v), len(v)))
	case Text:
		return appendKeyBytes(dst, string(v))
	}
	return append(dst, 'n')
}

func appendKeyBytes(dst []byte, s string) []byte {
	dst = binary.LittleEndian.AppendUint32(append(dst, 'b'), uint32(len(s)))
	return append(dst, s...)
}

// supersede marks the Put rows that a later Put of the same key in the same run of units overwrites,
// so that a busy room's row is written once per batch. It must be called only where a failure of any
// unit undoes the whole run.
func supersede(units []*Unit, puts *keySet) {
	puts.reset()
	for i := len(units) - 1; i >= 0; i-- {
		u := units[i]
		if !u.rowsOnly() {
			puts.reset() // it may read what came before it
			continue
		}
		for j := len(u.steps) - 1; j >= 0; j-- {
			s := &u.steps[j]
			s.superseded = false
			if s.delete || s.table.mode != Put {
				continue
			}
			s.superseded = !puts.add(s.table.id, s, int64(i)<<32)
		}
	}
}

// keepAll undoes supersede.
func keepAll(units []*Unit) {
	for _, u := range units {
		for j := range u.steps {
			u.steps[j].superseded = false
		}
	}
}

// keySet is a reusable set of keys of tables.
type keySet struct {
	seen map[string]struct{}
	buf  []byte
}

func (k *keySet) reset() {
	if k.seen == nil {
		k.seen = map[string]struct{}{}
	}
	clear(k.seen)
}

// add reports whether the key was new.
func (k *keySet) add(table int64, s *step, first int64) bool {
	k.buf = s.appendKey(binary.LittleEndian.AppendUint32(k.buf[:0], uint32(table)), first)
	if _, ok := k.seen[string(k.buf)]; ok {
		return false
	}
	k.seen[string(k.buf)] = struct{}{}
	return true
}
