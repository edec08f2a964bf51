package accounts

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/mail/mailtest"
	"github.com/myelin-im/myelin/storage"
)

func fallbackPath(stage, session string) string {
	return "/_matrix/client/v3/auth/" + stage + "/fallback/web?session=" + url.QueryEscape(session)
}

// stagePage opens the page of a stage, fills it in, and checks that the client is told.
func (s *server) stagePage(stage, session string, form url.Values) {
	s.t.Helper()
	path := fallbackPath(stage, session)
	if status, body, _ := s.web(path, nil); status != 200 || !strings.Contains(body, "<form") || strings.Contains(body, "onAuthDone") {
		s.t.Fatalf("page of %s: %d %s", stage, status, body)
	}
	if status, body, _ := s.web(path, form); status != 200 || !strings.Contains(body, "window.onAuthDone") || !strings.Contains(body, `postMessage("authDone", "*")`) {
		s.t.Fatalf("page of %s, filled in: %d %s", stage, status, body)
	}
}

func TestFallbackPages(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, func(c *Config, _ *Deps) {
			c.Email.Required, c.Registration.RequireToken = true, true
			c.Registration.Policies = map[string]Policy{"terms": {Version: "1", Translations: map[string]Translation{"en": {"The terms", "https://test/terms"}}}}
		}, withMail(t, box))
		if _, err := s.CreateRegistrationToken(t.Context(), RegistrationToken{Token: "invited"}); err != nil {
			t.Fatal(err)
		}
		a := s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "secret-alice"}), 401, "")
		if a.Get("flows.0.stages").Raw != `["m.login.email.identity","m.login.registration_token","m.login.terms"]` {
			t.Fatalf("flows: %s", a.Raw)
		}
		session := a.Get("session").Str

		// The e-mail's page asks for the address, then waits.
		path := fallbackPath("m.login.email.identity", session)
		status, body, _ := s.web(path, url.Values{"email": {"no address"}})
		if status != 200 || !strings.Contains(body, "not an e-mail address") {
			t.Errorf("a bad address: %d %s", status, body)
		}
		_, body, _ = s.web(path, url.Values{"email": {"alice@example.org"}})
		hidden := url.Values{}
		for _, m := range regexp.MustCompile(`name="(sid|secret)" value="([^"]+)"`).FindAllStringSubmatch(body, -1) {
			hidden.Set(m[1], m[2])
		}
		if _, body, _ = s.web(path, hidden); !strings.Contains(body, "has not been confirmed") || strings.Contains(body, "onAuthDone") {
			t.Errorf("before the link was opened: %s", body)
		}
		s.open(box.Next())
		if _, body, _ = s.web(path, hidden); !strings.Contains(body, "onAuthDone") {
			t.Errorf("after the link was opened: %s", body)
		}

		token := fallbackPath("m.login.registration_token", session)
		if _, body, _ := s.web(token, url.Values{"token": {"wrong"}}); !strings.Contains(body, "not valid") {
			t.Errorf("a wrong token: %s", body)
		}
		s.stagePage("m.login.registration_token", session, url.Values{"token": {"invited"}})
		if _, body, _ := s.web(fallbackPath("m.login.terms", session), nil); !strings.Contains(body, `href="https://test/terms"`) {
			t.Errorf("terms: %s", body)
		}
		s.stagePage("m.login.terms", session, url.Values{})
		if _, body, _ := s.web(fallbackPath("m.login.terms", session), nil); !strings.Contains(body, "onAuthDone") {
			t.Errorf("a stage that is done: %s", body)
		}
		alice := s.ok("POST", "/register", "", obj{"auth": obj{"session": session}}).Get("access_token").Str

		// Whoever is logged in confirms with their password.
		a = s.want(s.do("POST", "/delete_devices", alice, obj{"devices": []string{"X"}}), 401, "")
		session = a.Get("session").Str
		if _, body, _ := s.web(fallbackPath("m.login.password", session), url.Values{"password": {"wrong"}}); !strings.Contains(body, "Wrong") {
			t.Errorf("a wrong password: %s", body)
		}
		s.stagePage("m.login.password", session, url.Values{"password": {"secret-alice"}})
		s.ok("POST", "/delete_devices", alice, obj{"auth": obj{"session": session}})

		for _, bad := range []string{"", "x", strings.Repeat("x", 5000)} {
			if status, body, _ := s.web(fallbackPath("m.login.terms", bad), nil); status != 400 || strings.Contains(body, "<form") {
				t.Errorf("session %.10s: %d %s", bad, status, body)
			}
			if status, _, _ := s.web(fallbackPath("m.login.terms", bad), url.Values{}); status != 400 {
				t.Errorf("session %.10s, filled in: %d", bad, status)
			}
		}
	})
}

func TestFallbackOfDummyAndOthers(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		session := s.want(s.do("POST", "/register", "", obj{"username": "bob", "password": "x"}), 401, "").Get("session").Str
		for _, stage := range []string{"m.login.recaptcha", "m.login.password", "%3Cscript%3E"} {
			if status, body, _ := s.web(fallbackPath(stage, session), nil); status != 404 || strings.Contains(body, "<form") || strings.Contains(body, "<script>") {
				t.Errorf("%s: %d %s", stage, status, body)
			}
			if status, _, _ := s.web(fallbackPath(stage, session), url.Values{}); status != 404 {
				t.Errorf("%s, filled in: %d", stage, status)
			}
		}
		s.stagePage("m.login.dummy", session, url.Values{})
		s.ok("POST", "/register", "", obj{"auth": obj{"session": session}})
		if status, body, _ := s.web(loginPath, nil); status != 200 || !strings.Contains(body, "window.matrixLogin.onLogin") {
			t.Errorf("login page: %d %s", status, body)
		}
	})
}
