package accounts

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/mail"
	"github.com/myelin-im/myelin/internal/mail/mailtest"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// withMail lets a server send e-mail to a mail server of the test.
func withMail(t testing.TB, box *mailtest.Server) setting {
	return func(c *Config, d *Deps) {
		var err error
		if d.Mail, err = mail.New(mail.Config{Address: box.Addr, Security: mail.Plain, From: "Test <noreply@test>"}); err != nil {
			t.Fatal(err)
		}
		c.Email = Email{AppName: "The App", BaseURL: "https://matrix.test/", Templates: c.Email.Templates, Required: c.Email.Required}
	}
}

// web asks for a page; a form is posted if there is one. It returns status, text and the address of a redirection.
func (s *server) web(path string, form url.Values) (status int, body, location string) {
	s.t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var res *http.Response
	var err error
	if form == nil {
		res, err = client.Get(s.url + path)
	} else {
		res, err = client.PostForm(s.url+path, form)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if location = res.Header.Get("Location"); location == "" {
		csp := res.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") || !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
			s.t.Errorf("%s: headers of a page: %v", path, res.Header)
		}
	}
	return res.StatusCode, string(raw), location
}

// requestEmail asks for an e-mail and returns the session's credentials.
func (s *server) requestToken(path, address, secret string, attempt int, more obj) (credentials obj) {
	s.t.Helper()
	body := obj{"client_secret": secret, "email": address, "send_attempt": attempt}
	for k, v := range more {
		body[k] = v
	}
	return obj{"sid": s.ok("POST", path+"/email/requestToken", "", body).Get("sid").Str, "client_secret": secret}
}

// open opens the link of an e-mail and presses the button there.
func (s *server) open(m mailtest.Mail) (location string) {
	s.t.Helper()
	u, err := url.Parse(m.Link())
	if err != nil || u.Scheme+"://"+u.Host != "https://matrix.test" {
		s.t.Fatalf("link %q: %v", m.Link(), err)
	}
	if status, body, _ := s.web(u.RequestURI(), nil); status != 200 || !strings.Contains(body, "<form") {
		s.t.Fatalf("the page of an e-mail: %d %s", status, body)
	}
	status, body, location := s.web(u.Path, u.Query())
	if status != 200 && status != 303 {
		s.t.Fatalf("confirming: %d %s", status, body)
	}
	return location
}

func emailStage(credentials obj, session string) obj {
	return obj{"type": "m.login.email.identity", "threepid_creds": credentials, "session": session}
}

// addEmail gives a user an address.
func (s *server) addEmail(box *mailtest.Server, name, token, address string) {
	s.t.Helper()
	creds := s.requestToken("/account/3pid", address, "adding", 1, nil)
	s.open(box.Next())
	s.ok("POST", "/account/3pid/add", token, obj{"sid": creds["sid"], "client_secret": "adding", "auth": password(name, "")})
}

