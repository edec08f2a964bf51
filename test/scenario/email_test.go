package scenario

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/mail/mailtest"
	"github.com/myelin-im/myelin/storage/storagetest"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestEmail registers with an e-mail address and resets the password by it, on a server as operators configure it.
func TestEmail(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			box := mailtest.Start(t, mailtest.Options{User: "server", Password: "secret"})
			s := Start(t, d, func(c *config.Config) {
				c.Email = config.Email{SMTP: box.Addr, TLS: "none", User: "server", Password: "secret", From: "Myelin <noreply@myelin.test>", AppName: "Myelin"}
				c.Registration.RequireEmail = true
			})
			c := s.Client(t)
			confirm := func(path string) J {
				t.Helper()
				a := c.Must("POST", Path(path+"/email/requestToken"), J{"client_secret": "secret", "email": "alice@example.org", "send_attempt": 1})
				link, err := url.Parse(func() string { m := box.Next(); return m.Link() }())
				if err != nil || link.Host != s.Name {
					t.Fatalf("link %v: %v", link, err)
				}
				res, err := http.PostForm(s.URL+link.Path, link.Query())
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if res.StatusCode != 200 {
					t.Fatalf("confirming: %s", res.Status)
				}
				return J{"type": "m.login.email.identity", "threepid_creds": J{"sid": a.JSON.Get("sid").Str, "client_secret": "secret"}}
			}
			c.Must("POST", Path("/register"), J{"username": "alice", "password": "first", "auth": confirm("/register")})
			c.Must("POST", Path("/account/password"), J{"new_password": "second", "auth": confirm("/account/password")})
			login := func(password string) J {
				return J{"type": "m.login.password", "identifier": J{"type": "m.id.thirdparty", "medium": "email", "address": "alice@example.org"}, "password": password}
			}
			c.Refused(403, "M_FORBIDDEN", "POST", Path("/login"), login("first"))
			if a := c.Must("POST", Path("/login"), login("second")); a.JSON.Get("user_id").Str != "@alice:"+s.Name {
				t.Errorf("login: %v", a)
			}
		})
	}
}
