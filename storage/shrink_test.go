package storage

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// A file gets smaller after its rows are deleted.
func TestShrink(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "shrink.db")
	db, err := Open(ctx, Options{URL: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { db.Close(ctx) }()
	must := func(sql string, args ...any) {
		t.Helper()
		if err := db.Write(ctx, func(tx *Tx) error { _, err := tx.Exec(sql, args...); return err }); err != nil {
			t.Fatal(err)
		}
	}
	must(`CREATE TABLE bulk (id BIGINT PRIMARY KEY, data BYTEA NOT NULL)`)
	for i := range 40 {
		must(`INSERT INTO bulk (id, data) VALUES ($1, $2)`, int64(i), make([]byte, 100_000))
	}
	// Closing copies the WAL back.
	reopened := func() int64 {
		t.Helper()
		if err := db.Close(ctx); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if db, err = Open(ctx, Options{URL: path}); err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	full := reopened()
	if more, err := db.Shrink(ctx, 100); err != nil || more {
		t.Errorf("a full file: more %v, %v", more, err)
	}
	must(`DELETE FROM bulk WHERE id >= $1`, int64(4))
	more, err := db.Shrink(ctx, 100)
	if err != nil || !more {
		t.Errorf("the first step: more %v, %v", more, err)
	}
	for more {
		if more, err = db.Shrink(ctx, 100); err != nil {
			t.Fatal(err)
		}
	}
	size := reopened()
	var n int64
	if found, err := db.Get(ctx, `SELECT count(*) FROM bulk`, nil, &n); err != nil || !found || n != 4 {
		t.Errorf("%d rows are left, %v", n, err)
	}
	if size > full/4 {
		t.Errorf("the file has %d bytes after nine tenths of its %d were deleted", size, full)
	}
}
