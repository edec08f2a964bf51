package accounts

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// TestSharedSecretMAC compares with MACs computed by
//
//	printf 'nonce\0alice\0wonderland\0notadmin' | openssl dgst -sha1 -hmac complement
//
// and the like, as Synapse's documentation of /_synapse/admin/v1/register describes them.
func TestSharedSecretMAC(t *testing.T) {
	bot := "bot"
	tests := []struct {
		request sharedSecretRequest
		want    string
	}{
		{sharedSecretRequest{Nonce: "nonce", Username: "alice", Password: "wonderland"}, "cd5ed47682b900a46286942cfc7636a9ac6a2e86"},
		{sharedSecretRequest{Nonce: "nonce", Username: "alice", Password: "wonderland", Admin: true}, "218450ab368dd9946efd99b782bf31a43691f549"},
		{sharedSecretRequest{Nonce: "nonce", Username: "alice", Password: "wonderland", Admin: true, UserType: &bot}, "886081f857cbdbdf2ec79690a7c6d6550e94be99"},
	}
	for _, tt := range tests {
		if got := hex.EncodeToString(tt.request.mac("complement")); got != tt.want {
			t.Errorf("MAC of %+v = %s, want %s", tt.request, got, tt.want)
		}
	}
}

func TestSharedSecretRegistration(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		const endpoint, secret = "/_synapse/admin/v1/register", "complement"
		s := newServer(t, db, closed, func(c *Config, _ *Deps) { c.Registration.SharedSecret = secret })
		nonce := func() string { return s.ok("GET", endpoint, "", nil).Get("nonce").Str }
		body := func(nonce, name, pw, admin string, more obj) obj {
			mac := hmac.New(sha1.New, []byte(secret))
			mac.Write([]byte(nonce + "\x00" + name + "\x00" + pw + "\x00" + admin))
			if more["user_type"] != nil {
				mac.Write([]byte("\x00" + more["user_type"].(string)))
			}
			b := obj{"nonce": nonce, "username": name, "password": pw, "admin": admin == "admin", "mac": hex.EncodeToString(mac.Sum(nil))}
			for k, v := range more {
				b[k] = v
			}
			return b
		}
		admin := func(token string) bool {
			by, err := s.Authenticate(context.Background(), token, nil)
			if err != nil {
				t.Fatal(err)
			}
			return by.Admin
		}
		a := s.ok("POST", endpoint, "", body(nonce(), "user-UPPER", "pw", "notadmin", nil))
		if a.Get("user_id").Str != "@user-upper:test" || a.Get("home_server").Str != "test" || a.Get("device_id").Str == "" || admin(a.Get("access_token").Str) {
			t.Errorf("ordinary user: %s", a.Raw)
		}
		a = s.ok("POST", endpoint, "", body(nonce(), "root", "pw", "admin", obj{"displayname": "The root"}))
		if !admin(a.Get("access_token").Str) {
			t.Errorf("administrator: %s", a.Raw)
		}
		if p := s.ok("GET", path("/profile/%", "@root:test"), "", nil); p.Raw != `{"displayname":"The root"}` {
			t.Errorf("profile: %s", p.Raw)
		}
		a = s.ok("POST", endpoint, "", body(nonce(), "robot", "pw", "notadmin", obj{"user_type": "bot", "inhibit_login": true}))
		if a.Get("access_token").Exists() {
			t.Errorf("inhibit_login: %s", a.Raw)
		}
		s.want(s.do("POST", endpoint, "", body(nonce(), "us,er", "pw", "notadmin", nil)), 400, "M_INVALID_USERNAME")
		s.want(s.do("POST", endpoint, "", body(nonce(), "root", "pw", "notadmin", nil)), 400, "M_USER_IN_USE")
		n := nonce()
		s.ok("POST", endpoint, "", body(n, "once", "pw", "notadmin", nil))
		s.want(s.do("POST", endpoint, "", body(n, "twice", "pw", "notadmin", nil)), 400, "M_UNKNOWN")
		n = nonce()
		s.want(s.do("POST", endpoint, "", body("made up", "x", "pw", "notadmin", nil)), 400, "M_UNKNOWN")
		s.want(s.do("POST", endpoint, "", body(n, "x", "pw", "notadmin", obj{"admin": true})), 403, "M_FORBIDDEN")
		s.want(s.do("POST", endpoint, "", body(n, "x", "pw", "notadmin", obj{"mac": "00"})), 403, "M_FORBIDDEN")
		s.want(s.do("POST", endpoint, "", body(n, "x", "pw", "notadmin", obj{"mac": "no hex"})), 403, "M_FORBIDDEN")
		s.want(s.do("POST", endpoint, "", body(n, "x\x00pw", "y", "notadmin", nil)), 400, "M_INVALID_PARAM")
		for _, missing := range []string{"nonce", "username", "password", "mac"} {
			b := body(n, "x", "pw", "notadmin", nil)
			delete(b, missing)
			s.want(s.do("POST", endpoint, "", b), 400, "M_MISSING_PARAM")
		}
		s.clock.advance(2 * time.Minute)
		s.want(s.do("POST", endpoint, "", body(n, "x", "pw", "notadmin", nil)), 400, "M_UNKNOWN")

		s.nonces = newNonces("", s.clock.Now)
		s.want(s.do("GET", endpoint, "", nil), 400, "M_UNKNOWN")
		s.want(s.do("POST", endpoint, "", body(n, "x", "pw", "notadmin", nil)), 400, "M_UNKNOWN")
	})
}

