package storage

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// pgConn is one PostgreSQL connection with its prepared statements. Used by one goroutine at a time.
// It talks to lib/pq below database/sql, whose pool would lose the prepared statements.
type pgConn struct {
	c      pgDriverConn
	uses   int
	bad    bool // the connection is lost
	active *Rows
	args   []driver.NamedValue
	values []driver.Value

	clock uint64
	stmts map[string]*pgStmt
	seen  map[string]struct{} // statements run once, not yet worth preparing
}

type pgDriverConn interface {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
}

type pgStmt struct {
	s interface {
		driver.Stmt
		driver.StmtQueryContext
		driver.StmtExecContext
	}
	used uint64
}

// pgCursor is what a query returned: rows still on the wire, or taken into memory because another
// statement had to run before they were read.
type pgCursor struct {
	wire   driver.Rows
	buffer [][]any
}

func dialPostgres(ctx context.Context, to *pgTarget) (*pgConn, error) {
	c, err := to.Connect(ctx)
	if err != nil {
		return nil, err
	}
	dc, ok := c.(pgDriverConn)
	if !ok {
		c.Close()
		return nil, errors.New("storage: driver without QueryContext")
	}
	if _, err := dc.ExecContext(ctx, to.settings, nil); err != nil {
		c.Close()
		return nil, fmt.Errorf("settings of the session: %w", err)
	}
	return &pgConn{c: dc, stmts: map[string]*pgStmt{}, seen: map[string]struct{}{}}, nil
}

// background is given to the driver instead of the caller's context: watching one costs lib/pq a
// goroutine per query. statement_timeout bounds what a hung query can do.
var background = context.Background()

// simple runs statements without parameters or results.
func (c *pgConn) simple(sql string) error {
	_, err := c.simpleCount(sql)
	return err
}

// rollback ends a transaction that failed. A connection that cannot do even that is not used again.
func (c *pgConn) rollback() {
	if err := c.simple("ROLLBACK"); err != nil {
		c.bad = true
	}
}

// simpleCount is simple, and returns the number of rows the last of the statements changed.
func (c *pgConn) simpleCount(sql string) (int64, error) {
	c.uses++
	if err := c.drain(true); err != nil {
		return 0, err
	}
	res, err := c.c.ExecContext(background, sql, nil)
	if err != nil {
		return 0, c.wrap(err)
	}
	return affected(res), nil
}

// affected is how many rows a statement changed; 0 if it is one without a count.
func affected(res driver.Result) int64 {
	n, err := res.RowsAffected()
	if err != nil {
		return 0
	}
	return n
}

// prepare returns the prepared statement of a text that is run for the second time or later, else nil:
// the first time, a statement without a name saves a round trip.
func (c *pgConn) prepare(sql string) (*pgStmt, error) {
	c.clock++
	if st := c.stmts[sql]; st != nil {
		st.used = c.clock
		return st, nil
	}
	if _, again := c.seen[sql]; !again {
		if len(c.seen) >= 4*maxStatements {
			clear(c.seen)
		}
		c.seen[sql] = struct{}{}
		return nil, nil
	}
	if err := c.evict(); err != nil {
		return nil, err
	}
	s, err := c.c.Prepare(sql)
	if err != nil {
		return nil, err
	}
	st := &pgStmt{used: c.clock}
	st.s = s.(interface {
		driver.Stmt
		driver.StmtQueryContext
		driver.StmtExecContext
	})
	c.stmts[sql] = st
	return st, nil
}

func (c *pgConn) evict() error {
	if len(c.stmts) < maxStatements {
		return nil
	}
	var oldest *pgStmt
	var key string
	for k, st := range c.stmts {
		if oldest == nil || st.used < oldest.used {
			oldest, key = st, k
		}
	}
	delete(c.stmts, key)
	return oldest.s.Close()
}

// query starts a query for rows.
func (c *pgConn) query(rows *Rows, args []any) error {
	c.uses++
	if err := c.drain(true); err != nil {
		return err
	}
	if err := c.setArgs(args); err != nil {
		return err
	}
	st, err := c.prepare(rows.sql)
	if err != nil {
		return c.wrap(err)
	}
	var wire driver.Rows
	if st != nil {
		wire, err = st.s.QueryContext(background, c.args)
	} else {
		wire, err = c.c.QueryContext(background, rows.sql, c.args)
	}
	if err != nil {
		return c.wrap(err)
	}
	rows.pg = c
	rows.pgRows.wire = wire
	n := len(wire.Columns())
	if cap(c.values) < n {
		c.values = make([]driver.Value, n)
	}
	rows.width = n
	c.active = rows
	return nil
}

func (c *pgConn) exec(sql string, args []any) (int64, error) {
	c.uses++
	if err := c.drain(true); err != nil {
		return 0, err
	}
	if err := c.setArgs(args); err != nil {
		return 0, err
	}
	st, err := c.prepare(sql)
	if err != nil {
		return 0, c.wrap(err)
	}
	var res driver.Result
	if st != nil {
		res, err = st.s.ExecContext(background, c.args)
	} else {
		res, err = c.c.ExecContext(background, sql, c.args)
	}
	if err != nil {
		return 0, c.wrap(err)
	}
	return affected(res), nil
}

