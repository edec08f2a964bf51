package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// disk is a file system on which calls can be made to fail.
type disk struct {
	vfs.VFSFilename

	mu    sync.Mutex
	fault fault
	calls int
	hits  int
}

// fault says which calls fail.
type fault struct {
	call  string // "wal write", "wal sync", "database write", …; empty: none
	after int    // so many succeed first
	short bool   // a failing write writes half
}

// useDisk puts a disk below all databases that the test opens.
func useDisk(t *testing.T) *disk {
	t.Helper()
	system := vfs.Find("os").(vfs.VFSFilename)
	d := &disk{VFSFilename: system}
	vfs.Register(liteVFS, liteFS{d})
	t.Cleanup(func() { vfs.Register(liteVFS, liteFS{system}) })
	return d
}

func (d *disk) set(f fault) (hits int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hits = d.hits
	d.fault, d.calls, d.hits = f, 0, 0
	return hits
}

func (d *disk) fails(call string) (fails, short bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if call != d.fault.call {
		return false, false
	}
	if d.calls++; d.calls <= d.fault.after {
		return false, false
	}
	d.hits++
	return true, d.fault.short
}

// OpenFilename opens a file that can fail.
func (d *disk) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, out, err := d.VFSFilename.OpenFilename(name, flags)
	switch {
	case err != nil:
	case flags&vfs.OPEN_WAL != 0:
		f = walOnDisk{f, d}
	case flags&vfs.OPEN_MAIN_DB != 0:
		f = databaseOnDisk{f.(databaseFile), d}
	}
	return f, out, err
}

func (d *disk) write(f io.WriterAt, name string, p []byte, off int64) (int, error) {
	fails, short := d.fails(name + " write")
	if !fails {
		return f.WriteAt(p, off)
	}
	n := 0
	if short {
		n, _ = f.WriteAt(p[:len(p)/2], off)
	}
	return n, &fs.PathError{Op: "write", Path: name, Err: noSpace[0]}
}

func (d *disk) sync(f vfs.File, name string, flags vfs.SyncFlag) error {
	if fails, _ := d.fails(name + " sync"); fails {
		return noSpace[0]
	}
	return f.Sync(flags)
}

func (d *disk) truncate(f vfs.File, name string, size int64) error {
	if fails, _ := d.fails(name + " truncate"); fails {
		return &fs.PathError{Op: "truncate", Path: name, Err: noSpace[0]}
	}
	return f.Truncate(size)
}

type walOnDisk struct {
	vfs.File
	disk *disk
}

func (f walOnDisk) WriteAt(p []byte, off int64) (int, error) {
	return f.disk.write(f.File, "wal", p, off)
}
func (f walOnDisk) Sync(flags vfs.SyncFlag) error { return f.disk.sync(f.File, "wal", flags) }
func (f walOnDisk) Truncate(size int64) error     { return f.disk.truncate(f.File, "wal", size) }

type databaseOnDisk struct {
	databaseFile
	disk *disk
}

func (f databaseOnDisk) WriteAt(p []byte, off int64) (int, error) {
	return f.disk.write(f.databaseFile, "database", p, off)
}
func (f databaseOnDisk) Sync(flags vfs.SyncFlag) error {
	return f.disk.sync(f.databaseFile, "database", flags)
}
func (f databaseOnDisk) Truncate(size int64) error {
	return f.disk.truncate(f.databaseFile, "database", size)
}

// ledger is a database and what it has acknowledged.
type ledger struct {
	t     *testing.T
	db    *DB
	path  string
	log   *logtest.Hook
	rows  map[int64]int // the length of each acknowledged blob
	notes int64         // acknowledged positions
}

func openLedger(t *testing.T) *ledger {
	t.Helper()
	l := &ledger{t: t, path: filepath.Join(t.TempDir(), "x.db"), rows: map[int64]int{}}
	l.open()
	return l
}

var ledgerSchema = Schema{Feature: "test", FS: fstest.MapFS{"migrations/0001_a.sql": {Data: []byte(
	"CREATE TABLE blobs (id BIGINT PRIMARY KEY, data BYTEA); CREATE TABLE notes (pos BIGINT PRIMARY KEY);")}}}

var notes = DeclareTable("notes", Insert, Key("pos", Int))

func (l *ledger) open() {
	l.t.Helper()
	var log *logrus.Logger
	log, l.log = logtest.NewNullLogger()
	db, err := Open(l.t.Context(), Options{URL: l.path, WriteCacheKiB: 64, Log: log}, ledgerSchema)
	if err != nil {
		l.t.Fatal(err)
	}
	l.db = db
	db.engine.(*lite).full.pause = 0
	l.t.Cleanup(func() { db.Close(context.Background()) })
}

// put writes blobs in one unit, with a position, and notes what was acknowledged.
func (l *ledger) put(size int, ids ...int64) error {
	done := make(chan error, 1)
	u := &Unit{Positions: 1, Done: func(_ int64, err error) { done <- err }}
	for _, id := range ids {
		u.Add(blobs, id, make([]byte, size))
	}
	u.Add(notes, Pos(1))
	l.db.Append(u)
	err := <-done
	if err == nil {
		l.notes++
		for _, id := range ids {
			l.rows[id] = size
		}
	}
	return err
}

