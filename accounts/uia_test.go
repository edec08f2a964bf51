package accounts

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
)

func withTerms(c *Config, _ *Deps) {
	c.Registration.Policies = map[string]Policy{"terms": {Version: "1.2", Translations: map[string]Translation{
		"en": {Name: "Terms", URL: "https://test/terms"}}}}
}

func stages(a answer) string {
	var list []string
	a.Get("flows").ForEach(func(_, flow gjson.Result) bool {
		list = append(list, flow.Get("stages").Raw)
		return true
	})
	return strings.Join(list, " ")
}

func TestFlowOfTwoStages(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, withTerms, func(c *Config, _ *Deps) { c.Registration.RequireToken = true })
		if _, err := s.CreateRegistrationToken(context.Background(), RegistrationToken{Token: "token", UsesAllowed: 1}); err != nil {
			t.Fatal(err)
		}
		post := func(auth any) answer {
			return s.do("POST", "/register", "", obj{"username": "alice", "password": "secret-alice", "auth": auth})
		}
		a := s.want(post(nil), 401, "")
		session := a.Get("session").Str
		if stages(a) != `["m.login.registration_token","m.login.terms"]` || session == "" || a.Get("completed").Exists() ||
			a.Get(`params.m\.login\.terms.policies.terms.version`).Str != "1.2" ||
			a.Get(`params.m\.login\.terms.policies.terms.en.url`).Str != "https://test/terms" || a.Get("error").Exists() {
			t.Fatalf("first answer: %s", a.Raw)
		}
		// Stages have to be completed in order.
		a = s.want(post(obj{"type": "m.login.terms", "session": session}), 401, "M_FORBIDDEN")
		if a.Get("session").Str != session || a.Get("completed").Exists() {
			t.Errorf("stage out of order: %s", a.Raw)
		}
		a = s.want(post(obj{"type": "m.login.registration_token", "token": "no", "session": session}), 401, "M_UNAUTHORIZED")
		if a.Get("error").Str == "" || stages(a) == "" {
			t.Errorf("failed stage: %s", a.Raw)
		}
		a = s.want(post(obj{"type": "m.login.registration_token", "token": "token", "session": session}), 401, "")
		if a.Get("completed").Raw != `["m.login.registration_token"]` || a.Get("session").Str != session {
			t.Errorf("after the first stage: %s", a.Raw)
		}
		// A completed stage is not tried again, and asking for the state changes nothing.
		for _, auth := range []obj{{"type": "m.login.registration_token", "token": "no", "session": session}, {"session": session}} {
			if a = s.want(post(auth), 401, ""); a.Get("completed").Raw != `["m.login.registration_token"]` {
				t.Errorf("%v: %s", auth, a.Raw)
			}
		}
		// The state belongs to its session only.
		if a = s.want(post(obj{"session": session + "x"}), 401, ""); a.Get("completed").Exists() || a.Get("session").Str == session+"x" {
			t.Errorf("unknown session: %s", a.Raw)
		}
		a = s.want(post(obj{"type": "m.login.terms", "session": session}), 200, "")
		if a.Get("user_id").Str != "@alice:test" {
			t.Errorf("registered: %s", a.Raw)
		}
		// It is spent.
		if a = s.want(s.do("POST", "/register", "", obj{"username": "bob", "password": "p", "auth": obj{"session": session}}), 401, ""); a.Get("completed").Exists() {
			t.Errorf("a session serves twice: %s", a.Raw)
		}
	})
}

func TestTermsInOneRequest(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, withTerms)
		if a := s.want(s.do("POST", "/register", "", obj{}), 401, ""); stages(a) != `["m.login.terms"]` {
			t.Errorf("flows: %s", a.Raw)
		}
		s.want(s.do("POST", "/register", "", obj{"username": "a", "password": "p", "auth": dummy}), 401, "M_FORBIDDEN")
		s.ok("POST", "/register", "", obj{"username": "a", "password": "p", "auth": obj{"type": "m.login.terms"}})
	})
}

func TestSessionRemembersItsRequest(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		a := s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "secret-alice", "device_id": "D"}), 401, "")
		// The form of clients that return from a fallback page: nothing but the session.
		a = s.ok("POST", "/register", "", obj{"auth": obj{"type": "m.login.dummy", "session": a.Get("session").Str}})
		if a.Get("user_id").Str != "@alice:test" || a.Get("device_id").Str != "D" {
			t.Errorf("registered: %s", a.Raw)
		}
		s.login("alice", "E")

		// Its request is not legible in the database.
		s.want(s.do("POST", "/register", "", obj{"username": "bob", "password": "legible"}), 401, "")
		var params []byte
		if _, err := db.Get(context.Background(), `SELECT params FROM uia_sessions WHERE params IS NOT NULL ORDER BY expires_ts DESC`, nil, &params); err != nil {
			t.Fatal(err)
		}
		if len(params) == 0 || strings.Contains(string(params), "legible") || strings.Contains(string(params), "bob") {
			t.Errorf("stored request: %q", params)
		}
		// Element asks for the flows with an empty request and sends the name later.
		a = s.want(s.do("POST", "/register", "", obj{}), 401, "")
		s.ok("POST", "/register", "", obj{"username": "carol", "password": "p", "auth": obj{"type": "m.login.dummy", "session": a.Get("session").Str}})
	})
}

