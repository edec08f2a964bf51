package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// Dialect names the database engine behind a DB.
type Dialect uint8

// The supported engines.
const (
	SQLite Dialect = iota + 1
	PostgreSQL
)

// String returns the engine's name as used in configuration and test names.
func (d Dialect) String() string {
	switch d {
	case SQLite:
		return "sqlite"
	case PostgreSQL:
		return "postgres"
	}
	return "unknown"
}

var (
	// ErrConflict means that a row with the same key exists already. Errors of Tx and Unit wrap it.
	ErrConflict = errors.New("storage: row exists already")
	// ErrAfter means that the unit named by Unit.After failed, and this one with it.
	ErrAfter = errors.New("storage: an earlier unit that this one was built on failed")
	// ErrFull means that nothing was written, because there is no space on the disk; when there is again, writes succeed.
	ErrFull = errors.New("storage: the disk is full")
	// ErrBroken means that an I/O error stopped all writing; the process must be restarted after
	// the cause (a bad disk) is removed.
	ErrBroken = errors.New("storage: writing stopped after an I/O error")
	// ErrClosed means that the DB was closed before the operation was accepted.
	ErrClosed = errors.New("storage: database is closed")
	// ErrLocked means that another process has the database open.
	ErrLocked = errors.New("storage: another process has this database open")
	// ErrMissing means that there is no database, and that none was to be made.
	ErrMissing = errors.New("storage: there is no database")
	// ErrNewer means that the database was migrated by a newer program.
	ErrNewer = errors.New("storage: database was written by a newer version")
)

// Options say which database to open and how much it may use. Zero values take defaults.
type Options struct {
	// URL is "sqlite:///abs/path.db", a plain file path, or "postgres://…", which must lead to PostgreSQL
	// itself or to a pooler that keeps sessions.
	URL string
	// Exclusive refuses to open a PostgreSQL database that another process has open so, after some seconds in which that
	// may end. A SQLite database always has one process.
	Exclusive bool
	// Existing opens only a database that is there already: nothing is made, and the error is ErrMissing.
	Existing bool
	// Readers bounds concurrent read transactions (default 2×GOMAXPROCS, at least 4 and at most 16,
	// on SQLite; twice that on PostgreSQL, where a reader mostly waits). Connections open on demand.
	Readers int
	// ReadCacheKiB and WriteCacheKiB bound SQLite's page cache per reading connection
	// (default 2048) and of the writing connection (default 8192).
	ReadCacheKiB, WriteCacheKiB int
	// ReadTimeout is how long a Read (or the SQL of one Write) may run before it is interrupted
	// (default 30 s).
	ReadTimeout time.Duration
	// Log gets what an operator should know: that writing stopped or the disk is full, that the server was lost, that a flush
	// took long (default: the standard logger).
	Log logrus.FieldLogger
	// QueueUnits bounds the units waiting for the committer (default 4096). Beyond it, writers block.
	QueueUnits int
}

func (o *Options) setDefaults(d Dialect) {
	if o.Readers <= 0 {
		o.Readers = min(max(4, 2*runtime.GOMAXPROCS(0)), 16)
		if d == PostgreSQL {
			o.Readers *= 2
		}
	}
	if o.ReadCacheKiB <= 0 {
		o.ReadCacheKiB = 2048
	}
	if o.WriteCacheKiB <= 0 {
		o.WriteCacheKiB = 8192
	}
	if o.ReadTimeout <= 0 {
		o.ReadTimeout = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = logrus.StandardLogger()
	}
	if o.QueueUnits <= 0 {
		o.QueueUnits = 4096
	}
}

// DB is an open database. All methods are safe for concurrent use.
type DB struct {
	dialect    Dialect
	engine     engine
	committer  *committer
	generation int64
	head       atomic.Int64
	closed     atomic.Bool
}

