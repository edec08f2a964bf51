package storage

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// rowStatement turns a run of units of rows into one SQL statement: log_head is advanced and every
// table filled by CTEs over unnest, so that no round trip of ours happens while the row of log_head is
// locked. The text depends only on which tables occur and in which columns positions are used, so
// it is prepared once per shape. Where no table gets more than one row, which is how somebody waits who is alone,
// values take the place of arrays.
type rowStatement struct {
	groups    []*rowGroup
	free      []*rowGroup
	positions int64
	plain     bool // one row a table

	keys  keySet
	shape []byte
	texts map[string]string
	args  []any
}

// rowGroup is the rows added to (or deleted from) one declared table.
type rowGroup struct {
	table   *Table
	delete  bool
	columns []arrayColumn
	rows    int
}

// arrayColumn is one parameter: an array in PostgreSQL's binary format.
type arrayColumn struct {
	name     string
	typ      ColumnType
	data     []byte
	null     bool
	relative int    // how many values are counted from the base
	marks    []byte // which ones: array of booleans, used if some are and some are not
}

const (
	// arrayHeader is the size of a one-dimensional array's header.
	arrayHeader = 20
	maxTexts    = 512
)

// fill collects the rows of the units, in order. It returns false if the units touch one row in ways
// that one statement cannot express: what a CTE writes is invisible to its neighbours, so a row that is
// deleted and added (or the other way round) needs statements of their own.
func (r *rowStatement) fill(units []*Unit) bool {
	r.free = append(r.free, r.groups...)
	r.groups = r.groups[:0]
	r.positions = 0
	deletes := false
	for _, u := range units {
		for i := range u.steps {
			s := &u.steps[i]
			deletes = deletes || s.delete
			if !s.superseded {
				r.group(s.table, s.delete).add(s, r.positions)
			}
		}
		r.positions += int64(u.Positions)
	}
	slices.SortFunc(r.groups, func(a, b *rowGroup) int {
		if a.table.id != b.table.id {
			return int(a.table.id - b.table.id)
		}
		if a.delete == b.delete {
			return 0
		} else if a.delete {
			return -1
		}
		return 1
	})
	r.plain = !slices.ContainsFunc(r.groups, func(g *rowGroup) bool { return g.rows > 1 })
	return !deletes || r.disjoint(units)
}

// disjoint checks that no deleted key is touched by another step of the same SQL table.
func (r *rowStatement) disjoint(units []*Unit) bool {
	r.keys.reset()
	for _, del := range []bool{true, false} {
		first := int64(0)
		for _, u := range units {
			for i := range u.steps {
				s := &u.steps[i]
				if s.delete != del || len(s.table.keys) == 0 {
					continue
				}
				r.keys.buf = s.appendKey(append(append(r.keys.buf[:0], s.table.name...), 0), first)
				_, seen := r.keys.seen[string(r.keys.buf)]
				if del {
					r.keys.seen[string(r.keys.buf)] = struct{}{} // deleting twice is deleting once
				} else if seen {
					return false
				}
			}
			first += int64(u.Positions)
		}
	}
	return true
}

func (r *rowStatement) group(t *Table, del bool) *rowGroup {
	for _, g := range r.groups {
		if g.table == t && g.delete == del {
			return g
		}
	}
	g := &rowGroup{}
	if n := len(r.free); n > 0 {
		g, r.free = r.free[n-1], r.free[:n-1]
	}
	g.table, g.delete, g.rows = t, del, 0
	n := len(t.columns)
	if del {
		n = len(t.keys)
	}
	g.columns = slices.Grow(g.columns[:0], n)[:n]
	for i := range g.columns {
		column := t.columns[i]
		if del {
			column = t.columns[t.keys[i]]
		}
		c := &g.columns[i]
		c.name, c.typ, c.null, c.relative = column.name, column.typ, false, 0
		c.data = slices.Grow(c.data[:0], arrayHeader)[:arrayHeader]
		c.marks = slices.Grow(c.marks[:0], arrayHeader)[:arrayHeader]
	}
	r.groups = append(r.groups, g)
	return g
}

