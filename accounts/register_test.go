package accounts

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
)

func TestRegister(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		a := s.ok("POST", "/register", "", obj{"username": "Alice-UPPER", "password": "sUp3rs3kr1t", "auth": dummy,
			"device_id": "my device", "initial_device_display_name": "Phone"})
		if a.Get("user_id").Str != "@alice-upper:test" || a.Get("device_id").Str != "my device" || a.Get("home_server").Str != "test" {
			t.Errorf("answer: %s", a.Raw)
		}
		if a.Get("refresh_token").Exists() || a.Get("expires_in_ms").Exists() {
			t.Errorf("a refresh token nobody asked for: %s", a.Raw)
		}
		token := a.Get("access_token").Str
		who := s.ok("GET", "/account/whoami", token, nil)
		if who.Raw != `{"user_id":"@alice-upper:test","device_id":"my device"}` {
			t.Errorf("whoami: %s", who.Raw)
		}
		if d := s.ok("GET", path("/devices/%", "my device"), token, nil); d.Get("display_name").Str != "Phone" || d.Get("last_seen_ip").Str != "127.0.0.1" {
			t.Errorf("device: %s", d.Raw)
		}

		a = s.ok("POST", "/register", "", obj{"username": "quiet", "password": "p", "auth": dummy, "inhibit_login": true})
		if a.Get("access_token").Exists() || a.Get("device_id").Exists() || a.Get("user_id").Str != "@quiet:test" {
			t.Errorf("inhibit_login: %s", a.Raw)
		}
		a = s.ok("POST", "/register", "", obj{"password": "p", "auth": dummy})
		if id := a.Get("user_id").Str; !strings.HasPrefix(id, "@") || !strings.HasSuffix(id, ":test") || a.Get("device_id").Str == "" {
			t.Errorf("without a user name: %s", a.Raw)
		}
		for _, c := range []string{"q", "3", ".", "_", "=", "-", "/", "+"} {
			s.ok("POST", "/register", "", obj{"username": "chr" + c, "password": "p", "auth": dummy})
		}
	})
}

func TestRegisterRefuses(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, withBridge(t))
		s.user("alice")
		tests := []struct {
			name, path string
			body       any
			status     int
			code       string
		}{
			{"taken", "/register", obj{"username": "alice", "password": "p", "auth": dummy}, 400, "M_USER_IN_USE"},
			{"taken, before authentication", "/register", obj{"username": "ALICE"}, 400, "M_USER_IN_USE"},
			{"bridge's name", "/register", obj{"username": "_irc_joe", "password": "p", "auth": dummy}, 400, "M_EXCLUSIVE"},
			{"bridge's own name", "/register", obj{"username": "_bot", "password": "p", "auth": dummy}, 400, "M_EXCLUSIVE"},
			{"underscore", "/register", obj{"username": "_x", "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"user id", "/register", obj{"username": "@bob:test", "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"comma", "/register", obj{"username": "a,b", "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"not ASCII", "/register", obj{"username": "é", "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"Kelvin sign", "/register", obj{"username": "\u212a", "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"NUL", "/register", obj{"username": "a\x00b", "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"too long", "/register", obj{"username": strings.Repeat("a", 250), "password": "p", "auth": dummy}, 400, "M_INVALID_USERNAME"},
			{"no password", "/register", obj{"username": "bob", "auth": dummy}, 400, "M_MISSING_PARAM"},
			{"long password", "/register", obj{"username": "bob", "password": strings.Repeat("p", 513), "auth": dummy}, 400, "M_INVALID_PARAM"},
			{"long device id", "/register", obj{"username": "bob", "password": "p", "device_id": strings.Repeat("d", 256), "auth": dummy}, 400, "M_INVALID_PARAM"},
			{"no stage", "/register", obj{"username": "bob", "password": "p"}, 401, ""},
			{"unknown stage", "/register", obj{"username": "bob", "password": "p", "auth": obj{"type": "m.login.recaptcha"}}, 401, "M_FORBIDDEN"},
			{"auth of a wrong type", "/register", obj{"auth": "x"}, 400, "M_BAD_JSON"},
			{"user name of a wrong type", "/register", obj{"username": 1}, 400, "M_BAD_JSON"},
			{"no JSON", "/register", `{`, 400, "M_NOT_JSON"},
			{"no object", "/register", `[]`, 400, "M_BAD_JSON"},
			{"no UTF-8", "/register", "{\"a\":\"\x81\"}", 400, "M_NOT_JSON"},
			{"unknown kind", "/register?kind=robot", obj{}, 400, "M_INVALID_PARAM"},
			{"guests are off", "/register?kind=guest", obj{}, 403, "M_GUEST_ACCESS_FORBIDDEN"},
			{"bridge without token", "/register", obj{"type": "m.login.application_service", "username": "_irc_a"}, 401, "M_MISSING_TOKEN"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				s.t = t
				s.want(s.do("POST", tt.path, "", tt.body), tt.status, tt.code)
			})
		}
		s.t = t
		s.want(s.do("GET", "/register/available?username=alice", "", nil), 400, "M_USER_IN_USE")
		s.want(s.do("GET", "/register/available?username=a,b", "", nil), 400, "M_INVALID_USERNAME")
		s.want(s.do("GET", "/register/available?username=_irc_x", "", nil), 400, "M_EXCLUSIVE")
		s.want(s.do("GET", "/register/available", "", nil), 400, "M_MISSING_PARAM")
		if a := s.ok("GET", "/register/available?username=free", "", nil); !a.Get("available").Bool() {
			t.Errorf("available: %s", a.Raw)
		}
	})
}

