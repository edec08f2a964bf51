package accounts

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

func (a *API) deviceEndpoints() []httpapi.Endpoint {
	const own = httpapi.User | httpapi.Guest
	return []httpapi.Endpoint{
		httpapi.New("GET", "/_matrix/client/v3/devices", own, ratelimit.Read, a.listDevices),
		httpapi.New("GET", "/_matrix/client/v3/devices/{deviceId}", own, ratelimit.Read, a.getDevice),
		httpapi.New("PUT", "/_matrix/client/v3/devices/{deviceId}", own, ratelimit.Account, a.putDevice),
		httpapi.New("DELETE", "/_matrix/client/v3/devices/{deviceId}", httpapi.User, ratelimit.Account, a.deleteDevice),
		httpapi.New("POST", "/_matrix/client/v3/delete_devices", httpapi.User, ratelimit.Account, a.deleteDevices),
	}
}

// Device is a device of a local user.
type Device struct {
	ID          string  `json:"device_id"`
	DisplayName *string `json:"display_name,omitempty"`
	LastSeenIP  *string `json:"last_seen_ip,omitempty"`
	LastSeenTS  *int64  `json:"last_seen_ts,omitempty"` // milliseconds
}

// devicesOf returns the devices of a local user, by id. When and where a device was last seen may be a minute old.
func devicesOf(tx *storage.Tx, userID string) ([]Device, error) {
	list := []Device{}
	rows := tx.Query(`SELECT device_id, display_name, last_seen_ip, last_seen_ts FROM devices WHERE user_id = $1 ORDER BY device_id`, userID)
	for rows.Next() {
		var d Device
		rows.Scan(&d.ID, &d.DisplayName, &d.LastSeenIP, &d.LastSeenTS)
		list = append(list, d)
	}
	return list, rows.Close()
}

// HasDevice tells whether a user has a device.
func HasDevice(tx *storage.Tx, userID, deviceID string) (bool, error) {
	return tx.Get(`SELECT created_ts FROM devices WHERE user_id = $1 AND device_id = $2`, []any{userID, deviceID}, new(int64))
}

// DevicesOf is the query for the devices of the local users in a list of placeholders: user_id, device_id and
// display_name. It is for those who read devices together with what is theirs.
func DevicesOf(in string) string {
	return `SELECT user_id, device_id, display_name FROM devices WHERE user_id IN ` + in
}

// EachDevice calls fn with the names of all devices of local users, in the order of users and devices. There must be
// few users, and fn must not use the database.
func EachDevice(tx *storage.Tx, userIDs []string, fn func(userID string, d Device)) error {
	args := make([]any, len(userIDs))
	for i, id := range userIDs {
		args[i] = id
	}
	rows := tx.Query(DevicesOf(storage.In(len(args), 1))+` ORDER BY user_id, device_id`, args...)
	for rows.Next() {
		var userID string
		var d Device
		rows.Scan(&userID, &d.ID, &d.DisplayName)
		fn(userID, d)
	}
	return rows.Close()
}

// checkName asks the other features whether a device may have a name.
func (a *API) checkName(tx *storage.Tx, userID, deviceID string) error {
	for _, h := range a.hooks {
		if h.DeviceNamed == nil {
			continue
		}
		if err := h.DeviceNamed(tx, userID, deviceID); err != nil {
			return err
		}
	}
	return nil
}

