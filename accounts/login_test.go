package accounts

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

func TestLogin(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, func(c *Config, _ *Deps) { c.WellKnown.ClientURL = "https://client.test" })
		first := s.user("alice")
		if f := s.ok("GET", "/login", "", nil); f.Raw != `{"flows":[{"type":"m.login.password"},{"type":"m.login.token","get_login_token":true}]}` {
			t.Errorf("flows: %s", f.Raw)
		}
		const pw = "secret-alice"
		id := func(user string) obj { return obj{"type": "m.id.user", "user": user} }
		for name, body := range map[string]obj{
			"localpart":           {"type": "m.login.password", "identifier": id("alice"), "password": pw},
			"user id":             {"type": "m.login.password", "identifier": id("@alice:test"), "password": pw},
			"capitals":            {"type": "m.login.password", "identifier": id("@ALICE:test"), "password": pw},
			"deprecated user":     {"type": "m.login.password", "user": "alice", "password": pw},
			"device of their own": {"type": "m.login.password", "identifier": id("alice"), "password": pw, "device_id": "D1"},
		} {
			a := s.ok("POST", "/login", "", body)
			if a.Get("user_id").Str != "@alice:test" || !s.alive(a.Get("access_token").Str) || a.Get("well_known").Raw != `{"m.homeserver":{"base_url":"https://client.test"}}` {
				t.Errorf("%s: %s", name, a.Raw)
			}
			if want, ok := body["device_id"]; ok && a.Get("device_id").Str != want {
				t.Errorf("%s: device %s", name, a.Get("device_id").Str)
			}
		}
		// A login with a device's id replaces its token and leaves its name.
		one := s.login("alice", "SAME")
		s.ok("PUT", "/devices/SAME", one, obj{"display_name": "Named"})
		two := s.ok("POST", "/login", "", obj{"type": "m.login.password", "identifier": id("alice"), "password": pw,
			"device_id": "SAME", "initial_device_display_name": "Ignored"}).Get("access_token").Str
		if s.alive(one) || !s.alive(two) || !s.alive(first) {
			t.Error("a login replaces the token of its device and no other")
		}
		if d := s.ok("GET", "/devices/SAME", two, nil); d.Get("display_name").Str != "Named" {
			t.Errorf("device: %s", d.Raw)
		}

		s.t = t
		tests := []struct {
			name   string
			body   any
			status int
			code   string
		}{
			{"wrong password", obj{"type": "m.login.password", "identifier": id("alice"), "password": "no"}, 403, "M_FORBIDDEN"},
			{"long password", obj{"type": "m.login.password", "identifier": id("alice"), "password": strings.Repeat("x", 5000)}, 403, "M_FORBIDDEN"},
			{"nobody", obj{"type": "m.login.password", "identifier": id("nobody"), "password": pw}, 403, "M_FORBIDDEN"},
			{"another server's user", obj{"type": "m.login.password", "identifier": id("@alice:other"), "password": pw}, 403, "M_FORBIDDEN"},
			{"unknown address", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.thirdparty", "medium": "email", "address": "a@b"}, "password": pw}, 403, "M_FORBIDDEN"},
			{"unknown address, deprecated", obj{"type": "m.login.password", "medium": "email", "address": "a@b", "password": pw}, 403, "M_FORBIDDEN"},
			{"unknown phone", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.phone", "phone": "1"}, "password": pw}, 403, "M_FORBIDDEN"},
			{"no password", obj{"type": "m.login.password", "identifier": id("alice")}, 400, "M_MISSING_PARAM"},
			{"no identifier", obj{"type": "m.login.password", "password": pw}, 400, "M_MISSING_PARAM"},
			{"no type", obj{"identifier": id("alice"), "password": pw}, 400, "M_MISSING_PARAM"},
			{"identifier without type", obj{"type": "m.login.password", "identifier": obj{"user": "alice"}, "password": pw}, 400, "M_MISSING_PARAM"},
			{"unknown identifier", obj{"type": "m.login.password", "identifier": obj{"type": "x"}, "password": pw}, 400, "M_INVALID_PARAM"},
			{"unknown type", obj{"type": "m.login.magic"}, 400, "M_UNKNOWN"},
			{"identifier of a wrong type", obj{"type": "m.login.password", "identifier": "alice", "password": pw}, 400, "M_BAD_JSON"},
			{"password of a wrong type", obj{"type": "m.login.password", "identifier": id("alice"), "password": obj{}}, 400, "M_BAD_JSON"},
			{"device id of a wrong type", obj{"type": "m.login.password", "identifier": id("alice"), "password": pw, "device_id": 3}, 400, "M_BAD_JSON"},
			{"device id with NUL", obj{"type": "m.login.password", "identifier": id("alice"), "password": pw, "device_id": "a\x00b"}, 400, "M_INVALID_PARAM"},
			{"bad login token", obj{"type": "m.login.token", "token": "x"}, 403, "M_FORBIDDEN"},
			{"no login token", obj{"type": "m.login.token"}, 400, "M_MISSING_PARAM"},
			{"no JSON", `nope`, 400, "M_NOT_JSON"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				s.t = t
				s.want(s.do("POST", "/login", "", tt.body), tt.status, tt.code)
				// Old clients send the token of the session that they are about to replace.
				s.want(s.do("POST", "/login", "expired", tt.body), tt.status, tt.code)
			})
		}
		s.t = t
		s.want(s.do("GET", "/account/whoami", "", nil), 401, "M_MISSING_TOKEN")
		if a := s.want(s.do("GET", "/account/whoami", "nonsense", nil), 401, "M_UNKNOWN_TOKEN"); a.Get("soft_logout").Bool() {
			t.Error("a token that never was is answered with soft_logout")
		}
		s.want(s.do("GET", "/account/whoami", strings.Repeat("x", 5000), nil), 401, "M_UNKNOWN_TOKEN")
	})
}

