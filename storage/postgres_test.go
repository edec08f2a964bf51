package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// lossyProxy stands between the server and the database and breaks connections at chosen moments.
type lossyProxy struct {
	network, address string
	loseAnswer       atomic.Bool // pass on the next message, but break before its answer
	loseRequest      atomic.Bool // break instead of passing on the next message
	breaks           atomic.Int64
	only             string // breaks only connections that have sent this
}

// startProxy returns the proxy of a database URL, and the URL that leads through it.
func startProxy(t *testing.T, target string) (*lossyProxy, string) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &lossyProxy{network: "tcp", address: u.Host}
	q := u.Query()
	if host := q.Get("host"); strings.HasPrefix(host, "/") {
		p.network, p.address = "unix", filepath.Join(host, ".s.PGSQL.5432")
	} else if u.Port() == "" {
		p.address += ":5432"
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	q.Set("host", dir)
	u.Host = ""
	u.RawQuery = q.Encode()
	return p, u.String()
}

func (p *lossyProxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial(p.network, p.address)
	if err != nil {
		return
	}
	defer server.Close()
	var mute atomic.Bool
	go func() {
		defer client.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := server.Read(buf)
			if err != nil || mute.Load() {
				io.Copy(io.Discard, server)
				return
			}
			client.Write(buf[:n])
		}
	}()
	buf := make([]byte, 1<<16)
	for meant := false; ; {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if meant = meant || bytes.Contains(buf[:n], []byte(p.only)); !meant {
			server.Write(buf[:n])
			continue
		}
		if p.loseRequest.CompareAndSwap(true, false) {
			p.breaks.Add(1)
			return
		}
		lose := p.loseAnswer.CompareAndSwap(true, false)
		mute.Store(lose)
		server.Write(buf[:n])
		if lose {
			p.breaks.Add(1)
			time.Sleep(50 * time.Millisecond) // let the server commit
			return
		}
	}
}