func TestRegisterOnceUnderParallelRequests(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		var made, taken atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				switch a := s.do("POST", "/register", "", obj{"username": "same", "password": "p", "auth": dummy}); {
				case a.status == 200:
					made.Add(1)
				case a.status == 400 && a.Get("errcode").Str == "M_USER_IN_USE":
					taken.Add(1)
				default:
					t.Errorf("status %d: %s", a.status, a.Raw)
				}
			})
		}
		wg.Wait()
		if made.Load() != 1 || taken.Load() != 49 {
			t.Errorf("%d accounts made, %d refused", made.Load(), taken.Load())
		}
	})
}

func TestClosedRegistrationAndFirstAdmin(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db, closed)
		s.want(s.do("POST", "/register", "", obj{"username": "a", "password": "p", "auth": dummy}), 403, "M_FORBIDDEN")
		const validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token="
		s.want(s.do("GET", validity+"x", "", nil), 403, "M_FORBIDDEN")

		token, err := s.FirstAdminToken(ctx)
		if err != nil || token == "" {
			t.Fatalf("FirstAdminToken = %q, %v", token, err)
		}
		if again, err := s.FirstAdminToken(ctx); err != nil || again != token {
			t.Errorf("a second start gives another token: %q, %v", again, err)
		}
		if _, err := s.CreateRegistrationToken(ctx, RegistrationToken{Token: "ordinary"}); err != nil {
			t.Fatal(err)
		}
		if s.ok("GET", validity+"ordinary", "", nil).Get("valid").Bool() {
			t.Error("an ordinary token is good although registration is closed")
		}
		a := s.do("POST", "/register", "", obj{"username": "a", "password": "p"})
		if a.status != 401 || a.Get("flows").Raw != `[{"stages":["m.login.registration_token"]}]` {
			t.Fatalf("flows: %s", a.Raw)
		}
		session := a.Get("session").Str
		auth := func(token string) obj {
			return obj{"username": "a", "password": "p", "auth": obj{"type": "m.login.registration_token", "token": token, "session": session}}
		}
		bad := s.want(s.do("POST", "/register", "", auth("wrong")), 401, "M_UNAUTHORIZED")
		if bad.Get("session").Str != session || bad.Get("completed").Exists() {
			t.Errorf("wrong token: %s", bad.Raw)
		}
		s.want(s.do("POST", "/register", "", auth("ordinary")), 401, "M_UNAUTHORIZED")
		access := s.ok("POST", "/register", "", auth(token)).Get("access_token").Str
		by, err := s.Authenticate(ctx, access, nil)
		if err != nil || !by.Admin {
			t.Errorf("the first user is no administrator: %+v, %v", by, err)
		}
		s.want(s.do("POST", "/register", "", obj{"username": "b", "password": "p"}), 403, "M_FORBIDDEN")
		if token, err := s.FirstAdminToken(ctx); err != nil || token != "" {
			t.Errorf("FirstAdminToken of a server with an administrator = %q, %v", token, err)
		}
	})
}

// TestFirstAdminTokenEndsWithTheFirstAdmin makes an administrator in another way while the token is still unused.
func TestFirstAdminTokenEndsWithTheFirstAdmin(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db)
		token, err := s.FirstAdminToken(ctx)
		if err != nil || token == "" {
			t.Fatalf("FirstAdminToken = %q, %v", token, err)
		}
		if a := s.want(s.do("POST", "/register", "", obj{}), 401, ""); stages(a) != `["m.login.dummy"] ["m.login.registration_token"]` {
			t.Errorf("flows: %s", a.Raw)
		}
		s.user("stranger") // registration is open: somebody else may come first, and does no harm
		if _, err := s.CreateUser(ctx, NewUser{Username: "root", Admin: true}); err != nil {
			t.Fatal(err)
		}
		auth := obj{"type": "m.login.registration_token", "token": token}
		s.want(s.do("POST", "/register", "", obj{"username": "a", "password": "p", "auth": auth}), 401, "M_FORBIDDEN")
		if a := s.want(s.do("POST", "/register", "", obj{}), 401, ""); stages(a) != `["m.login.dummy"]` {
			t.Errorf("flows: %s", a.Raw)
		}
	})
}