// AddDevice makes a device that nobody is logged in on, unless it exists.
func (a *API) AddDevice(tx *storage.Tx, userID, deviceID string, name *string) (made bool, err error) {
	if err := a.checkName(tx, userID, deviceID); err != nil {
		return false, err
	}
	n, err := tx.Exec(`INSERT INTO devices (user_id, device_id, display_name, created_ts) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
		userID, deviceID, name, a.nowMS())
	return n > 0, err
}

// DeleteDevice deletes a device of a user with all that belongs to it.
func (a *API) DeleteDevice(tx *storage.Tx, userID, deviceID string) error {
	return a.removeDevices(tx, userID, []string{deviceID})
}

type devicesResponse struct {
	Devices []Device `json:"devices"`
}

func (a *API) listDevices(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*devicesResponse, error) {
	out := &devicesResponse{}
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		out.Devices, err = devicesOf(tx, by.UserID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return out, nil
}

type deviceRequest struct {
	DeviceID string `path:"deviceId"`
}

var errNoDevice = mxerr.NotFound("There is no such device")

func (a *API) getDevice(ctx context.Context, by *httpapi.Caller, in *deviceRequest) (*Device, error) {
	var d Device
	found, err := a.db.Get(ctx, `SELECT device_id, display_name, last_seen_ip, last_seen_ts FROM devices WHERE user_id = $1 AND device_id = $2`,
		[]any{by.UserID, in.DeviceID}, &d.ID, &d.DisplayName, &d.LastSeenIP, &d.LastSeenTS)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up device: %w", err)
	case !found:
		return nil, errNoDevice
	}
	return &d, nil
}

type putDeviceRequest struct {
	deviceRequest
	DisplayName *string `json:"display_name"`
}

// putDeviceResponse is {} with 201 where a device was made.
type putDeviceResponse struct {
	httpapi.Empty
	made bool
}

// HTTPStatus is the status of the answer.
func (r *putDeviceResponse) HTTPStatus() int {
	if r.made {
		return 201
	}
	return 200
}

// putDevice renames a device. Application services may also make one for a user they act as.
func (a *API) putDevice(ctx context.Context, by *httpapi.Caller, in *putDeviceRequest) (*putDeviceResponse, error) {
	if in.DisplayName != nil && len(*in.DisplayName) > maxDisplayName {
		return nil, mxerr.InvalidParam("display_name is longer than 256 bytes")
	}
	if in.DeviceID == "" || len(in.DeviceID) > maxDeviceID {
		return nil, errNoDevice
	}
	var out *putDeviceResponse
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		out = &putDeviceResponse{}
		n, err := tx.Exec(`UPDATE devices SET display_name = COALESCE($3, display_name) WHERE user_id = $1 AND device_id = $2`,
			by.UserID, in.DeviceID, in.DisplayName)
		switch {
		case err != nil:
			return err
		case n == 0 && by.Appservice == nil:
			return errNoDevice
		case n == 0:
			out.made, err = a.AddDevice(tx, by.UserID, in.DeviceID, in.DisplayName)
			return err
		case in.DisplayName == nil:
			return nil
		}
		for _, h := range a.hooks {
			if h.DeviceRenamed == nil {
				continue
			}
			if err := h.DeviceRenamed(tx, by.UserID, in.DeviceID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("write device: %w", err)
	}
	if out.made {
		a.cache.forget(by.UserID)
	}
	return out, nil
}

type deleteDeviceRequest struct {
	deviceRequest
	Auth json.RawMessage `json:"auth"`
}

func (a *API) deleteDevice(ctx context.Context, by *httpapi.Caller, in *deleteDeviceRequest) (*httpapi.Empty, error) {
	return a.confirmDeletion(ctx, by, Challenge{Operation: "DELETE /devices/" + in.DeviceID, Auth: in.Auth}, &[]string{in.DeviceID})
}

type deleteDevicesRequest struct {
	Auth json.RawMessage `json:"auth"`
	deleteDevicesParams
}

type deleteDevicesParams struct {
	Devices []string `json:"devices,omitempty"`
}

var errNoDevices = mxerr.MissingParam("Missing parameter devices")

// maxDeletions bounds the devices deleted by one request.
const maxDeletions = 1000

func (a *API) deleteDevices(ctx context.Context, by *httpapi.Caller, in *deleteDevicesRequest) (*httpapi.Empty, error) {
	if len(in.Devices) > maxDeletions {
		return nil, mxerr.InvalidParam("At most 1000 devices can be deleted at once")
	}
	if in.Devices == nil && len(in.Auth) == 0 {
		return nil, errNoDevices
	}
	return a.confirmDeletion(ctx, by, Challenge{Operation: "POST /delete_devices", Auth: in.Auth, Params: &in.deleteDevicesParams}, &in.Devices)
}

// confirmDeletion deletes devices once it is certain that the user wants it. Which devices is known only then, as
// the request's parameters may come from its first attempt.
func (a *API) confirmDeletion(ctx context.Context, by *httpapi.Caller, c Challenge, deviceIDs *[]string) (*httpapi.Empty, error) {
	if by.Appservice == nil {
		if err := a.Confirm(ctx, by, c); err != nil {
			return nil, err
		}
	}
	if *deviceIDs == nil {
		return nil, errNoDevices
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error { return a.removeDevices(tx, by.UserID, *deviceIDs) })
	if err != nil {
		return nil, fmt.Errorf("delete devices: %w", err)
	}
	return nil, nil
}

// typeDeviceSettings and the id of a device are the account data in which the device keeps whether it is silenced (MSC3890).
const typeDeviceSettings = "org.matrix.msc3890.local_notification_settings."

// dropDeviceSettings deletes the account data that is about devices which are gone.
func dropDeviceSettings(tx *storage.Tx, userID string, deviceIDs []string) error {
	for _, id := range deviceIDs {
		content, err := AccountDatum(tx, userID, "", typeDeviceSettings+id)
		if err == nil && content != nil {
			err = PutAccountData(tx, userID, "", typeDeviceSettings+id, nil)
		}
		if err != nil {
			return fmt.Errorf("settings of device %s: %w", id, err)
		}
	}
	return nil
}

// removeDevices deletes devices of a user, with their tokens and what other features keep for them. Devices that do
// not exist are passed over. The notice makes every node forget the tokens.
func (a *API) removeDevices(tx *storage.Tx, userID string, deviceIDs []string) error {
	var gone []string
	for _, id := range deviceIDs {
		if err := dropTokens(tx, userID, id); err != nil {
			return err
		}
		n, err := tx.Exec(`DELETE FROM devices WHERE user_id = $1 AND device_id = $2`, userID, id)
		if err != nil {
			return err
		}
		if n > 0 {
			gone = append(gone, id)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := dropDeviceSettings(tx, userID, gone); err != nil {
		return err
	}
	for _, h := range a.hooks {
		if h.DevicesDeleted == nil {
			continue
		}
		if err := h.DevicesDeleted(tx, userID, gone); err != nil {
			return err
		}
	}
	if _, err := tx.Position(); err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.DeviceList, User: userID})
	return nil
}

// removeOtherDevices deletes the devices of a user but one, if keep is not empty.
func (a *API) removeOtherDevices(tx *storage.Tx, userID, keep string) error {
	devices, err := devicesOf(tx, userID)
	if err != nil {
		return err
	}
	ids := make([]string, 0, len(devices))
	for _, d := range devices {
		ids = append(ids, d.ID)
	}
	if keep != "" {
		ids = slices.DeleteFunc(ids, func(id string) bool { return id == keep })
	}
	return a.removeDevices(tx, userID, ids)
}

func (a *API) logout(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*httpapi.Empty, error) {
	if by.DeviceID == "" {
		return nil, mxerr.Forbidden("The token of an application service cannot be logged out")
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error { return a.removeDevices(tx, by.UserID, []string{by.DeviceID}) })
	if err != nil {
		return nil, fmt.Errorf("log out: %w", err)
	}
	return nil, nil
}

func (a *API) logoutAll(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*httpapi.Empty, error) {
	err := a.db.Write(ctx, func(tx *storage.Tx) error { return a.removeOtherDevices(tx, by.UserID, "") })
	if err != nil {
		return nil, fmt.Errorf("log out everywhere: %w", err)
	}
	return nil, nil
}