func TestEmailRegistration(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		creds := s.requestToken("/register", "Alice@Example.org", "secret1", 1, obj{"id_server": "id.example"})
		m := box.Next()
		if m.To != "alice@example.org" || m.Subject == "" || !strings.Contains(m.Text, "The App") || !strings.Contains(m.HTML, "href=\"https://matrix.test/") {
			t.Errorf("e-mail: %+v", m)
		}
		if again := s.requestToken("/register", "alice@example.org", "secret1", 1, nil); again["sid"] != creds["sid"] {
			t.Error("a repeated request has another session")
		}
		box.None()
		if again := s.requestToken("/register", "alice@example.org", "secret1", 2, nil); again["sid"] != creds["sid"] {
			t.Error("another attempt has another session")
		}
		m = box.Next()

		request := obj{"username": "alice", "password": "secret-alice"}
		a := s.want(s.do("POST", "/register", "", request), 401, "")
		if !strings.Contains(a.Get("flows").Raw, `{"stages":["m.login.email.identity"]}`) {
			t.Errorf("flows: %s", a.Raw)
		}
		session := a.Get("session").Str
		request["auth"] = emailStage(creds, session)
		s.want(s.do("POST", "/register", "", request), 401, "M_UNAUTHORIZED") // clients poll

		// What opens links to look at them confirms nothing.
		u, _ := url.Parse(m.Link())
		s.web(u.RequestURI(), nil)
		s.want(s.do("POST", "/register", "", request), 401, "M_UNAUTHORIZED")

		s.open(m)
		request["auth"] = emailStage(obj{"sid": creds["sid"], "client_secret": "guessed"}, session)
		s.want(s.do("POST", "/register", "", request), 401, "M_UNAUTHORIZED")
		request["auth"] = emailStage(creds, session)
		token := s.ok("POST", "/register", "", request).Get("access_token").Str
		a = s.ok("GET", "/account/3pid", token, nil)
		if p := a.Get("threepids.0"); p.Get("medium").Str != "email" || p.Get("address").Str != "alice@example.org" || p.Get("validated_at").Int() == 0 || p.Get("added_at").Int() == 0 {
			t.Errorf("identifiers: %s", a.Raw)
		}

		// The session is spent.
		s.want(s.do("POST", "/register", "", obj{"username": "other", "password": "x", "auth": emailStage(creds, "")}), 401, "M_UNAUTHORIZED")

		// The address is taken, which only its owner learns.
		s.requestToken("/register", "ALICE@example.org", "secret2", 1, nil)
		if m := box.Next(); m.Link() != "" || !strings.Contains(m.Text, "@alice:test") {
			t.Errorf("e-mail about an address that is in use: %+v", m)
		}
		s.ok("POST", "/login", "", obj{"type": "m.login.password", "password": "secret-alice",
			"identifier": obj{"type": "m.id.thirdparty", "medium": "email", "address": "Alice@example.org"}})
		s.ok("POST", "/login", "", obj{"type": "m.login.password", "password": "secret-alice", "medium": "email", "address": "alice@example.org"})
		for _, address := range []string{"alice@example.org", "nobody@example.org", "no address"} {
			s.want(s.do("POST", "/login", "", obj{"type": "m.login.password", "password": "wrong",
				"identifier": obj{"type": "m.id.thirdparty", "medium": "email", "address": address}}), 403, "M_FORBIDDEN")
		}
	})
}

func TestEmailIsRequired(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, func(c *Config, _ *Deps) {
			c.Email.Required = true
			c.Registration.Policies = map[string]Policy{"terms": {Version: "7", Translations: map[string]Translation{"en": {"Terms", "https://test/terms"}}}}
		}, withMail(t, box))
		a := s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "x", "auth": dummy}), 401, "M_FORBIDDEN")
		if a.Get("flows").Raw != `[{"stages":["m.login.email.identity","m.login.terms"]}]` {
			t.Errorf("flows: %s", a.Raw)
		}
		creds := s.requestToken("/register", "alice@example.org", "secret", 1, nil)
		s.open(box.Next())
		a = s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "x", "auth": emailStage(creds, a.Get("session").Str)}), 401, "")
		s.ok("POST", "/register", "", obj{"auth": obj{"type": "m.login.terms", "session": a.Get("session").Str}})
		var version string
		if _, err := db.Get(context.Background(), `SELECT version FROM accepted_terms WHERE user_id = $1 AND policy = $2`,
			[]any{"@alice:test", "terms"}, &version); err != nil || version != "7" {
			t.Errorf("the accepted terms are of version %q, %v", version, err)
		}
	})
}

