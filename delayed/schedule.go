package delayed

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

type scheduleRequest struct {
	RoomID   string          `path:"roomId"`
	Type     string          `path:"eventType"`
	TxnID    string          `path:"txnId"`
	TS       int64           `query:"ts" min:"0"`
	Sticky   *int64          `query:"org.matrix.msc4354.sticky_duration_ms" min:"0" max:"3600000"`
	DelayMS  int64           `json:"delay_ms" required:"true"`
	StateKey *string         `json:"state_key"`
	Content  json.RawMessage `json:"content" required:"true"`
}

type scheduleResponse struct {
	DelayID string `json:"delay_id"`
}

// schedule: MSC4140, PUT /rooms/{roomId}/delayed_event/{eventType}/{txnId}.
func (a *API) schedule(ctx context.Context, by *httpapi.Caller, in *scheduleRequest) (*scheduleResponse, error) {
	d := roomserver.Draft{
		Sender: by.UserID, Type: in.Type, StateKey: in.StateKey, Content: in.Content, StickyMS: in.Sticky,
		Txn: &roomserver.Txn{User: by.UserID, Device: by.DeviceID, Path: "delayed_event/" + in.RoomID + "/" + in.Type, ID: in.TxnID},
	}
	if by.Appservice != nil {
		d.OriginServerTS = in.TS
	}
	id, err := a.Schedule(ctx, by, in.RoomID, d, in.DelayMS)
	if err != nil {
		return nil, err
	}
	return &scheduleResponse{id}, nil
}

// Schedule makes an event one to be sent after a delay in milliseconds, and returns its delay id. A transaction of the
// draft that was scheduled before returns the id of then. The errors are those of MSC4140; the one for too long a delay
// says so also in the words of its former versions, which are the ones that clients understand.
func (a *API) Schedule(ctx context.Context, by *httpapi.Caller, roomID string, d roomserver.Draft, delayMS int64) (delayID string, err error) {
	if by.Suspended {
		return "", mxerr.New(http.StatusForbidden, "M_USER_SUSPENDED", "You cannot send events while suspended")
	}
	if err := a.check(roomID, &d, delayMS); err != nil {
		return "", err
	}
	id, err := newID()
	if err != nil {
		return "", err
	}
	now := a.now().UnixMilli()
	next, full := int64(0), false
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		delayID, next, full = id, 0, false
		var txn []byte
		if d.Txn != nil {
			txn = txnKey(d.Txn)
			if found, err := tx.Get(`SELECT delay_id FROM delayed_events WHERE txn = $1`, []any{txn}, &delayID); err != nil || found {
				return err
			}
		}
		var count int64
		if err := tx.Lock("delayed events of " + by.UserID); err != nil {
			return err
		}
		if _, err := tx.Get(`SELECT count(*), COALESCE(min(due_ts), 0) FROM delayed_events WHERE user_id = $1 AND finalised_ts IS NULL`,
			[]any{by.UserID}, &count, &next); err != nil {
			return err
		}
		if full = count >= int64(a.limits.MaxScheduled); full {
			return nil
		}
		_, err := tx.Exec(`INSERT INTO delayed_events (delay_id, user_id, room_id, type, state_key, content, origin_ts, sticky_ms, delay_ms, scheduled_ts, due_ts, txn)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
			id, by.UserID, roomID, d.Type, d.StateKey, []byte(d.Content), d.OriginServerTS, d.StickyMS, delayMS, now, now+delayMS, txn)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("schedule an event: %w", err)
	}
	if full {
		e := mxerr.LimitExceeded(max(time.Duration(next-now)*time.Millisecond, time.Second))
		e.Text = "The maximum number of delayed events has been reached"
		return "", e
	}
	a.poke()
	return delayID, nil
}

// check refuses what could never be sent, and what the limits forbid.
func (a *API) check(roomID string, d *roomserver.Draft, delayMS int64) error {
	switch {
	case delayMS <= 0:
		return mxerr.InvalidParam("The delay must be positive")
	case a.limits.MaxScheduled == 0:
		return mxerr.Forbidden("This server sends no delayed events")
	case delayMS > a.limits.MaxDelay.Milliseconds():
		return errMaxDelay(http.StatusForbidden, "M_FORBIDDEN", a.limits.MaxDelay)
	case len(d.Content) == 0 || d.Content[0] != '{':
		return mxerr.BadJSON("content must be an object")
	case len(d.Content) > pdu.MaxSize || len(d.Type) > pdu.MaxFieldSize || len(roomID) > pdu.MaxFieldSize ||
		d.StateKey != nil && len(*d.StateKey) > pdu.MaxFieldSize:
		return mxerr.TooLarge("The event is too large")
	}
	return nil
}

func errMaxDelay(status int, code string, limit time.Duration) *mxerr.Error {
	return mxerr.New(status, code, "The delay is longer than the server allows").
		WithField("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED").WithField("org.matrix.msc4140.max_delay", limit.Milliseconds())
}

// ScheduleByQuery is Schedule for the query parameter of /send and /state. Clients that use it know a delay that is too
// long by another status and code.
func (a *API) ScheduleByQuery(ctx context.Context, by *httpapi.Caller, roomID string, d roomserver.Draft, delayMS int64) (delayID string, err error) {
	if delayMS > a.limits.MaxDelay.Milliseconds() && a.limits.MaxScheduled > 0 {
		return "", errMaxDelay(http.StatusBadRequest, "M_UNKNOWN", a.limits.MaxDelay)
	}
	if d.Content == nil {
		return a.scheduledBefore(ctx, d.Txn)
	}
	return a.Schedule(ctx, by, roomID, d, delayMS)
}

// scheduledBefore is for a transaction that is repeated without the event.
func (a *API) scheduledBefore(ctx context.Context, txn *roomserver.Txn) (delayID string, err error) {
	found, err := a.db.Get(ctx, `SELECT delay_id FROM delayed_events WHERE txn = $1`, []any{txnKey(txn)}, &delayID)
	if err != nil {
		return "", fmt.Errorf("look up a delayed event: %w", err)
	}
	if !found {
		return "", mxerr.NotJSON("The request has no body")
	}
	return delayID, nil
}

// newID makes the id of a delayed event, which is also the right to manage it.
func newID() (string, error) {
	var b [24]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("choose a delay id: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// txnKey identifies a transaction.
func txnKey(t *roomserver.Txn) []byte {
	sum := sha256.Sum256([]byte(t.User + "\x00" + t.Device + "\x00" + t.Path + "\x00" + t.ID))
	return sum[:16]
}

// poke lets Run look whether something is due earlier than it thinks.
func (a *API) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
