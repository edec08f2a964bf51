package accounts

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"os"
	"strings"
	texttemplate "text/template"

	"github.com/myelin-im/myelin/internal/mail"
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

// templates are the texts of e-mails and pages.
type templates struct {
	text map[string]*texttemplate.Template
	html map[string]*template.Template
	page *template.Template
	// login is the page of the login fallback.
	login *template.Template
}

// loadTemplates reads the built-in templates and those in a folder (empty: none) that replace them. What it returns
// has been tried out.
func loadTemplates(folder string) (*templates, error) {
	t := &templates{text: map[string]*texttemplate.Template{}, html: map[string]*template.Template{}}
	for _, name := range []string{mailRegister, mailAdd, mailReset, mailInUse, mailUnknown} {
		source, err := templateSource(folder, name+".txt")
		if err != nil {
			return nil, err
		}
		if t.text[name], err = texttemplate.New(name + ".txt").Parse(source); err != nil {
			return nil, fmt.Errorf("template of an e-mail: %w", err)
		}
		if t.html[name], err = loadHTML(folder, name+".html"); err != nil {
			return nil, err
		}
		if _, err := t.mail(name, mailData{"App", "server", "a@b", "@a:b", "https://server"}); err != nil {
			return nil, err
		}
	}
	var err error
	if t.page, err = loadHTML(folder, "page.html"); err != nil {
		return nil, err
	}
	if t.login, err = loadHTML(folder, "login.html"); err != nil {
		return nil, err
	}
	return t, t.page.Execute(new(bytes.Buffer), &page{Links: []link{{}}, Button: "x", Hidden: []hidden{{}}, Ask: &question{}, Done: true})
}

func loadHTML(folder, name string) (*template.Template, error) {
	source, err := templateSource(folder, name)
	if err != nil {
		return nil, err
	}
	t, err := template.New(name).Parse(source)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return t, nil
}

// templateSource is the text of a template: the operator's, else the built-in one.
func templateSource(folder, name string) (string, error) {
	if folder != "" {
		root, err := os.OpenRoot(folder)
		if err != nil {
			return "", fmt.Errorf("folder of templates: %w", err)
		}
		defer root.Close()
		own, err := root.ReadFile(name)
		if err == nil {
			return string(own), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read template: %w", err)
		}
	}
	source, err := builtIn.ReadFile("templates/" + name)
	return string(source), err
}

// mail writes an e-mail.
func (t *templates) mail(name string, data mailData) (mail.Message, error) {
	var subject, text, html bytes.Buffer
	if err := t.text[name].ExecuteTemplate(&subject, "subject", data); err != nil {
		return mail.Message{}, fmt.Errorf("subject of an e-mail: %w", err)
	}
	if err := t.text[name].Execute(&text, data); err != nil {
		return mail.Message{}, fmt.Errorf("text of an e-mail: %w", err)
	}
	if err := t.html[name].Execute(&html, data); err != nil {
		return mail.Message{}, fmt.Errorf("HTML of an e-mail: %w", err)
	}
	return mail.Message{To: data.Address, Subject: strings.TrimSpace(subject.String()), Text: text.String(), HTML: html.String()}, nil
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
	if err := a.templates.page.Execute(&body, p); err != nil {
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