// TestPasswordChangesUnderLogin changes a password while a login with the old one waits for its turn to be hashed.
func TestPasswordChangesUnderLogin(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		s.user("alice")
		for range cap(s.hasher.slots) {
			s.hasher.slots <- struct{}{}
		}
		answered := make(chan answer)
		go func() {
			answered <- s.do("POST", "/login", "", obj{"type": "m.login.password", "user": "alice", "password": "secret-alice", "device_id": "LATE"})
		}()
		eventually(t, "the login waits", func() bool { return s.hasher.waiting.Load() == 1 })
		err := db.Write(context.Background(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`UPDATE accounts SET password_hash = $2 WHERE user_id = $1`, "@alice:test", "another")
			return err
		})
		for range cap(s.hasher.slots) {
			<-s.hasher.slots
		}
		s.want(<-answered, 403, "M_FORBIDDEN")
		if err != nil {
			t.Fatal(err)
		}
		err = db.Read(context.Background(), func(tx *storage.Tx) error {
			if late, err := HasDevice(tx, "@alice:test", "LATE"); err != nil || late {
				t.Errorf("a password that is over logged in: %v, %v", late, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestLogout(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		one, two, three := s.user("alice"), s.login("alice", "TWO"), s.login("alice", "THREE")
		bob := s.user("bob")
		if !s.alive(two) {
			t.Fatal("not logged in")
		}
		s.ok("POST", "/logout", two, nil)
		if s.alive(two) || !s.alive(one) || !s.alive(three) {
			t.Error("logout ends one session")
		}
		if d := s.ok("GET", "/devices", one, nil); len(d.Get("devices").Array()) != 2 {
			t.Errorf("devices: %s", d.Raw)
		}
		s.ok("POST", "/logout/all", three, nil)
		if s.alive(one) || s.alive(three) || !s.alive(bob) {
			t.Error("logout/all ends all sessions of the user")
		}
		s.want(s.do("POST", "/logout", three, nil), 401, "M_UNKNOWN_TOKEN")
		s.want(s.do("POST", "/logout", "", nil), 401, "M_MISSING_TOKEN")
	})
}

// TestLogoutAgainstParallelRequests looks for a token that is read from the database before its logout and kept in
// memory after it.
func TestLogoutAgainstParallelRequests(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		ctx := context.Background()
		s.user("alice")
		for i := range 8 {
			token := s.login("alice", "D"+strconv.Itoa(i))
			by, err := s.Authenticate(ctx, token, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.cache.forget(by.UserID)
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for range 2 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							s.Authenticate(ctx, token, nil)
						}
					}
				})
			}
			if _, err := s.logout(ctx, by, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Authenticate(ctx, token, nil); err == nil {
				t.Fatal("a token is good after its logout was answered")
			}
			close(stop)
			wg.Wait()
			if _, err := s.Authenticate(ctx, token, nil); err == nil {
				t.Fatal("a token came back after its logout")
			}
		}
	})
}

