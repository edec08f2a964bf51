package scenario

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/internal/mail/mailtest"
	"github.com/myelin-im/myelin/storage/storagetest"

	. "github.com/myelin-im/myelin/test/harness"
)

// TestEmailAboutUnreadMessages: what is read in time is not told, what is not is told once.
func TestEmailAboutUnreadMessages(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			box := mailtest.Start(t, mailtest.Options{})
			s := Start(t, d, func(c *config.Config) {
				c.Email = config.Email{SMTP: box.Addr, TLS: "none", From: "noreply@myelin.test", AppName: "Myelin", UnreadAfter: 4 * time.Second}
			})
			alice := s.Register(t, "alice")
			const address = "bob@example.org"
			sid := s.Client(t).Must("POST", Path("/register/email/requestToken"), J{"client_secret": "secret", "email": address, "send_attempt": 1}).JSON.Get("sid").Str
			m := box.Next()
			link, err := url.Parse(m.Link())
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.PostForm(s.URL+link.Path, link.Query())
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			r := s.Client(t).Must("POST", Path("/register"), J{"username": "bob", "password": Password,
				"auth": J{"type": "m.login.email.identity", "threepid_creds": J{"sid": sid, "client_secret": "secret"}}}).JSON
			bob := s.Client(t)
			bob.UserID, bob.Token = r.Get("user_id").Str, r.Get("access_token").Str

			pusher := J{"kind": "email", "app_id": "m.email", "pushkey": "eve@example.org", "app_display_name": "E-mail", "device_display_name": "bob", "lang": "en", "data": J{}}
			bob.Refused(400, "M_THREEPID_NOT_FOUND", "POST", Path("/pushers/set"), pusher)
			pusher["pushkey"] = address
			bob.Must("POST", Path("/pushers/set"), pusher)
			id := alice.Create(J{"preset": "public_chat", "name": "Tea <room>"})
			bob.Join(id)
			bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, alice.Text(id, "read in time")), J{})
			alice.Text(id, "one")
			alice.Text(id, "two & three")
			mail := box.Next()
			if mail.To != address || !strings.HasPrefix(mail.Subject, "2 unread messages in Tea <room>") {
				t.Errorf("to %s: %s", mail.To, mail.Subject)
			}
			for _, part := range []string{" alice: one", " alice: two & three", "https://matrix.to/#/", bob.UserID} {
				if !strings.Contains(mail.Text, part) {
					t.Errorf("%q is not in %s", part, mail.Text)
				}
			}
			if strings.Contains(mail.Text, "read in time") || !strings.Contains(mail.HTML, "two &amp; three") || !strings.Contains(mail.HTML, "Tea &lt;room&gt;") {
				t.Errorf("the e-mail: %s\n%s", mail.Text, mail.HTML)
			}
			last := alice.Text(id, "four")
			if mail = box.Next(); !strings.Contains(mail.Text, "four") || strings.Contains(mail.Text, "alice: one") { // the letters alone may be in the room's id
				t.Errorf("the second e-mail: %s", mail.Text)
			}
			bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, last), J{})
			box.None()
		})
	}
}
