package homeserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// testConfig is the default configuration on free ports, with its data in a temporary folder.
func testConfig(t *testing.T, d storage.Dialect) *config.Config {
	t.Helper()
	cfg := config.Default()
	// Sockets have short names only, shorter than t.TempDir often is.
	folder, err := os.MkdirTemp("", "myelin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	cfg.Server.DataDir = filepath.Join(folder, "data")
	cfg.Client.Address = "127.0.0.1:0"
	cfg.Passwords.Memory, cfg.Passwords.Iterations = 8<<10, 1
	if d == storage.PostgreSQL {
		cfg.Database.URL = storagetest.URL(t, d)
	}
	return cfg
}

// running is a server that is being run, and the means to stop it.
type running struct {
	*Server
	t    *testing.T
	stop func() error
}

func run(t *testing.T, cfg *config.Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := New(ctx, cfg, silentLog())
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, nil) }()
	stopped := false
	r := &running{s, t, func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return r
}

// ask makes a request and decodes the answer.
func (r *running) ask(method, path, token string, body any) (status int, answer map[string]any) {
	r.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		r.t.Fatal(err)
	}
	request, err := http.NewRequest(method, r.ClientURL()+path, bytes.NewReader(raw))
	if err != nil {
		r.t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	return response.StatusCode, answer
}

func eachDatabase(t *testing.T, fn func(t *testing.T, d storage.Dialect)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { fn(t, d) })
	}
}

// TestFirstAdministrator follows what a new operator does: start, read the token, register with it.
func TestFirstAdministrator(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d storage.Dialect) {
		cfg := testConfig(t, d)
		s := run(t, cfg)
		greeting, err := s.Greeting(context.Background())
		if err != nil || !strings.Contains(greeting, "localhost is at http://127.0.0.1:") {
			t.Fatalf("greeted with %q, %v", greeting, err)
		}
		token := regexp.MustCompile(`(?m)^    (\S+)$`).FindStringSubmatch(greeting)
		if token == nil {
			t.Fatalf("there is no token in %q", greeting)
		}
		account := map[string]any{"username": "alice", "password": "correct horse"}
		status, answer := s.ask("POST", "/_matrix/client/v3/register", "", account)
		if status != http.StatusUnauthorized {
			t.Fatalf("registered without the token: %d %v", status, answer)
		}
		account["auth"] = map[string]any{"type": "m.login.registration_token", "token": token[1], "session": answer["session"]}
		if status, answer = s.ask("POST", "/_matrix/client/v3/register", "", account); status != http.StatusOK {
			t.Fatalf("registered with the token: %d %v", status, answer)
		}
		access, _ := answer["access_token"].(string)
		if greeting, err := s.Greeting(context.Background()); err != nil || strings.Contains(greeting, "token") {
			t.Errorf("greeted again with %q, %v", greeting, err)
		}
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}

		again := run(t, cfg)
		if status, answer := again.ask("GET", "/_matrix/client/v3/account/whoami", access, nil); status != http.StatusOK || answer["user_id"] != "@alice:localhost" {
			t.Errorf("after a restart: %d %v", status, answer)
		}
		admin, err := OpenAdmin(context.Background(), cfg, silentLog())
		if err != nil {
			t.Fatal(err)
		}
		users, err := admin.Users(context.Background())
		if err != nil || len(users) != 1 || strings.Join(users[0].Marks, " ") != "admin" {
			t.Errorf("the accounts are %v, %v", users, err)
		}
	})
}

// TestAdminBesideAndWithoutTheServer runs the same operations through a running server and on the database.
func TestAdminBesideAndWithoutTheServer(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d storage.Dialect) {
		for name, beside := range map[string]bool{"running": true, "stopped": false} {
			t.Run(name, func(t *testing.T) {
				ctx := context.Background()
				cfg := testConfig(t, d)
				cfg.Registration.Open = true
				s := run(t, cfg)
				if !beside {
					if err := s.stop(); err != nil {
						t.Fatal(err)
					}
				}
				admin, err := OpenAdmin(ctx, cfg, silentLog())
				if err != nil || (admin.running != nil) != beside {
					t.Fatalf("through the running server: %v, %v", admin.running != nil, err)
				}
				for _, name := range []string{"alice", "@bob:localhost"} {
					if _, err := admin.CreateUser(ctx, name, "first password", false); err != nil {
						t.Fatal(err)
					}
				}
				for _, name := range []string{"alice", "a b", "@carol:elsewhere"} {
					if id, err := admin.CreateUser(ctx, name, "x", false); err == nil {
						t.Errorf("%s has been made from %q", id, name)
					}
				}
				var token string
				login := map[string]any{"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": "alice"}, "password": "first password"}
				if beside {
					status, answer := s.ask("POST", "/_matrix/client/v3/login", "", login)
					if token, _ = answer["access_token"].(string); status != http.StatusOK {
						t.Fatalf("login: %d %v", status, answer)
					}
				}
				if id, err := admin.SetPassword(ctx, "alice", "second password"); err != nil || id != "@alice:localhost" {
					t.Errorf("%s, %v", id, err)
				}
				if _, err := admin.SetAdmin(ctx, "alice", true); err != nil {
					t.Error(err)
				}
				if _, err := admin.SetAdmin(ctx, "nobody", true); err == nil {
					t.Error("nobody is an administrator")
				}
				if _, err := admin.Deactivate(ctx, "bob", true); err != nil {
					t.Error(err)
				}
				users, err := admin.Users(ctx)
				if err != nil || len(users) != 2 || strings.Join(users[0].Marks, " ") != "admin" || strings.Join(users[1].Marks, " ") != "deactivated erased" {
					t.Errorf("the accounts are %v, %v", users, err)
				}
				invitation, err := admin.CreateRegistrationToken(ctx, 1, time.Hour)
				if err != nil {
					t.Error(err)
				}
				if err := admin.Close(); err != nil {
					t.Error(err)
				}
				if !beside {
					s = run(t, cfg)
				} else if status, _ := s.ask("GET", "/_matrix/client/v3/account/whoami", token, nil); status != http.StatusUnauthorized {
					t.Errorf("a session from before the password was changed: %d", status)
				}
				if _, answer := s.ask("GET", "/_matrix/client/v1/register/m.login.registration_token/validity?token="+invitation, "", nil); answer["valid"] != true {
					t.Errorf("an invitation: %v", answer)
				}
				if status, _ := s.ask("POST", "/_matrix/client/v3/login", "", login); status != http.StatusForbidden {
					t.Errorf("login with the old password: %d", status)
				}
				login["password"] = "second password"
				if status, answer := s.ask("POST", "/_matrix/client/v3/login", "", login); status != http.StatusOK {
					t.Errorf("login with the new password: %d %v", status, answer)
				}
			})
		}
	})
}

