package accounts

import (
	"context"
	"testing"
	"time"

	"github.com/myelin-im/myelin/storage"
)

func TestOpenID(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice, bob := s.user("alice"), s.user("bob")
		request := path("/user/%/openid/request_token", "@alice:test")
		info := func(token string) answer {
			t.Helper()
			return s.do("GET", "/_matrix/federation/v1/openid/userinfo?access_token="+token, "", nil)
		}
		a := s.ok("POST", request, alice, obj{})
		token := a.Get("access_token").Str
		if a.Get("token_type").Str != "Bearer" || a.Get("matrix_server_name").Str != "test" || a.Get("expires_in").Int() != 3600 {
			t.Errorf("token: %s", a.Raw)
		}
		for range 2 { // it is not spent
			if a := s.want(info(token), 200, ""); a.Raw != `{"sub":"@alice:test"}` {
				t.Errorf("user info: %s", a.Raw)
			}
		}
		s.want(s.do("POST", request, bob, obj{}), 403, "M_FORBIDDEN")
		s.want(s.do("POST", request, "", obj{}), 401, "M_MISSING_TOKEN")
		s.want(info(""), 401, "M_MISSING_TOKEN")
		s.want(info("x"), 401, "M_UNKNOWN_TOKEN")
		s.want(info(alice), 401, "M_UNKNOWN_TOKEN") // the other kind of token is none of this
		s.want(s.do("GET", "/account/whoami", token, nil), 401, "M_UNKNOWN_TOKEN")

		if err := s.setLocked(context.Background(), "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		s.want(info(token), 401, "M_UNKNOWN_TOKEN")
		if err := s.setLocked(context.Background(), "@alice:test", false); err != nil {
			t.Fatal(err)
		}
		s.clock.advance(time.Hour - time.Millisecond)
		s.want(info(token), 200, "")
		s.clock.advance(time.Millisecond)
		s.want(info(token), 401, "M_UNKNOWN_TOKEN")

		token = s.ok("POST", request, alice, obj{}).Get("access_token").Str
		if err := s.Deactivate(context.Background(), "@alice:test", false); err != nil {
			t.Fatal(err)
		}
		s.want(info(token), 401, "M_UNKNOWN_TOKEN")
	})
}

func TestOpenIDTokensAreBounded(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice := s.user("alice")
		request := path("/user/%/openid/request_token", "@alice:test")
		first := s.ok("POST", request, alice, obj{}).Get("access_token").Str
		for range maxOpenIDTokens {
			s.clock.advance(time.Second)
			s.ok("POST", request, alice, obj{})
		}
		var count int64
		if _, err := db.Get(context.Background(), `SELECT COUNT(*) FROM openid_tokens`, nil, &count); err != nil || count != maxOpenIDTokens {
			t.Errorf("%d tokens, %v", count, err)
		}
		s.want(s.do("GET", "/_matrix/federation/v1/openid/userinfo?access_token="+first, "", nil), 401, "M_UNKNOWN_TOKEN")
	})
}