// TestLostConnection breaks the connection at each step of a commit. Whatever the moment, the writer gets
// an answer that is true, and nothing is written twice.
func TestLostConnection(t *testing.T) {
	p, url := startProxy(t, storagetest.URL(t, storage.PostgreSQL))
	db := storagetest.OpenURL(t, url, testSchema)
	nid := int64(0)
	insert := func(tx *storage.Tx) error {
		pos, err := tx.Position()
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO events (nid, room, pos, id) VALUES ($1, 1, $2, $3)`, nid, pos, fmt.Sprint(nid))
		return err
	}
	rows := func() error {
		u := &storage.Unit{Positions: 1}
		u.Add(events, nid, 1, storage.Pos(1), fmt.Sprint(nid), nil)
		base, err := do(db, u)
		if err == nil && base != nid-1 {
			t.Errorf("unit %d has base %d", nid, base)
		}
		return err
	}
	// Once a node has advanced the log, it does so with one statement a batch.
	lone := func(lose *atomic.Bool) error {
		if err := rows(); err != nil {
			return err
		}
		nid++
		lose.Store(true)
		return rows()
	}
	cases := []struct {
		name string
		fn   func() error
	}{
		{"rows, request lost", func() error { p.loseRequest.Store(true); return rows() }},
		{"rows, answer lost", func() error { p.loseAnswer.Store(true); return rows() }},
		{"begin lost", func() error { p.loseRequest.Store(true); return db.Write(t.Context(), insert) }},
		{"statement lost", func() error {
			return db.Write(t.Context(), func(tx *storage.Tx) error {
				p.loseRequest.Store(p.breaks.Load() == 3)
				return insert(tx)
			})
		}},
		{"commit lost", func() error {
			return db.Write(t.Context(), func(tx *storage.Tx) error {
				err := insert(tx)
				p.loseRequest.Store(p.breaks.Load() == 4)
				return err
			})
		}},
		{"answer to commit lost", func() error {
			return db.Write(t.Context(), func(tx *storage.Tx) error {
				err := insert(tx)
				p.loseAnswer.Store(p.breaks.Load() == 5)
				return err
			})
		}},
		{"lone rows, request lost", func() error { return lone(&p.loseRequest) }},
		{"lone rows, answer lost", func() error { return lone(&p.loseAnswer) }},
	}
	for i, c := range cases {
		nid++
		if err := c.fn(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := p.breaks.Load(); got != int64(i+1) {
			t.Fatalf("%s: %d breaks, want %d", c.name, got, i+1)
		}
		if n := number(t, db, `SELECT count(*) FROM events WHERE nid = $1 AND pos = $1`, nid); n != 1 {
			t.Errorf("%s: not there exactly once at position %d", c.name, nid)
		}
	}
	if db.Head() != nid {
		t.Errorf("head %d, want %d", db.Head(), nid)
	}
	// Reads replace connections that died while they lay in the pool.
	p.loseRequest.Store(true)
	if n := number(t, db, `SELECT count(*) FROM events`); n != nid {
		t.Errorf("%d events, want %d", n, nid)
	}
	p.loseRequest.Store(true)
	if err := db.Read(t.Context(), func(*storage.Tx) error { return nil }); err != nil {
		t.Errorf("Read on a dead connection: %v", err)
	}
}

// TestLogChangesHands lets one node advance the log while another does not know what became of its own last batch.
func TestLogChangesHands(t *testing.T) {
	target := storagetest.URL(t, storage.PostgreSQL)
	p, url := startProxy(t, target)
	first, second := storagetest.OpenURL(t, url, testSchema), storagetest.OpenURL(t, target, testSchema)
	nid := int64(0)
	write := func(db *storage.DB, nid int64) {
		u := &storage.Unit{Positions: 1}
		u.Add(events, nid, 1, storage.Pos(1), fmt.Sprint(nid), nil)
		base, err := do(db, u)
		if err != nil {
			t.Errorf("event %d: %v", nid, err)
		}
		if n := number(t, second, `SELECT count(*) FROM events WHERE nid = $1 AND pos = $2`, nid, base+1); n != 1 {
			t.Errorf("event %d was answered and is not at position %d", nid, base+1)
		}
	}
	for round := range int64(6) {
		nid++
		write(first, nid) // the log is the first's
		broken := p.breaks.Load()
		var wg sync.WaitGroup
		wg.Go(func() {
			for p.breaks.Load() == broken {
				time.Sleep(time.Millisecond)
			}
			write(second, 1000+round)
		})
		nid++
		if round%2 == 0 {
			p.loseAnswer.Store(true)
		} else {
			p.loseRequest.Store(true)
		}
		write(first, nid)
		wg.Wait()
	}
	if n, top := number(t, second, `SELECT count(*) FROM events`), number(t, second, `SELECT head FROM log_head`); n != 18 || top != 18 {
		t.Errorf("%d events and head %d after 18 writes", n, top)
	}
}

// TestTwoNodes runs two DBs on one PostgreSQL database, like two nodes of a cluster: positions stay one
// sequence, ordered like the commits.
func TestTwoNodes(t *testing.T) {
	url := storagetest.URL(t, storage.PostgreSQL)
	nodes := []*storage.DB{storagetest.OpenURL(t, url, testSchema), storagetest.OpenURL(t, url, testSchema)}
	if nodes[0].Generation() != nodes[1].Generation() {
		t.Error("generations differ")
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			db := nodes[w%2]
			for i := range 20 {
				nid := int64(100*w + i)
				if i%4 == 0 {
					err := db.Write(t.Context(), func(tx *storage.Tx) error {
						if err := tx.Lock("counter"); err != nil {
							return err
						}
						var last int64 // look, then write what was looked for
						if _, err := tx.Get(`SELECT coalesce(max(last), 0) FROM rooms`, nil, &last); err != nil {
							return err
						}
						_, err := tx.Exec(`INSERT INTO rooms (room, last, note) VALUES ($1, $2, $3)`, nid, last+1, "")
						return err
					})
					if err != nil {
						t.Error(err)
					}
					continue
				}
				u := &storage.Unit{Positions: 1}
				u.Add(events, nid, 1, storage.Pos(1), fmt.Sprint(nid), nil)
				if _, err := do(db, u); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	db := nodes[0]
	if n := number(t, db, `SELECT count(DISTINCT pos) FROM events`); n != 120 || number(t, db, `SELECT max(pos) FROM events`) != 120 {
		t.Errorf("%d positions for 120 events", n)
	}
	if n := number(t, db, `SELECT count(DISTINCT last) FROM rooms`); n != 40 {
		t.Errorf("Lock did not serialise: %d different values of 40", n)
	}
}

// TestLongMigration opens a database while another process migrates it, for longer than a statement may take.
func TestLongMigration(t *testing.T) {
	const migrationLock = 0x6d79656c696e0001
	const limit = 3 * time.Second
	url := storagetest.URL(t, storage.PostgreSQL)
	other := storagetest.OpenURL(t, url)
	opened := make(chan error, 1)
	err := other.Read(t.Context(), func(tx *storage.Tx) error {
		if _, err := tx.Get(`SELECT pg_advisory_xact_lock($1)`, []any{int64(migrationLock)}, nil); err != nil {
			return err
		}
		go func() {
			db, err := storage.Open(context.Background(), storage.Options{URL: url, ReadTimeout: limit}, testSchema)
			if err == nil {
				err = db.Close(context.Background())
			}
			opened <- err
		}()
		select {
		case err := <-opened:
			t.Errorf("opened during a migration: %v", err)
			opened <- err
		case <-time.After(limit + limit/2):
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("opened after a migration: %v", err)
	}
}

// TestSessionSettings: what reads and writes rely on is so in their sessions, however those came about.
func TestSessionSettings(t *testing.T) {
	db, err := storage.Open(t.Context(), storage.Options{URL: storagetest.URL(t, storage.PostgreSQL), ReadTimeout: 7 * time.Second}, testSchema)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDB(t, db)
	for _, session := range []struct {
		name     string
		run      func(ctx context.Context, fn func(tx *storage.Tx) error) error
		settings map[string]string
	}{
		{"Read", db.Read, map[string]string{"transaction_isolation": "repeatable read", "transaction_read_only": "on", "statement_timeout": "7s"}},
		{"ReadOne", db.ReadOne, map[string]string{"transaction_read_only": "on", "statement_timeout": "7s"}},
		{"Write", db.Write, map[string]string{"synchronous_commit": "on", "statement_timeout": "7s", "idle_in_transaction_session_timeout": "7s"}},
	} {
		for name, want := range session.settings {
			var got string
			err := session.run(t.Context(), func(tx *storage.Tx) error {
				_, err := tx.Get(`SELECT convert_to(current_setting(convert_from($1, 'UTF8')), 'UTF8')`, []any{name}, &got)
				return err
			})
			if err != nil || got != want {
				t.Errorf("%s: %s is %q, want %q (%v)", session.name, name, got, want, err)
			}
		}
	}
}
