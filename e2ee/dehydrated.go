package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// A dehydrated device lies on the server, encrypted, and collects messages until its user logs in again (MSC3814). It
// is a device like any other, that nobody is logged in on.

// maxDehydrated bounds the data of a dehydrated device, in bytes.
const maxDehydrated = 256 << 10

type dehydratedRequest struct {
	DeviceID     string                     `json:"device_id" required:"true"`
	Data         json.RawMessage            `json:"device_data" required:"true"`
	Name         *string                    `json:"initial_device_display_name"`
	DeviceKeys   json.RawMessage            `json:"device_keys" required:"true"`
	OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
	FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
}

type dehydratedID struct {
	DeviceID string `json:"device_id"`
}

// putDehydrated: MSC3814, PUT /dehydrated_device. It takes the place of the one before.
func (a *API) putDehydrated(ctx context.Context, by *httpapi.Caller, in *dehydratedRequest) (*dehydratedID, error) {
	if in.DeviceID == "" || len(in.DeviceID) > maxKeyName || in.DeviceID == by.DeviceID {
		return nil, mxerr.InvalidParam("That cannot be the id of a dehydrated device")
	}
	if len(in.Data) > maxDehydrated {
		return nil, mxerr.TooLarge("The dehydrated device is too large")
	}
	if len(in.Data) == 0 || in.Data[0] != '{' {
		return nil, mxerr.BadJSON("device_data must be an object")
	}
	u := &keyUpload{user: by.UserID, device: in.DeviceID, now: a.nowMS()}
	if err := u.parse(in.DeviceKeys, in.OneTimeKeys, in.FallbackKeys); err != nil {
		return nil, err
	}
	if err := a.checkUpload(ctx, u); err != nil {
		return nil, err
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		var old string
		found, err := tx.Get(`SELECT device_id FROM dehydrated_devices WHERE user_id = $1`, []any{by.UserID}, &old)
		if err != nil {
			return err
		}
		if found {
			if err := a.accounts.DeleteDevice(tx, by.UserID, old); err != nil {
				return err
			}
		}
		made, err := a.accounts.AddDevice(tx, by.UserID, in.DeviceID, in.Name)
		if err != nil {
			return err
		}
		if !made {
			return mxerr.InvalidParam("There is a device with that id")
		}
		_, err = tx.Exec(`INSERT INTO dehydrated_devices (user_id, device_id, data) VALUES ($1, $2, $3)`, by.UserID, in.DeviceID, []byte(in.Data))
		if err != nil {
			return err
		}
		return u.write(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("store dehydrated device: %w", err)
	}
	return &dehydratedID{in.DeviceID}, nil
}

type dehydratedResponse struct {
	DeviceID string          `json:"device_id"`
	Data     json.RawMessage `json:"device_data"`
}

var errNoDehydrated = mxerr.NotFound("There is no dehydrated device")

// getDehydrated: MSC3814, GET /dehydrated_device.
func (a *API) getDehydrated(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*dehydratedResponse, error) {
	out := &dehydratedResponse{}
	var data []byte
	found, err := a.db.Get(ctx, `SELECT device_id, data FROM dehydrated_devices WHERE user_id = $1`, []any{by.UserID}, &out.DeviceID, &data)
	if err != nil {
		return nil, fmt.Errorf("read dehydrated device: %w", err)
	}
	if !found {
		return nil, errNoDehydrated
	}
	out.Data = data
	return out, nil
}

// deleteDehydrated: MSC3814, DELETE /dehydrated_device.
func (a *API) deleteDehydrated(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*dehydratedID, error) {
	out := &dehydratedID{}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		found, err := tx.Get(`SELECT device_id FROM dehydrated_devices WHERE user_id = $1`, []any{by.UserID}, &out.DeviceID)
		if err != nil {
			return err
		}
		if !found {
			return errNoDehydrated
		}
		return a.accounts.DeleteDevice(tx, by.UserID, out.DeviceID)
	})
	if err != nil {
		return nil, fmt.Errorf("delete dehydrated device: %w", err)
	}
	return out, nil
}

type dehydratedEventsRequest struct {
	DeviceID string `path:"deviceId"`
	From     string `query:"from"`
}

type dehydratedEventsDraftRequest struct {
	DeviceID string `path:"deviceId"`
	From     string `json:"next_batch"`
}

type dehydratedEvents struct {
	Events []json.RawMessage `json:"events"`
	Next   *string           `json:"next_batch,omitempty"`
}

// dehydratedEvents: MSC3814, GET /dehydrated_device/{device_id}/events. Nothing is deleted, so that another device can
// begin anew.
func (a *API) dehydratedEvents(ctx context.Context, by *httpapi.Caller, in *dehydratedEventsRequest) (*dehydratedEvents, error) {
	out, more, err := a.readDehydrated(ctx, by.UserID, in.DeviceID, in.From)
	if err == nil && !more {
		out.Next = nil
	}
	return out, err
}

// dehydratedEventsDraft is the same as clients asked before: by POST, with a token in every answer, until there are no
// more events.
func (a *API) dehydratedEventsDraft(ctx context.Context, by *httpapi.Caller, in *dehydratedEventsDraftRequest) (*dehydratedEvents, error) {
	out, _, err := a.readDehydrated(ctx, by.UserID, in.DeviceID, in.From)
	return out, err
}

func (a *API) readDehydrated(ctx context.Context, user, device, from string) (out *dehydratedEvents, more bool, err error) {
	since := int64(0)
	if from != "" {
		digits, ok := strings.CutPrefix(from, "d")
		if since, err = strconv.ParseInt(digits, 10, 64); !ok || err != nil || since < 0 {
			return nil, false, mxerr.InvalidParam("That is not a token of this server")
		}
	}
	upTo := a.db.Head()
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		var id string
		found, err := tx.Get(`SELECT device_id FROM dehydrated_devices WHERE user_id = $1`, []any{user}, &id)
		if err != nil {
			return err
		}
		if !found || id != device {
			return mxerr.Forbidden("That is not your dehydrated device")
		}
		list, next, err := readInbox(tx, inboxKey{user, device}, since, upTo, MaxBatch)
		if err != nil {
			return err
		}
		out = &dehydratedEvents{Events: make([]json.RawMessage, len(list))}
		for i, m := range list {
			out.Events[i] = m.Event
		}
		token := "d" + strconv.FormatInt(next, 10)
		out.Next, more = &token, next < upTo
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read messages of a dehydrated device: %w", err)
	}
	return out, more, nil
}