func TestPasswordReset(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		alice, bob := s.user("alice"), s.user("bob")
		s.addEmail(box, "alice", alice, "alice@example.org")

		creds := s.requestToken("/account/password", "alice@example.org", "reset", 1, obj{"next_link": "https://client.example/done?x=1"})
		m := box.Next()
		if !strings.Contains(m.Text, "@alice:test") {
			t.Errorf("e-mail: %+v", m)
		}
		request := obj{"new_password": "secret-new", "auth": emailStage(creds, "")}
		a := s.want(s.do("POST", "/account/password", "", request), 401, "M_UNAUTHORIZED")
		if !strings.Contains(a.Get("flows").Raw, `["m.login.email.identity"]`) {
			t.Errorf("flows: %s", a.Raw)
		}
		if location := s.open(m); location != "https://client.example/done?x=1" {
			t.Errorf("confirming leads to %q", location)
		}
		s.want(s.do("POST", "/account/password", bob, request), 403, "M_FORBIDDEN") // it is not bob's
		s.ok("POST", "/account/password", "", request)
		if s.alive(alice) {
			t.Error("the old session is alive")
		}
		s.ok("POST", "/login", "", obj{"type": "m.login.password", "user": "alice", "password": "secret-new"})
		s.want(s.do("POST", "/account/password", "", request), 401, "M_UNAUTHORIZED") // once

		// No account has the address: the answer is as always, and there is nothing to confirm.
		creds = s.requestToken("/account/password", "nobody@example.org", "reset", 1, nil)
		if m := box.Next(); creds["sid"] == "" || m.Link() != "" || m.To != "nobody@example.org" {
			t.Errorf("e-mail about an unknown address: %+v", m)
		}
		// A session for something else is none for this.
		creds = s.requestToken("/account/3pid", "third@example.org", "adding", 1, nil)
		s.open(box.Next())
		s.want(s.do("POST", "/account/password", "", obj{"new_password": "x", "auth": emailStage(creds, "")}), 401, "M_UNAUTHORIZED")
		s.want(s.do("POST", "/account/deactivate", "", obj{"auth": emailStage(creds, "")}), 401, "M_FORBIDDEN")
	})
}

// TestChangeEndsReset: what was begun before a password change must not end after it.
func TestChangeEndsReset(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		alice := s.user("alice")
		s.addEmail(box, "alice", alice, "alice@example.org")
		creds := s.requestToken("/account/password", "alice@example.org", "reset", 1, nil)
		s.open(box.Next())
		s.ok("POST", "/account/password", alice, obj{"new_password": "secret-alice", "auth": password("alice", "")})
		s.want(s.do("POST", "/account/password", "", obj{"new_password": "stolen", "auth": emailStage(creds, "")}), 401, "M_UNAUTHORIZED")

		creds = s.requestToken("/account/password", "alice@example.org", "again", 1, nil)
		s.open(box.Next())
		s.ok("POST", "/account/3pid/delete", alice, obj{"medium": "email", "address": "alice@example.org"})
		s.want(s.do("POST", "/account/password", "", obj{"new_password": "stolen", "auth": emailStage(creds, "")}), 401, "M_UNAUTHORIZED")
	})
}

