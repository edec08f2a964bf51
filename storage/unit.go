package storage

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// Mode says what adding a row to a table does when its key exists already.
type Mode uint8

// The modes of a declared table.
const (
	// Insert fails the unit with ErrConflict.
	Insert Mode = iota + 1
	// InsertIgnore keeps the existing row.
	InsertIgnore
	// Put overwrites the columns that are not part of the key.
	Put
	// InsertNew is Insert for keys that nobody can have used but for an outdated row, which may be overwritten: it does not keep
	// a unit out of the journal.
	InsertNew
)

// ColumnType is the type of a declared column.
type ColumnType uint8

// The types of columns.
const (
	// Int is BIGINT: int64, int, Pos or nil.
	Int ColumnType = iota + 1
	// Bytes is BYTEA: string, []byte or nil.
	Bytes
	// Bool is BOOLEAN: bool or nil.
	Bool
	// Searchable is TEXT: Text or nil.
	Searchable
	// terms is the column of a full-text index: Text.
	terms
)

// Column is one column of a declared table; made by Col or Key.
type Column struct {
	name string
	typ  ColumnType
	key  bool
}

// Col declares a column that is not part of the key.
func Col(name string, typ ColumnType) Column { return Column{name: name, typ: typ} }

// Key declares a column of the key, which must be the table's primary key or a unique index. Put and
// Delete need it.
func Key(name string, typ ColumnType) Column { return Column{name: name, typ: typ, key: true} }

// Table declares how units write rows of one SQL table: which columns, and the Mode. The same SQL
// table may be declared more than once, with other columns or another mode.
type Table struct {
	name    string
	mode    Mode
	columns []Column
	keys    []int // indexes of key columns
	id      int64 // identifies the declaration in caches of statements

	spec string // the declaration, in entries of the journal
	text bool   // a column is text that PostgreSQL may refuse

	insertSQL, deleteSQL string // one row, $N placeholders
	liteSQL              string // what SQLite has instead of insertSQL, if it is different
}

var tableCount atomic.Int64

// DeclareTable declares a table for Unit.Add. It is meant for package variables and panics on a
// declaration that makes no sense (no columns, Put or InsertNew without a key).
func DeclareTable(name string, mode Mode, columns ...Column) *Table {
	t := &Table{name: name, mode: mode, columns: columns, id: tableCount.Add(1), spec: tableSpec(name, mode, columns)}
	for i, c := range columns {
		t.text = t.text || c.typ == Searchable || c.typ == terms
		if c.key {
			t.keys = append(t.keys, i)
		}
	}
	if len(columns) == 0 || mode < Insert || mode > InsertNew || mode >= Put && len(t.keys) == 0 {
		panic("storage: bad declaration of table " + name)
	}
	t.insertSQL = t.insertHead() + " VALUES " + In(len(columns), 1) + t.onConflict()
	if len(t.keys) > 0 {
		t.deleteSQL = "DELETE FROM " + name + " WHERE "
		for i, k := range t.keys {
			if i > 0 {
				t.deleteSQL += " AND "
			}
			t.deleteSQL += fmt.Sprintf("%s = $%d", columns[k].name, i+1)
		}
	}
	if mode != InsertNew { // whose entries are for another
		declared.LoadOrStore(t.spec, t)
	}
	return t
}

func (t *Table) insertHead() string {
	s := "INSERT INTO " + t.name + " ("
	for i, c := range t.columns {
		if i > 0 {
			s += ", "
		}
		s += c.name
	}
	return s + ")"
}

func (t *Table) onConflict() string {
	if t.mode == Insert || t.mode == InsertNew {
		return ""
	}
	if t.mode == InsertIgnore || len(t.keys) == len(t.columns) {
		return " ON CONFLICT DO NOTHING"
	}
	keys, sets := "", ""
	for _, c := range t.columns {
		if c.key {
			if keys != "" {
				keys += ", "
			}
			keys += c.name
			continue
		}
		if sets != "" {
			sets += ", "
		}
		sets += c.name + " = excluded." + c.name
	}
	return " ON CONFLICT (" + keys + ") DO UPDATE SET " + sets
}

// Pos is a value of an Int column: the k-th position allocated to the unit, 1 ≤ k ≤ Unit.Positions.
type Pos int64

// step is one thing a unit does: a row added or deleted, or a statement.
type step struct {
	table  *Table // nil: a statement
	delete bool
	values []any
	sql    string
	want   int64 // affected rows required, or -1
	unless error // the unit's error if affected differs from want

	superseded bool // a later Put of the batch overwrites this one
}

// Unit is a set of rows and statements that are written together or not at all. Fill it, hand it to
// DB.Append once, and then leave it alone. The zero value is an empty unit.
type Unit struct {
	// Positions is how many positions the unit needs, allocated contiguously.
	Positions int
	// Notices are published after the commit. Pos is given as an offset 1..Positions.
	Notices []Notice
	// After, if set, is an earlier appended unit that this one was built on: if that one fails, this
	// one fails with ErrAfter and leaves nothing behind.
	After *Unit
	// Fresh promises that no row in the database can make the unit fail, but for one with a declared key of a table in mode
	// Insert: other unique columns have values that nobody has used, such as numbers of DB.IDs. PostgreSQL may then be
	// given the unit as a single row first.
	Fresh bool
	// Apply, if set, runs after the unit is on disk and before any notice of its batch is published,
	// in position order. base is the position before the unit's first (0 if it has none). It must be
	// quick, must not wait, and must not write (Append waits when the queue is full).
	Apply func(base int64)
	// Done, if set, runs once with the outcome: after the subscribers have seen the notices, or with
	// the error. It must be quick, must not wait and must not write, and may be called from within Append.
	Done func(base int64, err error)

	steps      []step
	statements bool // a step is a statement
	bytes      int
	err        error // a mistake found while filling

	// Write puts a function here instead of steps.
	fn  func(tx *Tx) error
	ctx context.Context

	state atomic.Int32 // unitQueued, unitRunning, unitDropped
	base  int64
}