// rewrite writes blobs again and again in one unit that does not fit into the cache, so that its own frames are overwritten.
func (l *ledger) rewrite() error {
	const count, last = 60, 3000
	err := l.db.Write(l.t.Context(), func(tx *Tx) error {
		for size := range 3 {
			for id := range int64(count) {
				_, err := tx.Exec(`INSERT INTO blobs (id, data) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET data = excluded.data`,
					100+id, make([]byte, last-2+size))
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		for id := range int64(count) {
			l.rows[100+id] = last
		}
	}
	return err
}

// verify compares a database with the ledger.
func (l *ledger) verify(what string, db *DB) {
	l.t.Helper()
	found := map[int64]int{}
	var positions int64
	var integrity string
	err := db.Read(l.t.Context(), func(tx *Tx) error {
		rows := tx.Query(`SELECT id, length(data) FROM blobs`)
		for rows.Next() {
			var id int64
			var size int
			rows.Scan(&id, &size)
			found[id] = size
		}
		if err := rows.Close(); err != nil {
			return err
		}
		if _, err := tx.Get(`SELECT count(*) FROM notes`, nil, &positions); err != nil {
			return err
		}
		_, err := tx.Get(`PRAGMA integrity_check`, nil, &integrity)
		return err
	})
	if err != nil || integrity != "ok" {
		l.t.Fatalf("%s: %v, integrity %q", what, err, integrity)
	}
	if !maps.Equal(found, l.rows) || positions != l.notes || db.Head() != l.notes {
		l.t.Fatalf("%s: rows %v, %d notes, head %d; want %v, %d", what, found, positions, db.Head(), l.rows, l.notes)
	}
}

// verifyCrash verifies what would be there were the process killed now.
func (l *ledger) verifyCrash(what string) {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(l.path + suffix)
		if err == nil {
			err = os.WriteFile(path+suffix, data, 0o600)
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	db, err := Open(l.t.Context(), Options{URL: path}, ledgerSchema)
	if err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
	l.verify(what, db)
	db.Close(context.Background())
}

// copyBack lets the next commit begin the WAL anew.
func (l *ledger) copyBack() {
	l.t.Helper()
	c, err := openLiteConn(l.path, sqlite3.OPEN_READWRITE, 0)
	if err == nil {
		_, _, err = c.c.WALCheckpoint("", sqlite3.CHECKPOINT_PASSIVE)
		c.close()
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// workloads are commits of different shapes; each is one call of SQLite's that fails or succeeds as a whole.
var workloads = []struct {
	name    string
	prepare func(l *ledger)
	run     func(l *ledger) error
}{
	{"small", func(*ledger) {}, func(l *ledger) error { return l.put(100, 4) }},
	{"overwriting", func(*ledger) {}, func(l *ledger) error { return l.put(9000, 1, 2) }},
	{"large", func(*ledger) {}, func(l *ledger) error { return l.put(700<<10, 4, 5, 6, 7) }},
	{"rewriting", func(*ledger) {}, (*ledger).rewrite},
	{"WAL begun anew", (*ledger).copyBack, func(l *ledger) error { return l.put(9000, 4) }},
}

// TestFullDisk lets the space run out at each call of a commit.
func TestFullDisk(t *testing.T) {
	disk := useDisk(t)
	for _, w := range workloads {
		for _, short := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s short=%t", w.name, short), func(t *testing.T) {
				for after, step := 0, 1; ; after, step = after+step, max(1, after/3) {
					l := openLedger(t)
					for id := range int64(3) {
						if err := l.put(5000, id+1); err != nil {
							t.Fatal(err)
						}
					}
					w.prepare(l)
					disk.set(fault{"wal write", after, short})
					err := w.run(l)
					if err == nil && disk.set(fault{}) == 0 {
						if after == 0 {
							t.Fatal("nothing was written")
						}
						return // there are no more calls
					}
					checkRefusal(t, l, err, w.run, func() { disk.set(fault{}) })
				}
			})
		}
	}
}

// checkRefusal checks what is seen of a commit that failed with err for lack of space, while there is none and after.
func checkRefusal(t *testing.T, l *ledger, err error, again func(*ledger) error, free func()) {
	t.Helper()
	if !errors.Is(err, ErrFull) {
		t.Fatalf("without space: %v", err)
	}
	if err := l.put(10, 50); !errors.Is(err, ErrFull) {
		t.Fatalf("still without space: %v", err)
	}
	l.verify("while the disk is full", l.db)
	l.verifyCrash("a crash while the disk is full")
	free()
	if err := l.put(20, 51); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	l.verifyCrash("a crash afterwards")
	if err := again(l); err != nil {
		t.Fatalf("tried again: %v", err)
	}
	l.verify("afterwards", l.db)
	l.verifyCrash("a crash in the end")
	told := 0
	for _, line := range l.log.AllEntries() {
		if strings.Contains(line.Message, "the disk") {
			told++
		}
	}
	if told != 2 {
		t.Errorf("the log says %d times that the disk is full or not", told)
	}
	if err := l.db.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	l.open()
	l.verify("opened again", l.db)
	if err := l.db.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestFullDiskAtCheckpoint: commits go on in the WAL when there is no space to copy it back.
func TestFullDiskAtCheckpoint(t *testing.T) {
	disk := useDisk(t)
	for _, f := range []fault{
		{"database write", 0, false}, {"database write", 0, true}, {"database write", 1, true}, {"database write", 400, true}, {"database truncate", 0, false},
	} {
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			l := openLedger(t)
			disk.set(f)
			for id := range int64(12) {
				if err := l.put(500<<10, id); err != nil {
					t.Fatal(err)
				}
			}
			l.verify("while the disk is full", l.db)
			l.verifyCrash("a crash while the disk is full")
			if hits := disk.set(fault{}); hits == 0 && f.call == "database write" {
				t.Fatal("there was no checkpoint")
			}
			for id := range int64(12) {
				if err := l.put(500<<10, 20+id); err != nil {
					t.Fatal(err)
				}
			}
			l.verify("with space again", l.db)
			l.verifyCrash("a crash with space again")
			if err := l.db.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			l.open()
			l.verify("opened again", l.db)
		})
	}
}

// TestCloseOnAFullDisk: what cannot be copied back is in the WAL when the database is opened again.
func TestCloseOnAFullDisk(t *testing.T) {
	disk := useDisk(t)
	l := openLedger(t)
	if err := l.put(50<<10, 1); err != nil {
		t.Fatal(err)
	}
	disk.set(fault{call: "database write"})
	if err := l.db.Close(context.Background()); err != nil {
		t.Error(err)
	}
	disk.set(fault{})
	l.open()
	l.verify("opened again", l.db)
}

// TestFailedSync: what a sync has failed for may be lost, so writing does not go on, even if there was merely no space.
func TestFailedSync(t *testing.T) {
	disk := useDisk(t)
	l := openLedger(t)
	if err := l.put(10, 1); err != nil {
		t.Fatal(err)
	}
	disk.set(fault{call: "wal sync"})
	if err := l.put(10, 2); !errors.Is(err, ErrBroken) {
		t.Errorf("failed sync: %v", err)
	}
	disk.set(fault{})
	if err := l.put(10, 3); !errors.Is(err, ErrBroken) {
		t.Errorf("after a failed sync: %v", err)
	}
	l.verify("after a failed sync", l.db)
}

// TestUndo takes back a commit that is in the WAL already, as when the shared index has no space for it.
func TestUndo(t *testing.T) {
	l := openLedger(t)
	if err := l.put(9000, 1, 2, 3); err != nil {
		t.Fatal(err)
	}
	before := maps.Clone(l.rows)
	err := l.db.Read(t.Context(), func(tx *Tx) error { // its snapshot keeps the commit from being copied back
		var n int64
		if _, err := tx.Get(`SELECT count(*) FROM blobs`, nil, &n); err != nil {
			return err
		}
		if err := l.put(9000, 7, 8, 9); err != nil {
			return err
		}
		l.verifyCrash("before")
		if err := l.db.engine.(*lite).walFile.undo(); err != nil {
			return err
		}
		l.rows = before
		l.notes--
		l.verifyCrash("undone")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// plainFile is a WAL on a disk without SQLite.
type plainFile struct {
	vfs.File // nil
	file     *os.File
}

func (f plainFile) ReadAt(p []byte, off int64) (int, error)  { return f.file.ReadAt(p, off) }
func (f plainFile) WriteAt(p []byte, off int64) (int, error) { return f.file.WriteAt(p, off) }
func (f plainFile) Size() (int64, error)                     { return f.file.Seek(0, io.SeekEnd) }
func (f plainFile) Sync(vfs.SyncFlag) error                  { return f.file.Sync() }

// TestLostFrames: after a failed write, which SQLite may hear of in a read, nothing more is taken from its transaction.
func TestLostFrames(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "wal"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	disk := &disk{}
	wal := &walFile{File: walOnDisk{plainFile{file: file}, disk}, length: none, first: none, synced: none}
	write := func(text string, off int64) error {
		_, err := wal.WriteAt([]byte(text), off)
		return err
	}
	if err := errors.Join(write("durable", 0), wal.Sync(0)); err != nil {
		t.Fatal(err)
	}
	disk.set(fault{call: "wal write"})
	if err := write("lost", 7); err != nil {
		t.Fatal(err) // it is held back
	}
	p := make([]byte, 4)
	if _, err := wal.ReadAt(p, 7); err == nil {
		t.Error("what is lost was read")
	}
	disk.set(fault{})
	if _, err := wal.ReadAt(p, 0); err != nil || string(p) != "dura" {
		t.Errorf("reading what is not lost: %q, %v", p, err)
	}
	if write("more", 11) == nil || write("again", 7) == nil || wal.Sync(0) == nil {
		t.Error("the transaction goes on")
	}
	wal.forget()
	if err := errors.Join(write("again", 7), wal.Sync(0)); err != nil {
		t.Errorf("the next transaction: %v", err)
	}
}