func TestThreePIDs(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		alice, bob := s.user("alice"), s.user("bob")
		if a := s.ok("GET", "/account/3pid", alice, nil); a.Raw != `{"threepids":[]}` {
			t.Errorf("no identifiers: %s", a.Raw)
		}
		if a := s.ok("GET", "/capabilities", alice, nil); !a.Get(`capabilities.m\.3pid_changes.enabled`).Bool() {
			t.Errorf("capabilities: %s", a.Raw)
		}
		mine := s.requestToken("/account/3pid", "shared@example.org", "one", 1, nil)
		m := box.Next()
		add := func(token, name string, creds obj) answer {
			t.Helper()
			return s.do("POST", "/account/3pid/add", token, obj{"sid": creds["sid"], "client_secret": creds["client_secret"], "auth": password(name, "")})
		}
		s.want(s.do("POST", "/account/3pid/add", alice, obj{"sid": mine["sid"], "client_secret": "one"}), 401, "")
		s.want(s.do("POST", "/account/3pid/add", alice, obj{"client_secret": "one"}), 400, "M_MISSING_PARAM")
		s.want(add(alice, "alice", mine), 403, "M_THREEPID_AUTH_FAILED")
		s.open(m)
		other := s.requestToken("/account/3pid", "shared@example.org", "two", 1, nil)
		s.open(box.Next())
		s.want(add(alice, "alice", mine), 200, "")
		s.want(add(bob, "bob", other), 400, "M_THREEPID_IN_USE") // confirmed before alice had it
		s.requestToken("/account/3pid", "shared@example.org", "three", 1, nil)
		if m := box.Next(); m.Link() != "" {
			t.Errorf("e-mail about an address that is in use: %+v", m)
		}

		for _, action := range []string{"delete", "unbind"} {
			a := s.ok("POST", "/account/3pid/"+action, bob, obj{"medium": "email", "address": "shared@example.org", "id_server": "id.example"})
			if a.Get("id_server_unbind_result").Str != "no-support" {
				t.Errorf("%s: %s", action, a.Raw)
			}
		}
		if a := s.ok("GET", "/account/3pid", alice, nil); len(a.Get("threepids").Array()) != 1 {
			t.Errorf("bob took alice's address away: %s", a.Raw)
		}
		s.ok("POST", "/account/3pid/delete", alice, obj{"medium": "email", "address": "Shared@example.org"})
		if a := s.ok("GET", "/account/3pid", alice, nil); a.Raw != `{"threepids":[]}` {
			t.Errorf("identifiers after deletion: %s", a.Raw)
		}
		bind := obj{"client_secret": "x", "sid": "y", "id_server": "id.example", "id_access_token": "z"}
		s.want(s.do("POST", "/account/3pid/bind", alice, bind), 400, "M_SERVER_NOT_TRUSTED")
		s.want(s.do("POST", "/account/3pid", alice, obj{"three_pid_creds": bind}), 400, "M_SERVER_NOT_TRUSTED")

		// An account that ends lets go of its addresses.
		s.addEmail(box, "bob", bob, "bob@example.org")
		if err := s.Deactivate(context.Background(), "@bob:test", false); err != nil {
			t.Fatal(err)
		}
		s.addEmail(box, "alice", alice, "bob@example.org")
	})
}

func TestSuspendedKeepIdentifiers(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		alice := s.user("alice")
		if err := s.setSuspended(context.Background(), "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		s.addEmail(box, "alice", alice, "alice@example.org")
		for _, action := range []string{"delete", "unbind"} {
			s.want(s.do("POST", "/account/3pid/"+action, alice, obj{"medium": "email", "address": "alice@example.org"}), 403, "M_USER_SUSPENDED")
		}
	})
}

func TestEmailRequests(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box), withLimits(ratelimit.Config{Enabled: true, Mail: ratelimit.Rate{PerSecond: 0.001, Burst: 2}}))
		good := func() obj { return obj{"client_secret": "secret", "email": "alice@example.org", "send_attempt": 1} }
		for _, path := range []string{"/register", "/account/password", "/account/3pid"} {
			for what, change := range map[string]func(obj){
				"M_INVALID_PARAM": func(b obj) { b["email"] = "alice" }, "M_MISSING_PARAM": func(b obj) { delete(b, "send_attempt") },
				"M_BAD_JSON": func(b obj) { b["send_attempt"] = "1" },
			} {
				b := good()
				change(b)
				s.want(s.do("POST", path+"/email/requestToken", "", b), 400, what)
			}
			for name, bad := range map[string]string{
				"email": "a@b, c@d", "client_secret": "a b", "next_link": "javascript:alert(1)",
			} {
				b := good()
				b[name] = bad
				s.want(s.do("POST", path+"/email/requestToken", "", b), 400, "M_INVALID_PARAM")
			}
			for _, bad := range []string{"a@b\r\nBcc: c@d", "Name <a@b>", "<a@b>", strings.Repeat("x", 300) + "@example.org", ""} {
				b := good()
				b["email"] = bad
				if a := s.do("POST", path+"/email/requestToken", "", b); a.status != 400 {
					t.Errorf("the address %q: %s", bad, a.Raw)
				}
			}
			s.want(s.do("POST", path+"/msisdn/requestToken", "", obj{"client_secret": "s", "country": "GB", "phone_number": "1", "send_attempt": 1}), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
		}
		box.None()

		for i, want := range []int{200, 200, 429} {
			b := good()
			b["send_attempt"] = i + 1
			a := s.do("POST", "/register/email/requestToken", "", b)
			if a.status != want || want == 429 && a.header.Get("Retry-After") == "" {
				t.Errorf("request %d: %d %s", i, a.status, a.Raw)
			}
		}
	})
}

