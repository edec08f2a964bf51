package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ncruces/go-sqlite3"
)

var blobs = DeclareTable("blobs", Put, Key("id", Int), Col("data", Bytes))

func openBlobs(t *testing.T, path string) *DB {
	t.Helper()
	schema := Schema{Feature: "test", FS: fstest.MapFS{"migrations/0001_a.sql": {Data: []byte("CREATE TABLE blobs (id BIGINT PRIMARY KEY, data BYTEA);")}}}
	db, err := Open(t.Context(), Options{URL: path}, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	return db
}

func putBlob(db *DB, id int64, data []byte) error {
	done := make(chan error, 1)
	u := &Unit{Done: func(_ int64, err error) { done <- err }}
	u.Add(blobs, id, data)
	db.Append(u)
	return <-done
}

func TestLockedBySecondProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := openBlobs(t, path)
	if _, err := Open(t.Context(), Options{URL: "sqlite://" + path}); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := db.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if wal, err := os.Stat(path + "-wal"); err == nil && wal.Size() > 0 {
		t.Errorf("WAL of %d bytes left after Close", wal.Size())
	}
	openBlobs(t, path)
}

func TestFilesArePrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // no file modes there
	}
	path := filepath.Join(t.TempDir(), "with space, % and ?#.db")
	db := openBlobs(t, path)
	if err := putBlob(db, 1, nil); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", ".lock"} {
		info, err := os.Stat(path + suffix)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%q: %v, err %v", suffix, info.Mode(), err)
		}
	}
}

// TestWALStaysShort writes under readers whose snapshots overlap all the time, which alone would keep
// SQLite from ever beginning the WAL anew.
func TestWALStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := openBlobs(t, path)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * time.Millisecond)
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := db.Read(t.Context(), func(tx *Tx) error {
					var n int
					_, err := tx.Get(`SELECT count(*) FROM blobs`, nil, &n)
					time.Sleep(3 * time.Millisecond)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	header := func() (begin [32]byte) {
		t.Helper()
		file, err := os.Open(path + "-wal")
		if err == nil {
			_, err = io.ReadFull(file, begin[:])
			file.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return begin
	}
	data := make([]byte, 1<<18)
	put := func(i int) {
		t.Helper()
		for j := range data {
			data[j] = byte(i * j)
		}
		if err := putBlob(db, int64(i%8), data); err != nil {
			t.Fatal(err)
		}
	}
	const megabytes = 40
	put(0)
	first, end := header(), time.Now().Add(time.Minute)
	for i := 1; header() == first; i++ {
		if time.Now().After(end) {
			t.Errorf("after %d MB, the WAL has not begun anew", i/4)
			break
		}
		if i > 4*megabytes {
			time.Sleep(20 * time.Millisecond) // the readers did not let go in time; it is tried again only some time later
		}
		put(i)
	}
	close(stop)
	wg.Wait()
	wal, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("WAL of %d bytes when it began anew", wal.Size())
}

// TestWALGrowsInSteps: most commits find room in the WAL, and a process that finds it after a crash reads what is in it up to
// the zeros.
func TestWALGrowsInSteps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := openBlobs(t, path)
	lengths := map[int64]bool{}
	const rows = 40
	for i := range int64(rows) {
		if err := putBlob(db, i, make([]byte, 8<<10)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		lengths[info.Size()] = true
	}
	if len(lengths) > 3 {
		t.Errorf("%d commits made the WAL longer %d times", rows, len(lengths))
	}
	left := filepath.Join(t.TempDir(), "x.db")
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(left+suffix, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	next := openBlobs(t, left)
	for want := rows; want <= rows+1; want++ {
		got, err := ReadList[int64](t.Context(), next, `SELECT id FROM blobs`)
		if err != nil || len(got) != want {
			t.Errorf("the next process finds %d rows, %v; want %d", len(got), err, want)
		}
		if err := putBlob(next, rows, []byte("one more")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestQuietCheckpoint: when nothing is written for a while, the WAL is copied back.
func TestQuietCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := openBlobs(t, path)
	if err := putBlob(db, 1, make([]byte, 100<<10)); err != nil {
		t.Fatal(err)
	}
	for range 1200 {
		if info, err := os.Stat(path); err == nil && info.Size() > 100<<10 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the WAL was not copied back within a minute")
}

// A query with a parameter for its LIMIT is compiled once, and not again for each value.
func TestLimitIsNoReasonToPrepareAgain(t *testing.T) {
	schema := Schema{Feature: "test", FS: fstest.MapFS{"migrations/0001_a.sql": {Data: []byte(
		"CREATE TABLE pages (book BIGINT, page BIGINT, PRIMARY KEY (book, page)) /*sqlite WITHOUT ROWID*/;")}}}
	db, err := Open(t.Context(), Options{URL: filepath.Join(t.TempDir(), "x.db")}, schema)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	c, err := db.engine.(*lite).openReader()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	const query = `SELECT page FROM pages WHERE book = $1 AND page < $2 ORDER BY page DESC LIMIT $3`
	tx := &Tx{ctx: t.Context(), lite: c}
	for limit := range int64(5) {
		rows := tx.Query(query, limit, limit, limit)
		for rows.Next() {
			t.Error("there is a row")
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.stmts[query].s.Status(sqlite3.STMTSTATUS_REPREPARE, false); n != 0 {
		t.Errorf("prepared %d times more than once", n)
	}
}
