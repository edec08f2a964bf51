package storage_test

import (
	"context"
	"embed"
	"io/fs"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

//go:embed testdata/migrations
var testdata embed.FS

var testSchema = func() storage.Schema {
	return storage.Schema{Feature: "test", FS: sub(testdata, "testdata")}
}()

var (
	events = storage.DeclareTable("events", storage.Insert,
		storage.Key("nid", storage.Int), storage.Col("room", storage.Int), storage.Col("pos", storage.Int), storage.Col("id", storage.Bytes), storage.Col("json", storage.Bytes))
	rooms = storage.DeclareTable("rooms", storage.Put,
		storage.Key("room", storage.Int), storage.Col("last", storage.Int), storage.Col("note", storage.Bytes))
	names = storage.DeclareTable("names", storage.InsertIgnore,
		storage.Key("name", storage.Bytes), storage.Col("ok", storage.Bool), storage.Col("words", storage.Searchable))
)

// do appends a unit and waits for its outcome.
func do(db *storage.DB, u *storage.Unit) (base int64, err error) {
	type outcome struct {
		base int64
		err  error
	}
	ch := make(chan outcome, 1)
	u.Done = func(base int64, err error) { ch <- outcome{base, err} }
	db.Append(u)
	o := <-ch
	return o.base, o.err
}

func each(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	t.Helper()
	storagetest.Each(t, []storage.Schema{testSchema}, fn)
}

// sub is fs.Sub of a folder that exists.
func sub(f fs.FS, dir string) fs.FS {
	s, err := fs.Sub(f, dir)
	if err != nil {
		panic(err)
	}
	return s
}

// appendUnit appends a unit, whose outcome wg then waits for. It must not fail.
func appendUnit(t *testing.T, db *storage.DB, wg *sync.WaitGroup, u *storage.Unit) {
	t.Helper()
	wg.Add(1)
	u.Done = func(_ int64, err error) {
		if err != nil {
			t.Error(err)
		}
		wg.Done()
	}
	db.Append(u)
}

// hold occupies the committer until release is called, so that what is queued meanwhile becomes one batch.
func hold(t *testing.T, db *storage.DB) (release func()) {
	t.Helper()
	running, free := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- db.Write(context.Background(), func(*storage.Tx) error {
			close(running)
			<-free
			return nil
		})
	}()
	<-running
	return func() {
		close(free)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// number reads one number.
func number(t *testing.T, db *storage.DB, sql string, args ...any) (n int64) {
	t.Helper()
	if _, err := db.Get(t.Context(), sql, args, &n); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
	return n
}

// closeDB closes a database that is to be opened again.
func closeDB(t *testing.T, db *storage.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := db.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// eachURL runs fn with the URL of an empty database of each kind.
func eachURL(t *testing.T, fn func(t *testing.T, url string)) {
	t.Helper()
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { fn(t, storagetest.URL(t, d)) })
	}
}