func TestRegistrationTokens(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db, func(c *Config, _ *Deps) { c.Registration.RequireToken = true })
		mint := func(rt RegistrationToken) string {
			token, err := s.CreateRegistrationToken(ctx, rt)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		twice := mint(RegistrationToken{UsesAllowed: 2})
		brief := mint(RegistrationToken{Token: "brief", ExpiresMS: s.clock.Now().Add(time.Hour).UnixMilli()})
		for _, bad := range []string{"a b", strings.Repeat("a", 65), "brief"} {
			if _, err := s.CreateRegistrationToken(ctx, RegistrationToken{Token: bad}); err == nil {
				t.Errorf("token %q is accepted", bad)
			}
		}
		valid := func(token string) bool {
			return s.ok("GET", "/_matrix/client/v1/register/m.login.registration_token/validity?token="+token, "", nil).Get("valid").Bool()
		}
		register := func(name, token string) answer {
			return s.do("POST", "/register", "", obj{"username": name, "password": "p", "auth": obj{"type": "m.login.registration_token", "token": token}})
		}
		if !valid(twice) || !valid(brief) || valid("unknown") || valid("") {
			t.Error("validity does not follow the tokens")
		}
		s.want(register("a", twice), 200, "")
		s.want(register("b", twice), 200, "")
		s.want(register("c", twice), 401, "M_UNAUTHORIZED")
		s.want(register("c", brief), 200, "")
		s.clock.advance(2 * time.Hour)
		s.want(register("d", brief), 401, "M_UNAUTHORIZED")
		if valid(twice) || valid(brief) {
			t.Error("spent or expired tokens are valid")
		}
	})
}

func TestOneUseTokenUnderParallelRequests(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, func(c *Config, _ *Deps) { c.Registration.RequireToken = true })
		if _, err := s.CreateRegistrationToken(context.Background(), RegistrationToken{Token: "once", UsesAllowed: 1}); err != nil {
			t.Fatal(err)
		}
		var made atomic.Int64
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				a := s.do("POST", "/register", "", obj{"username": "u" + string(rune('a'+i)), "password": "p",
					"auth": obj{"type": "m.login.registration_token", "token": "once"}})
				if a.status == 200 {
					made.Add(1)
				}
			})
		}
		wg.Wait()
		if made.Load() != 1 {
			t.Errorf("%d accounts made with a token for one", made.Load())
		}
	})
}

func TestGuests(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, func(c *Config, _ *Deps) { c.Registration.Guests = true })
		a := s.ok("POST", "/register?kind=guest", "", obj{"username": "ignored", "device_id": "IGNORED", "initial_device_display_name": "Browser"})
		token, id := a.Get("access_token").Str, a.Get("user_id").Str
		if a.Get("device_id").Str == "IGNORED" || strings.Contains(id, "ignored") {
			t.Errorf("a guest chose: %s", a.Raw)
		}
		if who := s.ok("GET", "/account/whoami", token, nil); !who.Get("is_guest").Bool() {
			t.Errorf("whoami: %s", who.Raw)
		}
		s.ok("PUT", path("/profile/%/displayname", id), token, obj{"displayname": "G"})
		s.ok("GET", "/devices", token, nil)
		for _, refused := range []answer{
			s.do("PUT", path("/profile/%/avatar_url", id), token, obj{"avatar_url": "mxc://a/b"}),
			s.do("POST", "/account/password", token, obj{"new_password": "x"}),
			s.do("POST", "/account/deactivate", token, obj{}),
			s.do("PUT", path("/user/%/account_data/a", id), token, obj{}),
		} {
			s.want(refused, 403, "M_GUEST_ACCESS_FORBIDDEN")
		}
		// A guest becomes a user of the same name.
		name := strings.TrimSuffix(strings.TrimPrefix(id, "@"), ":test")
		s.want(s.do("POST", "/register", "", obj{"username": "other", "password": "p", "guest_access_token": token, "auth": dummy}), 403, "M_FORBIDDEN")
		s.want(s.do("POST", "/register", "", obj{"username": name, "password": "p", "guest_access_token": "x", "auth": dummy}), 401, "M_UNKNOWN_TOKEN")
		s.ok("POST", "/register", "", obj{"username": name, "password": "secret-" + name, "guest_access_token": token, "auth": dummy})
		if who := s.ok("GET", "/account/whoami", token, nil); who.Get("is_guest").Bool() {
			t.Error("still a guest after the upgrade")
		}
		s.login(name, "D")
		s.want(s.do("POST", "/register", "", obj{"username": name, "password": "p", "guest_access_token": token, "auth": dummy}), 403, "M_FORBIDDEN")
	})
}

