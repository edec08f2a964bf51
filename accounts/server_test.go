package accounts

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// cheap makes tests quick; the cost of real passwords is measured in BenchmarkHash.
var cheap = Hashing{MemoryKiB: 8, Iterations: 1, Parallel: 4}

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fakeRooms notes what accounts ask of rooms.
type fakeRooms struct {
	mu      sync.Mutex
	changes []ProfileChange // guarded by mu
	left    []string        // guarded by mu
	fail    error           // guarded by mu
}

func (f *fakeRooms) ProfileChanged(_ context.Context, _ string, c ProfileChange) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.changes = append(f.changes, c)
	}
	return f.fail
}

func (f *fakeRooms) LeaveAll(_ context.Context, userID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.left = append(f.left, userID)
	}
	return f.fail
}

func (f *fakeRooms) Known(context.Context, string) (bool, error) { return true, nil }

func (f *fakeRooms) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fakeRooms) seen() (changes []ProfileChange, left []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.changes), slices.Clone(f.left)
}

// server is the accounts behind a real router.
type server struct {
	*API
	t     testing.TB
	db    *storage.DB
	clock *clock
	rooms *fakeRooms
	url   string
}

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

// setting changes what a test server is made of.
type setting func(*Config, *Deps)

func closed(c *Config, _ *Deps) { c.Registration.Open = false }

func newServer(t testing.TB, db *storage.DB, settings ...setting) *server {
	t.Helper()
	s := &server{t: t, db: db, clock: &clock{now: time.UnixMilli(1_700_000_000_000)}, rooms: &fakeRooms{}}
	cfg := Config{ServerName: "test", Hashing: cheap, Registration: Registration{Open: true},
		DefaultRoomVersion: "12", RoomVersions: map[string]string{"11": "stable", "12": "stable"}}
	deps := Deps{DB: db, Rooms: s.rooms, Log: quiet(), Now: s.clock.Now}
	for _, set := range settings {
		set(&cfg, &deps)
	}
	var err error
	if s.API, err = New(cfg, deps); err != nil {
		t.Fatal(err)
	}
	router, err := httpapi.NewRouter(httpapi.Config{Authenticate: s.Authenticate, Limiter: deps.Limiter}, s.Endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(router)
	s.url = web.URL
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		web.Close()
		stop()
		<-stopped
	})
	return s
}

// each runs a test on both databases.
func each(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	t.Helper()
	storagetest.Each(t, []storage.Schema{Schema}, fn)
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	gjson.Result
}

// do sends a request; body is a string of JSON, a value to encode, or nil.
func (s *server) do(method, path, token string, body any) answer {
	s.t.Helper()
	var data []byte
	switch b := body.(type) {
	case nil:
	case string:
		data = []byte(b)
	default:
		var err error
		if data, err = json.Marshal(b); err != nil {
			s.t.Fatal(err)
		}
	}
	if !strings.HasPrefix(path, "/_") && !strings.HasPrefix(path, "/.") {
		path = "/_matrix/client/v3" + path
	}
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(data))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if !gjson.ValidBytes(text) {
		s.t.Fatalf("%s %s: no JSON: %q", method, path, text)
	}
	return answer{res.StatusCode, res.Header, gjson.ParseBytes(text)}
}

// want fails the test unless the answer has the status and errcode (empty: none).
func (s *server) want(a answer, status int, code string) answer {
	s.t.Helper()
	if a.status != status || a.Get("errcode").Str != code {
		s.t.Fatalf("status %d %s, want %d %s: %s", a.status, a.Get("errcode").Str, status, code, a.Raw)
	}
	return a
}

// ok sends a request that must succeed.
func (s *server) ok(method, path, token string, body any) answer {
	s.t.Helper()
	return s.want(s.do(method, path, token, body), 200, "")
}

type obj map[string]any

var dummy = obj{"type": "m.login.dummy"}

// user registers somebody with the password "secret-" and their name, and returns their access token.
func (s *server) user(name string) (token string) {
	s.t.Helper()
	return s.ok("POST", "/register", "", obj{"username": name, "password": "secret-" + name, "auth": dummy}).Get("access_token").Str
}

// login logs somebody in on a device.
func (s *server) login(name, device string) (token string) {
	s.t.Helper()
	return s.ok("POST", "/login", "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": name},
		"password": "secret-" + name, "device_id": device}).Get("access_token").Str
}

// password is the auth of the password stage.
func password(name, session string) obj {
	return obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": name}, "password": "secret-" + name, "session": session}
}

// alive checks whether a token is good.
func (s *server) alive(token string) bool {
	s.t.Helper()
	a := s.do("GET", "/account/whoami", token, nil)
	if a.status != 200 && (a.status != 401 || a.Get("errcode").Str != "M_UNKNOWN_TOKEN") {
		s.t.Fatalf("whoami: %d %s", a.status, a.Raw)
	}
	return a.status == 200
}

func path(format string, args ...string) string {
	for _, a := range args {
		format = strings.Replace(format, "%", strings.ReplaceAll(url.PathEscape(a), "%", "\x00"), 1)
	}
	return strings.ReplaceAll(format, "\x00", "%")
}

const bridge = `
id: bridge
url: null
as_token: as-token
hs_token: hs-token
sender_localpart: _bot
namespaces:
  users: [{exclusive: true, regex: "@_irc_.*"}, {exclusive: false, regex: "@shared_.*"}]
`

func withBridge(t testing.TB) setting {
	return func(_ *Config, d *Deps) {
		r, err := appservice.Parse([]byte(bridge))
		if err != nil {
			t.Fatal(err)
		}
		if d.Appservices, err = appservice.NewSet("test", r); err != nil {
			t.Fatal(err)
		}
	}
}

func withLimits(c ratelimit.Config) setting {
	return func(_ *Config, d *Deps) { d.Limiter = ratelimit.New(c) }
}

// eventually waits for what happens in the background.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not happen: %s", what)
}
