package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/ext/fts5"
)

// maxStatements bounds the prepared statements a connection keeps.
const maxStatements = 256

// liteConn is one SQLite connection with its prepared statements. Used by one goroutine at a time.
type liteConn struct {
	c     *sqlite3.Conn
	watch watch
	stmts map[string]*liteStmt
	clock uint64
	open  []*liteStmt // statements being iterated
}

// liteStmt is a prepared statement.
type liteStmt struct {
	conn     *liteConn
	s        *sqlite3.Stmt
	params   int
	columns  int
	readOnly bool
	busy     bool
	cached   bool
	used     uint64 // conn.clock at last use
}

func openLiteConn(path string, flags sqlite3.OpenFlag, timeout time.Duration) (*liteConn, error) {
	// modeof gives the WAL the database's file mode. SQLite knows no "+" for a space.
	slashed := filepath.ToSlash(path)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // C:/… on Windows
	}
	uri := url.URL{Scheme: "file", OmitHost: true, Path: slashed, RawQuery: "vfs=" + liteVFS + "&modeof=" + strings.ReplaceAll(url.QueryEscape(path), "+", "%20")}
	c, err := sqlite3.OpenFlags(uri.String(), flags|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	if err := fts5.Register(c); err != nil {
		c.Close()
		return nil, err
	}
	// Plans do not depend on parameters. Otherwise SQLite, to look at the value, compiles a query that has a parameter
	// for its LIMIT whenever it is run.
	if _, err := c.Config(sqlite3.DBCONFIG_ENABLE_QPSG, true); err != nil {
		c.Close()
		return nil, err
	}
	conn := &liteConn{c: c, stmts: map[string]*liteStmt{}}
	conn.watch.limit = timeout
	c.SetInterrupt(&conn.watch)
	if err := c.BusyTimeout(5 * time.Second); err != nil {
		c.Close()
		return nil, err
	}
	return conn, nil
}

func (c *liteConn) pragmas(list ...string) error {
	for _, p := range list {
		if err := c.c.Exec("PRAGMA " + p); err != nil {
			return fmt.Errorf("pragma %s: %w", p, err)
		}
	}
	return nil
}

// watch interrupts a connection's SQL after a time limit or when the reader's context ends. SQLite
// asks Err before each step and every thousand instructions within one, so it costs a counter and no
// goroutine. It is a context.Context because the driver wants one.
type watch struct {
	limit time.Duration
	since time.Time       // when it was last armed
	ctx   context.Context // nil: not armed
	stop  *atomic.Bool    // the WAL is too long: end now; nil for the writer
	calls uint32
}

func (w *watch) arm(ctx context.Context) {
	w.ctx, w.since, w.calls = ctx, time.Now(), 0
}

func (w *watch) disarm() { w.ctx = nil }

// Err is asked by the driver whether to interrupt.
func (w *watch) Err() error {
	if w.ctx == nil {
		return nil
	}
	if w.calls++; w.calls%32 != 0 {
		return nil
	}
	if time.Since(w.since) > w.limit || w.stop != nil && w.stop.Load() {
		return context.DeadlineExceeded
	}
	return w.ctx.Err()
}

// Deadline, Done and Value complete context.Context; the driver does not use them.
func (w *watch) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// Done returns nil: nobody can wait for a watch.
func (w *watch) Done() <-chan struct{} { return nil }

// Value returns nil.
func (w *watch) Value(any) any { return nil }

// prepare returns a ready statement, from the cache if possible.
func (c *liteConn) prepare(sql string) (*liteStmt, error) {
	c.clock++
	st := c.stmts[sql]
	if st != nil && !st.busy {
		st.used = c.clock
		return st, nil
	}
	s, tail, err := c.c.PrepareFlags(sqlitePlaceholders(sql), sqlite3.PREPARE_PERSISTENT)
	if err != nil {
		return nil, c.wrap(err)
	}
	if s == nil || hasSQL(tail) {
		s.Close()
		return nil, errors.New("storage: want exactly one SQL statement")
	}
	fresh := &liteStmt{conn: c, s: s, params: s.BindCount(), columns: s.ColumnCount(), readOnly: s.ReadOnly(), used: c.clock}
	if st == nil { // else the same text is being iterated: a second copy lives until reset
		c.evict()
		fresh.cached = true
		c.stmts[sql] = fresh
	}
	return fresh, nil
}

