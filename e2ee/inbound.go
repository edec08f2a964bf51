package e2ee

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// ReceiveDeviceList takes an EDU m.device_list_update from another server. If it follows what is stored of the user's
// devices, it is applied; otherwise what is stored is out of date, and asked for when somebody wants it. Either way the
// users who share rooms with theirs hear of a change, unless it only introduces somebody of whom they have just heard.
func (a *API) ReceiveDeviceList(ctx context.Context, origin string, content json.RawMessage) error {
	var in deviceListUpdate
	if err := json.Unmarshal(content, &in); err != nil {
		return mxerr.BadJSON("m.device_list_update is not as it should be").With(err)
	}
	if in.DeviceID == "" || len(in.DeviceID) > maxKeyName {
		return mxerr.InvalidParam("m.device_list_update has no usable device_id")
	}
	introduces := false
	if len(in.PrevID) == 0 {
		var err error
		if introduces, err = a.cameToUs(ctx, in.UserID); err != nil {
			return err
		}
	}
	return a.receiveChange(ctx, origin, in.UserID, func(tx *storage.Tx) error {
		var stream int64
		var fresh bool
		found, err := tx.Get(`SELECT stream_id, fresh FROM remote_device_lists WHERE user_id = $1`, []any{in.UserID}, &stream, &fresh)
		if err != nil {
			return err
		}
		if !found && introduces {
			return nil // clients heard of the user at the join, and nobody has asked since
		}
		if !fresh {
			return outdated(tx, in.UserID)
		}
		return applyUpdate(tx, &in, stream)
	})
}

// maxWitnesses bounds the local members whose presence at a join is looked up.
const maxWitnesses = 20

// cameToUs tells whether a remote user came into a room that local users were in. Their server then introduces them with
// a first update that has no predecessor.
func (a *API) cameToUs(ctx context.Context, user string) (bool, error) {
	var joins []roomserver.RoomMembership
	err := a.rooms.MembershipsOf(ctx, []string{user}, func(m roomserver.RoomMembership) {
		if m.Membership == roomserver.Join {
			joins = append(joins, m)
		}
	})
	if err != nil {
		return false, err
	}
	for _, m := range joins {
		room, err := a.rooms.RoomByNID(ctx, m.Room)
		if errors.Is(err, roomserver.ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return false, err
		}
		if came, err := a.joinedAmongUs(ctx, room, m); err != nil || came {
			return came, err
		}
	}
	return false, nil
}

// joinedAmongUs tells whether local users were in a room when a remote user came.
func (a *API) joinedAmongUs(ctx context.Context, room *roomserver.Room, m roomserver.RoomMembership) (bool, error) {
	before, err := a.rooms.StateAt(ctx, room, m.Pos-1)
	if err != nil {
		return false, err
	}
	if was, err := a.rooms.MembershipAt(ctx, room, before, m.User); err != nil || was == roomserver.Join {
		return false, err
	}
	here := room.LocalMembers(nil)
	for _, user := range here[:min(len(here), maxWitnesses)] {
		if was, err := a.rooms.MembershipAt(ctx, room, before, user); err != nil || was == roomserver.Join {
			return err == nil, err
		}
	}
	return false, nil
}

// applyUpdate applies an update to a list of devices that is current up to a stream id, or finds that it is not any more.
func applyUpdate(tx *storage.Tx, in *deviceListUpdate, stream int64) error {
	var d deviceKeys // without keys: the device is gone
	if !in.Deleted && len(in.Keys) > 0 {
		var ok bool
		if d, ok = remoteDevice(in.UserID, in.DeviceID, gjson.ParseBytes(in.Keys), in.Name); !ok {
			return outdated(tx, in.UserID)
		}
	}
	var keys []byte
	var name *string
	if _, err := tx.Get(`SELECT content, display_name FROM device_keys WHERE user_id = $1 AND device_id = $2`, []any{in.UserID, in.DeviceID}, &keys, &name); err != nil {
		return err
	}
	same := bytes.Equal(keys, d.keys) && (keys == nil || name != nil && *name == d.name)
	switch {
	case len(in.PrevID) == 0 && same && d.keys != nil:
		return nil // servers tell of all devices when their user enters a room
	case len(in.PrevID) == 0:
		return outdated(tx, in.UserID) // what came before it nobody knows; some servers never say
	case in.StreamID <= stream:
		return nil // it is known
	case slices.ContainsFunc(in.PrevID, func(prev int64) bool { return prev > stream }):
		return outdated(tx, in.UserID) // one in between was lost
	}
	if _, err := tx.Exec(`UPDATE remote_device_lists SET stream_id = $2 WHERE user_id = $1`, in.UserID, in.StreamID); err != nil || same {
		return err
	}
	if err := d.store(tx, in); err != nil {
		return err
	}
	return noteChange(tx, in.UserID)
}

// store stores what has become of a device.
func (d *deviceKeys) store(tx *storage.Tx, in *deviceListUpdate) error {
	if d.keys != nil {
		return putRemoteDevice(tx, in.UserID, d)
	}
	_, err := tx.Exec(`DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2`, in.UserID, in.DeviceID)
	return err
}

// outdated notes that the stored devices of a remote user are not the current ones, because they changed.
func outdated(tx *storage.Tx, user string) error {
	if err := markStale(tx, user); err != nil {
		return err
	}
	return noteChange(tx, user)
}

// ReceiveSigningKeys takes an EDU m.signing_key_update from another server.
func (a *API) ReceiveSigningKeys(ctx context.Context, origin string, content json.RawMessage) error {
	var in signingKeyUpdate
	if err := json.Unmarshal(content, &in); err != nil {
		return mxerr.BadJSON("m.signing_key_update is not as it should be").With(err)
	}
	var keys []crossSigningKey
	for usage, raw := range map[string]json.RawMessage{usageMaster: in.Master, usageSelfSigning: in.SelfSigning} {
		if len(raw) == 0 || string(raw) == "null" {
			continue
		}
		k, err := checkCrossSigningKey(raw, in.UserID, usage)
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	return a.receiveChange(ctx, origin, in.UserID, func(tx *storage.Tx) error {
		var fresh bool
		if _, err := tx.Get(`SELECT fresh FROM remote_device_lists WHERE user_id = $1`, []any{in.UserID}, &fresh); err != nil {
			return err
		}
		if !fresh {
			return outdated(tx, in.UserID)
		}
		for _, k := range keys {
			if err := putCrossSigningKey(tx, in.UserID, k); err != nil {
				return err
			}
		}
		return noteChange(tx, in.UserID)
	})
}

// receiveChange lets apply write a change of a user of the origin, if anybody here shares a room with them.
func (a *API) receiveChange(ctx context.Context, origin, user string, apply func(tx *storage.Tx) error) error {
	if server, ok := serverOf(user); !ok || server != origin || a.isLocal(user) {
		return mxerr.Forbidden("The user is not of the server that sends")
	}
	unsure := a.rooms.MayShare(origin)
	shared, err := a.sharedWithAny(ctx, user, 0)
	if err == nil && !shared && unsure {
		return a.postpone(ctx, user)
	}
	if err != nil || !shared {
		return err
	}
	if err := a.db.Write(ctx, apply); err != nil {
		return fmt.Errorf("change of devices of %s: %w", user, err)
	}
	return nil
}
