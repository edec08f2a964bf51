// Package notifications answers GET /notifications: what has notified a user, newest first.
//
// Nothing is kept for it. What notifies is judged again from the log: each room is read backwards for itself, a page at
// a time and only as far as it takes to know what comes next among all rooms. Rooms that the user has left tell nothing.
//
// Spec: client-server API v1.19, "Listing notifications".
package notifications

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/push/unread"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Deps are the other parts of the server that notifications stand on.
type Deps struct {
	DB *storage.DB
	// Rooms has the events.
	Rooms *roomserver.Server
	// Receipts tell what has been read.
	Receipts *ephemeral.API
	// Unread judges what notifies.
	Unread *unread.Counts
}

// API answers the endpoint.
type API struct {
	db       *storage.DB
	rooms    *roomserver.Server
	receipts *ephemeral.API
	unread   *unread.Counts
}

// New makes the API.
func New(d Deps) *API {
	return &API{db: d.DB, rooms: d.Rooms, receipts: d.Receipts, unread: d.Unread}
}

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New(http.MethodGet, "/_matrix/client/v3/notifications", httpapi.User, ratelimit.Search, a.list),
	}
}

const (
	// maxLimit bounds the notifications of one answer.
	maxLimit = 100
	// maxJudged bounds the events that one request judges. An answer may then have fewer notifications than were asked
	// for, or none, and a token to go on from.
	maxJudged = 20_000
	// pageSize is how many events of a room are judged together.
	pageSize = 100
	// tokenPrefix begins a token; what follows is the last position that the next page can have.
	tokenPrefix = "n"
)

type listRequest struct {
	From  string `query:"from"`
	Limit int    `query:"limit" default:"20" min:"1"`
	Only  string `query:"only"`
}

type notification struct {
	Actions []json.RawMessage `json:"actions"`
	Event   json.RawMessage   `json:"event"`
	Read    bool              `json:"read"`
	RoomID  string            `json:"room_id"`
	TS      int64             `json:"ts"` // milliseconds
}

type listResponse struct {
	NextToken     string         `json:"next_token,omitempty"`
	Notifications []notification `json:"notifications"`
}

// found is an event that notified the user.
type found struct {
	unread.Notification
	room *roomserver.Room
}

func (a *API) list(ctx context.Context, by *httpapi.Caller, in *listRequest) (*listResponse, error) {
	upTo := a.db.Head()
	if in.From != "" {
		digits, ok := strings.CutPrefix(in.From, tokenPrefix)
		n, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || n < 0 {
			return nil, mxerr.InvalidParam("from is not a token of this endpoint")
		}
		upTo = min(upTo, n)
	}
	l := &look{api: a, user: by.UserID, highlights: in.Only == "highlight"}
	if err := l.begin(ctx, upTo); err != nil {
		return nil, err
	}
	out := &listResponse{Notifications: []notification{}}
	for len(out.Notifications) < min(in.Limit, maxLimit) && l.judged < maxJudged {
		f, err := l.next(ctx)
		if err != nil {
			return nil, err
		}
		if f == nil {
			break
		}
		n, err := a.render(ctx, by, f)
		if err != nil {
			return nil, err
		}
		out.Notifications = append(out.Notifications, n)
	}
	if c := l.latest(); c != nil {
		out.NextToken = tokenPrefix + strconv.FormatInt(c.bound(), 10)
	}
	return out, nil
}

// look is one request's way back through the log. Each room is read backwards for itself; what notified is taken from
// whichever of them has the latest.
type look struct {
	api        *API
	user       string
	highlights bool
	rooms      []*cursor
	judged     int
}

// cursor is how far a room has been read.
type cursor struct {
	nid   int64
	room  *roomserver.Room // nil until it is looked at
	began int64            // where the user's stay in the room began
	upTo  int64            // what is later has been judged; 0: all has
	found []*found         // what of it notified and was not yet taken, newest first
}

// bound is the position of the next notification of the room, or one that it does not lie beyond; 0: there is none.
func (c *cursor) bound() int64 {
	if len(c.found) > 0 {
		return c.found[0].Event.Anchor
	}
	return c.upTo
}

