package storage_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func TestAppendPositionsAndOrder(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var mu sync.Mutex
		var trace []string
		say := func(format string, args ...any) {
			mu.Lock()
			trace = append(trace, fmt.Sprintf(format, args...))
			mu.Unlock()
		}
		db.Subscribe(func(batch []storage.Notice, head int64) {
			for _, n := range batch {
				say("notice %d %d", n.Pos, n.Room)
			}
			if db.Head() >= head {
				t.Errorf("Head %d advanced before subscribers saw it", db.Head())
			}
		})
		db.Watch(func(batch []storage.Notice, head int64) {
			say("watch %d", len(batch))
			if db.Head() != head {
				t.Errorf("watcher sees head %d, told %d", db.Head(), head)
			}
		})
		u := &storage.Unit{Positions: 2}
		u.Add(events, 1, 7, storage.Pos(1), "$a", []byte(`{}`))
		u.Add(events, 2, 7, storage.Pos(2), "$b", nil)
		u.Add(rooms, 7, storage.Pos(2), "x")
		u.Notices = []storage.Notice{{Pos: 1, Kind: storage.Event, Room: 7}, {Pos: 2, Kind: storage.State, Room: 7}}
		u.Apply = func(base int64) { say("apply %d", base) }
		base, err := do(db, u)
		if err != nil {
			t.Fatal(err)
		}
		say("done %d", base)
		if db.Head() != base+2 {
			t.Errorf("head %d, base %d", db.Head(), base)
		}
		want := []string{"apply 0", "notice 1 7", "notice 2 7", "watch 2", "done 0"}
		if !slices.Equal(trace, want) {
			t.Errorf("order %q, want %q", trace, want)
		}
		var last int64
		var positions []int64
		err = db.Read(t.Context(), func(tx *storage.Tx) error {
			if _, err := tx.Get(`SELECT last FROM rooms WHERE room = $1`, []any{7}, &last); err != nil {
				return err
			}
			rows := tx.Query(`SELECT pos FROM events ORDER BY pos`)
			for rows.Next() {
				var p int64
				rows.Scan(&p)
				positions = append(positions, p)
			}
			return rows.Close()
		})
		if err != nil || last != 2 || !slices.Equal(positions, []int64{1, 2}) {
			t.Errorf("last %d positions %v err %v", last, positions, err)
		}
	})
}

func TestConflictHarmsNoOther(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var wg sync.WaitGroup
		var good, conflicts atomic.Int64
		for i := range 40 {
			wg.Add(1)
			u := &storage.Unit{Positions: 1}
			u.Add(names, fmt.Sprint("n", i), true, nil)
			u.Add(events, int64(i/2), 1, storage.Pos(1), fmt.Sprint("$", i), "{}") // every nid twice
			u.Done = func(_ int64, err error) {
				defer wg.Done()
				switch {
				case err == nil:
					good.Add(1)
				case errors.Is(err, storage.ErrConflict):
					conflicts.Add(1)
				default:
					t.Error(err)
				}
			}
			db.Append(u)
		}
		wg.Wait()
		if good.Load() != 20 || conflicts.Load() != 20 {
			t.Errorf("good %d, conflicts %d", good.Load(), conflicts.Load())
		}
		var n, m, maxPos int64
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			_, err := tx.Get(`SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM names), (SELECT max(pos) FROM events)`, nil, &n, &m, &maxPos)
			return err
		})
		if err != nil || n != 20 || m != 20 || maxPos != db.Head() || maxPos != 20 {
			t.Errorf("events %d names %d max %d head %d err %v", n, m, maxPos, db.Head(), err)
		}
	})
}

