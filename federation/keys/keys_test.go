package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func keyOf(seed byte) ed25519.PrivateKey {
	b := make([]byte, ed25519.SeedSize)
	b[0] = seed
	return ed25519.NewKeyFromSeed(b)
}

func publicOf(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func encoded(k ed25519.PrivateKey) string { return signing.EncodeBase64(publicOf(k)) }

type object = map[string]any

// signed makes JSON of an object with signatures.
func signed(t testing.TB, o object, server, id string, key ed25519.PrivateKey) []byte {
	t.Helper()
	raw, err := json.Marshal(o)
	if err == nil {
		raw, err = signing.SignJSON(raw, server, id, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

const hour = int64(3600 * 1000)

func TestParseDocument(t *testing.T) {
	const now = int64(1_700_000_000_000)
	key, other := keyOf(1), keyOf(2)
	good := func() object {
		return object{
			"server_name": "a.org", "valid_until_ts": now + 2*hour, "verify_keys": object{"ed25519:1": object{"key": encoded(key)}},
			"old_verify_keys": object{"ed25519:0": object{"key": encoded(other), "expired_ts": now - hour}},
		}
	}
	d, err := parseDocument(signed(t, good(), "a.org", "ed25519:1", key), "a.org", now)
	if err != nil {
		t.Fatal(err)
	}
	current, old := d.keys["ed25519:1"], d.keys["ed25519:0"]
	for _, c := range []struct {
		name string
		key  publicKey
		at   int64
		want bool
	}{
		{"current, now", current, Now, true}, {"current, before", current, now - 1000*hour, true}, {"current, at its end", current, now + 2*hour, true},
		{"current, after its end", current, now + 2*hour + 1, false}, {"current, whenever", current, Whenever, true},
		{"old, now", old, Now, false}, {"old, before", old, now - hour, true}, {"old, after", old, now - hour + 1, false}, {"old, whenever", old, Whenever, true},
	} {
		if got := c.key.validAt(c.at, now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	long := good()
	long["valid_until_ts"] = now + 1000*hour
	if d, err = parseDocument(signed(t, long, "a.org", "ed25519:1", key), "a.org", now); err != nil {
		t.Fatal(err)
	}
	if current = d.keys["ed25519:1"]; !current.validAt(now+week, now) || current.validAt(now+week+1, now) || current.validAt(Now, now+week+1) {
		t.Error("a document is not believed for seven days exactly")
	}

	change := func(fn func(object)) []byte {
		o := good()
		fn(o)
		return signed(t, o, "a.org", "ed25519:1", key)
	}
	for name, raw := range map[string][]byte{
		"no JSON":              []byte(`{`),
		"no object":            []byte(`[]`),
		"not signed":           []byte(`{"server_name":"a.org","valid_until_ts":1700000000000,"verify_keys":{}}`),
		"of another server":    change(func(o object) { o["server_name"] = "b.org" }),
		"without a name":       change(func(o object) { delete(o, "server_name") }),
		"name of another type": change(func(o object) { o["server_name"] = object{"a.org": 1} }),
		"without validity":     change(func(o object) { delete(o, "valid_until_ts") }),
		"validity as text":     change(func(o object) { o["valid_until_ts"] = "1700000000000" }),
		"key of another name":  change(func(o object) { o["verify_keys"] = object{"ed25519:2": object{"key": encoded(key)}} }),
		"another key":          change(func(o object) { o["verify_keys"] = object{"ed25519:1": object{"key": encoded(other)}} }),
		"signed by an old key": signed(t, good(), "a.org", "ed25519:0", other),
		"signed by another":    signed(t, good(), "b.org", "ed25519:1", key),
		"too large":            change(func(o object) { o["x"] = strings.Repeat("x", maxDocument) }),
		"too many keys": change(func(o object) {
			keys := object{"ed25519:1": object{"key": encoded(key)}}
			for i := range maxKeys {
				keys[fmt.Sprint("ed25519:x", i)] = object{"key": encoded(key)}
			}
			o["verify_keys"] = keys
		}),
	} {
		if _, err := parseDocument(raw, "a.org", now); !errors.Is(err, errDocument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	odd := change(func(o object) {
		o["verify_keys"] = object{"ed25519:1": object{"key": encoded(key)}, "rsa:1": object{"key": encoded(key)}, "ed25519:short": object{"key": "AAAA"}, "ed25519:x": 5, "ed25519:é": object{"key": encoded(key)}}
		o["old_verify_keys"] = object{"ed25519:y": object{"key": encoded(key)}, "ed25519:1": object{"key": encoded(other), "expired_ts": 5}}
	})
	if d, err = parseDocument(odd, "a.org", now); err != nil || len(d.keys) != 1 || d.keys["ed25519:1"].expired != 0 {
		t.Errorf("odd keys: %v, %v", d, err)
	}
}

// remote is another server, which publishes keys.
type remote struct {
	name    string
	key     ed25519.PrivateKey
	id      string
	mu      sync.Mutex
	until   int64
	old     object
	down    bool
	asked   int
	answers []json.RawMessage // as a notary
}

// serve starts a server. All share the certificate of httptest, which is for 127.0.0.1.
func serve(t *testing.T, pool *x509.CertPool, key ed25519.PrivateKey, until int64) *remote {
	t.Helper()
	r := &remote{key: key, id: "ed25519:1", until: until, old: object{}}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case r.down:
			w.WriteHeader(http.StatusServiceUnavailable)
		case req.URL.Path == "/_matrix/key/v2/server":
			r.asked++
			w.Write(r.document(t))
		default:
			json.NewEncoder(w).Encode(object{"server_keys": r.answers})
		}
	}))
	t.Cleanup(server.Close)
	pool.AddCert(server.Certificate())
	r.name = strings.TrimPrefix(server.URL, "https://")
	return r
}

func (r *remote) document(t testing.TB) []byte {
	return signed(t, object{
		"server_name": r.name, "valid_until_ts": r.until, "verify_keys": object{r.id: object{"key": encoded(r.key)}}, "old_verify_keys": r.old,
	}, r.name, r.id, r.key)
}

func (r *remote) set(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

func (r *remote) requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

type ringTest struct {
	*Ring
	mu  sync.Mutex
	now time.Time
}

func (r *ringTest) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

func newRing(t *testing.T, db *storage.DB, pool *x509.CertPool, notaries ...string) *ringTest {
	t.Helper()
	r := &ringTest{now: time.Now()}
	c, err := client.New(client.Config{ServerName: "us.org", KeyID: "ed25519:us", Key: keyOf(9), CA: pool, AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r.Ring, err = New(Config{
		ServerName: "us.org", KeyID: "ed25519:us", Key: keyOf(9), Old: []Old{{"ed25519:before", publicOf(keyOf(8)), 1000}}, Notaries: notaries, DB: db, Client: c,
		Now: func() time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.now
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeysAreFetchedAndRemembered(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx, pool := context.Background(), x509.NewCertPool()
		start := time.Now().UnixMilli()
		a := serve(t, pool, keyOf(1), start+2*hour)
		r := newRing(t, db, pool)
		expect := func(what, id string, at int64, want error, requests int) {
			t.Helper()
			before := a.requests()
			key, err := r.Key(ctx, a.name, id, at)
			if !errors.Is(err, want) || err == nil && !publicOf(keyOf(1)).Equal(key) && !publicOf(keyOf(2)).Equal(key) || a.requests()-before != requests {
				t.Errorf("%s: %v after %d requests; want %v after %d", what, err, a.requests()-before, want, requests)
			}
		}
		expect("first", "ed25519:1", Now, nil, 1)
		expect("remembered", "ed25519:1", start-1000*hour, nil, 0)
		expect("unknown key", "ed25519:2", Now, ErrUnknownKey, 1)
		expect("unknown key again", "ed25519:3", Now, ErrUnknownKey, 0)
		expect("no key id", "rsa:1", Now, ErrUnknownKey, 0)
		r.pass(3 * time.Hour)
		a.set(func() { a.until = start + 10*hour })
		expect("document expired", "ed25519:1", Now, nil, 1)
		expect("beyond its end", "ed25519:1", start+11*hour, ErrNotValid, 1)

		// Another key, the one before being old.
		a.set(func() {
			a.old = object{"ed25519:1": object{"key": encoded(a.key), "expired_ts": start + hour}}
			a.id, a.key, a.until = "ed25519:2", keyOf(2), start+20*hour
		})
		r.pass(time.Minute)
		expect("new key", "ed25519:2", Now, nil, 1)
		expect("old key for requests", "ed25519:1", Now, ErrNotValid, 1)
		expect("old key for old events", "ed25519:1", start, nil, 0)
		expect("old key whenever", "ed25519:1", Whenever, nil, 0)

		// After a restart, what was read is known though the server is gone.
		a.set(func() { a.down = true })
		r = newRing(t, db, pool)
		expect("after a restart", "ed25519:2", Now, nil, 0)
		expect("old key after a restart", "ed25519:1", start, nil, 0)
		if list, err := r.Notarised(ctx, a.name, Criteria{}); err != nil || len(list) != 1 || signing.VerifyJSON(list[0], "us.org", "ed25519:us", publicOf(keyOf(9))) != nil {
			t.Errorf("passed on: %s, %v", list, err)
		}
		for at, want := range map[int64]error{1000: nil, 1001: ErrNotValid, Now: ErrNotValid, Whenever: nil} {
			if _, err := r.Key(ctx, "us.org", "ed25519:before", at); !errors.Is(err, want) {
				t.Errorf("our old key at %d: %v", at, err)
			}
		}
	})
}

func TestServersThatFailAreLeftAlone(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx, pool := context.Background(), x509.NewCertPool()
		a := serve(t, pool, keyOf(1), time.Now().UnixMilli()+2*hour)
		a.set(func() { a.down = true })
		r := newRing(t, db, pool)
		if _, err := r.Key(ctx, a.name, "ed25519:1", Now); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%v", err)
		}
		a.set(func() { a.down = false })
		var wait errWait
		if _, err := r.Key(ctx, a.name, "ed25519:1", Now); !errors.As(err, &wait) || a.requests() != 0 {
			t.Errorf("at once: %v after %d requests", err, a.requests())
		}
		r.pass(2 * time.Second)
		if _, err := r.Key(ctx, a.name, "ed25519:1", Now); err != nil {
			t.Errorf("a moment later: %v", err)
		}

		b := serve(t, pool, keyOf(1), time.Now().UnixMilli()+2*hour)
		b.set(func() { b.down = true })
		r.Key(ctx, b.name, "ed25519:1", Now)
		b.set(func() { b.down = false })
		r.Reached(b.name)
		if _, err := r.Key(ctx, b.name, "ed25519:1", Now); err != nil {
			t.Errorf("after it was heard of: %v", err)
		}

		// Many who ask at once wait for one request.
		c := serve(t, pool, keyOf(1), time.Now().UnixMilli()+2*hour)
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				if _, err := r.Key(ctx, c.name, "ed25519:1", Now); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if c.requests() != 1 {
			t.Errorf("%d requests", c.requests())
		}
	})
}

func TestNotaries(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx, pool := context.Background(), x509.NewCertPool()
		until := time.Now().UnixMilli() + 2*hour
		notary, gone, thief := serve(t, pool, keyOf(3), until), serve(t, pool, keyOf(4), until), serve(t, pool, keyOf(5), until)
		gone.set(func() { gone.down = true })
		countersigned := func(raw []byte, key ed25519.PrivateKey) json.RawMessage {
			s, err := signing.SignJSON(raw, notary.name, "ed25519:1", key)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		good := gone.document(t)
		for _, c := range []struct {
			name   string
			answer []json.RawMessage
			want   error
		}{
			{"nothing", nil, ErrUnknownKey},
			{"not signed by the notary", []json.RawMessage{good}, ErrUnknownKey},
			{"signed by another key of the notary", []json.RawMessage{countersigned(good, keyOf(7))}, ErrUnknownKey},
			{"of another server", []json.RawMessage{countersigned(thief.document(t), keyOf(3))}, ErrUnknownKey},
			{"not signed by the server", []json.RawMessage{countersigned([]byte(strings.Replace(string(good), `"valid_until_ts":`, `"valid_until_ts":1`, 1)), keyOf(3))}, ErrUnknownKey},
			{"good, behind a bad one", []json.RawMessage{json.RawMessage(`5`), countersigned(good, keyOf(3))}, nil},
		} {
			notary.set(func() { notary.answers = c.answer })
			r := newRing(t, db, pool, "us.org", notary.name)
			key, err := r.Key(ctx, gone.name, "ed25519:1", Now)
			if !errors.Is(err, c.want) || c.want == nil && !publicOf(keyOf(4)).Equal(key) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	})
}

// spec: server-server-api v1.19 "Validating hashes and signatures on received events"; rooms/v5
func TestVerifyEvents(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx, pool := context.Background(), x509.NewCertPool()
		now := time.Now().UnixMilli()
		a := serve(t, pool, keyOf(1), now+2*hour)
		a.old = object{"ed25519:0": object{"key": encoded(keyOf(2)), "expired_ts": now - hour}}
		r := newRing(t, db, pool)
		build := func(version, id string, key ed25519.PrivateKey, ts int64) *pdu.Event {
			t.Helper()
			v, _ := pdu.Lookup(version)
			e, err := v.Build(&pdu.Proto{
				RoomID: "!room:x.org", Sender: "@u:" + a.name, Type: "m.room.message", Content: json.RawMessage(`{}`), OriginServerTS: ts, Depth: 1,
			}, a.name, id, key)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		var events []*pdu.Event
		var want []error
		for _, c := range []struct {
			version, id string
			key         ed25519.PrivateKey
			ts          int64
			want        error
		}{
			{"10", "ed25519:1", keyOf(1), now, nil},
			{"10", "ed25519:1", keyOf(1), now + 3*hour, ErrNotValid},
			{"4", "ed25519:1", keyOf(1), now + 3*hour, nil},
			{"10", "ed25519:1", keyOf(3), now, signing.ErrInvalid},
			{"10", "ed25519:9", keyOf(3), now, ErrUnknownKey},
			{"10", "ed25519:0", keyOf(2), now - 2*hour, nil},
			{"10", "ed25519:0", keyOf(2), now, ErrNotValid},
			{"3", "ed25519:0", keyOf(2), now, nil},
			{"10", "ed25519:1", keyOf(1), -5, nil},
		} {
			events, want = append(events, build(c.version, c.id, c.key, c.ts)), append(want, c.want)
		}
		for i, err := range r.VerifyEvents(ctx, events) {
			if !errors.Is(err, want[i]) {
				t.Errorf("event %d: %v, want %v", i, err, want[i])
			}
		}
		if errs := r.VerifyEvents(ctx, events[:1]); len(errs) != 1 || errs[0] != nil {
			t.Errorf("one event: %v", errs)
		}
	})
}

// Whoever names many servers, true or not, in requests that nobody has checked yet, makes no more fetches than these,
// and does not bring servers that were never asked into disrepute.
func TestFetchesAreBounded(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx, pool := context.Background(), x509.NewCertPool()
		a := serve(t, pool, keyOf(1), time.Now().UnixMilli()+2*hour)
		r := newRing(t, db, pool)
		r.Ring.mu.Lock()
		for i := range maxFlights {
			r.flights[fmt.Sprint(i)] = &flight{}
		}
		r.Ring.mu.Unlock()
		if _, err := r.Key(ctx, a.name, "ed25519:1", Now); !errors.Is(err, ErrUnknownKey) || a.requests() != 0 {
			t.Errorf("one more than is allowed: %v after %d requests", err, a.requests())
		}
		r.Ring.mu.Lock()
		delete(r.flights, "0")
		r.Ring.mu.Unlock()

		for range maxFetches {
			r.slots <- struct{}{}
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		f := &flight{done: make(chan struct{})}
		r.fly(ended, a.name, need{"ed25519:1", Now}, f)
		if f.err == nil {
			t.Error("a fetch succeeded while none could begin")
		}
		for range maxFetches {
			<-r.slots
		}
		if _, err := r.Key(ctx, a.name, "ed25519:1", Now); err != nil {
			t.Errorf("when others have ended: %v", err)
		}
	})
}

// stored counts the keys of a server in the table.
func stored(t *testing.T, db *storage.DB, server string) (n int64) {
	t.Helper()
	if _, err := db.Get(context.Background(), `SELECT count(*) FROM federation_keys WHERE server = $1`, []any{server}, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Keys are forgotten once nobody has needed a current one of their server for long, unless they matter.
func TestPrune(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		r := newRing(t, db, x509.NewCertPool())
		keep := func(servers ...string) {
			t.Helper()
			for _, name := range []string{"a.org", "b.org"} {
				document, err := parseDocument(signed(t, object{
					"server_name": name, "valid_until_ts": r.Ring.now() + hour, "verify_keys": object{"ed25519:1": object{"key": encoded(keyOf(1))}},
				}, name, "ed25519:1", keyOf(1)), name, r.Ring.now())
				if err == nil && (len(servers) == 0 || servers[0] == name) {
					err = r.store(ctx, name, document)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		prune := func(want int, concerned ...string) {
			t.Helper()
			n, err := r.Prune(ctx, func(_ context.Context, servers map[string]struct{}) error {
				for _, name := range concerned {
					delete(servers, name)
				}
				return nil
			})
			if err != nil || n != want {
				t.Errorf("%d servers are forgotten (%v), want %d", n, err, want)
			}
		}
		keep()
		prune(0)
		r.pass(idleFor - time.Hour)
		keep("a.org")
		r.pass(2 * time.Hour)
		prune(0, "b.org")
		if key, err := r.Key(ctx, "b.org", "ed25519:1", 1); err != nil || !publicOf(keyOf(1)).Equal(key) {
			t.Errorf("an old key that matters: %v", err)
		}
		prune(1)
		if a, b := stored(t, db, "a.org"), stored(t, db, "b.org"); a != 1 || b != 0 {
			t.Errorf("%d and %d keys are left, want 1 and 0", a, b)
		}
		if _, err := r.Key(ctx, "b.org", "ed25519:1", 1); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("a forgotten key: %v", err)
		}
	})
}

// A server that publishes new keys all the time takes no more room than others.
func TestKeysOfOneServerAreBounded(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		r := newRing(t, db, x509.NewCertPool())
		last := ""
		for round := range 3 {
			list := object{}
			for i := range maxKeys - 1 {
				list[fmt.Sprintf("ed25519:%d_%d", round, i)] = object{"key": encoded(keyOf(1))}
			}
			last = fmt.Sprintf("ed25519:%d_0", round)
			document, err := parseDocument(signed(t, object{"server_name": "a.org", "valid_until_ts": r.Ring.now() + hour, "verify_keys": list}, "a.org", last, keyOf(1)), "a.org", r.Ring.now())
			if err == nil {
				err = r.store(ctx, "a.org", document)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.pass(time.Minute)
		}
		if n := stored(t, db, "a.org"); n != maxStored {
			t.Errorf("%d keys are kept, want %d", n, maxStored)
		}
		if _, err := r.Key(ctx, "a.org", last, Now); err != nil {
			t.Errorf("the newest key: %v", err)
		}
	})
}

func BenchmarkVerifyEvents(b *testing.B) {
	db := storagetest.Open(b, storage.SQLite, Schema)
	c, err := client.New(client.Config{ServerName: "us.org", KeyID: "ed25519:us", Key: keyOf(9)})
	if err != nil {
		b.Fatal(err)
	}
	r, err := New(Config{ServerName: "us.org", KeyID: "ed25519:us", Key: keyOf(9), DB: db, Client: c})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now().UnixMilli()
	doc := signed(b, object{"server_name": "a.org", "valid_until_ts": now + 2*hour, "verify_keys": object{"ed25519:1": object{"key": encoded(keyOf(1))}}}, "a.org", "ed25519:1", keyOf(1))
	d, err := parseDocument(doc, "a.org", now)
	if err != nil {
		b.Fatal(err)
	}
	if err := r.store(context.Background(), "a.org", d); err != nil {
		b.Fatal(err)
	}
	v, _ := pdu.Lookup("11")
	var events []*pdu.Event
	for i := range 50 {
		e, err := v.Build(&pdu.Proto{
			RoomID: "!room:x.org", Sender: "@u:a.org", Type: "m.room.message", Content: json.RawMessage(fmt.Sprintf(`{"body":"%d"}`, i)), OriginServerTS: now, Depth: 1,
		}, "a.org", "ed25519:1", keyOf(1))
		if err != nil {
			b.Fatal(err)
		}
		events = append(events, e)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range r.VerifyEvents(context.Background(), events) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N)*50/b.Elapsed().Seconds(), "events/s")
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"server_name":"a.org","valid_until_ts":1,"verify_keys":{"ed25519:1":{"key":"AAAA"}},"signatures":{"a.org":{"ed25519:1":"x"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if d, err := parseDocument(raw, "a.org", 1); err == nil {
			t.Errorf("%s is signed: %v", raw, d) // with a key that the fuzzer does not have
		}
	})
}