func hasSQL(tail string) bool {
	for i := range len(tail) {
		switch tail[i] {
		case ' ', '\t', '\r', '\n', ';':
		default:
			return true
		}
	}
	return false
}

// evict makes room for one more statement.
func (c *liteConn) evict() {
	if len(c.stmts) < maxStatements {
		return
	}
	var oldest *liteStmt
	var key string
	for k, st := range c.stmts {
		if !st.busy && (oldest == nil || st.used < oldest.used) {
			oldest, key = st, k
		}
	}
	if oldest != nil {
		delete(c.stmts, key)
		oldest.s.Close()
	}
}

// control runs a statement without parameters or result, such as BEGIN.
func (c *liteConn) control(sql string) error {
	st, err := c.prepare(sql)
	if err != nil {
		return err
	}
	return c.wrap(st.s.Exec())
}

// query starts a query for rows.
func (c *liteConn) query(rows *Rows, args []any) error {
	st, err := c.prepare(rows.sql)
	if err != nil {
		return err
	}
	if err := st.bind(args, 0); err != nil {
		return err
	}
	st.busy = true
	c.open = append(c.open, st)
	rows.stmt = st
	return nil
}

func (c *liteConn) exec(sql string, args []any) (int64, error) {
	st, err := c.prepare(sql)
	if err != nil {
		return 0, err
	}
	if err := st.bind(args, 0); err != nil {
		return 0, err
	}
	return st.run()
}

// run executes a bound statement and returns the rows it changed. (For a statement that changes no rows by
// nature, such as CREATE TABLE, SQLite reports those of the statement before it.)
func (s *liteStmt) run() (int64, error) {
	if err := s.s.Exec(); err != nil {
		return 0, s.conn.wrap(err)
	}
	if s.readOnly {
		return 0, nil
	}
	return s.conn.c.Changes(), nil
}

// bind sets the parameters; base is what Pos values count from.
func (s *liteStmt) bind(args []any, base int64) error {
	if len(args) != s.params {
		return fmt.Errorf("storage: statement has %d parameters, got %d arguments", s.params, len(args))
	}
	for i, arg := range args {
		if err := s.bindOne(i+1, arg, base); err != nil {
			return err
		}
	}
	return nil
}

func (s *liteStmt) bindOne(i int, arg any, base int64) error {
	switch v := arg.(type) {
	case nil:
		return s.s.BindNull(i)
	case int64:
		return s.s.BindInt64(i, v)
	case int:
		return s.s.BindInt64(i, int64(v))
	case Pos:
		return s.s.BindInt64(i, base+int64(v))
	case bool:
		return s.s.BindBool(i, v)
	case string:
		return s.s.BindBlob(i, unsafe.Slice(unsafe.StringData(v), len(v))) // copied by SQLite
	case []byte:
		if v == nil {
			return s.s.BindNull(i)
		}
		return s.s.BindBlob(i, v)
	case json.RawMessage:
		if v == nil {
			return s.s.BindNull(i)
		}
		return s.s.BindBlob(i, v)
	case Text:
		return s.s.BindText(i, string(v))
	case *string:
		if v == nil {
			return s.s.BindNull(i)
		}
		return s.bindOne(i, *v, 0)
	case *int64:
		if v == nil {
			return s.s.BindNull(i)
		}
		return s.s.BindInt64(i, *v)
	case sql.NullInt64:
		if !v.Valid {
			return s.s.BindNull(i)
		}
		return s.s.BindInt64(i, v.Int64)
	case sql.NullString:
		if !v.Valid {
			return s.s.BindNull(i)
		}
		return s.bindOne(i, v.String, 0)
	}
	return errArgument(i, reflect.TypeOf(arg))
}

func errArgument(i int, t reflect.Type) error {
	return fmt.Errorf("storage: argument %d has type %s; convert it to string, []byte, int64, bool or storage.Text", i, t)
}