const (
	unitQueued int32 = iota
	unitRunning
	unitDropped
)

var errUnitMisuse = errors.New("storage: bad unit")

// Add adds a row to t, with a value for each declared column: int64, int, string, []byte, bool, Text,
// nil, or Pos in an Int column. Byte slices are not copied.
func (u *Unit) Add(t *Table, values ...any) {
	if len(values) != len(t.columns) {
		u.misuse("table %s has %d columns, got %d values", t.name, len(t.columns), len(values))
		return
	}
	for i, v := range values {
		u.check(t, t.columns[i], v)
	}
	u.steps = append(u.steps, step{table: t, values: values, want: -1})
}

// Delete deletes the row of t with this key, if it exists. The table must declare its key columns.
func (u *Unit) Delete(t *Table, key ...any) {
	if len(t.keys) == 0 || len(key) != len(t.keys) {
		u.misuse("table %s has %d key columns, got %d values", t.name, len(t.keys), len(key))
		return
	}
	for i, v := range key {
		u.check(t, t.columns[t.keys[i]], v)
	}
	u.steps = append(u.steps, step{table: t, delete: true, values: key, want: -1})
}

// Exec adds a statement to the unit. Pos values are allowed as arguments. A unit with statements
// costs PostgreSQL several round trips, so the hot path uses Add.
func (u *Unit) Exec(sql string, args ...any) { u.statement(sql, args, -1, nil) }

// Require adds a statement that must affect exactly wantRows rows; otherwise the unit fails with
// errIfNot. It is how a unit states a precondition (a conditional UPDATE, an INSERT … ON CONFLICT DO
// NOTHING).
func (u *Unit) Require(sql string, args []any, wantRows int64, errIfNot error) {
	if wantRows < 0 || errIfNot == nil {
		u.misuse("Require needs a row count and an error")
		return
	}
	u.statement(sql, args, wantRows, errIfNot)
}

func (u *Unit) statement(sql string, args []any, want int64, unless error) {
	u.bytes += len(sql)
	for _, v := range args {
		u.bytes += valueSize(v)
	}
	u.statements = true
	u.steps = append(u.steps, step{sql: sql, values: args, want: want, unless: unless})
}

func (u *Unit) misuse(format string, args ...any) {
	if u.err == nil {
		u.err = fmt.Errorf("%w: "+format, append([]any{errUnitMisuse}, args...)...)
	}
}

// check verifies that a value fits its column, so that a mistake is found where it is made and
// not in a batch shared with others.
func (u *Unit) check(t *Table, c Column, v any) {
	ok := v == nil
	switch v.(type) {
	case int64, int, Pos:
		ok = c.typ == Int
	case string, []byte:
		ok = c.typ == Bytes
	case bool:
		ok = c.typ == Bool
	case Text:
		ok = c.typ == Searchable || c.typ == terms
	}
	if !ok {
		u.misuse("%T in column %s.%s", v, t.name, c.name)
	}
	u.bytes += valueSize(v)
}

func valueSize(v any) int {
	switch v := v.(type) {
	case string:
		return len(v) + 8
	case []byte:
		return len(v) + 8
	case Text:
		return len(v) + 8
	}
	return 8
}

// start decides whether a unit may run: not if its Write's context ended first.
func (u *Unit) start() bool {
	if u.state.Load() == unitRunning {
		return true
	}
	if u.ctx != nil && u.ctx.Err() != nil {
		u.state.CompareAndSwap(unitQueued, unitDropped)
	}
	return u.state.CompareAndSwap(unitQueued, unitRunning)
}

// orphaned reports whether the unit that this one was built on failed. Only the goroutine that flushes
// asks; it also decides on failure.
func (u *Unit) orphaned() bool { return u.After != nil && u.After.err != nil }

// refuseOrphans fails the orphaned units with ErrAfter and returns the others.
func refuseOrphans(units []*Unit) []*Unit {
	for i, u := range units {
		if !u.orphaned() {
			continue
		}
		rest := append([]*Unit(nil), units[:i]...)
		for _, u := range units[i:] {
			if u.orphaned() {
				u.err = ErrAfter
			} else {
				rest = append(rest, u)
			}
		}
		return rest
	}
	return units
}

// adopt takes over what a Write's function did with its transaction.
func (u *Unit) adopt(tx *Tx) {
	u.Positions, u.base = 0, 0
	if tx.position != 0 {
		u.Positions, u.base = 1, tx.base
	}
	u.Notices = tx.notices
}

// absolute makes the offsets of the notices absolute.
func (u *Unit) absolute() {
	if u.fn != nil {
		return // Tx.finish did
	}
	for i := range u.Notices {
		u.Notices[i].Pos += u.base
	}
}

// checkPositions verifies offsets once, at Append.
func (u *Unit) checkPositions() {
	if u.Positions < 0 {
		u.misuse("negative Positions")
	}
	limit := int64(u.Positions)
	for _, n := range u.Notices {
		if n.Pos < 1 || n.Pos > limit {
			u.misuse("notice at offset %d of %d positions", n.Pos, limit)
		}
	}
	for _, s := range u.steps {
		for _, v := range s.values {
			if p, ok := v.(Pos); ok && (p < 1 || int64(p) > limit) {
				u.misuse("Pos(%d) of %d positions", p, limit)
			}
		}
	}
}
