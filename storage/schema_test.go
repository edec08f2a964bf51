package storage_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func schema(files ...string) storage.Schema {
	fs := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		fs["migrations/"+files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return storage.Schema{Feature: "feature", FS: fs}
}

const (
	step1 = "CREATE TABLE a (id BIGINT PRIMARY KEY, name BYTEA) /*sqlite STRICT*/;\nINSERT INTO a VALUES (1, NULL);"
	step2 = `CREATE TABLE b (
    id BIGINT NOT NULL,
    -- only: sqlite
    which BYTEA DEFAULT 'sqlite',
    -- only: postgres
    which BYTEA DEFAULT 'postgres',
    PRIMARY KEY (id)
) /*sqlite WITHOUT ROWID*/;
INSERT INTO b (id) VALUES (1);`
)

func TestMigrations(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		closeDB(t, storagetest.OpenURL(t, url, schema("0001_a.sql", step1)))
		for range 2 {
			db := storagetest.OpenURL(t, url, schema("0001_a.sql", step1, "0002_b.sql", step2))
			if n := number(t, db, `SELECT count(*) FROM a`); n != 1 {
				t.Errorf("first step ran %d times", n)
			}
			var which string
			if _, err := db.Get(t.Context(), `SELECT which FROM b`, nil, &which); err != nil || which != db.Dialect().String() {
				t.Errorf("line for %q, err %v", which, err)
			}
			closeDB(t, db)
		}
		_, err := storage.Open(t.Context(), storage.Options{URL: url}, schema("0001_a.sql", step1))
		if !errors.Is(err, storage.ErrNewer) {
			t.Errorf("older program: %v", err)
		}
	})
}

func TestBadMigrations(t *testing.T) {
	for name, s := range map[string]storage.Schema{
		"gap":       schema("0001_a.sql", step1, "0003_b.sql", step2),
		"no number": schema("a.sql", step1),
		"none":      schema(),
	} {
		if db, err := storage.Open(t.Context(), storage.Options{URL: t.TempDir() + "/x.db"}, s); err == nil {
			t.Errorf("%s: no error", name)
			closeDB(t, db)
		}
	}
	eachURL(t, func(t *testing.T, url string) {
		bad := schema("0001_a.sql", step1, "0002_b.sql", "CREATE TABLE c (id BIGINT); CREATE TABLE c (id BIGINT);")
		_, err := storage.Open(t.Context(), storage.Options{URL: url}, bad)
		if err == nil || !strings.Contains(err.Error(), "schema feature: migrations/0002_b.sql") {
			t.Fatalf("the failed step is told as %v", err)
		}
		// The failed step left nothing, and neither did the one before it: the program before an upgrade can go on.
		db := storagetest.OpenURL(t, url, schema("0001_a.sql", "CREATE TABLE a (other BIGINT)", "0002_c.sql", "CREATE TABLE c (id BIGINT);"))
		if n := number(t, db, `SELECT count(other) FROM a`) + number(t, db, `SELECT count(*) FROM c`); n != 0 {
			t.Errorf("%d rows", n)
		}
	})
}

func TestMissingDatabaseIsNotMade(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		existing := storage.Options{URL: url, Existing: true}
		if db, err := storage.Open(t.Context(), existing, testSchema); !errors.Is(err, storage.ErrMissing) {
			t.Fatalf("opened %v, %v", db, err)
		}
		if _, err := os.Stat(url); err == nil {
			t.Error("the file has been made")
		}
		closeDB(t, storagetest.OpenURL(t, url, testSchema))
		db, err := storage.Open(t.Context(), existing, testSchema)
		if err != nil {
			t.Fatal(err)
		}
		closeDB(t, db)
	})
}

func TestBadURL(t *testing.T) {
	for _, url := range []string{"", "mysql://x", "sqlite://", "postgres://127.0.0.1:1/nowhere?sslmode=disable&connect_timeout=1", t.TempDir() + "/no/such/folder/x.db"} {
		if db, err := storage.Open(t.Context(), storage.Options{URL: url}); err == nil {
			t.Errorf("%q: no error", url)
			closeDB(t, db)
		}
	}
}