// add appends one row; first is the unit's offset from the batch's base.
func (g *rowGroup) add(s *step, first int64) {
	g.rows++
	for i, v := range s.values {
		g.columns[i].add(v, first)
	}
}

func (c *arrayColumn) add(v any, first int64) {
	relative := byte(0)
	switch v := v.(type) {
	case int64:
		c.int(v)
	case int:
		c.int(int64(v))
	case Pos:
		relative = 1
		c.relative++
		c.int(first + int64(v))
	case bool:
		c.data = binary.BigEndian.AppendUint32(c.data, 1)
		if v {
			c.data = append(c.data, 1)
		} else {
			c.data = append(c.data, 0)
		}
	case string:
		c.data = append(binary.BigEndian.AppendUint32(c.data, uint32(len(v))), v...)
	case Text:
		c.data = append(binary.BigEndian.AppendUint32(c.data, uint32(len(v))), v...)
	case []byte:
		if v == nil {
			c.addNull()
			break
		}
		c.data = append(binary.BigEndian.AppendUint32(c.data, uint32(len(v))), v...)
	default:
		c.addNull()
	}
	if c.typ == Int {
		c.marks = append(binary.BigEndian.AppendUint32(c.marks, 1), relative)
	}
}

func (c *arrayColumn) addNull() {
	c.null = true
	c.data = binary.BigEndian.AppendUint32(c.data, 0xffffffff)
}

func (c *arrayColumn) int(v int64) {
	c.data = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(c.data, 8), uint64(v))
}

// Object identifiers of PostgreSQL's built-in types.
const (
	oidBool  = 16
	oidBytea = 17
	oidInt8  = 20
	oidText  = 25
)

func (t ColumnType) postgres() (name string, oid uint32) {
	switch t {
	case Int:
		return "bigint", oidInt8
	case Bool:
		return "boolean", oidBool
	case Searchable, terms:
		return "text", oidText
	}
	return "bytea", oidBytea
}

// array writes the header of a finished array.
func array(data []byte, null bool, oid uint32, rows int) []byte {
	binary.BigEndian.PutUint32(data, 1) // dimensions
	binary.BigEndian.PutUint32(data[4:], 0)
	if null {
		data[7] = 1
	}
	binary.BigEndian.PutUint32(data[8:], oid)
	binary.BigEndian.PutUint32(data[12:], uint32(rows))
	binary.BigEndian.PutUint32(data[16:], 1) // lower bound
	return data
}

// value returns the only value of a column, as PostgreSQL's binary format has it, or nil.
func (c *arrayColumn) value() []byte {
	if c.null {
		return nil
	}
	return c.data[arrayHeader+4:]
}

// mixed reports whether some values count from the base and others do not. (NULL counts as not; it
// stays NULL when something is added to it.)
func (c *arrayColumn) mixed(rows int) bool { return c.relative > 0 && c.relative < rows }

// build returns the statement and its arguments. With a guard, the statement stands alone and commits
// itself: it also notes the batch. If it takes positions, that is in log_head, and it does nothing and has no result if
// another node is named there (the guard is batch and node); else in log_writers, and it fails if that node's epoch has
// moved on (the guard is batch, time, node and epoch). Its result is one row, the base.
func (r *rowStatement) build(guard []any) (string, []any) {
	r.args = append(r.args[:0], guard...)
	if r.positions > 0 {
		r.args = append(r.args, r.positions)
	}
	r.shape = append(r.shape[:0], byte(len(guard)), 0)
	if r.positions > 0 {
		r.shape[1] = 1
	}
	if r.plain {
		r.shape[1] |= 2
	}
	for _, g := range r.groups {
		r.shape = binary.AppendVarint(r.shape, g.table.id)
		if g.delete {
			r.shape = append(r.shape, 'd')
		} else {
			r.shape = append(r.shape, 'a')
		}
		for i := range g.columns {
			c := &g.columns[i]
			if r.plain {
				r.args = append(r.args, c.value())
			} else {
				_, oid := c.typ.postgres()
				r.args = append(r.args, array(c.data, c.null, oid, g.rows))
			}
			switch {
			case c.mixed(g.rows):
				r.args = append(r.args, array(c.marks, false, oidBool, g.rows))
				r.shape = append(r.shape, 'm')
			case c.relative > 0:
				r.shape = append(r.shape, 'r')
			default:
				r.shape = append(r.shape, 'p')
			}
		}
	}
	if text, ok := r.texts[string(r.shape)]; ok {
		return text, r.args
	}
	text := r.text(len(guard) > 0)
	if r.texts == nil || len(r.texts) >= maxTexts {
		r.texts = map[string]string{}
	}
	r.texts[string(r.shape)] = text
	return text, r.args
}

