package accounts

import (
	"context"
	"testing"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// TestShortPasswords sets passwords in every way on a server that wants eight characters (client-server API v1.19,
// "POST /register", "POST /account/password").
func TestShortPasswords(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		earlier := newServer(t, db)
		earlier.ok("POST", "/register", "", obj{"username": "old", "password": "x", "auth": dummy})

		s := newServer(t, db, func(c *Config, _ *Deps) { c.MinPassword = 8 })
		alice := s.user("alice")
		auth := password("alice", "")
		for _, short := range []string{"secret7", "sécrét7"} { // the second has more bytes
			s.want(s.do("POST", "/register", "", obj{"username": "bob", "password": short, "auth": dummy}), 400, "M_WEAK_PASSWORD")
			s.want(s.do("POST", "/account/password", alice, obj{"new_password": short, "auth": auth}), 400, "M_WEAK_PASSWORD")
			ctx := context.Background()
			_, err := s.CreateUser(ctx, NewUser{Username: "bob", Password: short})
			for way, err := range map[string]error{"CreateUser": err, "SetPassword": s.SetPassword(ctx, "@alice:test", short)} {
				if e := mxerr.As(err); e == nil || e.Status != 400 || e.Code != "M_WEAK_PASSWORD" {
					t.Errorf("%s with %q: %v", way, short, err)
				}
			}
		}
		s.ok("POST", "/account/password", alice, obj{"new_password": "sécrét78", "auth": auth})
		s.ok("POST", "/login", "", obj{"type": "m.login.password", "identifier": obj{"type": "m.id.user", "user": "old"}, "password": "x"})
	})
}
