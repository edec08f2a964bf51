// Package mailtest is a mail server on loopback for tests: it takes every e-mail and shows it to the test.
package mailtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Options say how the server behaves.
type Options struct {
	// TLS is none, starttls or tls.
	TLS string
	// User and Password, if set, have to be shown.
	User, Password string
}

// Server is a running mail server.
type Server struct {
	// Addr is its address, host:port.
	Addr string
	// Roots trust its certificate.
	Roots *x509.CertPool

	t       testing.TB
	options Options
	mails   chan Mail

	mu     sync.Mutex
	broken bool // guarded by mu
}

// Mail is an e-mail that arrived.
type Mail struct {
	From, To, Subject, Text, HTML string
	Header                        mail.Header
}

// Link is the first link in the text.
func (m *Mail) Link() string {
	for word := range strings.FieldsSeq(m.Text) {
		if strings.HasPrefix(word, "http") {
			return word
		}
	}
	return ""
}

// Start starts a server that ends with the test.
func Start(t testing.TB, options Options) *Server {
	t.Helper()
	s := &Server{t: t, options: options, mails: make(chan Mail, 1000), Roots: x509.NewCertPool()}
	server := smtp.NewServer(s)
	server.Domain, server.AllowInsecureAuth = "localhost", true
	config := s.certificate()
	if options.TLS == "starttls" {
		server.TLSConfig = config
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = listener.Addr().String()
	if options.TLS == "tls" {
		listener = tls.NewListener(listener, config)
	}
	go func() {
		if err := server.Serve(listener); err != nil {
			t.Errorf("serve SMTP: %v", err)
		}
	}()
	t.Cleanup(func() { server.Close() })
	return s
}

// certificate makes one for the loopback address.
func (s *Server) certificate() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		s.t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Roots.AddCert(parsed)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}

// Break makes the server refuse e-mails, or take them again.
func (s *Server) Break(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

// Next waits for the next e-mail.
func (s *Server) Next() Mail {
	s.t.Helper()
	select {
	case m := <-s.mails:
		return m
	case <-time.After(time.Minute):
		s.t.Fatal("no e-mail within a minute")
		return Mail{}
	}
}

// None fails the test if an e-mail has arrived that Next has not returned.
func (s *Server) None() {
	s.t.Helper()
	select {
	case m := <-s.mails:
		s.t.Errorf("an e-mail to %s that nobody asked for: %s", m.To, m.Subject)
	default:
	}
}

// NewSession implements smtp.Backend.
func (s *Server) NewSession(*smtp.Conn) (smtp.Session, error) { return &session{server: s}, nil }

type session struct {
	server   *Server
	loggedIn bool
	mail     Mail
}

// AuthMechanisms implements smtp.AuthSession.
func (s *session) AuthMechanisms() []string {
	if s.server.options.User == "" {
		return nil
	}
	return []string{sasl.Plain}
}

// Auth implements smtp.AuthSession.
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != s.server.options.User || password != s.server.options.Password {
			return errors.New("wrong password")
		}
		s.loggedIn = true
		return nil
	}), nil
}

// Mail implements smtp.Session.
func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	if s.server.options.User != "" && !s.loggedIn {
		return smtp.ErrAuthRequired
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	if s.server.broken {
		return &smtp.SMTPError{Code: 451, Message: "not today"}
	}
	s.mail = Mail{From: from}
	return nil
}

// Rcpt implements smtp.Session.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mail.To = to
	return nil
}

// Data implements smtp.Session.
func (s *session) Data(r io.Reader) error {
	message, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	s.mail.Header = message.Header
	if s.mail.Subject, err = new(mime.WordDecoder).DecodeHeader(message.Header.Get("Subject")); err != nil {
		return err
	}
	_, params, err := mime.ParseMediaType(message.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	for parts := multipart.NewReader(message.Body, params["boundary"]); ; {
		part, err := parts.NextRawPart()
		if err == io.EOF { //nolint:errorlint // wrapped, it says that the last boundary is missing
			break
		}
		if err != nil {
			return err
		}
		text, err := decode(part)
		if err != nil {
			return err
		}
		if strings.HasPrefix(part.Header.Get("Content-Type"), "text/html") {
			s.mail.HTML = text
		} else {
			s.mail.Text = text
		}
	}
	s.server.mails <- s.mail
	return nil
}

// decode takes the transfer encoding off a part.
func decode(part *multipart.Part) (string, error) {
	raw, err := io.ReadAll(part)
	if err != nil {
		return "", err
	}
	var r io.Reader = bytes.NewReader(raw)
	switch strings.ToLower(part.Header.Get("Content-Transfer-Encoding")) {
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	text, err := io.ReadAll(r)
	return strings.ReplaceAll(string(text), "\r\n", "\n"), err
}

// Reset implements smtp.Session.
func (s *session) Reset() { s.mail = Mail{} }

// Logout implements smtp.Session.
func (s *session) Logout() error { return nil }
