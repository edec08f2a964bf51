package storage_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// entry is a unit that becomes an entry of the journal if nobody else writes.
func entry(nid int64) *storage.Unit {
	u := &storage.Unit{Positions: 1, Fresh: true}
	u.Add(newEvents, nid, 1, storage.Pos(1), fmt.Sprint(nid), "{}")
	u.Add(rooms, 1, storage.Pos(1), "note")
	return u
}

// keyed is an entry with a key that must be new, known to the journal.
func keyed(nid int64) *storage.Unit {
	u := &storage.Unit{Positions: 1, Fresh: true}
	u.Add(events, nid, 1, storage.Pos(1), fmt.Sprint(nid), "{}")
	return u
}

// newEvents is events without saying which key must be new, since it is.
var newEvents = storage.DeclareTable("events", storage.Insert,
	storage.Col("nid", storage.Int), storage.Col("room", storage.Int), storage.Col("pos", storage.Int), storage.Col("id", storage.Bytes), storage.Col("json", storage.Bytes))

// write writes a unit that must not fail, and returns its position.
func write(t *testing.T, db *storage.DB, u *storage.Unit) int64 {
	t.Helper()
	base, err := do(db, u)
	if err != nil {
		t.Fatal(err)
	}
	return base + 1
}

// openWatched opens a PostgreSQL database for one process, and once more for an observer, who does not know of the journal.
func openWatched(t *testing.T) (db, observer *storage.DB, url string) {
	t.Helper()
	url = storagetest.URL(t, storage.PostgreSQL)
	observer = storagetest.OpenURL(t, url, testSchema)
	db, err := openExclusively(t.Context(), t, url)
	if err != nil {
		t.Fatal(err)
	}
	return db, observer, url
}

// entries is how many slots of the journal have been used.
func entries(t *testing.T, observer *storage.DB) int64 {
	t.Helper()
	return number(t, observer, `SELECT count(*) FROM log_journal WHERE base >= 0`)
}

