package delayed

import (
	"context"
	"embed"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to delayed events.
var Schema = storage.Schema{Feature: "delayed", FS: migrations}

// Limits bound what one user may schedule.
type Limits struct {
	// MaxDelay is the longest delay.
	MaxDelay time.Duration
	// MaxScheduled is how many events of one user may wait at a time; 0 refuses all.
	MaxScheduled int
}

// Deps are the other parts of the server that delayed events need.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Send sends an event as the endpoints /send and /state do, with all their checks but those of the caller.
	Send func(ctx context.Context, roomID string, d roomserver.Draft) (eventID string, err error)
	// Limiter bounds how fast events are managed and sent; nil sets no limits.
	Limiter *ratelimit.Limiter
	// Log gets what operators should know.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// API serves the endpoints of this package and sends what is due.
type API struct {
	db      *storage.DB
	send    func(ctx context.Context, roomID string, d roomserver.Draft) (string, error)
	limiter *ratelimit.Limiter
	log     *logrus.Entry
	now     func() time.Time
	limits  Limits

	// wake tells Run that something may be due earlier than it thinks.
	wake chan struct{}
	// failed are events that could not be sent for a reason of the server's, and when to try again, in milliseconds. Only
	// Run uses it.
	failed map[string]int64
	// started is when the API was made, in milliseconds.
	started int64
}

// New makes the API.
func New(limits Limits, d Deps) *API {
	if d.Now == nil {
		d.Now = time.Now
	}
	return &API{
		db: d.DB, send: d.Send, limiter: d.Limiter, log: d.Log, now: d.Now, limits: limits,
		wake: make(chan struct{}, 1), failed: map[string]int64{}, started: d.Now().UnixMilli(),
	}
}

// Hooks is what becomes of delayed events with accounts: those of an account that ends are never sent.
func Hooks() accounts.Hooks {
	return accounts.Hooks{Deactivated: func(tx *storage.Tx, userID string, _ bool) error {
		_, err := tx.Exec(`DELETE FROM delayed_events WHERE user_id = $1`, userID)
		return err
	}}
}

// Endpoints is the table of routes.
func (a *API) Endpoints() []httpapi.Endpoint {
	const prefix = "/_matrix/client/unstable/org.matrix.msc4140"
	const one = prefix + "/delayed_events/{delayId}"
	const members = httpapi.User | httpapi.Guest
	// Who manages an event need not have a token, so what it costs is charged by the handlers.
	manage := func(action string) httpapi.Endpoint {
		return httpapi.New(http.MethodPost, one+"/"+action, httpapi.Optional, ratelimit.None,
			func(ctx context.Context, by *httpapi.Caller, in *delayRequest) (*httpapi.Empty, error) {
				return nil, a.manage(ctx, by, in.DelayID, action)
			})
	}
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPut, prefix+"/rooms/{roomId}/delayed_event/{eventType}/{txnId}", members, ratelimit.Delayed, a.schedule).UnlessSuspended(),
		httpapi.New(http.MethodGet, prefix+"/delayed_events", members, ratelimit.Delayed, a.list),
		httpapi.New(http.MethodGet, one, members, ratelimit.Delayed, a.get),
		httpapi.New(http.MethodPost, one, httpapi.Optional, ratelimit.None, a.manageByBody),
		manage(actionSend), manage(actionCancel), manage(actionRestart),
	}
}