// next steps to the next row.
func (s *liteStmt) next() (bool, error) {
	if s.s.Step() {
		return true, nil
	}
	return false, s.conn.wrap(s.s.Err())
}

// reset ends an iteration.
func (s *liteStmt) reset() {
	if !s.busy {
		return
	}
	s.busy = false
	open := s.conn.open
	for i := range open {
		if open[i] == s {
			last := len(open) - 1
			open[i] = open[last]
			open[last] = nil
			s.conn.open = open[:last]
			break
		}
	}
	if s.cached {
		_ = s.s.Reset() // it repeats the error of the last step
	} else {
		s.s.Close()
	}
}

// resetAll ends iterations that a function left open.
func (c *liteConn) resetAll() {
	for len(c.open) > 0 {
		c.open[len(c.open)-1].reset()
	}
}

// scan copies the current row.
func (s *liteStmt) scan(dest []any) error {
	if len(dest) > s.columns {
		return errColumns(s.columns, len(dest))
	}
	for i, d := range dest {
		if err := s.scanOne(i, d); err != nil {
			return err
		}
	}
	return nil
}

// scanOne reads one column. NULL reads as zero or as no bytes, so only then its type is looked at.
func (s *liteStmt) scanOne(i int, dest any) error {
	switch d := dest.(type) {
	case nil:
	case *int64:
		*d = s.s.ColumnInt64(i)
		if *d == 0 && s.null(i) {
			return errNull(i)
		}
	case *int:
		*d = int(s.s.ColumnInt64(i))
		if *d == 0 && s.null(i) {
			return errNull(i)
		}
	case *bool:
		*d = s.s.ColumnInt64(i) != 0
		if !*d && s.null(i) {
			return errNull(i)
		}
	case *string:
		b := s.s.ColumnRawBlob(i)
		if len(b) == 0 && s.null(i) {
			return errNull(i)
		}
		*d = string(b)
	case *[]byte:
		*d = s.bytes(i)
	case *json.RawMessage:
		*d = s.bytes(i)
	case *sql.RawBytes:
		b := s.s.ColumnRawBlob(i)
		if len(b) == 0 && !s.null(i) {
			b = []byte{}
		}
		*d = b
	case **string:
		*d = nil
		if !s.null(i) {
			v := string(s.s.ColumnRawBlob(i))
			*d = &v
		}
	case **int64:
		*d = nil
		if !s.null(i) {
			v := s.s.ColumnInt64(i)
			*d = &v
		}
	case *sql.NullString:
		*d = sql.NullString{Valid: !s.null(i)}
		if d.Valid {
			d.String = string(s.s.ColumnRawBlob(i))
		}
	case *sql.NullInt64:
		*d = sql.NullInt64{Valid: !s.null(i)}
		if d.Valid {
			d.Int64 = s.s.ColumnInt64(i)
		}
	default:
		return errType(i, reflect.TypeOf(dest))
	}
	return nil
}

func (s *liteStmt) null(i int) bool { return s.s.ColumnType(i) == sqlite3.NULL }

// bytes copies a column: nil for NULL, empty for an empty blob.
func (s *liteStmt) bytes(i int) []byte {
	b := s.s.ColumnRawBlob(i)
	if len(b) == 0 {
		if s.null(i) {
			return nil
		}
		return []byte{}
	}
	return append([]byte(nil), b...)
}

// wrap turns SQLite's errors into the package's where callers ask for them.
func (c *liteConn) wrap(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sqlite3.CONSTRAINT_PRIMARYKEY) || errors.Is(err, sqlite3.CONSTRAINT_UNIQUE) || errors.Is(err, sqlite3.CONSTRAINT_ROWID) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	if errors.Is(err, sqlite3.INTERRUPT) && c.watch.ctx != nil {
		if ctxErr := c.watch.ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		return fmt.Errorf("storage: interrupted (a transaction may run for %s): %w", c.watch.limit, context.DeadlineExceeded)
	}
	return err
}

func (c *liteConn) close() error {
	for _, st := range c.stmts {
		st.s.Close()
	}
	return c.c.Close()
}