// change runs a statement behind the back of the database's owner.
func change(t *testing.T, observer *storage.DB, sql string) {
	t.Helper()
	err := observer.Write(t.Context(), func(tx *storage.Tx) error {
		_, err := tx.Exec(sql)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestJournal writes units alone. Each is an entry of the journal, and whoever reads afterwards finds its rows.
func TestJournal(t *testing.T) {
	db, observer, _ := openWatched(t)
	for nid := int64(1); nid <= 200; nid++ {
		if pos := write(t, db, entry(nid)); pos != nid {
			t.Fatalf("unit %d is at %d", nid, pos)
		}
		if nid%3 == 0 {
			if n := number(t, db, `SELECT count(*) FROM events`); n != nid {
				t.Fatalf("after %d units a read finds %d", nid, n)
			}
		}
		if nid%7 == 0 {
			if err := db.Read(t.Context(), func(tx *storage.Tx) error {
				var last int64
				_, err := tx.Get(`SELECT last FROM rooms WHERE room = 1`, nil, &last)
				if last != nid {
					t.Errorf("after %d units the room's row has %d", nid, last)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if nid%50 == 0 { // between entries, something that none can be
			if err := writeName(t, db, fmt.Sprint(nid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := entries(t, observer); n != 64 {
		t.Errorf("%d slots of the journal are in use, want all 64", n)
	}
	for begin := time.Now(); number(t, observer, `SELECT count(*) FROM events`) < 200; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("entries that nobody reads stay in the journal")
		}
	}
}

// TestJournalOnlyTakesWhatCannotFail writes units that the journal must leave alone.
func TestJournalOnlyTakesWhatCannotFail(t *testing.T) {
	db, observer, _ := openWatched(t)
	stale := entry(1)
	stale.Fresh = false
	write(t, db, stale)
	text := &storage.Unit{Positions: 1, Fresh: true}
	text.Add(names, "name", true, storage.Text("words"))
	write(t, db, text)
	long := entry(2)
	long.Add(rooms, 2, 0, make([]byte, 10_000))
	write(t, db, long)
	without := &storage.Unit{Fresh: true}
	without.Add(rooms, 3, 0, "note")
	write(t, db, without)
	removal := entry(3)
	removal.Delete(rooms, 2)
	write(t, db, removal)
	if n := entries(t, observer); n != 0 {
		t.Errorf("%d entries", n)
	}
	for _, where := range []string{"in the journal", "in the journal by another declaration", "in its table"} {
		before := entries(t, observer)
		first := keyed(4)
		if where == "in the journal by another declaration" {
			first = entry(4)
		}
		write(t, db, first)
		if entries(t, observer) != before+1 {
			t.Errorf("%s: not an entry", where)
		}
		if where == "in its table" {
			number(t, db, `SELECT count(*) FROM events`)
		}
		if _, err := do(db, keyed(4)); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("a key that is %s already: %v", where, err)
		}
		change(t, observer, `DELETE FROM events WHERE nid = 4`)
	}
	if n := number(t, db, `SELECT count(*) FROM events`); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	used := entries(t, observer)
	for range 2 {
		outdated := &storage.Unit{Positions: 1, Fresh: true}
		outdated.Add(newRooms, 9, storage.Pos(1), "note")
		write(t, db, outdated)
	}
	if n, last := entries(t, observer), number(t, db, `SELECT last FROM rooms WHERE room = 9`); n != used+2 || last != db.Head() {
		t.Errorf("%d entries for a row that was in the way, which is of position %d of %d", n-used, last, db.Head())
	}
}

// newRooms is rooms for keys that are certainly new, or outdated.
var newRooms = storage.DeclareTable("rooms", storage.InsertNew,
	storage.Key("room", storage.Int), storage.Col("last", storage.Int), storage.Col("note", storage.Bytes))

// TestJournalThatCannotBePosted takes a table away. Nobody is answered wrongly, and nothing is lost when it is back, be it in the
// same process or in the next one, which has another schema.
func TestJournalThatCannotBePosted(t *testing.T) {
	db, observer, url := openWatched(t)
	write(t, db, entry(1))
	number(t, db, `SELECT count(*) FROM events`)
	change(t, observer, `ALTER TABLE rooms RENAME TO hidden`)
	write(t, db, entry(2))
	write(t, db, entry(3))
	if _, err := db.Get(t.Context(), `SELECT count(*) FROM events`, nil, nil); err == nil {
		t.Error("a read succeeds that cannot find everything")
	}
	if err := writeName(t, db, "early"); err == nil {
		t.Error("a write overtakes the journal")
	}
	change(t, observer, `ALTER TABLE hidden RENAME TO rooms`)
	// A read may still wait for an attempt that has begun before.
	for end := time.Now().Add(time.Minute); ; {
		if _, err := db.Get(t.Context(), `SELECT count(*) FROM events`, nil, nil); err == nil || time.Now().After(end) {
			break
		}
	}
	if n := number(t, db, `SELECT count(*) FROM events`); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	if err := writeName(t, db, "late"); err != nil {
		t.Error(err)
	}
	change(t, observer, `ALTER TABLE rooms RENAME TO hidden`)
	write(t, db, entry(4))
	write(t, db, entry(5))
	closeDB(t, db)
	change(t, observer, `ALTER TABLE hidden RENAME TO rooms`)
	next := fstest.MapFS{"migrations/0001_next.sql": {Data: []byte(`ALTER TABLE rooms DROP COLUMN note; ALTER TABLE events ADD COLUMN more BIGINT NOT NULL DEFAULT 7;`)}}
	later := storagetest.OpenURL(t, url, testSchema, storage.Schema{Feature: "next", FS: next})
	if n := number(t, later, `SELECT count(*) FROM events WHERE nid = pos AND more = 7`); n != 5 || later.Head() != 5 {
		t.Errorf("%d events and the head %d, want 5", n, later.Head())
	}
	if last := number(t, later, `SELECT last FROM rooms WHERE room = 1`); last != 5 {
		t.Errorf("the room's row has %d, want 5", last)
	}
}

// TestLostConnectionOfJournal breaks the connections that write entries and that post them.
func TestLostConnectionOfJournal(t *testing.T) {
	for _, statement := range []string{"UPDATE log_journal SET turn", "UPDATE log_head SET head"} {
		t.Run(statement, func(t *testing.T) {
			p, url := startProxy(t, storagetest.URL(t, storage.PostgreSQL))
			p.only = statement
			db, err := openExclusively(t.Context(), t, url)
			if err != nil {
				t.Fatal(err)
			}
			nid := int64(0)
			for round := range int64(8) {
				for range 3 {
					nid++
					write(t, db, entry(nid))
					number(t, db, `SELECT count(*) FROM events`)
				}
				if round%2 == 0 {
					p.loseRequest.Store(true)
				} else {
					p.loseAnswer.Store(true)
				}
				nid++
				if pos := write(t, db, entry(nid)); pos != nid {
					t.Errorf("unit %d is at %d", nid, pos)
				}
				if n := number(t, db, `SELECT count(*) FROM events WHERE nid = pos`); n != nid {
					t.Fatalf("%d events after %d", n, nid)
				}
				if got := p.breaks.Load(); got != round+1 {
					t.Fatalf("%d breaks, want %d", got, round+1)
				}
			}
		})
	}
}