func TestEmailThatCannotBeSent(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		box.Break(true)
		body := obj{"client_secret": "secret", "email": "alice@example.org", "send_attempt": 1}
		if a := s.do("POST", "/register/email/requestToken", "", body); a.status != 500 {
			t.Errorf("an e-mail that cannot be sent: %d %s", a.status, a.Raw)
		}
		box.Break(false)
		s.ok("POST", "/register/email/requestToken", "", body) // the same attempt
		box.Next()
	})
}

func TestEmailSessionsEnd(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, withMail(t, box))
		creds := s.requestToken("/register", "alice@example.org", "secret", 1, nil)
		m := box.Next()
		u, _ := url.Parse(m.Link())
		for _, bad := range []string{"?sid=x&token=y", "?token=y", "", "?sid=" + u.Query().Get("sid") + "&token=met_wrong", "?sid=" + strings.Repeat("x", 5000)} {
			if status, body, _ := s.web(submitPath+bad, nil); status != 400 || strings.Contains(body, "<form") {
				t.Errorf("%s: %d %s", bad, status, body)
			}
		}
		if status, _, _ := s.web(submitPath, url.Values{"sid": {"x"}, "token": {"y"}}); status != 400 {
			t.Errorf("a made-up link was confirmed: %d", status)
		}
		s.open(m)
		s.clock.advance(emailLifetime)
		if status, _, _ := s.web(u.RequestURI(), nil); status != 400 {
			t.Errorf("an expired link: %d", status)
		}
		s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "x", "auth": emailStage(creds, "")}), 401, "M_UNAUTHORIZED")

		// A session that has expired begins anew, unconfirmed.
		again := s.requestToken("/register", "alice@example.org", "secret", 1, nil)
		if again["sid"] == creds["sid"] {
			t.Error("an expired session was revived")
		}
		box.Next()
		s.want(s.do("POST", "/register", "", obj{"username": "alice", "password": "x", "auth": emailStage(again, "")}), 401, "M_UNAUTHORIZED")
	})
}

func TestWithoutEmail(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice := s.user("alice")
		for _, path := range []string{"/register", "/account/password", "/account/3pid"} {
			s.want(s.do("POST", path+"/email/requestToken", "", obj{"client_secret": "s", "email": "a@b.c", "send_attempt": 1}), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")
		}
		if a := s.ok("GET", "/capabilities", alice, nil); a.Get(`capabilities.m\.3pid_changes.enabled`).Bool() {
			t.Errorf("capabilities: %s", a.Raw)
		}
	})
}

func TestOwnTemplates(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		folder := t.TempDir()
		write := func(name, text string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("register.txt", `{{define "subject"}}Hey {{.Address}}{{end}}Go to {{.Link}}`)
		box := mailtest.Start(t, mailtest.Options{})
		s := newServer(t, db, func(c *Config, _ *Deps) { c.Email.Templates = folder }, withMail(t, box))
		s.requestToken("/register", "alice@example.org", "secret", 1, nil)
		if m := box.Next(); m.Subject != "Hey alice@example.org" || !strings.HasPrefix(m.Text, "Go to https://") || !strings.Contains(m.HTML, "confirm") {
			t.Errorf("e-mail: %+v", m)
		}
		for name, text := range map[string]string{"register.txt": "{{.Nothing}}", "reset.html": "{{", "page.html": "{{.Nothing}}", "add.txt": "no subject"} {
			write("register.txt", `{{define "subject"}}x{{end}}`)
			write(name, text)
			if _, err := loadTexts(folder); err == nil {
				t.Errorf("%s with %q: no error", name, text)
			}
			if err := os.Remove(filepath.Join(folder, name)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := loadTexts(filepath.Join(folder, "nothing")); err == nil {
			t.Error("a folder that does not exist: no error")
		}
	})
}