// engine is what differs between SQLite and PostgreSQL.
type engine interface {
	// prepare brings the tables of the schemas up to date, all or none, and reads the log's head and generation.
	prepare(schemas []Schema) (head, generation int64, err error)
	// beginRead starts a snapshot; endRead gives its connection back.
	beginRead(ctx context.Context) (*Tx, error)
	endRead(tx *Tx)
	// readOne runs fn, which makes a single query, outside of an explicit transaction.
	readOne(ctx context.Context, fn func(tx *Tx) error) error
	// flush executes the units in order and sets base, err and notices of each. When it returns,
	// every unit without an error is on disk.
	flush(batch []*Unit)
	// maintain is called by the committer after a flush, and with quiet if none followed within
	// quietDelay (0: no need).
	maintain(quiet bool)
	quietDelay() time.Duration
	// led tells whether flush may be called on the goroutines of writers, one at a time; such an engine needs no maintenance.
	led() bool
	// giveUp makes a flush that waits for a lost server answer with an error.
	giveUp()
	// lost is closed when another process has taken the database over; it may be nil.
	lost() <-chan struct{}
	close() error
}

// Open opens the database, creates it if it does not exist (SQLite), and migrates the schemas in
// the given order, storage's own first. It fails with ErrLocked when another process has the
// SQLite file open (or the PostgreSQL database, with Options.Exclusive), and with ErrNewer when a schema is newer than the program.
func Open(ctx context.Context, opt Options, schemas ...Schema) (*DB, error) {
	dialect, location, err := parseURL(opt.URL)
	if err != nil {
		return nil, err
	}
	opt.setDefaults(dialect)
	db := &DB{dialect: dialect}
	if dialect == SQLite {
		db.engine, err = openLite(location, opt)
	} else {
		db.engine, err = openPostgres(ctx, location, opt)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s database: %w", dialect, err)
	}
	if err := db.start(opt, schemas); err != nil {
		db.engine.close()
		return nil, fmt.Errorf("open %s database: %w", dialect, err)
	}
	return db, nil
}

func (db *DB) start(opt Options, schemas []Schema) error {
	head, generation, err := db.engine.prepare(append([]Schema{ownSchema}, schemas...))
	if err != nil {
		return err
	}
	db.generation = generation
	db.head.Store(head)
	db.committer = newCommitter(db, opt)
	return nil
}

// logHead reads where the log ends and which log it is; a new database begins one.
func logHead(tx *Tx) (head, generation int64, err error) {
	candidate, err := randomID()
	if err != nil {
		return 0, 0, err
	}
	_, err = tx.Exec(`INSERT INTO log_head (id, head, generation) VALUES (1, 0, $1) ON CONFLICT DO NOTHING`, candidate)
	if err == nil {
		_, err = tx.Get(`SELECT head, generation FROM log_head WHERE id = 1`, nil, &head, &generation)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read log head: %w", err)
	}
	return head, generation, nil
}

// randomID returns a random positive number.
func randomID() (int64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, err
	}
	return int64(binary.LittleEndian.Uint64(b[:])>>1) | 1, nil
}

// parseURL splits a database URL into its dialect and what the engine wants to know.
func parseURL(url string) (Dialect, string, error) {
	switch {
	case url == "":
		return 0, "", errors.New("storage: empty database URL")
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		return PostgreSQL, url, nil
	case strings.HasPrefix(url, "sqlite://"):
		url = strings.TrimPrefix(url, "sqlite://")
		if url == "" {
			return 0, "", errors.New("storage: sqlite URL without a path")
		}
		return SQLite, url, nil
	case strings.Contains(url, "://"):
		scheme, _, _ := strings.Cut(url, "://")
		return 0, "", fmt.Errorf("storage: unknown database scheme %q (want sqlite or postgres)", scheme)
	}
	return SQLite, url, nil
}

// Dialect tells which engine is behind the DB.
func (db *DB) Dialect() Dialect { return db.dialect }

