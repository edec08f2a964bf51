package accounts

import (
	"context"
	"testing"

	"github.com/myelin-im/myelin/storage"
)

func TestModeration(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db)
		admin, second, alice := s.user("admin"), s.user("second"), s.user("alice")
		for _, user := range []string{"@admin:test", "@second:test"} {
			if err := s.SetAdmin(ctx, user, true); err != nil {
				t.Fatal(err)
			}
		}
		s.user("gone")
		if err := s.Deactivate(ctx, "@gone:test", false); err != nil {
			t.Fatal(err)
		}
		for _, prefix := range []string{"/_matrix/client/v1", "/_matrix/client/unstable/uk.timedout.msc4323"} {
			for action, member := range map[string]string{"lock": "locked", "suspend": "suspended"} {
				about := func(user string) string { return prefix + path("/admin/"+action+"/%", user) }
				for _, value := range []bool{true, false} {
					if a := s.ok("PUT", about("@alice:test"), admin, obj{member: value}); a.Get(member).Bool() != value {
						t.Errorf("PUT %s: %s", action, a.Raw)
					}
					if a := s.ok("GET", about("@alice:test"), second, nil); a.Get(member).Bool() != value {
						t.Errorf("GET %s: %s", action, a.Raw)
					}
				}
				for _, tt := range []struct {
					user, token, code string
					status            int
				}{
					{"@alice:elsewhere", admin, "M_INVALID_PARAM", 400},
					{"@nobody:test", admin, "M_NOT_FOUND", 404},
					{"@gone:test", admin, "M_NOT_FOUND", 404},
					{"@second:test", admin, "M_FORBIDDEN", 403},
					{"@nobody:test", alice, "M_FORBIDDEN", 403}, // whether they exist is not told
					{"@alice:elsewhere", alice, "M_FORBIDDEN", 403},
				} {
					s.want(s.do("PUT", about(tt.user), tt.token, obj{member: true}), tt.status, tt.code)
					s.want(s.do("GET", about(tt.user), tt.token, nil), tt.status, tt.code)
				}
				s.want(s.do("PUT", about("@admin:test"), admin, obj{member: true}), 403, "M_FORBIDDEN")
				s.want(s.do("PUT", about("@alice:test"), admin, obj{}), 400, "M_MISSING_PARAM")
				s.want(s.do("PUT", about("@alice:test"), admin, obj{member: "yes"}), 400, "M_BAD_JSON")
			}
		}
		if a := s.ok("GET", "/capabilities", admin, nil); a.Get(`capabilities.m\.account_moderation`).Raw != `{"suspend":true,"lock":true}` {
			t.Errorf("capabilities of an administrator: %s", a.Raw)
		}
		if a := s.ok("GET", "/capabilities", alice, nil); a.Get(`capabilities.m\.account_moderation`).Exists() {
			t.Errorf("capabilities of a user: %s", a.Raw)
		}
	})
}

// TestLockedAccount tries every way into a locked account.
func TestLockedAccount(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		s := newServer(t, db, func(c *Config, _ *Deps) { c.Registration.Guests = true })
		token := s.user("alice")
		pair := s.ok("POST", "/login", "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": "alice"},
			"password": "secret-alice", "refresh_token": true})
		guest := s.ok("POST", "/register?kind=guest", "", obj{})
		for _, user := range []string{"@alice:test", guest.Get("user_id").Str} {
			if err := s.setLocked(ctx, user, true); err != nil {
				t.Fatal(err)
			}
		}
		locked := func(a answer) {
			t.Helper()
			if s.want(a, 401, "M_USER_LOCKED"); !a.Get("soft_logout").Bool() {
				t.Errorf("not a soft logout: %s", a.Raw)
			}
		}
		locked(s.do("GET", "/account/whoami", token, nil))
		locked(s.do("POST", "/refresh", "", obj{"refresh_token": pair.Get("refresh_token").Str}))
		locked(s.do("POST", "/account/password", "", obj{"new_password": "another one", "auth": password("alice", "")}))
		locked(s.do("POST", "/account/deactivate", token, obj{"auth": password("alice", "")}))
		localpart := guest.Get("user_id").Str[1 : len(guest.Get("user_id").Str)-len(":test")]
		locked(s.do("POST", "/register", "", obj{"username": localpart, "password": "x", "guest_access_token": guest.Get("access_token").Str, "auth": dummy}))

		if err := s.setLocked(ctx, "@alice:test", false); err != nil {
			t.Fatal(err)
		}
		s.ok("GET", "/account/whoami", token, nil) // the session outlives the lock
		s.ok("POST", "/refresh", "", obj{"refresh_token": pair.Get("refresh_token").Str})
		if err := s.setLocked(ctx, "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		s.ok("POST", "/logout", token, obj{})
	})
}

func TestWhois(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		admin, alice := s.user("admin"), s.user("alice")
		s.login("alice", "SECOND")
		if err := s.SetAdmin(context.Background(), "@admin:test", true); err != nil {
			t.Fatal(err)
		}
		whois := func(user string) string { return path("/admin/whois/%", user) }
		for _, token := range []string{admin, alice} {
			a := s.ok("GET", whois("@alice:test"), token, nil)
			seen := a.Get("devices.SECOND.sessions.0.connections.0")
			if a.Get("user_id").Str != "@alice:test" || len(a.Get("devices").Map()) != 2 || seen.Get("ip").Str == "" || seen.Get("last_seen").Int() == 0 {
				t.Errorf("whois: %s", a.Raw)
			}
		}
		s.want(s.do("GET", whois("@admin:test"), alice, nil), 403, "M_FORBIDDEN")
		s.want(s.do("GET", whois("@nobody:test"), alice, nil), 403, "M_FORBIDDEN")
		s.want(s.do("GET", whois("@nobody:test"), admin, nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", whois("@alice:elsewhere"), admin, nil), 400, "M_INVALID_PARAM")
	})
}
