package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
)

// Rows is the result of a query:
//
//	rows := tx.Query(…)
//	for rows.Next() {
//		rows.Scan(&a, &b)
//	}
//	if err := rows.Close(); err != nil { … }
//
// An error of the query or of Scan ends the iteration and is returned by Close.
type Rows struct {
	tx   *Tx
	sql  string
	err  error
	done bool

	stmt *liteStmt // SQLite

	pg      *pgConn // PostgreSQL
	pgRows  pgCursor
	current []any
	width   int
}

// open takes the result of starting the query.
func (r *Rows) open(err error) {
	if err != nil {
		r.err = r.tx.fail(r.sql, err)
		r.done = true
	}
}

// Next advances to the next row and reports whether there is one.
func (r *Rows) Next() bool {
	if r.done || r.err != nil {
		return false
	}
	var ok bool
	var err error
	if r.stmt != nil {
		ok, err = r.stmt.next()
	} else {
		ok, err = r.pg.next(r)
	}
	if err != nil {
		r.err = r.tx.fail(r.sql, err)
	}
	r.done = !ok // stepping SQLite again would run the statement again
	return ok
}

// Scan copies the columns of the current row into dest: *string, *[]byte, *json.RawMessage, *int64,
// *int, *bool, **string, **int64, *sql.NullString, *sql.NullInt64, *sql.RawBytes (not copied, valid
// until the next call on the transaction), or nil to skip the column. NULL in a destination that cannot hold
// it is an error. An error is kept for Close as well.
func (r *Rows) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	var err error
	if r.stmt != nil {
		err = r.stmt.scan(dest)
	} else {
		err = scanValues(r.current, dest)
	}
	if err != nil {
		r.err = r.tx.fail(r.sql, err)
	}
	return r.err
}

// Close ends the iteration and returns the first error of the query, of Next or of Scan. It may be
// called more than once.
func (r *Rows) Close() error {
	if r.stmt != nil {
		r.stmt.reset()
		r.stmt = nil
	} else if r.pg != nil {
		if err := r.pg.closeRows(r); err != nil && r.err == nil {
			r.err = r.tx.fail(r.sql, err)
		}
		r.pg = nil
	}
	r.done = true
	return r.err
}

// List returns the first column of all rows of a query; without an error it is never nil.
func List[T int64 | string](tx *Tx, query string, args ...any) ([]T, error) {
	rows := tx.Query(query, args...)
	list := []T{}
	var value T
	for rows.Next() {
		rows.Scan(&value)
		list = append(list, value)
	}
	return list, rows.Close()
}

// ReadList is List in a read of its own.
func ReadList[T int64 | string](ctx context.Context, db *DB, query string, args ...any) (list []T, err error) {
	err = db.ReadOne(ctx, func(tx *Tx) (err error) {
		list, err = List[T](tx, query, args...)
		return err
	})
	return list, err
}

func errNull(column int) error {
	return fmt.Errorf("storage: column %d is NULL", column+1)
}

func errType(column int, t reflect.Type) error {
	return fmt.Errorf("storage: cannot scan column %d into %s", column+1, t)
}

func errColumns(have, want int) error {
	return fmt.Errorf("storage: query has %d columns, Scan asks for %d", have, want)
}

// scanValues copies one row of driver values (int64, bool, []byte, string or nil).
func scanValues(row []any, dest []any) error {
	if len(dest) > len(row) {
		return errColumns(len(row), len(dest))
	}
	for i, d := range dest {
		if err := scanValue(i, row[i], d); err != nil {
			return err
		}
	}
	return nil
}

func scanValue(i int, v any, dest any) error {
	switch d := dest.(type) {
	case nil:
		return nil
	case **string:
		*d = nil
		if v != nil {
			*d = new(string)
			return scanValue(i, v, *d)
		}
		return nil
	case **int64:
		*d = nil
		if v != nil {
			*d = new(int64)
			return scanValue(i, v, *d)
		}
		return nil
	case *sql.NullString:
		*d = sql.NullString{}
		if v != nil {
			d.Valid = true
			return scanValue(i, v, &d.String)
		}
		return nil
	case *sql.NullInt64:
		*d = sql.NullInt64{}
		if v != nil {
			d.Valid = true
			return scanValue(i, v, &d.Int64)
		}
		return nil
	case *[]byte:
		b, err := valueBytes(i, v, dest)
		if b != nil {
			b = append([]byte{}, b...)
		}
		*d = b
		return err
	case *json.RawMessage:
		b, err := valueBytes(i, v, dest)
		if b != nil {
			b = append([]byte{}, b...)
		}
		*d = b
		return err
	case *sql.RawBytes:
		b, err := valueBytes(i, v, dest)
		*d = b
		return err
	}
	if v == nil {
		return errNull(i)
	}
	switch d := dest.(type) {
	case *string:
		b, err := valueBytes(i, v, dest)
		*d = string(b)
		return err
	case *int64:
		n, ok := valueInt(v)
		if !ok {
			return errType(i, reflect.TypeOf(dest))
		}
		*d = n
	case *int:
		n, ok := valueInt(v)
		if !ok {
			return errType(i, reflect.TypeOf(dest))
		}
		*d = int(n)
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return errType(i, reflect.TypeOf(dest))
		}
		*d = b
	default:
		return errType(i, reflect.TypeOf(dest))
	}
	return nil
}

// valueInt reads a number. PostgreSQL's sum() of BIGINT is a NUMERIC, which comes as text, and a condition is a
// BOOLEAN, which SQLite does not know.
func valueInt(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case []byte:
		n, err := strconv.ParseInt(string(v), 10, 64)
		return n, err == nil
	}
	return 0, false
}

func valueBytes(i int, v any, dest any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []byte:
		return v, nil
	case string:
		return []byte(v), nil
	}
	return nil, errType(i, reflect.TypeOf(dest))
}
