package storage_test

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
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

func TestReadYourWrite(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		nul := "a\x00b\xff"
		err := db.Write(ctx, func(tx *storage.Tx) error {
			n, err := tx.Exec(`INSERT INTO names (name, ok, words) VALUES ($1, $2, $3)`, nul, true, storage.Text("hello world"))
			if n != 1 {
				t.Errorf("affected %d, want 1", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Read(ctx, func(tx *storage.Tx) error {
			var name string
			var raw []byte
			var ok bool
			var words *string
			found, err := tx.Get(`SELECT name, name, ok, words FROM names WHERE name = $1`, []any{[]byte(nul)}, &name, &raw, &ok, &words)
			if err != nil {
				return err
			}
			if !found || name != nul || string(raw) != nul || !ok || words == nil || *words != "hello world" {
				t.Errorf("got %v %q %q %v %v", found, name, raw, ok, words)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

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
		want := []string{"apply 0", "notice 1 7", "notice 2 7", "done 0"}
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

func TestIDs(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			url := storagetest.URL(t, d)
			last := int64(0)
			var generation int64
			for range 3 {
				db := storagetest.OpenURL(t, url, testSchema)
				if generation != 0 && db.Generation() != generation {
					t.Errorf("generation changed from %d to %d", generation, db.Generation())
				}
				generation = db.Generation()
				ids := db.IDs("room")
				for range 100 {
					id, err := ids.Next(t.Context())
					if err != nil || id <= last {
						t.Fatalf("id %d after %d, err %v", id, last, err)
					}
					last = id
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				if err := db.Close(ctx); err != nil {
					t.Fatal(err)
				}
				cancel()
			}
		})
	}
}
