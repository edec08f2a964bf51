// Package reports takes what users report to those who run the server: events, rooms and users. Each report is logged,
// and administrators list them.
//
// Spec: client-server API v1.19, "Reporting Content".
package reports

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to reports.
var Schema = storage.Schema{Feature: "reports", FS: migrations}

// API serves the endpoints of this package.
type API struct {
	db    *storage.DB
	rooms *roomserver.Server
	ids   *storage.IDs
	log   *logrus.Entry
	now   func() time.Time
}

// New makes the API.
func New(db *storage.DB, rooms *roomserver.Server, log *logrus.Entry) *API {
	return &API{db: db, rooms: rooms, ids: db.IDs("reports"), log: log, now: time.Now}
}

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	const v3 = "/_matrix/client/v3"
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/report", httpapi.User, ratelimit.Account, a.reportRoom),
		httpapi.New(http.MethodPost, v3+"/rooms/{roomId}/report/{eventId}", httpapi.User, ratelimit.Account, a.reportEvent),
		httpapi.New(http.MethodPost, v3+"/users/{userId}/report", httpapi.User, ratelimit.Account, a.reportUser),
		httpapi.New(http.MethodGet, "/_myelin/admin/v1/reports", httpapi.Admin, ratelimit.Admin, a.list),
	}
}

const (
	maxReason = 8 << 10 // bytes of a reason
	// maxReports is how many reports of one user are taken within reportPeriod.
	maxReports   = 500
	reportPeriod = 24 * time.Hour
)

// kind is what a report is about, as stored.
type kind int64

const (
	eventReport kind = iota + 1
	roomReport
	userReport
)

// report is one row; what is empty is not stored.
type report struct {
	reporter                string
	kind                    kind
	roomID, eventID, userID string
	reason                  string
}

type reportEventRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `path:"eventId"`
	Reason  string `json:"reason"`
}

var errNoEvent = mxerr.NotFound("The event was not found or you are not joined to the room")

// reportEvent: client-server API v1.19, POST /rooms/{roomId}/report/{eventId}, for members who can see the event.
func (a *API) reportEvent(ctx context.Context, by *httpapi.Caller, in *reportEventRequest) (*httpapi.Empty, error) {
	room, err := a.rooms.Room(ctx, in.RoomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil, errNoEvent
	}
	if err != nil {
		return nil, err
	}
	if !room.HasLocalMember(by.UserID) {
		return nil, errNoEvent
	}
	e, err := a.rooms.Event(ctx, room, in.EventID)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, errNoEvent
	}
	if err != nil {
		return nil, err
	}
	viewer, err := a.rooms.Viewer(ctx, room, by.UserID, room.Head().Pos)
	if err != nil {
		return nil, err
	}
	if ok, err := viewer.Sees(ctx, e); err != nil {
		return nil, err
	} else if !ok {
		return nil, errNoEvent
	}
	return nil, a.store(ctx, report{
		reporter: by.UserID, kind: eventReport, roomID: in.RoomID, eventID: in.EventID, userID: e.Sender, reason: in.Reason,
	})
}

type reportRoomRequest struct {
	RoomID string `path:"roomId"`
	Reason string `json:"reason" required:"true"`
}

// reportRoom: client-server API v1.19, POST /rooms/{roomId}/report, for everyone. A room that this server is not in can
// be one that the user was invited to.
func (a *API) reportRoom(ctx context.Context, by *httpapi.Caller, in *reportRoomRequest) (*httpapi.Empty, error) {
	known, err := a.knows(ctx, by.UserID, in.RoomID)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, mxerr.NotFound("The room was not found")
	}
	return nil, a.store(ctx, report{reporter: by.UserID, kind: roomReport, roomID: in.RoomID, reason: in.Reason})
}

func (a *API) knows(ctx context.Context, user, roomID string) (bool, error) {
	_, err := a.rooms.Room(ctx, roomID)
	if !errors.Is(err, roomserver.ErrUnknownRoom) {
		return err == nil, err
	}
	outside, err := a.rooms.OutsideOf(ctx, user)
	if err != nil {
		return false, err
	}
	for _, o := range outside {
		if o.RoomID == roomID {
			return true, nil
		}
	}
	return false, nil
}

type reportUserRequest struct {
	UserID string `path:"userId"`
	Reason string `json:"reason" required:"true"`
}

// reportUser: client-server API v1.19, POST /users/{userId}/report, for everyone. Users of other servers can be
// reported whether or not this server has heard of them.
func (a *API) reportUser(ctx context.Context, by *httpapi.Caller, in *reportUserRequest) (*httpapi.Empty, error) {
	if a.rooms.IsLocal(in.UserID) {
		var known bool
		err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
			known, err = accounts.Exists(tx, in.UserID)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look up the reported user: %w", err)
		}
		if !known {
			return nil, mxerr.NotFound("The user was not found")
		}
	}
	return nil, a.store(ctx, report{reporter: by.UserID, kind: userReport, userID: in.UserID, reason: in.Reason})
}

// store keeps a report.
func (a *API) store(ctx context.Context, r report) error {
	if len(r.reason) > maxReason {
		return mxerr.InvalidParam("The reason is too long")
	}
	id, err := a.ids.Next(ctx)
	if err != nil {
		return fmt.Errorf("number a report: %w", err)
	}
	now := a.now().UnixMilli()
	var recent int64
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Get(`SELECT count(*) FROM reports WHERE reporter = $1 AND ts > $2`,
			[]any{r.reporter, now - reportPeriod.Milliseconds()}, &recent); err != nil || recent >= maxReports {
			return err
		}
		_, err := tx.Exec(`INSERT INTO reports (id, ts, reporter, kind, room_id, event_id, user_id, reason)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			id, now, r.reporter, int64(r.kind), orNull(r.roomID), orNull(r.eventID), orNull(r.userID), r.reason)
		return err
	})
	if err != nil {
		return fmt.Errorf("store a report: %w", err)
	}
	if recent >= maxReports {
		return mxerr.LimitExceeded(time.Hour)
	}
	a.log.WithFields(logrus.Fields{"report": id, "reporter": r.reporter, "room": r.roomID, "event": r.eventID, "user": r.userID}).Warn("something was reported")
	return nil
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
