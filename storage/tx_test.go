package storage_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func TestReadYourWrite(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		nul := "a\x00b\xff"
		err := db.Write(t.Context(), func(tx *storage.Tx) error {
			n, err := tx.Exec(`INSERT INTO names (name, ok, words) VALUES ($1, $2, $3)`, nul, true, storage.Text("hello world"))
			if n != 1 {
				t.Errorf("affected %d, want 1", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Read(t.Context(), func(tx *storage.Tx) error {
			var name, words string
			var raw []byte
			var ok bool
			found, err := tx.Get(`SELECT name, name, ok, words FROM names WHERE name = $1`, []any{[]byte(nul)}, &name, &raw, &ok, &words)
			if !found || name != nul || string(raw) != nul || !ok || words != "hello world" {
				t.Errorf("got %v %q %q %v %q", found, name, raw, ok, words)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestWriteOutcomes(t *testing.T) {
	errRefused := errors.New("refused")
	insert := func(tx *storage.Tx, name string) error {
		_, err := tx.Exec(`INSERT INTO names (name, ok) VALUES ($1, TRUE)`, name)
		return err
	}
	cases := []struct {
		name string
		fn   func(tx *storage.Tx) error
		want func(err error) bool
		kept bool
	}{
		{"success", func(tx *storage.Tx) error { return insert(tx, "n") }, func(err error) bool { return err == nil }, true},
		{"own error", func(tx *storage.Tx) error { insert(tx, "n"); return errRefused }, func(err error) bool { return errors.Is(err, errRefused) }, false},
		{"conflict", func(tx *storage.Tx) error { insert(tx, "n"); return insert(tx, "n") }, func(err error) bool { return errors.Is(err, storage.ErrConflict) }, false},
		{"conflict ignored", func(tx *storage.Tx) error { insert(tx, "n"); insert(tx, "n"); return nil }, func(err error) bool { return errors.Is(err, storage.ErrConflict) }, false},
		{"after a failure", func(tx *storage.Tx) error {
			insert(tx, "n")
			tx.Exec(`SELECT nothing FROM nowhere`)
			return insert(tx, "m")
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "nowhere") }, false},
		{"failing query", func(tx *storage.Tx) error {
			insert(tx, "n")
			return tx.Query(`SELECT name FROM names WHERE`).Close()
		}, func(err error) bool { return err != nil }, false},
		{"panic", func(tx *storage.Tx) error { insert(tx, "n"); panic("oops") }, func(err error) bool { return err != nil && strings.Contains(err.Error(), "oops") }, false},
		{"notice without position", func(tx *storage.Tx) error {
			tx.Notice(storage.Notice{Kind: storage.Event})
			return insert(tx, "n")
		}, func(err error) bool { return err != nil }, false},
		{"two statements", func(tx *storage.Tx) error {
			insert(tx, "n")
			_, err := tx.Exec(`DELETE FROM names WHERE name = $1; DELETE FROM rooms`, "x")
			return err
		}, func(err error) bool { return err != nil }, false},
		{"too few arguments", func(tx *storage.Tx) error {
			insert(tx, "n")
			_, err := tx.Exec(`DELETE FROM names WHERE name = $1 OR name = $2`, "x")
			return err
		}, func(err error) bool { return err != nil }, false},
		{"argument of unknown type", func(tx *storage.Tx) error {
			insert(tx, "n")
			_, err := tx.Exec(`DELETE FROM names WHERE name = $1`, struct{}{})
			return err
		}, func(err error) bool { return err != nil }, false},
		{"read beyond the end", func(tx *storage.Tx) error {
			rows := tx.Query(`INSERT INTO names (name, ok) VALUES ($1, TRUE) RETURNING name`, "n")
			for rows.Next() {
			}
			if rows.Next() {
				t.Error("a row after the last")
			}
			return rows.Close()
		}, func(err error) bool { return err == nil }, true},
		{"rows left open", func(tx *storage.Tx) error {
			insert(tx, "n")
			rows := tx.Query(`SELECT name FROM names`)
			rows.Next()
			return nil
		}, func(err error) bool { return err == nil }, true},
	}
	each(t, func(t *testing.T, db *storage.DB) {
		for _, batched := range []bool{false, true} {
			for _, c := range cases {
				t.Run(fmt.Sprintf("%s/batched=%v", c.name, batched), func(t *testing.T) {
					neighbours := make(chan error, 2)
					release := func() {}
					if batched {
						release = hold(t, db)
						db.Append(neighbour("left", neighbours))
					}
					outcome := make(chan error, 1)
					go func() { outcome <- db.Write(context.Background(), c.fn) }()
					if batched {
						time.Sleep(5 * time.Millisecond) // let the Write queue up
						db.Append(neighbour("right", neighbours))
					}
					release()
					if err := <-outcome; !c.want(err) {
						t.Errorf("error %v", err)
					}
					if batched {
						if err := errors.Join(<-neighbours, <-neighbours); err != nil {
							t.Errorf("neighbour harmed: %v", err)
						}
					}
					want := int64(0)
					if c.kept {
						want = 1
					}
					if n := number(t, db, `SELECT count(*) FROM names WHERE name IN ($1, $2)`, "n", "m"); n != want {
						t.Errorf("%d rows left behind, want %d", n, want)
					}
					if err := db.Write(context.Background(), func(tx *storage.Tx) error {
						_, err := tx.Exec(`DELETE FROM names`)
						return err
					}); err != nil {
						t.Error(err)
					}
				})
			}
		}
	})
}

func neighbour(name string, done chan<- error) *storage.Unit {
	u := &storage.Unit{Positions: 1}
	u.Add(names, name, true, nil)
	u.Done = func(_ int64, err error) { done <- err }
	return u
}

func TestWritePositionAndNotice(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var got []storage.Notice
		db.Subscribe(func(batch []storage.Notice, _ int64) { got = append(got, batch...) })
		for range 2 {
			err := db.Write(t.Context(), func(tx *storage.Tx) error {
				p, err := tx.Position()
				if err != nil {
					return err
				}
				if again, _ := tx.Position(); again != p {
					t.Errorf("position %d, then %d", p, again)
				}
				tx.Notice(storage.Notice{Kind: storage.AccountData, User: "@u:x"})
				tx.Notice(storage.Notice{Kind: storage.ToDevice, User: "@v:x"})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		want := []storage.Notice{{Pos: 1, Kind: storage.AccountData, User: "@u:x"}, {Pos: 1, Kind: storage.ToDevice, User: "@v:x"}, {Pos: 2, Kind: storage.AccountData, User: "@u:x"}, {Pos: 2, Kind: storage.ToDevice, User: "@v:x"}}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("notices %v, want %v", got, want)
		}
		// A Write that took a position and failed leaves no gap.
		db.Write(t.Context(), func(tx *storage.Tx) error {
			tx.Position()
			return errors.New("no")
		})
		if base, err := do(db, &storage.Unit{Positions: 1}); base != 2 || err != nil {
			t.Errorf("next base %d, err %v", base, err)
		}
	})
}

func TestWriteContext(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ran := atomic.Bool{}
		release := hold(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		outcome := make(chan error, 1)
		go func() {
			outcome <- db.Write(ctx, func(*storage.Tx) error { ran.Store(true); return nil })
		}()
		time.Sleep(5 * time.Millisecond)
		cancel()
		if err := <-outcome; !errors.Is(err, context.Canceled) {
			t.Errorf("queued Write: %v", err)
		}
		release()
		if err := db.Write(ctx, func(*storage.Tx) error { ran.Store(true); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("Write with an ended context: %v", err)
		}
		if ran.Load() {
			t.Error("a dropped Write ran")
		}
		ctx, cancel = context.WithCancel(t.Context())
		err := db.Write(ctx, func(tx *storage.Tx) error {
			cancel() // the client hangs up while it runs
			_, err := tx.Exec(`INSERT INTO names (name, ok) VALUES ($1, TRUE)`, "kept")
			return err
		})
		if n := number(t, db, `SELECT count(*) FROM names`); err != nil || n != 1 {
			t.Errorf("running Write: err %v, %d rows", err, n)
		}
	})
}

func TestScan(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			const q = `SELECT $1, $2, CAST($3 AS BIGINT), CAST($4 AS BIGINT), 1 = 1`
			const typed = `SELECT CAST($1 AS BYTEA), CAST($2 AS BYTEA), CAST($3 AS BIGINT), CAST($4 AS BIGINT), 1 = 1`
			text := q
			if db.Dialect() == storage.PostgreSQL {
				text = typed
			}
			args := []any{"abc", nil, 5, (*int64)(nil)}
			var (
				s, skip     string
				b           []byte
				j           json.RawMessage
				ps          *string
				pi          *int64
				ns          sql.NullString
				ni          sql.NullInt64
				n           int64
				small       int
				yes         bool
				raw         sql.RawBytes
				noBytes     = []byte("x")
				noRaw       = sql.RawBytes("x")
				wrongStruct struct{}
				_           = skip
				checkFound  = func(found bool, err error) {
					t.Helper()
					if !found || err != nil {
						t.Errorf("found %v, err %v", found, err)
					}
				}
			)
			checkFound(tx.Get(text, args, &s, &noBytes, &n, &pi, &yes))
			if s != "abc" || noBytes != nil || n != 5 || pi != nil || !yes {
				t.Errorf("got %q %v %d %v %v", s, noBytes, n, pi, yes)
			}
			checkFound(tx.Get(text, args, &b, &ps, &small, &ni, &n))
			if string(b) != "abc" || ps != nil || small != 5 || ni.Valid || n != 1 {
				t.Errorf("got %q %v %d %v %d", b, ps, small, ni, n)
			}
			checkFound(tx.Get(text, args, &ps, &ns, &pi))
			if ps == nil || *ps != "abc" || ns.Valid || pi == nil || *pi != 5 {
				t.Errorf("got %v %v %v", ps, ns, pi)
			}
			checkFound(tx.Get(text, args, &ns, nil, &ni))
			if !ns.Valid || ns.String != "abc" || !ni.Valid || ni.Int64 != 5 {
				t.Errorf("got %v %v", ns, ni)
			}
			checkFound(tx.Get(text, args, &j, &noRaw))
			if string(j) != "abc" || noRaw != nil {
				t.Errorf("got %s %v", j, noRaw)
			}
			rows := tx.Query(text, args...)
			for rows.Next() {
				rows.Scan(&raw)
				if string(raw) != "abc" {
					t.Errorf("raw %q", raw)
				}
			}
			if err := rows.Close(); err != nil {
				t.Error(err)
			}
			for name, dest := range map[string][]any{
				"NULL into string": {nil, &s},
				"NULL into int64":  {nil, nil, nil, &n},
				"NULL into int":    {nil, nil, nil, &small},
				"NULL into bool":   {nil, nil, nil, &yes},
				"unknown type":     {&wrongStruct},
				"too many columns": {nil, nil, nil, nil, nil, &s},
			} {
				if _, err := tx.Get(text, args, dest...); err == nil {
					t.Errorf("%s: no error", name)
				}
			}
			if found, err := tx.Get(`SELECT name FROM names WHERE name = $1`, []any{"nobody"}, &s); found || err != nil {
				t.Errorf("no row: found %v, err %v", found, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestNestedQueries(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		for i := range 4 {
			if _, err := do(db, unit(func(u *storage.Unit) { u.Add(names, fmt.Sprint("n", i), true, nil) })); err != nil {
				t.Fatal(err)
			}
		}
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			pairs := ""
			const q = `SELECT name FROM names WHERE ok = $1 ORDER BY name`
			outer := tx.Query(q, true)
			for outer.Next() {
				inner := tx.Query(q, true)
				for inner.Next() {
					var a, b string
					outer.Scan(&a) // the current row survives other queries
					inner.Scan(&b)
					pairs += a + b + " "
					if b == "n1" {
						break
					}
				}
				if err := inner.Close(); err != nil {
					return err
				}
			}
			if want := "n0n0 n0n1 n1n0 n1n1 n2n0 n2n1 n3n0 n3n1 "; pairs != want {
				t.Errorf("pairs %q, want %q", pairs, want)
			}
			outer.Close()
			return outer.Close()
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestManyStatements(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		for round := range 2 {
			err := db.Read(t.Context(), func(tx *storage.Tx) error {
				for n := 1; n <= 400; n++ {
					args := make([]any, n)
					for i := range args {
						args[i] = i
					}
					var count int
					if _, err := tx.Get(`SELECT count(*) FROM events WHERE nid IN `+storage.In(n, 1), args, &count); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	})
}

func TestReadOnly(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var kept *storage.Tx
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			kept = tx
			if _, err := tx.Exec(`DELETE FROM names`); err == nil {
				t.Error("Exec in a Read")
			}
			if _, err := tx.Position(); err == nil {
				t.Error("Position in a Read")
			}
			return tx.Query(`INSERT INTO names (name, ok) VALUES ($1, TRUE) RETURNING name`, "x").Close()
		})
		var name string
		if err == nil {
			// The statement may fail as late as its first row.
			err = db.Read(t.Context(), func(tx *storage.Tx) error {
				_, err := tx.Get(`INSERT INTO names (name, ok) VALUES ($1, TRUE) RETURNING name`, []any{"x"}, &name)
				return err
			})
		}
		if err == nil {
			t.Error("INSERT through a query in a Read")
		}
		if err := kept.Query(`SELECT 1`).Close(); err == nil {
			t.Error("transaction usable after its function returned")
		}
		if n := number(t, db, `SELECT count(*) FROM names`); n != 0 {
			t.Error("a Read wrote")
		}
	})
}

func TestSnapshot(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		err := db.Read(t.Context(), func(tx *storage.Tx) error {
			var before, after int
			if _, err := tx.Get(`SELECT count(*) FROM names`, nil, &before); err != nil {
				return err
			}
			if _, err := do(db, unit(func(u *storage.Unit) { u.Add(names, "new", true, nil) })); err != nil {
				return err
			}
			if _, err := tx.Get(`SELECT count(*) FROM names`, nil, &after); err != nil {
				return err
			}
			if before != after {
				t.Errorf("count %d, then %d in one snapshot", before, after)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// endless counts forever.
const endless = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n WHERE i < 0`

func TestTimeLimit(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		// Opening is under the limit as well, and a busy machine needs more than one attempt.
		db, err := storage.Open(t.Context(), storage.Options{URL: url, ReadTimeout: 2 * time.Second}, testSchema)
		for end := time.Now().Add(time.Minute); errors.Is(err, context.DeadlineExceeded) && time.Now().Before(end); {
			db, err = storage.Open(t.Context(), storage.Options{URL: url, ReadTimeout: 2 * time.Second}, testSchema)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer closeDB(t, db)
		var n int64
		start := time.Now()
		err = db.Read(t.Context(), func(tx *storage.Tx) error {
			_, err := tx.Get(endless, nil, &n)
			return err
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Read: %v", err)
		}
		err = db.Write(t.Context(), func(tx *storage.Tx) error {
			_, err := tx.Get(endless, nil, &n)
			return err
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Write: %v", err)
		}
		// A write that is interrupted takes the transaction with it on SQLite; its neighbours must not notice.
		neighbours := make(chan error, 2)
		release := hold(t, db)
		db.Append(neighbour("left", neighbours))
		outcome := make(chan error, 1)
		go func() {
			outcome <- db.Write(context.Background(), func(tx *storage.Tx) error {
				_, err := tx.Exec(`INSERT INTO rooms (room, last, note) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, 1, $1 FROM n`, "x")
				return err
			})
		}()
		time.Sleep(5 * time.Millisecond)
		db.Append(neighbour("right", neighbours))
		release()
		if err := <-outcome; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("endless INSERT: %v", err)
		}
		if err := errors.Join(<-neighbours, <-neighbours); err != nil {
			t.Errorf("neighbour harmed: %v", err)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("took %s", took)
		}
		if _, err := do(db, unit(func(u *storage.Unit) { u.Add(names, "after", true, nil) })); err != nil {
			t.Errorf("after a time limit: %v", err)
		}
		if n := number(t, db, `SELECT count(*) FROM names`); n != 3 || number(t, db, `SELECT count(*) FROM rooms`) != 0 {
			t.Errorf("%d names", n)
		}
	})
}

func TestReadContext(t *testing.T) {
	db := storagetest.Open(t, storage.SQLite, testSchema)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var n int64
	_, err := db.Get(ctx, endless, nil, &n)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err %v", err)
	}
	if err := db.Read(ctx, func(*storage.Tx) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Read with an ended context: %v", err)
	}
}

func TestClosed(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		var done atomic.Int64
		for i := range 100 {
			u := unit(func(u *storage.Unit) { u.Add(names, fmt.Sprint(i), true, nil) })
			u.Done = func(_ int64, err error) {
				if err == nil {
					done.Add(1)
				}
			}
			db.Append(u)
		}
		closeDB(t, db)
		if done.Load() != 100 {
			t.Errorf("Close flushed %d of 100 units", done.Load())
		}
		if _, err := do(db, &storage.Unit{}); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("Append: %v", err)
		}
		if err := db.Write(t.Context(), func(*storage.Tx) error { return nil }); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
		if err := db.Read(t.Context(), func(*storage.Tx) error { return nil }); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("Read: %v", err)
		}
		closeDB(t, db) // again
	})
}

// TestQueueBounded: when the queue is full writers wait, and go on when there is room.
func TestQueueBounded(t *testing.T) {
	db, err := storage.Open(t.Context(), storage.Options{URL: storagetest.URL(t, storage.SQLite), QueueUnits: 4}, testSchema)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDB(t, db)
	release := hold(t, db)
	var appended, done atomic.Int64
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for i := range 20 {
			u := unit(func(u *storage.Unit) { u.Add(names, fmt.Sprint(i), true, nil) })
			u.Done = func(_ int64, err error) {
				if err == nil {
					done.Add(1)
				}
			}
			db.Append(u)
			appended.Add(1)
		}
	}()
	for end := time.Now().Add(time.Minute); appended.Load() < 4 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // a fifth would come by now
	if n := appended.Load(); n != 4 {
		t.Errorf("%d units queued, want 4", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := db.Write(ctx, func(*storage.Tx) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Write behind a full queue: %v", err)
	}
	release()
	<-finished
	if err := db.Write(t.Context(), func(*storage.Tx) error { return nil }); err != nil || done.Load() != 20 {
		t.Errorf("err %v, %d of 20 units done", err, done.Load())
	}
}

func TestList(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		names, err := storage.ReadList[string](t.Context(), db, `SELECT name FROM names`)
		if err != nil || names == nil || len(names) != 0 {
			t.Errorf("of no rows: %#v, %v", names, err)
		}
		var added []string
		err = db.Write(t.Context(), func(tx *storage.Tx) (err error) {
			added, err = storage.List[string](tx, `INSERT INTO names (name, ok) VALUES ('b', TRUE), ('a', FALSE) RETURNING name`)
			return err
		})
		if err != nil || len(added) != 2 {
			t.Errorf("of what was added: %q, %v", added, err)
		}
		names, err = storage.ReadList[string](t.Context(), db, `SELECT name FROM names WHERE name <> $1 ORDER BY name`, "c")
		if err != nil || !slices.Equal(names, []string{"a", "b"}) {
			t.Errorf("of two rows: %q, %v", names, err)
		}
		if _, err := storage.ReadList[int64](t.Context(), db, `SELECT nothing FROM names`); err == nil {
			t.Error("a column that is not there was read")
		}
		numbers, err := storage.ReadList[int64](t.Context(), db, `SELECT COUNT(*) FROM names`)
		if err != nil || !slices.Equal(numbers, []int64{2}) {
			t.Errorf("of a number: %v, %v", numbers, err)
		}
	})
}
