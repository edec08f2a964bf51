package pushers

import (
	"context"
	"embed"
	"time"

	"github.com/myelin-im/myelin/internal/mail"
	"github.com/myelin-im/myelin/internal/templates"
)

//go:embed templates
var builtIn embed.FS

// Mails writes and sends e-mails about unread messages.
type Mails struct {
	sender          *mail.Sender
	appName, server string
	delay           time.Duration
	template        *templates.Mail
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
	var err error
	if m.template, err = (templates.Set{Folder: folder, BuiltIn: builtIn}).Mail("digest"); err != nil {
		return nil, err
	}
	sample := &Digest{Rooms: []DigestRoom{{Messages: []DigestMessage{{}}, More: 1}}, More: 1}
	if _, err := m.compose(sample); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Mails) compose(d *Digest) (mail.Message, error) {
	d.AppName, d.Server = m.appName, m.server
	return m.template.Compose(d.Address, d)
}

func (m *Mails) send(ctx context.Context, d *Digest) error {
	message, err := m.compose(d)
	if err != nil {
		return err
	}
	return m.sender.Send(ctx, message)
}
