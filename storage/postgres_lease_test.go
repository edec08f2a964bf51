package storage_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// openExclusively opens a database for one process; err is nil or ErrLocked.
func openExclusively(ctx context.Context, t *testing.T, url string) (*storage.DB, error) {
	t.Helper()
	db, err := storage.Open(ctx, storage.Options{URL: url, Exclusive: true}, testSchema)
	if err != nil {
		if !errors.Is(err, storage.ErrLocked) {
			t.Fatal(err)
		}
		return nil, err
	}
	t.Cleanup(func() { closeDB(t, db) })
	return db, nil
}

// leaseHeld finds the lease of this test's schema in pg_locks: other tests have theirs on the same server at the same time.
const leaseHeld = ` FROM pg_locks WHERE locktype = 'advisory' AND granted
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
	AND classid = x'6d79656c'::int AND objid = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())`

// killLease breaks the connection that holds the lease.
func killLease(t *testing.T, observer *storage.DB) {
	t.Helper()
	_, err := observer.Get(t.Context(), `SELECT pg_terminate_backend(pid)`+leaseHeld, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func writeName(t *testing.T, db *storage.DB, name string) error {
	t.Helper()
	return db.Write(t.Context(), func(tx *storage.Tx) error {
		_, err := tx.Exec(`INSERT INTO names (name, ok) VALUES ($1, TRUE)`, name)
		return err
	})
}

// openBriefly opens a database for one process without waiting for long, and returns why it could not.
func openBriefly(t *testing.T, url string) error {
	t.Helper()
	for patience := time.Second; ; patience *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		db, err := storage.Open(ctx, storage.Options{URL: url, Exclusive: true}, testSchema)
		cancel()
		if err == nil {
			closeDB(t, db)
			return nil
		}
		// On a busy machine, time may be up before there is a connection.
		if errors.Is(err, storage.ErrLocked) || patience > time.Minute {
			return err
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		first, err := openExclusively(t.Context(), t, url)
		if err != nil {
			t.Fatal(err)
		}
		if err := openBriefly(t, url); !errors.Is(err, storage.ErrLocked) {
			t.Fatalf("a second process has the database open: %v", err)
		}
		closeDB(t, first)
		if _, err := openExclusively(t.Context(), t, url); err != nil {
			t.Errorf("after the first has ended: %v", err)
		}
	})
}

// TestLeaseIsTakenAgain breaks the connection that keeps others out.
func TestLeaseIsTakenAgain(t *testing.T) {
	url := storagetest.URL(t, storage.PostgreSQL)
	db, err := openExclusively(t.Context(), t, url)
	if err != nil {
		t.Fatal(err)
	}
	killLease(t, db)
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if number(t, db, `SELECT count(*)`+leaseHeld) == 1 {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("the lease is not taken again")
		}
	}
	if err := writeName(t, db, "after"); err != nil {
		t.Error(err)
	}
	select {
	case <-db.Lost():
		t.Error("the database counts as lost")
	default:
	}
}

// TestTakeover lets a second process in when the connection of the first breaks. The first must not write any more.
func TestTakeover(t *testing.T) {
	url := storagetest.URL(t, storage.PostgreSQL)
	observer := storagetest.OpenURL(t, url, testSchema) // it only reads
	first, err := openExclusively(t.Context(), t, url)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeName(t, first, "before"); err != nil {
		t.Fatal(err)
	}
	write(t, first, entry(1))
	opened := make(chan *storage.DB)
	go func() {
		for {
			if second, err := openExclusively(t.Context(), t, url); err == nil {
				opened <- second
				return
			}
		}
	}()
	var second *storage.DB
	for second == nil { // the first may be quicker
		killLease(t, observer)
		select {
		case second = <-opened:
		case <-time.After(time.Second):
		}
	}
	if n := number(t, second, `SELECT count(*) FROM events`); n != 1 || second.Head() != 1 {
		t.Errorf("%d events and the head %d, want the one that the first process was answered", n, second.Head())
	}
	if _, err := do(first, entry(2)); err == nil {
		t.Error("a process writes to the journal that has lost the database")
	}
	if err := writeName(t, first, "first"); err == nil {
		t.Error("a process writes that has lost the database")
	}
	select {
	case <-first.Lost():
	case <-time.After(time.Minute):
		t.Error("it does not notice")
	}
	if err := writeName(t, second, "second"); err != nil {
		t.Error(err)
	}
}