func TestBatchOrder(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var published []int64
		db.Subscribe(func(batch []storage.Notice, _ int64) {
			for _, n := range batch {
				published = append(published, n.Pos)
			}
		})
		release := hold(t, db)
		var wg sync.WaitGroup
		var bases []int64
		for i := range 30 {
			u := &storage.Unit{Positions: 1 + i%3}
			if i%10 == 9 {
				u.Exec(`INSERT INTO names (name, ok) VALUES ($1, TRUE)`, fmt.Sprint("exec ", i)) // a unit of another make
			}
			for k := range u.Positions {
				u.Add(events, int64(10*i+k), 1, storage.Pos(k+1), fmt.Sprint("$", i, ".", k), nil)
				u.Notices = append(u.Notices, storage.Notice{Pos: int64(k + 1), Kind: storage.Event, Room: 1})
			}
			u.Apply = func(base int64) { bases = append(bases, base) }
			appendUnit(t, db, &wg, u)
		}
		release()
		wg.Wait()
		want := int64(0)
		for i, base := range bases {
			if base != want {
				t.Fatalf("unit %d has base %d, want %d", i, base, want)
			}
			want += int64(1 + i%3)
		}
		for i, p := range published {
			if p != int64(i+1) {
				t.Fatalf("notice %d has position %d", i, p)
			}
		}
		if db.Head() != want || int64(len(published)) != want {
			t.Errorf("head %d, %d notices, want %d", db.Head(), len(published), want)
		}
		if n := number(t, db, `SELECT count(*) FROM events AS e WHERE NOT EXISTS (SELECT 1 FROM events AS f WHERE f.pos = e.pos - 1)`); n != 1 {
			t.Errorf("%d events have no predecessor, want 1", n)
		}
	})
}

// TestNoGapFills has readers check, while units of all makes succeed and fail, that every snapshot
// holds each position up to its head exactly once.
func TestNoGapFills(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var wg, readers sync.WaitGroup
		stop := make(chan struct{})
		for range 2 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					published := db.Head()
					var head, top, n int64
					err := db.Read(t.Context(), func(tx *storage.Tx) error {
						_, err := tx.Get(`SELECT (SELECT head FROM log_head), (SELECT coalesce(max(pos), 0) FROM events), (SELECT count(*) FROM events)`, nil, &head, &top, &n)
						return err
					})
					if err != nil || head != top || head != n || published > head {
						t.Errorf("published %d, head %d, top %d, count %d, err %v", published, head, top, n, err)
						return
					}
				}
			})
		}
		for w := range 8 {
			wg.Go(func() {
				for i := range 25 {
					nid := int64(1000*w + i - i%5) // every fifth is new, the others conflict
					if i%2 == 0 {
						db.Write(t.Context(), func(tx *storage.Tx) error {
							pos, err := tx.Position()
							if err != nil {
								return err
							}
							_, err = tx.Exec(`INSERT INTO events (nid, room, pos, id) VALUES ($1, 1, $2, $3)`, nid, pos, fmt.Sprint(nid))
							return err
						})
						continue
					}
					u := &storage.Unit{Positions: 2}
					u.Add(events, nid, 1, storage.Pos(2), fmt.Sprint(nid), nil)
					u.Add(events, nid+500, 1, storage.Pos(1), fmt.Sprint(nid+500), nil)
					do(db, u)
				}
			})
		}
		wg.Wait()
		close(stop)
		readers.Wait()
		if db.Head() == 0 {
			t.Error("nothing was written")
		}
	})
}

func TestPutLastWins(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		release := hold(t, db)
		var wg sync.WaitGroup
		for i := range 20 {
			u := &storage.Unit{Positions: 1}
			u.Add(rooms, 5, storage.Pos(1), "early")
			u.Add(rooms, 5, storage.Pos(1), fmt.Sprint("note ", i))
			appendUnit(t, db, &wg, u)
		}
		release()
		wg.Wait()
		var last int64
		var note string
		if _, err := db.Get(t.Context(), `SELECT last, note FROM rooms WHERE room = 5`, nil, &last, &note); err != nil || last != 20 || note != "note 19" {
			t.Errorf("last %d note %q err %v", last, note, err)
		}
	})
}

func TestDeleteInBatch(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		if _, err := do(db, unit(func(u *storage.Unit) { u.Add(names, "old", true, nil) })); err != nil {
			t.Fatal(err)
		}
		release := hold(t, db)
		var wg sync.WaitGroup
		for _, fill := range []func(u *storage.Unit){
			func(u *storage.Unit) { u.Delete(names, "old"); u.Delete(names, "never was") },
			func(u *storage.Unit) { u.Add(names, "old", false, nil) }, // comes back
			func(u *storage.Unit) { u.Add(names, "short", true, nil) },
			func(u *storage.Unit) { u.Delete(names, "short") },
			func(u *storage.Unit) { u.Add(rooms, 1, 1, "a") },
			func(u *storage.Unit) { u.Delete(rooms, 1); u.Add(rooms, 1, 2, "b") },
			func(u *storage.Unit) { u.Delete(rooms, 1); u.Delete(rooms, 2) },
			func(u *storage.Unit) { u.Add(rooms, 3, 3, "c") },
		} {
			u := unit(fill)
			appendUnit(t, db, &wg, u)
		}
		release()
		wg.Wait()
		if n := number(t, db, `SELECT count(*) FROM names WHERE name = $1 AND NOT ok`, "old"); n != 1 {
			t.Error("row deleted and added again is not the new one")
		}
		if n := number(t, db, `SELECT count(*) FROM names`); n != 1 {
			t.Errorf("%d names, want 1", n)
		}
		if n := number(t, db, `SELECT sum(room) FROM rooms`); n != 3 {
			t.Errorf("rooms %d, want only room 3", n)
		}
	})
}

