package storage_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
)

// named is a unit with a row of that name.
func named(name string, done func(err error)) *storage.Unit {
	u := &storage.Unit{Done: func(_ int64, err error) { done(err) }}
	u.Add(names, name, true, nil)
	return u
}

func TestSubmit(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		first, second := make(chan error, 1), make(chan error, 1)
		flush := db.Submit(named("led", func(err error) { first <- err }))
		// Whoever comes before the flush is served by it.
		db.Append(named("other", func(err error) { second <- err }))
		flush()
		for _, c := range []chan error{first, second} {
			if err := <-c; err != nil {
				t.Fatal(err)
			}
		}
		if n := number(t, db, `SELECT count(*) FROM names WHERE ok`); n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
	})
}

// What is queued while a writer flushes is flushed without it.
func TestSubmitLeavesTheRest(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		first, second := make(chan error, 1), make(chan error, 1)
		u := named("led", func(err error) { first <- err })
		u.Apply = func(int64) { db.Append(named("later", func(err error) { second <- err })) }
		db.Submit(u)()
		for _, c := range []chan error{first, second} {
			select {
			case err := <-c:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("a unit was left lying")
			}
		}
	})
}

func TestCloseWaitsForSubmitted(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		open := func() *storage.DB {
			db, err := storage.Open(t.Context(), storage.Options{URL: url}, testSchema)
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
		db := open()
		done := make(chan error, 1)
		flush := db.Submit(named("led", func(err error) { done <- err }))
		closed := make(chan error, 1)
		go func() { closed <- db.Close(context.Background()) }()
		flush()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		db = open()
		defer closeDB(t, db)
		if n := number(t, db, `SELECT count(*) FROM names`); n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
	})
}

func TestManyWays(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		const writers, writes = 12, 50
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				for i := range writes {
					done := make(chan error, 1)
					u := &storage.Unit{Positions: 1, Done: func(_ int64, err error) { done <- err }}
					switch (w + i) % 3 {
					case 0:
						db.Append(u)
					case 1:
						db.Submit(u)()
					case 2:
						done <- db.Write(t.Context(), func(tx *storage.Tx) error {
							_, err := tx.Position()
							return err
						})
					}
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		if head := db.Head(); head != writers*writes {
			t.Errorf("%d positions, want %d", head, writers*writes)
		}
	})
}