// begin finds the rooms that can hold notifications up to a position.
func (l *look) begin(ctx context.Context, upTo int64) error {
	rooms, err := l.api.rooms.UserRooms(ctx, l.user)
	if err != nil {
		return fmt.Errorf("rooms of %s: %w", l.user, err)
	}
	rooms = slices.DeleteFunc(slices.Clone(rooms), func(r roomserver.UserRoom) bool {
		return r.Membership != roomserver.Join && r.Membership != roomserver.Invite
	})
	activity, err := l.api.rooms.Activity(ctx, l.user, rooms, nil)
	if err != nil {
		return err
	}
	for i, r := range rooms {
		if last := min(activity[i], upTo); last >= r.Pos {
			l.rooms = append(l.rooms, &cursor{nid: r.NID, began: r.Pos, upTo: last})
		}
	}
	return nil
}

// latest returns the room that may have the next notification; nil if none has any.
func (l *look) latest() *cursor {
	var best *cursor
	for _, c := range l.rooms {
		if b := c.bound(); b > 0 && (best == nil || b > best.bound()) {
			best = c
		}
	}
	return best
}

// next takes the latest notification that is left; nil if there is none, or too much was judged without finding one.
func (l *look) next(ctx context.Context) (*found, error) {
	for l.judged < maxJudged {
		c := l.latest()
		if c == nil {
			return nil, nil
		}
		if len(c.found) > 0 {
			f := c.found[0]
			c.found = c.found[1:]
			return f, nil
		}
		if err := l.judge(ctx, c); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// judge goes one page back in a room.
func (l *look) judge(ctx context.Context, c *cursor) error {
	if c.room == nil {
		room, err := l.api.rooms.RoomByNID(ctx, c.nid)
		if errors.Is(err, roomserver.ErrUnknownRoom) { // purged meanwhile
			c.upTo = 0
			return nil
		}
		if err != nil {
			return err
		}
		c.room = room
	}
	events, more, err := l.api.rooms.Timeline(ctx, c.room, c.began-1, c.upTo, pageSize)
	if err != nil {
		return fmt.Errorf("timeline of %s: %w", c.room.ID, err)
	}
	l.judged += len(events) + 1
	if len(events) == 0 {
		c.upTo = 0
		return nil
	}
	before := events[0].Anchor - 1
	for next := before; next < c.upTo; {
		list, to, err := l.api.unread.Notifications(ctx, c.room, l.user, next, c.upTo, pageSize)
		if err != nil {
			return fmt.Errorf("notifications of %s: %w", l.user, err)
		}
		next = to
		for _, n := range list {
			if !l.highlights || n.Actions.Highlight {
				c.found = append(c.found, &found{n, c.room})
			}
		}
	}
	slices.Reverse(c.found)
	if c.upTo = before; !more {
		c.upTo = 0
	}
	return nil
}

// render makes the answer's form of a notification.
func (a *API) render(ctx context.Context, by *httpapi.Caller, f *found) (notification, error) {
	n := notification{Actions: f.Actions.Raw, RoomID: f.room.ID, TS: f.Event.OriginServerTS}
	viewer, err := a.rooms.Viewer(ctx, f.room, by.UserID, f.room.Head().Pos)
	if err != nil {
		return n, err
	}
	r := &roomserver.Reader{User: by.UserID, Device: by.DeviceID, Now: time.Now().UnixMilli(), Membership: viewer}
	if n.Event, err = a.rooms.AppendClientEvent(ctx, nil, f.room, f.Event, r); err != nil {
		return n, err
	}
	thread, err := a.rooms.ThreadRoot(ctx, f.room, f.Event)
	if err != nil {
		return n, err
	}
	if thread == "" {
		thread = ephemeral.Main
	}
	for _, thread := range []string{ephemeral.Unthreaded, thread} {
		read, err := a.receipts.ReadUpTo(ctx, f.room.NID, by.UserID, thread)
		if err != nil {
			return n, err
		}
		n.Read = n.Read || f.Event.Anchor <= read
	}
	return n, nil
}
