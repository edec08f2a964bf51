package delayed

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// What can be done with a delayed event.
const (
	actionSend    = "send"
	actionCancel  = "cancel"
	actionRestart = "restart"
)

type delayRequest struct {
	DelayID string `path:"delayId"`
}

type manageRequest struct {
	DelayID string `path:"delayId"`
	Action  string `json:"action" required:"true"`
}

// manageByBody is the form of managing that MSC4140 had first.
func (a *API) manageByBody(ctx context.Context, by *httpapi.Caller, in *manageRequest) (*httpapi.Empty, error) {
	switch in.Action {
	case actionSend, actionCancel, actionRestart:
		return nil, a.manage(ctx, by, in.DelayID, in.Action)
	}
	return nil, mxerr.InvalidParam("action is not send, cancel or restart")
}

var (
	errNotFound = mxerr.NotFound("There is no such delayed event")
	errConflict = mxerr.New(http.StatusConflict, "M_UNKNOWN", "The delayed event has come to another end already")
)

// manage: MSC4140, POST /delayed_events/{delay_id}/{action}.
func (a *API) manage(ctx context.Context, by *httpapi.Caller, id, action string) error {
	var e *event
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		e, err = find(tx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("read a delayed event: %w", err)
	}
	if e != nil && by.UserID != "" && by.UserID != e.user {
		e = nil
	}
	if err := a.charge(by, e); err != nil {
		return err
	}
	if e == nil {
		return errNotFound
	}
	switch action {
	case actionCancel:
		return a.cancel(ctx, e)
	case actionRestart:
		return a.restart(ctx, e)
	}
	return a.sendNow(ctx, e)
}

// charge spends the budget of who manages an event: a user's, that of the event where a service without a token does it
// for many users, or that of an address which knows no event.
func (a *API) charge(by *httpapi.Caller, e *event) error {
	key := ratelimit.AddrKey(by.Addr)
	switch {
	case by.Appservice != nil && !by.Appservice.RateLimited, by.Admin && a.limiter.ExemptAdmins():
		return nil
	case by.UserID != "":
		key = by.UserID
	case e != nil:
		key = "delayed event " + e.id
	}
	if ok, after := a.limiter.Allow(ratelimit.Delayed, key); !ok {
		return mxerr.LimitExceeded(after)
	}
	return nil
}

// change runs an UPDATE of one scheduled event and tells whether it was still scheduled.
func (a *API) change(ctx context.Context, sql string, args ...any) (done bool, err error) {
	var n int64
	err = a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		n, err = tx.Exec(sql, args...)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("change a delayed event: %w", err)
	}
	return n > 0, nil
}

// again reads an event that turned out to be finalised.
func (a *API) again(ctx context.Context, e *event) (now *event, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		now, err = find(tx, e.id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read a delayed event: %w", err)
	}
	if now == nil {
		return nil, errNotFound
	}
	return now, nil
}

func (a *API) cancel(ctx context.Context, e *event) error {
	done, err := a.change(ctx, `UPDATE delayed_events SET finalised_ts = $1 WHERE delay_id = $2 AND finalised_ts IS NULL`, a.now().UnixMilli(), e.id)
	if err != nil || done {
		return err
	}
	if e, err = a.again(ctx, e); err == nil && e.sent() {
		err = errConflict
	}
	return err
}

// restart sets the time back. What was sent is gone for someone who keeps it from being sent: clients take that answer
// as the sign to begin anew.
func (a *API) restart(ctx context.Context, e *event) error {
	now := a.now().UnixMilli()
	done, err := a.change(ctx, `UPDATE delayed_events SET scheduled_ts = $1, due_ts = $1 + delay_ms WHERE delay_id = $2 AND finalised_ts IS NULL`, now, e.id)
	if err != nil || done {
		return err
	}
	if e, err = a.again(ctx, e); err != nil {
		return err
	}
	if e.cancelled() {
		return errConflict
	}
	return errNotFound
}

func (a *API) sendNow(ctx context.Context, e *event) error {
	err := a.fire(ctx, e)
	if !errors.Is(err, errChanged) {
		return err
	}
	if e, err = a.again(ctx, e); err != nil {
		return err
	}
	switch {
	case e.sent():
		return nil
	case e.cancelled():
		return errConflict
	}
	return a.fire(ctx, e) // it was restarted meanwhile
}
