package storage_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// fatalURL and fatalHow tell a child process of TestFatalUnits which database to write, and how it is to end.
const (
	fatalURL = "MYELIN_TEST_FATAL_URL"
	fatalHow = "MYELIN_TEST_FATAL_HOW"
)

// TestFatalUnits: a function of a unit that panics or ends its goroutine ends the process, whoever runs and recovers it.
func TestFatalUnits(t *testing.T) {
	if url := os.Getenv(fatalURL); url != "" {
		writeFatally(t, url, os.Getenv(fatalHow))
		return
	}
	eachURL(t, func(t *testing.T, url string) {
		for _, how := range []string{"panics", "ends"} {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFatalUnits$", "-test.count=1")
			cmd.Env = append(os.Environ(), fatalURL+"="+url, fatalHow+"="+how)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "while committing") {
				t.Errorf("a unit that %s: %v\n%s", how, err, out)
			}
		}
	})
}

func writeFatally(t *testing.T, url, how string) {
	db, err := storage.Open(t.Context(), storage.Options{URL: url}, testSchema)
	if err != nil {
		t.Fatal(err)
	}
	u := named("fatal", func(error) {})
	u.Apply = func(int64) {
		if how == "panics" {
			panic("on purpose")
		}
		runtime.Goexit()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { _ = recover() }()
		db.Submit(u)()
		select {} // another goroutine writes it
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
	}
	fmt.Println("survived")
}

// storm is what many goroutines write at random.
type storm struct {
	t       *testing.T
	db      *storage.DB
	applied int64 // the last position; of whoever publishes
	enough  int64 // the position at which halfway is closed
	halfway chan struct{}
	once    sync.Once // closes it

	mu      sync.Mutex
	answers []*stormUnit
}

// stormUnit is a unit that adds an event, and what became of it.
type stormUnit struct {
	nid       int64
	positions int64
	fails     error // what it must fail with, if it runs
	ends      bool  // its context may end first
	answered  atomic.Int32
	base      int64
	err       error
}

// conflicting is the number of an event that there is already.
const conflicting = 1 << 40

var errStorm = errors.New("on purpose")

// note counts a unit whose outcome is to be looked at.
func (s *storm) note(x *stormUnit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, x)
}

// unit is a unit of rows; wait waits for its outcome.
func (s *storm) unit(x *stormUnit) (u *storage.Unit, wait func()) {
	done := make(chan struct{})
	u = &storage.Unit{Positions: int(x.positions), Fresh: true}
	u.Apply = func(base int64) {
		if base < s.applied {
			s.t.Errorf("a unit after position %d is applied after one up to %d", base, s.applied)
		}
		if s.applied = base + x.positions; s.applied >= s.enough {
			s.once.Do(func() { close(s.halfway) })
		}
	}
	u.Done = func(base int64, err error) {
		x.base, x.err = base, err
		if x.answered.Add(1) == 1 {
			close(done)
		}
	}
	u.Add(events, x.nid, 1, storage.Pos(1), fmt.Sprint(x.nid), "{}")
	if x.fails != nil {
		u.Add(events, int64(conflicting), 1, storage.Pos(1), "again", "{}")
	}
	s.note(x)
	return u, func() {
		<-done
		s.find(x)
	}
}

// find reads a unit that has been answered, if the database is still open.
func (s *storm) find(x *stormUnit) {
	if x.err != nil {
		return
	}
	found, err := s.db.Get(context.Background(), `SELECT 1 FROM events WHERE nid = $1 AND pos = $2`, []any{x.nid, x.base + 1}, nil)
	if err != nil && !errors.Is(err, storage.ErrClosed) || err == nil && !found {
		s.t.Errorf("unit %d was answered and is not found: %v", x.nid, err)
	}
}

// write is unit with a function.
func (s *storm) write(ctx context.Context, x *stormUnit) {
	s.note(x)
	var pos int64
	x.err = s.db.Write(ctx, func(tx *storage.Tx) (err error) {
		if pos, err = tx.Position(); err != nil {
			return err
		}
		if _, err = tx.Exec(`INSERT INTO events (nid, room, pos, id, json) VALUES ($1, 1, $2, $3, $3)`, x.nid, pos, fmt.Sprint(x.nid)); err != nil {
			return err
		}
		return x.fails
	})
	x.base = pos - 1
	x.answered.Add(1)
}