func TestLoginToken(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		const path = "/_matrix/client/v1/login/get_token"
		mint := func() string {
			first := s.want(s.do("POST", path, token, obj{}), 401, "")
			a := s.ok("POST", path, token, obj{"auth": password("alice", first.Get("session").Str)})
			if a.Get("expires_in_ms").Int() != 120_000 {
				t.Errorf("get_token: %s", a.Raw)
			}
			// Each token has to be confirmed anew.
			s.want(s.do("POST", path, token, obj{"auth": obj{"session": first.Get("session").Str}}), 401, "")
			return a.Get("login_token").Str
		}
		login := func(loginToken string) answer {
			return s.do("POST", "/login", "", obj{"type": "m.login.token", "token": loginToken})
		}
		good := mint()
		a := s.want(login(good), 200, "")
		if a.Get("user_id").Str != "@alice:test" || !s.alive(a.Get("access_token").Str) {
			t.Errorf("login: %s", a.Raw)
		}
		s.want(login(good), 403, "M_FORBIDDEN")
		late := mint()
		s.clock.advance(3 * time.Minute)
		s.want(login(late), 403, "M_FORBIDDEN")
		s.want(s.do("POST", path, "", obj{}), 401, "M_MISSING_TOKEN")
	})
}

// refreshable logs in with a refresh token.
func (s *server) refreshable(name, device string) (access, refresh string) {
	s.t.Helper()
	a := s.ok("POST", "/login", "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": name},
		"password": "secret-" + name, "device_id": device, "refresh_token": true})
	if a.Get("expires_in_ms").Int() != 300_000 {
		s.t.Fatalf("expires_in_ms: %s", a.Raw)
	}
	return a.Get("access_token").Str, a.Get("refresh_token").Str
}

// refreshed refreshes, which must succeed.
func (s *server) refreshed(refresh string) (access, next string) {
	s.t.Helper()
	a := s.ok("POST", "/refresh", "", obj{"refresh_token": refresh})
	if a.Get("expires_in_ms").Int() != 300_000 {
		s.t.Fatalf("expires_in_ms: %s", a.Raw)
	}
	return a.Get("access_token").Str, a.Get("refresh_token").Str
}

func TestRefresh(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		plain := s.user("alice")
		soft := func(token string) bool {
			return s.want(s.do("GET", "/account/whoami", token, nil), 401, "M_UNKNOWN_TOKEN").Get("soft_logout").Bool()
		}
		a1, r1 := s.refreshable("alice", "D")
		a2, r2 := s.refreshed(r1)
		if !s.alive(a1) {
			t.Error("the old token ends before the new one is used")
		}
		// The answer was lost: the old refresh token still works, and what was lost does not.
		a2b, r2b := s.refreshed(r1)
		if s.alive(a2) {
			t.Error("the token of a lost answer works")
		}
		s.want(s.do("POST", "/refresh", "", obj{"refresh_token": r2}), 401, "M_UNKNOWN_TOKEN")
		if !s.alive(a1) || !s.alive(a2b) {
			t.Fatal("the session has ended")
		}
		// The new token has been used: now the old ones are over.
		if !soft(a1) {
			t.Error("a replaced access token is not answered with soft_logout")
		}
		a3, r3 := s.refreshed(r2b)
		if d := s.ok("GET", "/account/whoami", a3, nil); d.Get("device_id").Str != "D" {
			t.Errorf("device after refresh: %s", d.Raw)
		}

		s.clock.advance(6 * time.Minute)
		if !soft(a3) {
			t.Error("an expired access token is not answered with soft_logout")
		}
		if !s.alive(plain) {
			t.Error("a session without refresh token expires")
		}
		a4, _ := s.refreshed(r3)
		if !s.alive(a4) {
			t.Fatal("refreshing after expiry gives a token that does not work")
		}

		// Reuse of a revoked token ends the session for whoever has it, but not the device and not other sessions.
		e := s.want(s.do("POST", "/refresh", "", obj{"refresh_token": r3}), 401, "M_UNKNOWN_TOKEN")
		if !e.Get("soft_logout").Bool() || !soft(a4) {
			t.Error("reuse does not end the session softly")
		}
		s.want(s.do("POST", "/refresh", "", obj{"refresh_token": r3}), 401, "M_UNKNOWN_TOKEN")
		if !s.alive(plain) {
			t.Error("reuse ends another session")
		}
		s.ok("GET", "/devices/D", plain, nil)
		if a5, _ := s.refreshable("alice", "D"); !s.alive(a5) {
			t.Error("cannot log in again with the device")
		}

		// Logout ends both kinds of tokens.
		a6, r6 := s.refreshable("alice", "E")
		s.ok("POST", "/logout", a6, nil)
		if e := s.want(s.do("POST", "/refresh", "", obj{"refresh_token": r6}), 401, "M_UNKNOWN_TOKEN"); e.Get("soft_logout").Bool() {
			t.Error("the session is destroyed, and the answer says otherwise")
		}
		s.want(s.do("POST", "/refresh", "", obj{}), 400, "M_MISSING_PARAM")
		s.want(s.do("POST", "/refresh", "", obj{"refresh_token": 1}), 400, "M_BAD_JSON")
		s.want(s.do("POST", "/refresh", "", obj{"refresh_token": "mar_x"}), 401, "M_UNKNOWN_TOKEN")
		s.want(s.do("POST", "/refresh", "", obj{"refresh_token": a6}), 401, "M_UNKNOWN_TOKEN")
	})
}