// allocate takes n positions and returns the one before them. The row stays locked until the commit.
func (c *pgConn) allocate(n int64) (base int64, err error) {
	rows := &Rows{sql: `UPDATE log_head SET head = head + $1 WHERE id = 1 RETURNING head - $1`}
	if err := c.query(rows, []any{n}); err != nil {
		return 0, err
	}
	if ok, err := c.next(rows); !ok {
		return 0, errors.Join(errors.New("storage: log_head is empty"), err)
	}
	if err := scanValues(rows.current, []any{&base}); err != nil {
		return 0, err
	}
	return base, c.closeRows(rows)
}

func (c *pgConn) lock(name string) error {
	_, err := c.exec(`SELECT pg_advisory_xact_lock(hashtextextended(encode($1::bytea, 'hex'), 1))`, []any{name})
	return err
}

// setArgs converts arguments to driver values, without letting them escape.
func (c *pgConn) setArgs(args []any) error {
	c.args = c.args[:0]
	for i, arg := range args {
		v, err := pgValue(i+1, arg)
		if err != nil {
			return err
		}
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return nil
}

func pgValue(i int, arg any) (driver.Value, error) {
	switch v := arg.(type) {
	case nil:
		return nil, nil
	case int64:
		return v, nil
	case int:
		return int64(v), nil
	case bool:
		return v, nil
	case string:
		return []byte(v), nil
	case []byte:
		if v == nil {
			return nil, nil
		}
		return v, nil
	case json.RawMessage:
		if v == nil {
			return nil, nil
		}
		return []byte(v), nil
	case Text:
		return string(v), nil
	case *string:
		if v == nil {
			return nil, nil
		}
		return []byte(*v), nil
	case *int64:
		if v == nil {
			return nil, nil
		}
		return *v, nil
	case sql.NullInt64:
		if !v.Valid {
			return nil, nil
		}
		return v.Int64, nil
	case sql.NullString:
		if !v.Valid {
			return nil, nil
		}
		return []byte(v.String), nil
	}
	return nil, errArgument(i, reflect.TypeOf(arg))
}

// next advances rows.
func (c *pgConn) next(rows *Rows) (bool, error) {
	cur := &rows.pgRows
	if cur.wire == nil {
		if len(cur.buffer) == 0 {
			return false, nil
		}
		rows.current, cur.buffer = cur.buffer[0], cur.buffer[1:]
		return true, nil
	}
	values := c.values[:rows.width]
	switch err := cur.wire.Next(values); err {
	case nil:
		rows.current = rows.current[:0]
		for _, v := range values {
			rows.current = append(rows.current, v)
		}
		return true, nil
	case io.EOF: //nolint:errorlint // a driver ends with io.EOF itself; wrapped, it would be a lost connection
		return false, c.closeRows(rows)
	default:
		_ = c.closeRows(rows) // err says it already
		return false, c.wrap(err)
	}
}

// drain makes the connection ready for another statement. Rows that are still being read are taken
// into memory if keep, else dropped.
func (c *pgConn) drain(keep bool) error {
	rows := c.active
	if rows == nil {
		return nil
	}
	if !keep {
		return c.closeRows(rows)
	}
	current := append([]any(nil), rows.current...)
	for i, v := range current {
		if b, ok := v.([]byte); ok {
			current[i] = append([]byte{}, b...)
		}
	}
	var buffer [][]any
	for {
		ok, err := c.next(rows)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		row := append([]any(nil), rows.current...)
		for i, v := range row {
			if b, ok := v.([]byte); ok {
				row[i] = append([]byte{}, b...) // the driver reuses its memory
			}
		}
		buffer = append(buffer, row)
	}
	rows.current, rows.pgRows.buffer = current, buffer
	return nil
}

func (c *pgConn) closeRows(rows *Rows) error {
	wire := rows.pgRows.wire
	rows.pgRows.wire = nil
	if c.active == rows {
		c.active = nil
	}
	if wire == nil {
		return nil
	}
	return c.wrap(wire.Close())
}

// wrap turns PostgreSQL's errors into the package's where callers ask for them, and notices when the
// connection is lost.
func (c *pgConn) wrap(err error) error {
	if err == nil {
		return nil
	}
	var e *pq.Error
	if !errors.As(err, &e) {
		c.bad = true
		return fmt.Errorf("postgres connection: %w", err)
	}
	if e.Severity == pqerror.SeverityFatal || e.Severity == pqerror.SeverityPanic {
		c.bad = true
	}
	switch e.Code {
	case pqerror.UniqueViolation:
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case pqerror.QueryCanceled:
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

func (c *pgConn) close() { c.c.Close() }
