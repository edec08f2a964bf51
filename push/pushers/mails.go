package pushers

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"strings"
	texttemplate "text/template"
	"time"

	"github.com/myelin-im/myelin/internal/mail"
)

//go:embed templates
var builtIn embed.FS

// Mails writes and sends e-mails about unread messages.
type Mails struct {
	sender          *mail.Sender
	appName, server string
	delay           time.Duration
	text            *texttemplate.Template
	html            *template.Template
}

// Digest is what templates of such e-mails know.
type Digest struct {
	// AppName is what the service is called, Server the server name, UserID and Address who is told where.
	AppName, Server, UserID, Address string
	// Count is how many messages the e-mail is about, More how many of them are in none of Rooms.
	Count, More int
	// Rooms are those with something unread, the longest unread first.
	Rooms []DigestRoom
}

// DigestRoom is a room with something unread; More messages than these are.
type DigestRoom struct {
	Name, Link string
	Messages   []DigestMessage
	More       int
}

// DigestMessage is an unread message.
type DigestMessage struct {
	Time, Sender, Text string
}

// NewMails makes Mails that go out when something has been unread for as long as delay. Files digest.txt and digest.html
// in a folder (empty: none) replace the built-in templates.
func NewMails(sender *mail.Sender, appName, server, folder string, delay time.Duration) (*Mails, error) {
	m := &Mails{sender: sender, appName: appName, server: server, delay: delay}
	text, err := templateSource(folder, "digest.txt")
	if err != nil {
		return nil, err
	}
	html, err := templateSource(folder, "digest.html")
	if err != nil {
		return nil, err
	}
	if m.text, err = texttemplate.New("digest.txt").Parse(text); err != nil {
		return nil, fmt.Errorf("template of an e-mail: %w", err)
	}
	if m.html, err = template.New("digest.html").Parse(html); err != nil {
		return nil, fmt.Errorf("template of an e-mail: %w", err)
	}
	sample := &Digest{Rooms: []DigestRoom{{Messages: []DigestMessage{{}}, More: 1}}, More: 1}
	if _, err := m.compose(sample); err != nil {
		return nil, err
	}
	return m, nil
}

// templateSource is the text of a template: the operator's, else the built-in one.
func templateSource(folder, name string) (string, error) {
	if folder != "" {
		own, err := fs.ReadFile(os.DirFS(folder), name)
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

func (m *Mails) compose(d *Digest) (mail.Message, error) {
	d.AppName, d.Server = m.appName, m.server
	var subject, text, html bytes.Buffer
	if err := m.text.ExecuteTemplate(&subject, "subject", d); err != nil {
		return mail.Message{}, fmt.Errorf("subject of an e-mail: %w", err)
	}
	if err := m.text.Execute(&text, d); err != nil {
		return mail.Message{}, fmt.Errorf("text of an e-mail: %w", err)
	}
	if err := m.html.Execute(&html, d); err != nil {
		return mail.Message{}, fmt.Errorf("HTML of an e-mail: %w", err)
	}
	// A room's name must not break the header.
	line := strings.Join(strings.Fields(subject.String()), " ")
	return mail.Message{To: d.Address, Subject: line, Text: text.String(), HTML: html.String()}, nil
}

func (m *Mails) send(ctx context.Context, d *Digest) error {
	message, err := m.compose(d)
	if err != nil {
		return err
	}
	return m.sender.Send(ctx, message)
}
