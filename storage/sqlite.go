package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// lite is the SQLite engine: one writing connection used by the committer alone, and a pool of
// reading connections that open on demand.
type lite struct {
	path string
	opt  Options
	lock *os.File

	writer *liteConn
	head   int64 // last committed position; owned by the committer
	broken error // why writing stopped; owned by the committer

	slots chan struct{} // one token per reader in use
	mu    sync.Mutex
	free  []*liteConn // most recently used last, so that few stay warm

	puts keySet

	gate      gate
	interrupt atomic.Bool // readers must end now
	wal       walState    // owned by the committer, as are the next two
	walFile   *walFile    // the writing connection's
	full      fullDisk
}

func openLite(path string, opt Options) (*lite, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); opt.Existing && (errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0) {
		return nil, fmt.Errorf("%w (%s)", ErrMissing, path)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	if err := createPrivate(path); err != nil {
		lock.Close()
		return nil, err
	}
	s := &lite{
		path: path, opt: opt, lock: lock, slots: make(chan struct{}, opt.Readers),
		full: fullDisk{path: path, log: opt.Log, pause: fullPause},
	}
	s.writer, err = openLiteConn(path, sqlite3.OPEN_READWRITE|sqlite3.OPEN_CREATE, opt.ReadTimeout)
	if info, statErr := os.Stat(path); err == nil && statErr == nil && info.Size() == 0 {
		err = s.createHeader()
	}
	if err == nil {
		err = s.writer.pragmas(
			"journal_mode = WAL",
			"synchronous = FULL",
			"foreign_keys = OFF",
			"wal_autocheckpoint = 0",
			fmt.Sprintf("cache_size = -%d", opt.WriteCacheKiB),
			"temp_store = MEMORY",
		)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.writer.c.WALHook(func(_ *sqlite3.Conn, _ string, pages int) error {
		s.wal.grown(pages)
		return nil
	})
	return s, nil
}

// createHeader gives a new database its first page. Nothing is in it yet, so neither a journal nor SQLite's syncs of both
// need protect it; but it must be on disk before the first commit is, for SQLite deletes the WAL of an empty file.
func (s *lite) createHeader() error {
	// What is deleted can be given back (Shrink). Said of a file with a WAL, it keeps other connections from opening it.
	err := s.writer.pragmas("page_size = 4096", "auto_vacuum = INCREMENTAL", "synchronous = OFF", "journal_mode = MEMORY", "journal_mode = WAL")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// createPrivate creates the database file if need be, for its owner alone. SQLite gives the WAL the same mode.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// syncFolder makes the names of the database and its WAL as durable as their content.
func (s *lite) syncFolder() error {
	if runtime.GOOS == "windows" {
		return nil // folders cannot be synced there
	}
	d, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (s *lite) openReader() (*liteConn, error) {
	c, err := openLiteConn(s.path, sqlite3.OPEN_READWRITE, s.opt.ReadTimeout)
	if err != nil {
		return nil, err
	}
	c.watch.stop = &s.interrupt
	err = c.pragmas(
		"query_only = ON",
		fmt.Sprintf("cache_size = -%d", s.opt.ReadCacheKiB),
		"temp_store = MEMORY",
		"wal_autocheckpoint = 0",
	)
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// acquire takes a reading connection from the pool, opening one if none is free.
func (s *lite) acquire(ctx context.Context) (*liteConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s.slots <- struct{}{}:
	default:
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c, err := s.pick(ctx)
	if err != nil {
		<-s.slots
	}
	return c, err
}

func (s *lite) pick(ctx context.Context) (*liteConn, error) {
	if err := s.gate.enter(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if n := len(s.free); n > 0 {
		c := s.free[n-1]
		s.free = s.free[:n-1]
		s.mu.Unlock()
		return c, nil
	}
	s.mu.Unlock()
	c, err := s.openReader()
	if err != nil {
		s.gate.leave()
		return nil, fmt.Errorf("open reading connection: %w", err)
	}
	return c, nil
}

func (s *lite) release(c *liteConn) {
	s.mu.Lock()
	s.free = append(s.free, c)
	s.mu.Unlock()
	s.gate.leave()
	<-s.slots
}

const (
	keepReaders = 2
	readerIdle  = 30 * time.Second
)

// trim closes readers that a burst opened and nobody has used for a while, for their caches' sake.
func (s *lite) trim() {
	s.mu.Lock()
	n := 0
	for n < len(s.free)-keepReaders && time.Since(s.free[n].watch.since) > readerIdle {
		n++
	}
	idle := append([]*liteConn(nil), s.free[:n]...)
	s.free = slices.Delete(s.free, 0, n) // the least recently used come first
	s.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
}

func (s *lite) beginRead(ctx context.Context) (*Tx, error) {
	c, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	c.watch.arm(ctx)
	if err := c.control("BEGIN"); err != nil {
		c.watch.disarm()
		s.release(c)
		return nil, fmt.Errorf("begin read: %w", err)
	}
	return &Tx{ctx: ctx, lite: c}, nil
}

func (s *lite) endRead(tx *Tx) {
	tx.over = true
	c := tx.lite
	c.watch.disarm()
	c.resetAll()
	if err := c.control("ROLLBACK"); err != nil {
		// A connection whose transaction cannot be ended would pin the WAL.
		c.close()
		s.gate.leave()
		<-s.slots
		return
	}
	s.release(c)
}

func (s *lite) readOne(ctx context.Context, fn func(tx *Tx) error) error {
	c, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	c.watch.arm(ctx)
	tx := &Tx{ctx: ctx, lite: c}
	defer func() {
		tx.over = true
		c.watch.disarm()
		c.resetAll()
		s.release(c)
	}()
	return fn(tx)
}

// prepare does everything in one transaction: a new database is there after one sync instead of one for each step, and
// a failed upgrade leaves what the program before it can open.
func (s *lite) prepare(schemas []Schema) (head, generation int64, err error) {
	c := s.writer
	if err := c.control("BEGIN IMMEDIATE"); err != nil {
		return 0, 0, err
	}
	err = migrateLite(c, schemas)
	if err == nil {
		head, generation, err = logHead(&Tx{lite: c, write: true})
	}
	if err == nil {
		err = c.control("COMMIT")
	}
	if err == nil {
		err = s.syncFolder() // the WAL exists now
	}
	if err == nil {
		err = s.openWAL()
	}
	if err != nil && !c.c.GetAutocommit() { // some failures end the transaction themselves
		err = errors.Join(err, c.control("ROLLBACK"))
	}
	s.head = head
	return head, generation, err
}

// migrateLite applies what is pending, within a transaction.
func migrateLite(c *liteConn, schemas []Schema) error {
	tx := &Tx{lite: c, write: true}
	if err := c.c.Exec(`CREATE TABLE IF NOT EXISTS schema_versions (feature BLOB PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID`); err != nil {
		return err
	}
	steps, err := pendingSteps(tx, schemas)
	if err != nil {
		return err
	}
	for _, step := range steps {
		err := c.c.Exec(translate(step.sql, SQLite))
		if err == nil {
			_, err = tx.Exec(noteVersion, step.feature, step.version)
		}
		if err != nil {
			return step.wrap(err)
		}
	}
	return nil
}

func (s *lite) giveUp() {}

// lost is nil: the kernel takes the file's lock from nobody.
func (s *lite) lost() <-chan struct{} { return nil }

// closePatience is how long close waits for reads in progress.
const closePatience = 2 * time.Second

func (s *lite) close() error {
	var errs []error
	s.gate.shutDown(closePatience)
	s.mu.Lock()
	for _, c := range s.free {
		errs = append(errs, c.close())
	}
	s.free = nil
	s.mu.Unlock()
	if s.writer != nil {
		if s.broken == nil {
			_, _, err := s.writer.c.WALCheckpoint("", sqlite3.CHECKPOINT_TRUNCATE)
			if !refused(err) { // else the WAL keeps it all
				errs = append(errs, err)
			}
		}
		errs = append(errs, s.writer.close())
	}
	errs = append(errs, s.lock.Close())
	return errors.Join(errs...)
}