// text writes the statement.
func (r *rowStatement) text(guard bool) string {
	var b strings.Builder
	next := 0
	param := func(typ string) string {
		next++
		return fmt.Sprintf("$%d::%s", next, typ)
	}
	var parts []string
	result := "0::bigint"
	headed := guard && r.positions > 0
	switch {
	case headed:
		batch, node, n := param("bigint"), param("bigint"), param("bigint")
		parts = append(parts, "h AS (UPDATE log_head SET head = head + "+n+", base = head, batch = "+batch+" WHERE id = 1 AND node = "+node+" RETURNING base)")
		result = "base FROM h"
	case guard:
		batch, seen, node, epoch := param("bigint"), param("bigint"), param("bigint"), param("bigint")
		parts = append(parts, "w AS (UPDATE log_writers SET batch = "+batch+", seen = "+seen+" WHERE node = "+node+" AND epoch = "+epoch+" RETURNING 1)")
		// Division by zero undoes the statement when the epoch has moved on.
		result += " / (SELECT count(*) FROM w)"
	case r.positions > 0:
		n := param("bigint")
		parts = append(parts, "h AS (UPDATE log_head SET head = head + "+n+" WHERE id = 1 RETURNING head - "+n+" AS base)")
		result = "base FROM h"
	}
	for i, g := range r.groups {
		parts = append(parts, fmt.Sprintf("t%d AS (%s)", i, g.text(param, r.plain, headed)))
	}
	if len(parts) > 0 {
		b.WriteString("WITH " + strings.Join(parts, ",\n"))
	}
	b.WriteString("\nSELECT " + result)
	return b.String()
}

// text writes the part of one table, whose rows are arrays, or one row of plain values. With head, nothing is done if
// the log was not advanced.
func (g *rowGroup) text(param func(typ string) string, plain, head bool) string {
	var arrays, names, values, from []string
	for i := range g.columns {
		c := &g.columns[i]
		typ, _ := c.typ.postgres()
		name := fmt.Sprintf("c%d", i)
		value := "u." + name
		if plain {
			value = param(typ)
		} else {
			arrays, names = append(arrays, param(typ+"[]")), append(names, name)
		}
		switch {
		case c.mixed(g.rows):
			arrays, names = append(arrays, param("boolean[]")), append(names, "m"+name)
			value += " + CASE WHEN u.m" + name + " THEN h.base ELSE 0 END"
			head = true
		case c.relative > 0:
			value = "h.base + " + value
			head = true
		case c.typ == terms:
			value = "CAST(" + value + " AS tsvector)"
		}
		values = append(values, value)
	}
	if head {
		from = append(from, "h")
	}
	if !plain {
		from = append(from, "unnest("+strings.Join(arrays, ", ")+") AS u("+strings.Join(names, ", ")+")")
	}
	if g.delete {
		return g.deleteText(values, from)
	}
	text := g.table.insertHead() + " SELECT " + strings.Join(values, ", ")
	if len(from) > 0 {
		text += " FROM " + strings.Join(from, ", ")
	}
	return text + g.table.onConflict()
}

func (g *rowGroup) deleteText(values, from []string) string {
	text := "DELETE FROM " + g.table.name + " AS t"
	if len(from) > 0 {
		text += " USING " + strings.Join(from, ", ")
	}
	for i, v := range values {
		and := " AND "
		if i == 0 {
			and = " WHERE "
		}
		text += and + "t." + g.columns[i].name + " = " + v
	}
	return text
}