func TestAdministration(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db, closed, withBridge(t))
		id, err := s.CreateUser(ctx, NewUser{Username: "Alice", Password: "secret-alice", Admin: true})
		if err != nil || id != "@alice:test" {
			t.Fatalf("CreateUser = %q, %v", id, err)
		}
		if _, err := s.CreateUser(ctx, NewUser{Username: "robot", Type: "bot"}); err != nil {
			t.Fatal(err)
		}
		for name, code := range map[string]string{"alice": "M_USER_IN_USE", "a b": "M_INVALID_USERNAME", "": "M_INVALID_USERNAME", "_irc_x": "M_EXCLUSIVE"} {
			_, err := s.CreateUser(ctx, NewUser{Username: name})
			if e := mxerr.As(err); e == nil || e.Code != code {
				t.Errorf("CreateUser(%q): %v, want %s", name, err, code)
			}
		}
		token := s.login("alice", "D")
		if by, err := s.Authenticate(ctx, token, nil); err != nil || !by.Admin || by.Localpart != "alice" || by.TokenID == 0 {
			t.Errorf("caller %+v, %v", by, err)
		}
		if err := s.SetAdmin(ctx, "@alice:test", false); err != nil {
			t.Fatal(err)
		}
		if by, err := s.Authenticate(ctx, token, nil); err != nil || by.Admin {
			t.Errorf("still an administrator: %+v, %v", by, err)
		}
		s.want(s.do("POST", "/login", "", obj{"type": "m.login.password", "user": "robot", "password": ""}), 403, "M_FORBIDDEN")

		// A locked account can only log out, and keeps its session until then.
		if err := s.setLocked(ctx, "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		if a := s.want(s.do("GET", "/account/whoami", token, nil), 401, "M_USER_LOCKED"); !a.Get("soft_logout").Bool() {
			t.Errorf("locked: %s", a.Raw)
		}
		s.want(s.do("POST", "/login", "", obj{"type": "m.login.password", "user": "alice", "password": "secret-alice"}), 401, "M_USER_LOCKED")
		if err := s.setLocked(ctx, "@alice:test", false); err != nil {
			t.Fatal(err)
		}
		if !s.alive(token) {
			t.Error("the session did not survive the lock")
		}
		if err := s.setLocked(ctx, "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		s.ok("POST", "/logout", token, nil)

		if err := s.Deactivate(ctx, "@robot:test", false); err != nil {
			t.Fatal(err)
		}
		users, err := s.Users(ctx, "", 10)
		if err != nil || len(users) != 2 {
			t.Fatalf("Users = %+v, %v", users, err)
		}
		if u := users[0]; u.UserID != "@alice:test" || u.Admin || !u.Locked || u.Deactivated || u.CreatedMS != s.nowMS() {
			t.Errorf("%+v", u)
		}
		if u := users[1]; u.UserID != "@robot:test" || u.Type != "bot" || !u.Deactivated || u.DeactivatedMS != s.nowMS() {
			t.Errorf("%+v", u)
		}
		if users, err := s.Users(ctx, "@alice:test", 10); err != nil || len(users) != 1 || users[0].UserID != "@robot:test" {
			t.Errorf("second page: %+v, %v", users, err)
		}
		for name, err := range map[string]error{
			"SetPassword": s.SetPassword(ctx, "@none:test", "x"), "SetAdmin": s.SetAdmin(ctx, "@none:test", true),
			"Deactivate": s.Deactivate(ctx, "@none:test", false), "setLocked": s.setLocked(ctx, "@none:test", true),
		} {
			if e := mxerr.As(err); e == nil || e.Code != "M_NOT_FOUND" {
				t.Errorf("%s of nobody: %v", name, err)
			}
		}
	})
}

func TestServerNameCannotChange(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		config := func(name string) (Config, Deps) {
			return Config{ServerName: name, Hashing: cheap}, Deps{DB: db, Rooms: &fakeRooms{}, Log: quiet()}
		}
		for _, name := range []string{"wrong.example", "example"} { // nobody has the first name yet
			if _, err := New(config(name)); err != nil {
				t.Fatal(err)
			}
		}
		a, err := New(config("example"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.CreateUser(context.Background(), NewUser{Username: "alice"}); err != nil {
			t.Fatal(err)
		}
		if _, err := New(config("example")); err != nil {
			t.Errorf("the same name: %v", err)
		}
		if _, err := New(config("example.org")); err == nil || !strings.Contains(err.Error(), "belongs to the server example,") {
			t.Errorf("another name: %v", err)
		}
	})
}