// Rows beside statements take effect in their order, several of one key included.
func TestRowsBesideStatements(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		u := unit(func(u *storage.Unit) {
			u.Positions = 2
			for i := range 100 {
				u.Add(events, 100+i, 1, storage.Pos(1+i%2), fmt.Sprint("$", i), nil)
			}
			u.Add(rooms, 1, storage.Pos(1), "early")
			u.Add(rooms, 1, storage.Pos(2), "late")
			u.Add(rooms, 2, 7, "seven")
			u.Exec(`UPDATE rooms SET last = last + 100, note = $1 WHERE note = $2 AND last = $3`, "later", "late", storage.Pos(2))
			u.Delete(rooms, 2)
			u.Add(rooms, 2, 8, "eight")
			u.Add(names, "a", true, nil)
			u.Add(names, "a", false, nil)
			u.Require(`UPDATE names SET ok = FALSE WHERE name = $1 AND ok`, []any{"a"}, 1, errors.New("the first of the names does not count"))
		})
		base, err := do(db, u)
		if err != nil {
			t.Fatal(err)
		}
		if n := number(t, db, `SELECT count(*) FROM events WHERE pos = $1 AND nid % 2 = 0 OR pos = $2 AND nid % 2 = 1`, base+1, base+2); n != 100 {
			t.Errorf("%d of 100 events have their positions", n)
		}
		if n := number(t, db, `SELECT count(*) FROM rooms WHERE room = 1 AND last = $1 AND note = $2 OR room = 2 AND last = 8`, base+102, "later"); n != 2 {
			t.Errorf("%d of 2 rooms are as they were written last", n)
		}
		taken := unit(func(u *storage.Unit) {
			u.Exec(`DELETE FROM names`)
			u.Add(events, 300, 1, 1, "$new", nil)
			u.Add(events, 100, 1, 1, "$taken", nil)
		})
		if _, err := do(db, taken); !errors.Is(err, storage.ErrConflict) {
			t.Errorf("a number that is taken: %v", err)
		}
		if n := number(t, db, `SELECT (SELECT count(*) FROM names) + (SELECT count(*) FROM events WHERE nid >= 200)`); n != 1 {
			t.Error("something of a unit that failed is left")
		}
	})
}

func unit(fill func(u *storage.Unit)) *storage.Unit {
	u := &storage.Unit{}
	fill(u)
	return u
}

func TestRequire(t *testing.T) {
	errTaken := errors.New("taken")
	each(t, func(t *testing.T, db *storage.DB) {
		claim := func(name string, nid int64) *storage.Unit {
			u := &storage.Unit{Positions: 1}
			u.Add(events, nid, 1, storage.Pos(1), name, nil)
			u.Require(`INSERT INTO rooms (room, last, note) VALUES (1, $1, $2) ON CONFLICT DO NOTHING`, []any{storage.Pos(1), name}, 1, errTaken)
			u.Exec(`UPDATE rooms SET note = $1 WHERE last = $2`, name+"!", storage.Pos(1))
			return u
		}
		release := hold(t, db)
		var wg sync.WaitGroup
		var taken atomic.Int64
		for i := range 5 {
			u := claim(fmt.Sprint("n", i), int64(i))
			wg.Add(1)
			u.Done = func(_ int64, err error) {
				if errors.Is(err, errTaken) {
					taken.Add(1)
				} else if err != nil {
					t.Error(err)
				}
				wg.Done()
			}
			db.Append(u)
		}
		release()
		wg.Wait()
		if taken.Load() != 4 {
			t.Errorf("%d were refused, want 4", taken.Load())
		}
		if n := number(t, db, `SELECT count(*) FROM events`); n != 1 || db.Head() != 1 {
			t.Errorf("%d events, head %d: refused units left something", n, db.Head())
		}
		var note string
		if db.Get(t.Context(), `SELECT note FROM rooms`, nil, &note); note != "n0!" {
			t.Errorf("note %q", note)
		}
	})
}