func TestAppserviceRegistersAndLogsIn(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, withBridge(t), closed)
		reg := func(name string) obj { return obj{"type": "m.login.application_service", "username": name} }
		s.want(s.do("POST", "/register", "wrong", reg("_irc_joe")), 401, "M_UNKNOWN_TOKEN")
		s.want(s.do("POST", "/register", "as-token", reg("joe")), 400, "M_EXCLUSIVE")
		s.want(s.do("POST", "/register", "as-token", obj{"type": "m.login.application_service"}), 400, "M_MISSING_PARAM")
		a := s.ok("POST", "/register", "as-token", reg("_irc_joe"))
		if a.Get("user_id").Str != "@_irc_joe:test" || a.Get("access_token").Str == "" {
			t.Errorf("register: %s", a.Raw)
		}
		s.want(s.do("POST", "/register", "as-token", reg("_irc_joe")), 400, "M_USER_IN_USE")
		s.ok("POST", "/register", "as-token", reg("shared_x"))

		login := func(name string) obj {
			return obj{"type": "m.login.application_service", "identifier": obj{"type": "m.id.user", "user": name}}
		}
		s.want(s.do("POST", "/login", "", login("_irc_joe")), 401, "M_MISSING_TOKEN")
		s.want(s.do("POST", "/login", "wrong", login("_irc_joe")), 401, "M_UNKNOWN_TOKEN")
		s.want(s.do("POST", "/login", "as-token", login("joe")), 403, "M_EXCLUSIVE")
		s.want(s.do("POST", "/login", "as-token", login("_irc_nobody")), 403, "M_FORBIDDEN")
		if !s.alive(s.ok("POST", "/login", "as-token", login("@_irc_joe:test")).Get("access_token").Str) {
			t.Error("the token of an application service's login is not good")
		}
		flows := s.ok("GET", "/login", "", nil)
		if !strings.Contains(flows.Raw, "m.login.application_service") {
			t.Errorf("flows: %s", flows.Raw)
		}

		// Identity assertion.
		if who := s.ok("GET", "/account/whoami", "as-token", nil); who.Raw != `{"user_id":"@_bot:test"}` {
			t.Errorf("own user: %s", who.Raw)
		}
		if who := s.ok("GET", "/account/whoami?user_id=@_irc_joe:test", "as-token", nil); who.Get("user_id").Str != "@_irc_joe:test" {
			t.Errorf("asserted user: %s", who.Raw)
		}
		s.want(s.do("GET", "/account/whoami?user_id=@joe:test", "as-token", nil), 403, "M_FORBIDDEN")
		s.want(s.do("GET", "/account/whoami?user_id=@_irc_x:test", "as-token", nil), 403, "M_FORBIDDEN")
		s.want(s.do("GET", "/account/whoami?user_id=@_irc_joe:other", "as-token", nil), 403, "M_FORBIDDEN")
		s.want(s.do("GET", "/account/whoami?user_id=@_irc_joe:test&device_id=NO", "as-token", nil), 400, "M_UNKNOWN_DEVICE")

		// Devices without login and without confirmation.
		const joe = "?user_id=@_irc_joe:test"
		if a := s.do("PUT", "/devices/BRIDGE"+joe, "as-token", obj{"display_name": "b"}); a.status != 201 {
			t.Errorf("make device: %d %s", a.status, a.Raw)
		}
		if a := s.do("PUT", "/devices/BRIDGE"+joe, "as-token", obj{}); a.status != 200 {
			t.Errorf("update device: %d %s", a.status, a.Raw)
		}
		if who := s.ok("GET", "/account/whoami"+joe+"&device_id=BRIDGE", "as-token", nil); who.Get("device_id").Str != "BRIDGE" {
			t.Errorf("asserted device: %s", who.Raw)
		}
		s.ok("DELETE", "/devices/BRIDGE"+joe, "as-token", nil)
		s.want(s.do("GET", "/account/whoami"+joe+"&device_id=BRIDGE", "as-token", nil), 400, "M_UNKNOWN_DEVICE")
		s.want(s.do("POST", "/logout"+joe, "as-token", nil), 403, "M_FORBIDDEN")
		s.want(s.do("POST", "/register", "", obj{"guest_access_token": "as-token", "username": "x"}), 403, "M_FORBIDDEN")
	})
}
