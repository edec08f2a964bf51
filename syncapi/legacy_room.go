package syncapi

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

type initialSyncRequest struct {
	RoomID string `path:"roomId"`
	Limit  int    `query:"limit" default:"10" min:"0" max:"1000"`
}

type initialSyncResponse struct {
	RoomID      string            `json:"room_id"`
	Membership  string            `json:"membership"`
	Visibility  string            `json:"visibility"`
	Messages    json.RawMessage   `json:"messages"`
	State       json.RawMessage   `json:"state"`
	AccountData []json.RawMessage `json:"account_data"`
	// Presence and Receipts are for members only. Clients that peek expect them, though the specification does not name
	// them.
	Presence []json.RawMessage `json:"presence"`
	Receipts []json.RawMessage `json:"receipts"`
}

// roomInitialSync: client-server API v1.19, GET /rooms/{roomId}/initialSync.
func (a *API) roomInitialSync(ctx context.Context, by *httpapi.Caller, in *initialSyncRequest) (*initialSyncResponse, error) {
	acc, err := a.enterWhole(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	v, err := a.rooms.Viewer(ctx, acc.room, by.UserID, acc.upTo)
	if err != nil {
		return nil, err
	}
	out := &initialSyncResponse{RoomID: acc.room.ID, Membership: acc.membership}
	r := a.reader(by, v)
	if out.Messages, err = a.lastMessages(ctx, acc, v, r, in.Limit); err != nil {
		return nil, err
	}
	state, err := a.rooms.StateEvents(ctx, acc.room, acc.root)
	if err != nil {
		return nil, err
	}
	if out.State, err = a.rooms.AppendClientEvents(ctx, nil, acc.room, state, r); err != nil {
		return nil, err
	}
	if out.Visibility, err = a.visibility(ctx, acc.room.ID); err != nil {
		return nil, err
	}
	if out.AccountData, err = a.roomAccountData(ctx, by.UserID, acc.room.ID); err != nil {
		return nil, err
	}
	out.Presence, out.Receipts, err = a.shownToMember(ctx, by.UserID, acc)
	return out, err
}

// lastMessages is the end of a room's timeline, as far as the user may look.
func (a *API) lastMessages(ctx context.Context, acc *access, v *roomserver.Viewer, r *roomserver.Reader, limit int) ([]byte, error) {
	events, _, err := a.rooms.Timeline(ctx, acc.room, 0, acc.upTo, limit)
	if err != nil {
		return nil, err
	}
	end := roomserver.AfterPosition(acc.upTo)
	start := end
	if len(events) > 0 {
		start = events[0].Token()
	}
	if events, err = v.Filter(ctx, events); err != nil {
		return nil, err
	}
	chunk, err := a.rooms.AppendClientEvents(ctx, []byte(`{"chunk":`), acc.room, events, r)
	if err != nil {
		return nil, err
	}
	return append(chunk, `,"start":"`+historyToken(start)+`","end":"`+historyToken(end)+`"}`...), nil
}

// roomAccountData is what the user has attached to a room.
func (a *API) roomAccountData(ctx context.Context, user, roomID string) ([]json.RawMessage, error) {
	var data []accounts.Datum
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		data, err = accounts.AccountData(tx, user)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("account data of %s: %w", user, err)
	}
	out := []json.RawMessage{}
	for _, d := range data {
		if d.Room == roomID {
			out = append(out, appendDatum(nil, d))
		}
	}
	return out, nil
}

// shownToMember is what only those in a room are shown of each other: presence, and how far they have read.
func (a *API) shownToMember(ctx context.Context, user string, acc *access) (presence, receipts []json.RawMessage, err error) {
	presence, receipts = []json.RawMessage{}, []json.RawMessage{}
	if acc.membership != roomserver.Join {
		return presence, receipts, nil
	}
	ignored, err := a.ignoredUsers(ctx, user)
	if err != nil {
		return nil, nil, err
	}
	now := a.now()
	for _, p := range a.ephemeral.PresenceIn(acc.room) {
		if !ignored[p.User] && len(presence) < maxPeople {
			presence = append(presence, p.AppendEvent(nil, now))
		}
	}
	read, err := a.ephemeral.Receipts(ctx, acc.room.NID, user, 0, a.db.Head())
	if err != nil {
		return nil, nil, err
	}
	if len(read) > 0 {
		events := append(ephemeral.AppendReceiptEvents([]byte{'['}, read), ']')
		receipts = inRoomAll(acc.room.ID, gjson.ParseBytes(events))
	}
	return presence, receipts, nil
}