func TestUnitWithoutPositions(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		base, err := do(db, unit(func(u *storage.Unit) { u.Add(names, "a", true, storage.Text("some words")) }))
		if err != nil || base != 0 || db.Head() != 0 {
			t.Errorf("base %d head %d err %v", base, db.Head(), err)
		}
		if base, err := do(db, &storage.Unit{}); err != nil || base != 0 {
			t.Errorf("empty unit: base %d err %v", base, err)
		}
	})
}

func TestColumnValues(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		u := &storage.Unit{Positions: 3}
		// One column with positions, numbers and both kinds of int; bytes as string, slice and NULL.
		u.Add(events, 1, 7, storage.Pos(3), "s", nil)
		u.Add(events, int64(2), int64(-1), int64(1)<<60, []byte{0, 255}, []byte{})
		u.Add(events, 3, 0, 12, "", []byte(nil))
		u.Add(names, "x", false, nil)
		if _, err := do(db, u); err != nil {
			t.Fatal(err)
		}
		type row struct {
			nid, room, pos int64
			id             string
			json           []byte
		}
		var got []row
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			rows := tx.Query(`SELECT nid, room, pos, id, json FROM events ORDER BY nid`)
			for rows.Next() {
				var r row
				rows.Scan(&r.nid, &r.room, &r.pos, &r.id, &r.json)
				got = append(got, r)
			}
			return rows.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []row{{1, 7, 3, "s", nil}, {2, -1, 1 << 60, "\x00\xff", []byte{}}, {3, 0, 12, "", nil}}
		for i := range want {
			if fmt.Sprintf("%#v", got[i]) != fmt.Sprintf("%#v", want[i]) {
				t.Errorf("row %d: %#v, want %#v", i, got[i], want[i])
			}
		}
	})
}

func TestMisuse(t *testing.T) {
	db := storagetest.Open(t, storage.SQLite, testSchema)
	for name, u := range map[string]*storage.Unit{
		"too few values":     unit(func(u *storage.Unit) { u.Add(rooms, 1, 2) }),
		"wrong type":         unit(func(u *storage.Unit) { u.Add(rooms, 1, "two", "x") }),
		"string as text":     unit(func(u *storage.Unit) { u.Add(names, "a", true, "words") }),
		"position not asked": unit(func(u *storage.Unit) { u.Add(rooms, 1, storage.Pos(1), "x") }),
		"position 0":         unit(func(u *storage.Unit) { u.Positions = 1; u.Add(rooms, 1, storage.Pos(0), "x") }),
		"notice beyond":      {Positions: 1, Notices: []storage.Notice{{Pos: 2}}},
		"delete without key": unit(func(u *storage.Unit) { u.Delete(rooms) }),
		"negative":           {Positions: -1},
		"require nothing":    unit(func(u *storage.Unit) { u.Require(`SELECT 1`, nil, 1, nil) }),
	} {
		if _, err := do(db, u); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestManyShapes sends batches that touch different sets of tables, so that PostgreSQL gets statements
// of many shapes.
func TestManyShapes(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var wg sync.WaitGroup
		for i := range 200 {
			u := &storage.Unit{Positions: i % 2}
			if i&1 != 0 {
				u.Add(events, i, 1, storage.Pos(1), fmt.Sprint(i), nil)
			}
			if i&2 != 0 {
				u.Add(rooms, i%7, i, "x")
			}
			if i&4 != 0 {
				u.Add(names, fmt.Sprint(i%11), true, storage.Text("t"))
			}
			if i&8 != 0 {
				u.Delete(events, 1000+i)
			}
			appendUnit(t, db, &wg, u)
			if i%3 == 0 {
				wg.Wait()
			}
		}
		wg.Wait()
		if n := number(t, db, `SELECT count(*) FROM events`); n != 100 || db.Head() != 100 {
			t.Errorf("%d events, head %d", n, db.Head())
		}
	})
}
