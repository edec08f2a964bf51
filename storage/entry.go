package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// An entry of the journal holds the rows of a unit, with their final positions, and how their tables were declared, so that
// a later version of the program can write the rows that an earlier one has left.
//
//	positions  steps  { declaration  values }…
//
// Numbers are varints, and what is not a number has its length before it.

// The kinds of a value in an entry.
const (
	entryNil byte = iota
	entryInt
	entryBytes
	entryTrue
	entryFalse
)

var errEntry = errors.New("storage: malformed entry in the journal")

// makeEntry encodes a unit of rows whose first position follows base.
func makeEntry(u *Unit, base int64) []byte {
	size := u.bytes + 2*binary.MaxVarintLen64
	for i := range u.steps {
		size += len(u.steps[i].table.spec) + binary.MaxVarintLen64
	}
	dst := make([]byte, 0, size)
	dst = binary.AppendVarint(dst, int64(u.Positions))
	dst = binary.AppendVarint(dst, int64(len(u.steps)))
	for i := range u.steps {
		s := &u.steps[i]
		dst = appendEntryBytes(dst, s.table.spec)
		for _, v := range s.values {
			dst = appendEntryValue(dst, v, base)
		}
	}
	return dst
}

func appendEntryValue(dst []byte, v any, base int64) []byte {
	switch v := v.(type) {
	case int64:
		return binary.AppendVarint(append(dst, entryInt), v)
	case int:
		return binary.AppendVarint(append(dst, entryInt), int64(v))
	case Pos:
		return binary.AppendVarint(append(dst, entryInt), base+int64(v))
	case bool:
		if v {
			return append(dst, entryTrue)
		}
		return append(dst, entryFalse)
	case string:
		return appendEntryBytes(append(dst, entryBytes), v)
	case []byte:
		if v != nil {
			return appendEntryBytes(append(dst, entryBytes), v)
		}
	}
	return append(dst, entryNil)
}

func appendEntryBytes[T string | []byte](dst []byte, b T) []byte {
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

// readEntry decodes an entry. The values of the unit refer to the entry's bytes.
func readEntry(entry []byte) (*Unit, error) {
	r := entryReader{rest: entry}
	u := &Unit{Positions: int(r.int())}
	steps := r.int()
	if steps < 0 || steps > int64(len(entry)) {
		return nil, errEntry
	}
	u.steps = make([]step, 0, steps)
	for range steps {
		t, err := tableOf(r.bytes())
		if err != nil {
			return nil, err
		}
		values := make([]any, len(t.columns))
		for i := range values {
			values[i] = r.value()
		}
		u.Add(t, values...)
	}
	if r.bad || len(r.rest) > 0 || u.Positions < 0 {
		return nil, errEntry
	}
	return u, u.err
}

// entryReader reads an entry from its beginning. Once something is wrong, everything is zero.
type entryReader struct {
	rest []byte
	bad  bool
}

func (r *entryReader) fail() {
	r.rest, r.bad = nil, true
}

func (r *entryReader) int() int64 {
	n, size := binary.Varint(r.rest)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *entryReader) bytes() []byte {
	n := r.int()
	if n < 0 || n > int64(len(r.rest)) {
		r.fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *entryReader) byte() byte {
	if len(r.rest) == 0 {
		r.fail()
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *entryReader) value() any {
	switch kind := r.byte(); kind {
	case entryInt:
		return r.int()
	case entryBytes:
		return r.bytes()
	case entryTrue, entryFalse:
		return kind == entryTrue
	case entryNil:
	default:
		r.fail()
	}
	return nil
}

// declared are all declarations of tables by their encoding.
var declared sync.Map

// tableSpec encodes the declaration of a table, as the entries of the journal need it: what they add must not fail.
func tableSpec(name string, mode Mode, columns []Column) string {
	if mode == InsertNew {
		mode = Put
	}
	dst := append(appendEntryBytes(nil, name), byte(mode))
	dst = binary.AppendVarint(dst, int64(len(columns)))
	for _, c := range columns {
		key := byte(0)
		if c.key {
			key = 1
		}
		dst = append(appendEntryBytes(dst, c.name), byte(c.typ), key)
	}
	return string(dst)
}

// tableOf returns the table of a declaration, which may be one that the program has no more.
func tableOf(spec []byte) (*Table, error) {
	if t, ok := declared.Load(string(spec)); ok {
		return t.(*Table), nil
	}
	r := entryReader{rest: spec}
	name, mode, n := string(r.bytes()), Mode(r.byte()), r.int()
	if n <= 0 || n > int64(len(spec)) {
		return nil, errEntry
	}
	columns := make([]Column, n)
	for i := range columns {
		columns[i] = Column{name: string(r.bytes()), typ: ColumnType(r.byte()), key: r.byte() == 1}
	}
	if r.bad || len(r.rest) > 0 {
		return nil, fmt.Errorf("%w: declaration of a table", errEntry)
	}
	return DeclareTable(name, mode, columns...), nil
}