func TestSessionIsBound(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice, bob := s.user("alice"), s.user("bob")
		s.login("alice", "A")
		s.login("alice", "B")
		first := s.want(s.do("POST", "/delete_devices", alice, obj{"devices": []string{"A"}}), 401, "")
		if stages(first) != `["m.login.password"]` || first.Get("params").Raw != "{}" {
			t.Errorf("flows: %s", first.Raw)
		}
		session := first.Get("session").Str
		// Other devices than those that were shown to the user.
		s.want(s.do("POST", "/delete_devices", alice, obj{"devices": []string{"A", "B"}, "auth": password("alice", session)}), 403, "M_FORBIDDEN")
		s.ok("GET", "/devices/A", alice, nil)
		// The session of another operation or another user is worth nothing, so the answer is a new one.
		for _, a := range []answer{
			s.do("DELETE", "/devices/B", alice, obj{"auth": obj{"session": session}}),
			s.do("POST", "/delete_devices", bob, obj{"devices": []string{"A"}, "auth": obj{"session": session}}),
		} {
			if s.want(a, 401, ""); a.Get("session").Str == session {
				t.Errorf("a session holds for something else: %s", a.Raw)
			}
		}
		// Another user's password proves nothing.
		s.want(s.do("POST", "/delete_devices", alice, obj{"devices": []string{"A"}, "auth": password("bob", session)}), 403, "M_FORBIDDEN")
		a := s.want(s.do("POST", "/delete_devices", alice, obj{"devices": []string{"A"},
			"auth": obj{"type": "m.login.password", "user": "alice", "password": "no", "session": session}}), 401, "M_FORBIDDEN")
		if a.Get("session").Str != session || a.Get("error").Str == "" || stages(a) == "" || !a.Get("params").Exists() {
			t.Errorf("wrong password: %s", a.Raw)
		}
		s.ok("POST", "/delete_devices", alice, obj{"auth": password("alice", session)})
		s.want(s.do("GET", "/devices/A", alice, nil), 404, "M_NOT_FOUND")
		// What is false is something else than what is not said.
		session = s.want(s.do("POST", "/account/deactivate", alice, obj{"erase": true}), 401, "").Get("session").Str
		s.want(s.do("POST", "/account/deactivate", alice, obj{"erase": false, "auth": password("alice", session)}), 403, "M_FORBIDDEN")
		s.ok("GET", "/devices/B", alice, nil)
	})
}

func TestSessionExpires(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db, withTerms, func(c *Config, _ *Deps) { c.Registration.RequireToken = true })
		if _, err := s.CreateRegistrationToken(context.Background(), RegistrationToken{Token: "token"}); err != nil {
			t.Fatal(err)
		}
		body := obj{"username": "a", "password": "p", "auth": obj{"type": "m.login.registration_token", "token": "token"}}
		session := s.want(s.do("POST", "/register", "", body), 401, "").Get("session").Str
		s.clock.advance(time.Hour)
		a := s.want(s.do("POST", "/register", "", obj{"auth": obj{"type": "m.login.terms", "session": session}}), 401, "M_FORBIDDEN")
		if a.Get("session").Str == session || a.Get("completed").Exists() {
			t.Errorf("expired session: %s", a.Raw)
		}
		// What is over is deleted now and then.
		for range 64 {
			s.do("POST", "/register", "", obj{})
		}
		var old int64
		if _, err := db.Get(context.Background(), `SELECT COUNT(*) FROM uia_sessions WHERE expires_ts <= $1`, []any{s.nowMS()}, &old); err != nil || old != 0 {
			t.Errorf("%d expired sessions are kept, %v", old, err)
		}
	})
}

func TestTooManySessionsPushOutTheOldest(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		count := func() (n int64) {
			if _, err := db.Get(context.Background(), `SELECT COUNT(*) FROM uia_sessions`, nil, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		err := db.Write(context.Background(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`INSERT INTO uia_sessions (hash, operation, user_id, verified, reg_token, completed, expires_ts)
				WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)
				SELECT CAST(CAST(i AS TEXT) AS BYTEA), $1, $1, $1, $1, $1, CAST($3 AS BIGINT) + i FROM n`, "", maxUIASessions+500, s.nowMS()+1000)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 64 {
			s.do("POST", "/register", "", obj{})
		}
		if n := count(); n > maxUIASessions+64 {
			t.Errorf("%d sessions are kept", n)
		}
	})
}

// TestSessionServesOnce shows one completed session to several requests at once.
func TestSessionServesOnce(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		const path = "/_matrix/client/v1/login/get_token"
		session := s.want(s.do("POST", path, token, obj{}), 401, "").Get("session").Str
		var served atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if a := s.do("POST", path, token, obj{"auth": password("alice", session)}); a.status == 200 {
					served.Add(1)
				}
			})
		}
		wg.Wait()
		// Whoever came after the session's end gave the password for one of their own.
		var left int64
		if _, err := db.Get(context.Background(), `SELECT COUNT(*) FROM login_tokens`, nil, &left); err != nil || left != served.Load() || left == 0 {
			t.Errorf("%d tokens, %d answers, %v", left, served.Load(), err)
		}
	})
}
