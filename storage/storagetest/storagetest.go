// Package storagetest gives tests fresh databases of both kinds.
//
// SQLite databases live in the test's temporary folder. PostgreSQL is taken from the environment
// variable MYELIN_TEST_POSTGRES (a postgres:// URL of a database in which schemas may be created);
// without it, each test process starts one private server on a Unix socket in a temporary folder,
// which ends with the process. Each test gets a schema of its own. Where no PostgreSQL is installed,
// tests fail rather than pass unseen.
package storagetest

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"encoding/hex"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/myelin-im/myelin/storage"
)

// Dialects are the databases every test that touches SQL runs on.
var Dialects = []storage.Dialect{storage.SQLite, storage.PostgreSQL}

// Each runs fn as a subtest on a fresh database of each kind, migrated to the schemas.
func Each(t *testing.T, schemas []storage.Schema, fn func(t *testing.T, db *storage.DB)) {
	t.Helper()
	for _, d := range Dialects {
		t.Run(d.String(), func(t *testing.T) {
			fn(t, Open(t, d, schemas...))
		})
	}
}

// Open opens a fresh database, closed when the test ends.
func Open(t testing.TB, d storage.Dialect, schemas ...storage.Schema) *storage.DB {
	t.Helper()
	return open(t, storage.Options{URL: URL(t, d), Exclusive: true}, schemas...)
}

// OpenURL opens (or opens again) the database of a URL, closed when the test ends at the latest.
func OpenURL(t testing.TB, url string, schemas ...storage.Schema) *storage.DB {
	t.Helper()
	return open(t, storage.Options{URL: url}, schemas...)
}

func open(t testing.TB, opt storage.Options, schemas ...storage.Schema) *storage.DB {
	t.Helper()
	db, err := storage.Open(context.Background(), opt, schemas...)
	if err != nil {
		t.Fatalf("open test database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := db.Close(ctx); err != nil {
			t.Errorf("close test database: %v", err)
		}
	})
	return db
}

// URL returns the URL of a fresh, empty database, removed when the test ends.
func URL(t testing.TB, d storage.Dialect) string {
	t.Helper()
	if d == storage.SQLite {
		return "sqlite://" + filepath.Join(t.TempDir(), "test.db")
	}
	base, err := postgresURL()
	if err != nil {
		t.Fatalf("no PostgreSQL for this test: %v", err)
	}
	var random [8]byte
	rand.Read(random[:])
	schema := "test_" + hex.EncodeToString(random[:])
	admin(t, base, "CREATE SCHEMA "+schema)
	t.Cleanup(func() { admin(t, base, "DROP SCHEMA "+schema+" CASCADE") })
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal("malformed PostgreSQL URL")
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return u.String()
}

// admin runs one statement of a test's setup.
func admin(t testing.TB, url, statement string) {
	t.Helper()
	if err := execute(url, statement); err != nil {
		t.Fatalf("test PostgreSQL: %s: %v", statement, err)
	}
}

// execute runs one statement on a connection of its own.
func execute(url, statement string) error {
	connector, err := pq.NewConnector(url)
	if err != nil {
		return err
	}
	c, err := connector.Connect(context.Background())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.(driver.ExecerContext).ExecContext(context.Background(), statement, nil)
	return err
}
