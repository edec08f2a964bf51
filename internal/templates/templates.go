// Package templates finds the texts of e-mails and pages: those built into the program, or files by which an operator
// has replaced them.
package templates

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"strings"
	texttemplate "text/template"

	"github.com/myelin-im/myelin/internal/mail"
)

// Set is where templates are.
type Set struct {
	// Folder has the operator's; empty: there are none. A file that is missing there is not replaced.
	Folder string
	// BuiltIn has all of them in its folder "templates".
	BuiltIn fs.FS
}

// Page returns the template of a page, name.html.
func (s Set) Page(name string) (*template.Template, error) {
	source, err := s.source(name + ".html")
	if err != nil {
		return nil, err
	}
	t, err := template.New(name + ".html").Parse(source)
	if err != nil {
		return nil, fmt.Errorf("template of a page: %w", err)
	}
	return t, nil
}

// Mail returns the template of an e-mail: name.txt, which also defines "subject", and name.html.
func (s Set) Mail(name string) (*Mail, error) {
	source, err := s.source(name + ".txt")
	if err != nil {
		return nil, err
	}
	m := new(Mail)
	if m.text, err = texttemplate.New(name + ".txt").Parse(source); err != nil {
		return nil, fmt.Errorf("template of an e-mail: %w", err)
	}
	if m.html, err = s.Page(name); err != nil {
		return nil, err
	}
	return m, nil
}

// source is the text of a template. The operator's folder is not left, wherever its links lead.
func (s Set) source(name string) (string, error) {
	if s.Folder != "" {
		root, err := os.OpenRoot(s.Folder)
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
	source, err := fs.ReadFile(s.BuiltIn, "templates/"+name)
	return string(source), err
}

// Mail is the template of an e-mail.
type Mail struct {
	text *texttemplate.Template
	html *template.Template
}

// Compose writes the e-mail to an address.
func (m *Mail) Compose(to string, data any) (mail.Message, error) {
	var subject, text, html bytes.Buffer
	if err := m.text.ExecuteTemplate(&subject, "subject", data); err != nil {
		return mail.Message{}, fmt.Errorf("subject of an e-mail: %w", err)
	}
	if err := m.text.Execute(&text, data); err != nil {
		return mail.Message{}, fmt.Errorf("text of an e-mail: %w", err)
	}
	if err := m.html.Execute(&html, data); err != nil {
		return mail.Message{}, fmt.Errorf("HTML of an e-mail: %w", err)
	}
	// What the subject names, as a room, must not break the header.
	line := strings.Join(strings.Fields(subject.String()), " ")
	return mail.Message{To: to, Subject: line, Text: text.String(), HTML: html.String()}, nil
}
