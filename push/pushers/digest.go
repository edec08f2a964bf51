package pushers

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// lastMailPause bounds the pauses between e-mails, which double while the user does not come to read.
	lastMailPause = 24 * time.Hour
	// maxDigestRooms and maxDigestMessages bound what an e-mail shows.
	maxDigestRooms    = 10
	maxDigestMessages = 10
	maxDigestText     = 300
)

// errNoAddress means that the user's account does not have the address any more.
var errNoAddress = errors.New("the account does not have the address")

// runMails sends e-mails until nothing is left to tell. What is read before the time has come is told to nobody.
func (q *queue) runMails(ctx context.Context, a *API) {
	retry := firstRetry
	var mailed time.Time
	pause := a.cfg.Mails.delay
	for {
		n, p, ok := q.first()
		if !ok {
			return
		}
		due := n.since.Add(a.cfg.Mails.delay)
		if next := mailed.Add(pause); !mailed.IsZero() && next.After(due) {
			due = next
		}
		if wait := due.Sub(a.now()); wait > 0 {
			if !q.rest(ctx, wait) {
				return
			}
			continue
		}
		sent, last, err := a.mailDigest(ctx, q, &p)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, errNoAddress):
			a.reject(ctx, &p)
			q.done(last)
		case err != nil && q.failed(a.now()):
		case err != nil:
			a.log.WithError(err).WithFields(logrus.Fields{"user_id": p.User}).Warn("an e-mail about unread messages could not be sent")
			if !q.rest(ctx, retry) {
				return
			}
			retry = min(2*retry, lastRetry)
		case sent:
			q.done(last)
			if !mailed.IsZero() {
				pause = min(2*pause, lastMailPause)
			}
			mailed, retry = a.now(), firstRetry
		default: // the user was there
			q.done(last)
			mailed, pause = time.Time{}, a.cfg.Mails.delay
		}
	}
}

// mailDigest sends an e-mail about what of the queue is unread yet, and tells whether there was anything. last is what it
// has come to.
func (a *API) mailDigest(ctx context.Context, q *queue, p *pusher) (sent bool, last note, err error) {
	q.mu.Lock()
	notes := append([]note(nil), q.notes...)
	q.mu.Unlock()
	if len(notes) == 0 {
		return false, note{}, nil
	}
	last = notes[len(notes)-1]
	has := false
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		has, err = accounts.HasEmail(tx, p.User, p.Pushkey)
		return err
	})
	if err != nil {
		return false, last, err
	}
	if !has {
		return false, last, errNoAddress
	}
	d, err := a.digest(ctx, p, notes)
	if err != nil || d.Count == 0 {
		return false, last, err
	}
	return true, last, a.cfg.Mails.send(ctx, d)
}

// digest sums up notes of rooms with something unread.
func (a *API) digest(ctx context.Context, p *pusher, notes []note) (*Digest, error) {
	d := &Digest{UserID: p.User, Address: p.Pushkey}
	rooms := map[string]int{} // index in d.Rooms; -1: not shown; -2: read
	for i := range notes {
		n := &notes[i]
		if n.event != nil {
			if read, err := a.unread.IsRead(ctx, n.room, p.User, n.event); err != nil {
				return nil, err
			} else if read {
				continue
			}
		}
		id := n.roomID()
		at, known := rooms[id]
		if !known {
			unread, err := a.isUnread(ctx, p.User, n)
			if err != nil {
				return nil, err
			}
			switch {
			case !unread:
				at = -2
			case len(d.Rooms) == maxDigestRooms:
				at = -1
			default:
				room, err := a.digestRoom(ctx, n)
				if err != nil {
					return nil, err
				}
				at = len(d.Rooms)
				d.Rooms = append(d.Rooms, room)
			}
			rooms[id] = at
		}
		if at == -2 {
			continue
		}
		d.Count++
		switch {
		case at == -1:
			d.More++
		case len(d.Rooms[at].Messages) == maxDigestMessages:
			d.Rooms[at].More++
		default:
			message, err := a.digestMessage(ctx, n)
			if err != nil {
				return nil, err
			}
			d.Rooms[at].Messages = append(d.Rooms[at].Messages, message)
		}
	}
	return d, nil
}

func (n *note) roomID() string {
	if n.outside != nil {
		return n.outside.RoomID
	}
	return n.room.ID
}

// isUnread tells whether a user has not read a room yet.
func (a *API) isUnread(ctx context.Context, user string, n *note) (bool, error) {
	if n.outside != nil {
		return true, nil
	}
	counts, err := a.unread.Unread(ctx, n.room, user, a.db.Head())
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return counts.Total().Notifications > 0 || n.event.Type == "m.room.member", nil
}

// digestRoom is a room as an e-mail shows it.
func (a *API) digestRoom(ctx context.Context, n *note) (DigestRoom, error) {
	room := DigestRoom{Link: "https://matrix.to/#/" + url.PathEscape(n.roomID())}
	if n.outside != nil {
		room.Name = strippedName(n.outside.Stripped)
	} else {
		room.Link += "/" + url.PathEscape(n.event.ID)
		for _, field := range [][2]string{{"m.room.name", "name"}, {"m.room.canonical_alias", "alias"}} {
			e, err := a.rooms.StateEvent(ctx, n.room, n.event.StateAfter, field[0], "")
			if err != nil {
				return room, fmt.Errorf("%s of %s: %w", field[0], n.room.ID, err)
			}
			if e != nil && room.Name == "" {
				room.Name, _ = e.ContentString(field[1])
			}
		}
	}
	if room.Name == "" {
		sender, err := a.senderName(ctx, n)
		if err != nil {
			return room, err
		}
		room.Name = sender
	}
	return room, nil
}

// senderName is what the sender of an event is called in the room.
func (a *API) senderName(ctx context.Context, n *note) (string, error) {
	if n.outside != nil {
		return n.outside.Event.Sender, nil
	}
	e, err := a.rooms.StateEvent(ctx, n.room, n.event.StateAfter, "m.room.member", n.event.Sender)
	if err != nil {
		return "", fmt.Errorf("name of %s: %w", n.event.Sender, err)
	}
	if e != nil {
		if name, _ := e.ContentString("displayname"); name != "" {
			return name, nil
		}
	}
	return n.event.Sender, nil
}

// digestMessage is a message as an e-mail shows it.
func (a *API) digestMessage(ctx context.Context, n *note) (m DigestMessage, err error) {
	if m.Sender, err = a.senderName(ctx, n); err != nil {
		return m, err
	}
	m.Time = n.since.UTC().Format("2 January 15:04 MST")
	m.Text = "invites you"
	if n.outside != nil {
		return m, nil
	}
	switch n.event.Type {
	case "m.room.member":
	case "m.room.encrypted":
		m.Text = "(an encrypted message)"
	default:
		body, _ := n.event.ContentString("body")
		m.Text = shorten(body)
	}
	return m, nil
}

// shorten makes one line of limited length of a text.
func shorten(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if text == "" {
		return "(no text)"
	}
	if runes := []rune(text); len(runes) > maxDigestText {
		return string(runes[:maxDigestText]) + "…"
	}
	return text
}
