package accounts

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"

	"github.com/myelin-im/myelin/internal/templates"
)

//go:embed templates
var builtIn embed.FS

// The e-mails, by the names of their templates: each has a .txt, which also defines the subject, and a .html.
const (
	mailRegister = "register" // confirm an address for a new account
	mailAdd      = "add"      // confirm an address for an existing account
	mailReset    = "reset"    // confirm the wish to set a new password
	mailInUse    = "in_use"   // the address belongs to an account already
	mailUnknown  = "unknown"  // the address belongs to no account
)

// mailData is what templates of e-mails know.
type mailData struct {
	// AppName is what the service is called, Server the server name.
	AppName, Server string
	// Address is to whom it goes, UserID whose the address is, if it is anyone's.
	Address, UserID string
	// Link is the page that confirms.
	Link string
}

// texts are the templates of e-mails and pages.
type texts struct {
	mails map[string]*templates.Mail
	page  *template.Template
	// login is the page of the login fallback.
	login *template.Template
}

// loadTexts reads the built-in templates and those in a folder (empty: none) that replace them. What it returns has been
// tried out.
func loadTexts(folder string) (*texts, error) {
	from := templates.Set{Folder: folder, BuiltIn: builtIn}
	t := &texts{mails: map[string]*templates.Mail{}}
	for _, name := range []string{mailRegister, mailAdd, mailReset, mailInUse, mailUnknown} {
		m, err := from.Mail(name)
		if err != nil {
			return nil, err
		}
		if _, err := m.Compose("a@b", mailData{"App", "server", "a@b", "@a:b", "https://server"}); err != nil {
			return nil, err
		}
		t.mails[name] = m
	}
	var err error
	if t.page, err = from.Page("page"); err != nil {
		return nil, err
	}
	if t.login, err = from.Page("login"); err != nil {
		return nil, err
	}
	return t, t.page.Execute(new(bytes.Buffer), &page{Links: []link{{}}, Button: "x", Hidden: []hidden{{}}, Ask: &question{}, Done: true})
}

// CheckTemplates says what is wrong with the templates in a folder that replace built-in ones. Empty: no folder.
func CheckTemplates(folder string) error {
	_, err := loadTexts(folder)
	return err
}

// page is a page on which users do one thing.
type page struct {
	AppName, Title, Text string
	// Error says what went wrong.
	Error string
	// Links are shown under the text.
	Links []link
	// Button sends a form with Hidden and the answer to Ask, if there is one, to Action; empty: there is no form.
	Button, Action string
	Hidden         []hidden
	Ask            *question
	// Done tells the client that opened the page to go on.
	Done bool
	// Nonce is that of the script.
	Nonce string
	// formTarget is an origin to which the answer to the form may redirect; empty: none but this one.
	formTarget string
}

type link struct{ Name, URL string }

type hidden struct{ Name, Value string }

type question struct{ Name, Type, Label string }

// show answers with a page. Nothing but itself may be loaded by it or may frame it.
func (a *API) show(w http.ResponseWriter, status int, p *page) error {
	p.AppName, p.Nonce = a.appName(), newNonce()
	var body bytes.Buffer
	if err := a.texts.page.Execute(&body, p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	pageHeaders(w.Header(), p.Nonce, strings.TrimSpace("'self' "+p.formTarget))
	w.WriteHeader(status)
	_, err := w.Write(body.Bytes())
	return err
}

// pageHeaders are the headers of all pages.
func pageHeaders(h http.Header, nonce, formTargets string) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-"+nonce+"'; connect-src 'self'; form-action "+
		formTargets+"; frame-ancestors 'none'; base-uri 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Frame-Options", "DENY")
}

func newNonce() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// appName is what e-mails and pages call the service.
func (a *API) appName() string {
	if a.cfg.Email.AppName == "" {
		return a.cfg.ServerName
	}
	return a.cfg.Email.AppName
}