func TestRefreshKeepsTheDatabaseSmall(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		s.user("alice")
		a, r := s.refreshable("alice", "D")
		for range 2 * keptGenerations {
			if !s.alive(a) {
				t.Fatal("the session has ended")
			}
			a, r = s.refreshed(r)
		}
		var access, refresh int64
		ctx := context.Background()
		if _, err := db.Get(ctx, `SELECT COUNT(*) FROM access_tokens WHERE device_id = $1`, []any{"D"}, &access); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Get(ctx, `SELECT COUNT(*) FROM refresh_tokens WHERE device_id = $1`, []any{"D"}, &refresh); err != nil {
			t.Fatal(err)
		}
		if access > 3 || refresh > keptGenerations+1 {
			t.Errorf("%d access and %d refresh tokens are kept", access, refresh)
		}
	})
}

func TestLoginLimits(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		limits := ratelimit.Config{Enabled: true,
			Login: ratelimit.Rate{PerSecond: 0.01, Burst: 8}, LoginAccount: ratelimit.Rate{PerSecond: 0.01, Burst: 3}}
		s := newServer(t, db, withLimits(limits))
		s.user("alice")
		s.user("bob")
		attempt := func(user, password string) answer {
			return s.do("POST", "/login", "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": user}, "password": password})
		}
		for range 3 {
			s.want(attempt("alice", "wrong"), 403, "M_FORBIDDEN")
		}
		// The account has had its attempts, by whatever name it is called; another account has not.
		for _, name := range []string{"alice", "@alice:test", "ALICE"} {
			a := s.want(attempt(name, "secret-alice"), 429, "M_LIMIT_EXCEEDED")
			if a.Get("retry_after_ms").Int() <= 0 || a.header.Get("Retry-After") == "" {
				t.Errorf("429 does not say when to come again: %s", a.Raw)
			}
		}
		refresh := s.want(s.do("POST", "/login", "", obj{"type": "m.login.password", "user": "bob", "password": "secret-bob", "refresh_token": true}), 200, "").Get("refresh_token").Str
		// Now the address has had its eight.
		s.want(attempt("carol", "x"), 403, "M_FORBIDDEN")
		s.want(attempt("carol", "x"), 429, "M_LIMIT_EXCEEDED")
		// Who is logged in stays so.
		s.ok("POST", "/refresh", "", obj{"refresh_token": refresh})
	})
}

// TestPasswordConfirmationIsLimited keeps a stolen token from guessing the password.
func TestPasswordConfirmationIsLimited(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, withLimits(ratelimit.Config{Enabled: true, LoginAccount: ratelimit.Rate{PerSecond: 0.01, Burst: 3}}))
		token := s.user("alice")
		wrong := obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": "alice"}, "password": "wrong"}
		for range 3 {
			s.want(s.do("DELETE", "/devices/X", token, obj{"auth": wrong}), 401, "M_FORBIDDEN")
		}
		s.want(s.do("DELETE", "/devices/X", token, obj{"auth": password("alice", "")}), 429, "M_LIMIT_EXCEEDED")
	})
}

func TestLastSeen(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.login2(t)
		start := s.clock.Now().UnixMilli()
		seen := func() int64 {
			s.flushLastSeen(context.Background())
			return s.ok("GET", "/devices/D", token, nil).Get("last_seen_ts").Int()
		}
		if got := seen(); got != start {
			t.Errorf("seen at %d, logged in at %d", got, start)
		}
		s.alive(token)
		s.clock.advance(30 * time.Second)
		s.alive(token) // too soon to be noted again
		if got := seen(); got != start {
			t.Errorf("seen at %d, half a minute after %d", got, start)
		}
		s.clock.advance(time.Hour)
		s.alive(token)
		if got := seen(); got != start+3_630_000 {
			t.Errorf("seen at %d, want %d", got, start+3_630_000)
		}
	})
}

// login2 registers alice and logs her in on device D.
func (s *server) login2(t *testing.T) string {
	t.Helper()
	s.user("alice")
	return s.login("alice", "D")
}