func TestListeners(t *testing.T) {
	cfg := testConfig(t, storage.SQLite)
	cfg.Federation.Listener = tlsListener(t)
	writeCertificate(t, cfg.Federation.Listener, 1, time.Now())
	cfg.Metrics.Address = "127.0.0.1:0"
	s := run(t, cfg)
	if status, _ := s.ask("GET", "/_matrix/client/versions", "", nil); status != http.StatusOK {
		t.Errorf("clients are answered %d", status)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // #nosec G402
	for url, want := range map[string]string{
		"https://" + s.FederationAddress() + "/_matrix/client/versions": "v1.",
		s.metrics.url() + "/metrics":                                    "myelin_http_requests_total",
		s.metrics.url() + "/debug/pprof/goroutine?debug=1":              "goroutine profile",
	} {
		response, err := client.Get(url)
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s: %d, %v", url, response.StatusCode, err)
		}
	}
	if response, err := client.Get(s.ClientURL() + "/metrics"); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("figures are shown to clients: %v, %v", response, err)
	}
}

// TestStopAnswersLongPolls makes sure that a client that waits for news neither loses its answer nor holds up the stop.
func TestStopAnswersLongPolls(t *testing.T) {
	cfg := testConfig(t, storage.SQLite)
	cfg.Registration.Open = true
	s := run(t, cfg)
	_, answer := s.ask("POST", "/_matrix/client/v3/register", "", map[string]any{"username": "a", "password": "long enough", "auth": map[string]any{"type": "m.login.dummy"}})
	token, _ := answer["access_token"].(string)
	_, answer = s.ask("GET", "/_matrix/client/v3/sync?set_presence=offline", token, nil)
	since, _ := answer["next_batch"].(string)
	if since == "" {
		t.Fatal(answer)
	}
	waited := make(chan int, 1)
	go func() {
		status, _ := s.ask("GET", "/_matrix/client/v3/sync?timeout=30000&set_presence=unavailable&since="+since, token, nil)
		waited <- status
	}()
	// The user's presence tells that the request has come; if it does not wait yet, it is answered all the same.
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, answer = s.ask("GET", "/_matrix/client/v3/presence/@a:localhost/status", token, nil); answer["presence"] == "unavailable" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the request does not come: %v", answer)
		}
	}
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if status := <-waited; status != http.StatusOK {
		t.Errorf("the waiting client was answered %d", status)
	}
}

func TestAddressInUse(t *testing.T) {
	s := run(t, testConfig(t, storage.SQLite))
	cfg := testConfig(t, storage.SQLite)
	cfg.Client.Address = s.client.address()
	if _, err := New(context.Background(), cfg, silentLog()); err == nil || !strings.Contains(err.Error(), "listener for client") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(cfg.Server.DataDir); err == nil {
		t.Error("the data folder has been made all the same")
	}
	other := testConfig(t, storage.SQLite)
	other.Server.DataDir = s.cfg.Server.DataDir
	if _, err := New(context.Background(), other, silentLog()); err == nil || !strings.Contains(err.Error(), "another server is running") {
		t.Errorf("two servers in one data folder: %v", err)
	}
}

func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range Routes() {
		if key := row.Method + " " + row.Path; seen[key] {
			t.Errorf("%s is declared twice", key)
		} else {
			seen[key] = true
		}
		if row.Who == "" || row.Class == "" {
			t.Errorf("%v does not say who may call or how often", row)
		}
	}
	for _, key := range []string{"GET /_matrix/client/versions", "PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", "GET /_matrix/client/v3/sync"} {
		if !seen[key] {
			t.Errorf("%s is missing", key)
		}
	}
	if _, err := httpapi.NewRouter(httpapi.Config{}, new(features).endpoints()...); err == nil {
		t.Error("endpoints that need tokens are served without anyone to know them")
	}
}

func TestStrangersAreNamed(t *testing.T) {
	var lines bytes.Buffer
	log := silentLog()
	log.SetOutput(&lines)
	cfg := testConfig(t, storage.SQLite)
	cfg.Strangers = []string{"MYELIN_SERVR_NAME"}
	s, err := New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(context.Background()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(lines.String(), "MYELIN_SERVR_NAME") {
		t.Errorf("logged %s", lines.String())
	}
}

func TestFullDiskIsUnavailable(t *testing.T) {
	for _, err := range []error{storage.ErrFull, storage.ErrBroken} {
		if !unavailable(fmt.Errorf("write to a room: %w", err)) {
			t.Errorf("%v is no reason to have clients try again", err)
		}
	}
	if unavailable(storage.ErrConflict) {
		t.Error("a conflict is one")
	}
}
