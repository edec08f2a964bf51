package mail_test

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/mail"
	"github.com/myelin-im/myelin/internal/mail/mailtest"
)

var message = mail.Message{To: "alice@example.org", Subject: "Grüße", Text: "Hällo\n\nhttps://example.org/?a=b&c=" + strings.Repeat("x", 100) + "\n", HTML: "<p>Hällo</p>"}

// messageID names the domain of the sender, and not the machine.
var messageID = regexp.MustCompile(`^<[A-Z0-9]{20,}@example\.org>$`)

func TestSend(t *testing.T) {
	for _, security := range []mail.Security{mail.Plain, mail.StartTLS, mail.TLS} {
		for _, user := range []string{"", "user"} {
			t.Run(string(security)+" "+user, func(t *testing.T) {
				server := mailtest.Start(t, mailtest.Options{TLS: string(security), User: user, Password: "secret"})
				cfg := mail.Config{Address: server.Addr, Security: security, User: user, Password: "secret", From: "Example <noreply@example.org>", Roots: server.Roots}
				sender, err := mail.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				if err := sender.Send(context.Background(), message); err != nil {
					t.Fatal(err)
				}
				got := server.Next()
				if got.From != "noreply@example.org" || got.To != message.To || got.Subject != message.Subject ||
					strings.TrimSpace(got.Text) != strings.TrimSpace(message.Text) || got.HTML != message.HTML {
					t.Errorf("got %+v", got)
				}
				if got.Header.Get("Auto-Submitted") != "auto-generated" || !messageID.MatchString(got.Header.Get("Message-Id")) || got.Header.Get("Date") == "" {
					t.Errorf("headers: %v", got.Header)
				}
				if user == "" {
					return
				}
				cfg.Password = "wrong"
				if sender, err = mail.New(cfg); err != nil {
					t.Fatal(err)
				}
				if err := sender.Send(context.Background(), message); err == nil {
					t.Error("a wrong password was good enough")
				}
			})
		}
	}
}

// TestNothingGoesInTheClear asks for TLS from a server that has none, and from one with a certificate of nobody.
func TestNothingGoesInTheClear(t *testing.T) {
	for _, offered := range []string{"none", "starttls", "tls"} {
		server := mailtest.Start(t, mailtest.Options{TLS: offered})
		for _, security := range []mail.Security{mail.StartTLS, mail.TLS} {
			sender, err := mail.New(mail.Config{Address: server.Addr, Security: security, From: "noreply@example.org"})
			if err != nil {
				t.Fatal(err)
			}
			if offered == "tls" && security == mail.StartTLS {
				continue // both wait for the other to speak, until patience ends
			}
			if err := sender.Send(context.Background(), message); err == nil {
				t.Errorf("%s was asked for, the server has %s, and the e-mail was sent", security, offered)
			}
			server.None()
		}
	}
}

func TestBadRecipients(t *testing.T) {
	server := mailtest.Start(t, mailtest.Options{})
	sender, err := mail.New(mail.Config{Address: server.Addr, Security: mail.Plain, From: "noreply@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"", "x", "a@b\r\nBcc: c@d", "a@b, c@d"} {
		if err := sender.Send(context.Background(), mail.Message{To: to, Subject: "x", Text: "x", HTML: "x"}); err == nil {
			t.Errorf("an e-mail to %q was sent", to)
		}
	}
	server.None()
}

func TestNewRefuses(t *testing.T) {
	good := mail.Config{Address: "localhost:25", Security: mail.Plain, From: "a@b"}
	for what, change := range map[string]func(*mail.Config){
		"no port": func(c *mail.Config) { c.Address = "localhost" }, "no sender": func(c *mail.Config) { c.From = "" },
		"no such security": func(c *mail.Config) { c.Security = "" }, "a bad port": func(c *mail.Config) { c.Address = "localhost:x" },
	} {
		cfg := good
		change(&cfg)
		if _, err := mail.New(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
