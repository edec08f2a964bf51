// Package mail hands e-mails to a mail server (SMTP, RFC 5321). It knows nothing of what they say.
package mail

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/mail"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// Security says how the connection to the mail server is secured.
type Security string

const (
	// StartTLS asks for TLS on a plain connection, and sends nothing without it.
	StartTLS Security = "starttls"
	// TLS begins with it.
	TLS Security = "tls"
	// Plain is for a mail server on the same machine.
	Plain Security = "none"
)

// Config says how e-mails are handed over.
type Config struct {
	// Address is the mail server, as host:port.
	Address string
	// Security of the connection.
	Security Security
	// User and Password log in; empty: without.
	User, Password string
	// From is the sender, with a name if wanted.
	From string
	// Roots are whose certificates are trusted; nil: the system's.
	Roots *x509.CertPool
}

// Message is one e-mail, as text and the same as HTML.
type Message struct {
	To, Subject, Text, HTML string
}

const (
	// patience bounds the handing over of one e-mail.
	patience = 20 * time.Second
	// parallel bounds the connections to the mail server. Who finds all taken waits.
	parallel = 4
)

// Sender hands e-mails to one mail server. It is safe for concurrent use.
type Sender struct {
	host    string
	from    string
	domain  string // of the sender
	options []gomail.Option
	slots   chan struct{}
}

// New makes a Sender. It does not connect.
func New(cfg Config) (*Sender, error) {
	host, port, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("address of the mail server: %w", err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("port of the mail server: %w", err)
	}
	from, err := mail.ParseAddress(cfg.From)
	if err != nil {
		return nil, fmt.Errorf("sender of e-mail: %w", err)
	}
	s := &Sender{host: host, from: cfg.From, domain: from.Address[strings.LastIndexByte(from.Address, '@')+1:], slots: make(chan struct{}, parallel)}
	s.options = []gomail.Option{
		gomail.WithPort(number), gomail.WithTimeout(patience),
		gomail.WithTLSConfig(&tls.Config{ServerName: host, RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}),
	}
	switch cfg.Security {
	case StartTLS:
		s.options = append(s.options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	case TLS:
		s.options = append(s.options, gomail.WithSSL())
	case Plain:
		s.options = append(s.options, gomail.WithTLSPolicy(gomail.NoTLS))
	default:
		return nil, fmt.Errorf("%q is no security of the connection to a mail server", cfg.Security)
	}
	if cfg.User != "" {
		kind := gomail.SMTPAuthAutoDiscover
		if cfg.Security == Plain {
			kind = gomail.SMTPAuthPlainNoEnc
		}
		s.options = append(s.options, gomail.WithSMTPAuth(kind), gomail.WithUsername(cfg.User), gomail.WithPassword(cfg.Password))
	}
	if _, err := gomail.NewClient(host, s.options...); err != nil {
		return nil, fmt.Errorf("set up e-mail: %w", err)
	}
	return s, nil
}

// Send hands an e-mail over. When it returns nil, the mail server has it.
func (s *Sender) Send(ctx context.Context, m Message) error {
	message, err := s.message(m)
	if err != nil {
		return err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return fmt.Errorf("wait for the mail server: %w", ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := gomail.NewClient(s.host, s.options...)
	if err != nil {
		return fmt.Errorf("set up e-mail: %w", err)
	}
	if err := client.DialAndSendWithContext(ctx, message); err != nil {
		return fmt.Errorf("hand e-mail to the mail server: %w", err)
	}
	return nil
}

// message puts an e-mail together.
func (s *Sender) message(m Message) (*gomail.Msg, error) {
	out := gomail.NewMsg()
	if err := out.From(s.from); err != nil {
		return nil, fmt.Errorf("sender of e-mail: %w", err)
	}
	if err := out.To(m.To); err != nil {
		return nil, fmt.Errorf("recipient of e-mail: %w", err)
	}
	out.Subject(m.Subject)
	// The name of this machine is nobody's business, and receivers distrust a domain that does not exist.
	out.SetMessageIDWithValue(rand.Text() + "@" + s.domain)
	out.SetDate()
	// Automatic replies to it would go round in circles (RFC 3834).
	out.SetGenHeader("Auto-Submitted", "auto-generated")
	out.SetBodyString(gomail.TypeTextPlain, m.Text)
	out.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	return out, nil
}