// Generation is a random number chosen when the database was created. A sync token of another
// generation belongs to another log.
func (db *DB) Generation() int64 { return db.generation }

// Head is the last published position: everything at or below it is on disk and has been seen by
// every subscriber.
func (db *DB) Head() int64 { return db.head.Load() }

// Read runs fn on one consistent snapshot, read only. fn must be short, must not wait for anything
// but its queries, and must not start another Read or Write. The snapshot may be ahead of Head.
func (db *DB) Read(ctx context.Context, fn func(tx *Tx) error) error {
	if db.closed.Load() {
		return ErrClosed
	}
	tx, err := db.engine.beginRead(ctx)
	if err != nil {
		return err
	}
	defer db.engine.endRead(tx)
	if err := fn(tx); err != nil {
		return err
	}
	return tx.failed
}

// ReadOne is Read for a single query, which on PostgreSQL saves the round trip that begins a transaction. fn may run more
// than once.
func (db *DB) ReadOne(ctx context.Context, fn func(tx *Tx) error) error {
	if db.closed.Load() {
		return ErrClosed
	}
	return db.engine.readOne(ctx, func(tx *Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		return tx.failed
	})
}

// Get reads the first row of one query.
func (db *DB) Get(ctx context.Context, sql string, args []any, dest ...any) (found bool, err error) {
	err = db.ReadOne(ctx, func(tx *Tx) (err error) {
		found, err = tx.Get(sql, args, dest...)
		return err
	})
	return found, err
}

// Write runs fn as one all-or-nothing unit and returns once it is on disk and published. fn may run
// more than once. It must touch nothing but tx and its own results, and must not call Read, Write or
// IDs.Next: the committer, which runs it, would wait for itself. If ctx ends before fn started, fn is dropped and the context's error returned; once
// it started it completes, whether or not anyone still waits for the answer.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	return db.committer.write(ctx, fn)
}

// Append hands a unit of rows to the committer and returns as soon as it is queued (it blocks only
// while the queue is full). Its outcome goes to u.Done. The unit must not be touched afterwards.
func (db *DB) Append(u *Unit) {
	db.committer.append(u, false)
}

// Submit is Append for a caller that goes on to wait for the outcome. It must call flush before it waits, at once and
// whatever else happens: if nobody else writes at the time, the unit is written on the caller's goroutine, and others wait
// for that.
func (db *DB) Submit(u *Unit) (flush func()) {
	if db.committer.append(u, true) {
		return db.committer.lead
	}
	return func() {}
}

// Subscribe registers fn to be called with the notices of every batch, in position order, before Head
// advances to head and before the writers of the batch are answered: the place to bring caches and
// indexes up to date. It must be called before the first write. fn runs on the publisher's goroutine: it must be
// quick and must not write or wait, and it must not wake anybody who then looks at Head; for that there is
// Watch.
func (db *DB) Subscribe(fn func(batch []Notice, head int64)) {
	db.committer.subscribers = append(db.committer.subscribers, fn)
}

// Watch registers fn to be called like a subscriber's, but after all subscribers and after Head has advanced
// to head: the place to wake who waits for something new. The writers of the batch are answered after it.
func (db *DB) Watch(fn func(batch []Notice, head int64)) {
	db.committer.watchers = append(db.committer.watchers, fn)
}

// Lost is closed when another process has taken an exclusive database over, which it can while the connections of this one
// are broken. What was read may be outdated then and nothing can be written any more: the process must end.
func (db *DB) Lost() <-chan struct{} { return db.engine.lost() }

// Close refuses new work, flushes what is queued, and closes the database. If ctx ends first, it
// returns the context's error and the database stays open for the flush in progress.
func (db *DB) Close(ctx context.Context) error {
	if db.closed.Swap(true) {
		return nil
	}
	if err := db.committer.close(ctx); err != nil {
		db.engine.giveUp()
		return fmt.Errorf("close database: %w", err)
	}
	return db.engine.close()
}