// writer writes n units in one way or another, some of them before it waits for those before.
func (s *storm) writer(rnd *rand.Rand, first int64, n int) {
	var waits []func()
	var last *storage.Unit // failed, or built on one that did
	for i := range n {
		x := &stormUnit{nid: first + int64(i), positions: 1}
		switch kind := rnd.IntN(8); kind {
		case 0, 1, 2:
			x.positions = 1 + rnd.Int64N(3)
			u, wait := s.unit(x)
			if waits = append(waits, wait); kind == 0 {
				s.db.Append(u)
			} else {
				s.db.Submit(u)()
			}
		case 3:
			x.fails = storage.ErrConflict
			u, wait := s.unit(x)
			waits, last = append(waits, wait), u
			s.db.Submit(u)()
		case 4:
			if last == nil {
				continue
			}
			x.fails = storage.ErrAfter
			u, wait := s.unit(x)
			waits, u.After, last = append(waits, wait), last, u
			s.db.Append(u)
		case 5:
			s.write(context.Background(), x)
		case 6:
			x.fails = errStorm
			s.write(context.Background(), x)
		case 7:
			x.ends = true
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(2000))*time.Microsecond)
			s.write(ctx, x)
			cancel()
		}
		if rnd.IntN(3) == 0 {
			for _, wait := range waits {
				wait()
			}
			waits = nil
		}
	}
	for _, wait := range waits {
		wait()
	}
}

// check compares what was answered with what is in the database.
func (s *storm) check(db *storage.DB) {
	s.t.Helper()
	rows, positions := int64(1), int64(0) // the row that others conflict with
	last, lastBase := int64(-1), int64(-1)
	for _, x := range s.answers {
		if n := x.answered.Load(); n != 1 {
			s.t.Fatalf("unit %d was answered %d times", x.nid, n)
		}
		there := number(s.t, db, `SELECT coalesce(max(pos), 0) FROM events WHERE nid = $1`, x.nid)
		switch {
		case x.err == nil && x.fails != nil:
			s.t.Errorf("unit %d did not fail with %v", x.nid, x.fails)
		case x.err == nil && there != x.base+1:
			s.t.Errorf("unit %d was answered with the base %d and is at %d", x.nid, x.base, there)
		case x.err != nil && there != 0:
			s.t.Errorf("unit %d failed with %v and is there", x.nid, x.err)
		case x.err != nil && !errors.Is(x.err, storage.ErrClosed) && (x.fails == nil || !errors.Is(x.err, x.fails)) &&
			!(x.ends && errors.Is(x.err, context.DeadlineExceeded)):
			s.t.Errorf("unit %d failed with %v, want %v", x.nid, x.err, x.fails)
		}
		if x.err != nil {
			continue
		}
		rows, positions = rows+1, positions+x.positions
		if x.nid/writerUnits == last/writerUnits && x.base <= lastBase {
			s.t.Errorf("unit %d is at %d, before the one before it at %d", x.nid, x.base, lastBase)
		}
		last, lastBase = x.nid, x.base
	}
	if n := number(s.t, db, `SELECT count(*) FROM events`); n != rows {
		s.t.Errorf("%d rows, want %d", n, rows)
	}
	if db.Head() != positions {
		s.t.Errorf("the log ends at %d, want %d", db.Head(), positions)
	}
}

// writerUnits bounds the units of one writer of a storm.
const writerUnits = 1000

// TestStorm writes in all ways at once, with a short queue and with the end in the middle of it: each unit is answered once,
// with what became of it, and those of one writer come in order.
func TestStorm(t *testing.T) {
	eachURL(t, func(t *testing.T, url string) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		open := func() *storage.DB {
			t.Helper()
			db, err := storage.Open(t.Context(), storage.Options{URL: url, Exclusive: true, QueueUnits: 4}, testSchema)
			if err != nil {
				t.Fatal(err)
			}
			return db
		}
		const writers, units = 8, 60
		s := &storm{t: t, db: open(), enough: writers * units / 3, halfway: make(chan struct{})}
		before := &storage.Unit{}
		before.Add(events, int64(conflicting), 1, 0, "there", "{}")
		if _, err := do(s.db, before); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				s.writer(rand.New(rand.NewPCG(seed, uint64(w))), int64(w+1)*writerUnits, units)
			})
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			group.Wait()
		}()
		select {
		case <-s.halfway:
		case <-ended:
			if s.db.Head() < s.enough {
				t.Error("less was written than half of it")
			}
		}
		closeDB(t, s.db)
		group.Wait()
		db := open()
		defer closeDB(t, db)
		slices.SortFunc(s.answers, func(a, b *stormUnit) int { return cmp.Compare(a.nid, b.nid) })
		s.check(db)
	})
}
