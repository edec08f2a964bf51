// Package notifications answers GET /notifications: what has notified a user, newest first.
//
// Nothing is kept for it. What notifies is judged again from the log, in windows of positions that go back from the end
// and grow until there is enough to answer with.
//
// Spec: client-server API v1.19, "Listing notifications".
package notifications

import (
	"cmp"
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
	DB       *storage.DB
	Rooms    *roomserver.Server
	Receipts *ephemeral.API
	Unread   *unread.Counts
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
	// firstWindow is how many positions are looked at first; each further window is twice as large.
	firstWindow = 500
	// maxJudged bounds the events that one request judges. An answer may then have fewer notifications than were asked
	// for, or none, and a token to go on from.
	maxJudged = 20_000
	// pageSize is how many events of a room are judged together.
	pageSize = 500
	// tokenPrefix begins a token; what follows is the position before which the next page begins.
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
	limit := min(in.Limit, maxLimit)
	l := &look{api: a, user: by.UserID, highlights: in.Only == "highlight"}
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	for window := int64(firstWindow); upTo > 0 && len(l.found) < limit && l.judged < maxJudged; window *= 2 {
		after := max(upTo-window, 0)
		if err := l.window(ctx, after, upTo); err != nil {
			return nil, err
		}
		upTo = after
	}
	out := &listResponse{Notifications: []notification{}}
	if len(l.found) > limit {
		l.found = l.found[:limit]
		upTo = l.found[limit-1].Event.Anchor - 1
	}
	for _, f := range l.found {
		n, err := a.render(ctx, by, f)
		if err != nil {
			return nil, err
		}
		out.Notifications = append(out.Notifications, n)
	}
	if upTo > 0 {
		out.NextToken = tokenPrefix + strconv.FormatInt(upTo, 10)
	}
	return out, nil
}

// look is one request's way back through the log.
type look struct {
	api        *API
	user       string
	highlights bool
	rooms      []roomserver.UserRoom
	activity   []int64 // of rooms, each: the position of its last event
	found      []found // newest first
	judged     int
}

// begin finds the rooms that can hold notifications.
func (l *look) begin(ctx context.Context) error {
	rooms, err := l.api.rooms.UserRooms(ctx, l.user)
	if err != nil {
		return fmt.Errorf("rooms of %s: %w", l.user, err)
	}
	for _, r := range rooms {
		if r.Membership == roomserver.Join || r.Membership == roomserver.Invite {
			l.rooms = append(l.rooms, r)
		}
	}
	l.activity, err = l.api.rooms.Activity(ctx, l.user, l.rooms, nil)
	return err
}

// window adds what notified in (after, upTo].
func (l *look) window(ctx context.Context, after, upTo int64) error {
	var some []found
	for i, r := range l.rooms {
		if l.activity[i] <= after {
			continue
		}
		room, err := l.api.rooms.RoomByNID(ctx, r.NID)
		if errors.Is(err, roomserver.ErrUnknownRoom) { // purged meanwhile
			continue
		}
		if err != nil {
			return err
		}
		for next := after; next < upTo; {
			list, to, err := l.api.unread.Notifications(ctx, room, l.user, next, upTo, pageSize)
			if err != nil {
				return fmt.Errorf("notifications of %s: %w", l.user, err)
			}
			l.judged += pageSize
			next = to
			for _, n := range list {
				if !l.highlights || n.Actions.Highlight {
					some = append(some, found{n, room})
				}
			}
		}
	}
	slices.SortFunc(some, func(a, b found) int { return cmp.Compare(b.Event.Anchor, a.Event.Anchor) })
	l.found = append(l.found, some...)
	return nil
}

// render makes the answer's form of a notification.
func (a *API) render(ctx context.Context, by *httpapi.Caller, f found) (notification, error) {
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
