package syncapi

import (
	"context"
	"errors"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// access is how far a user may look into a room: members up to the present, those who left up to their leave, others
// only where history is world-readable.
type access struct {
	room *roomserver.Room
	// membership is the user's; Leave for someone who never was in the room.
	membership string
	// upTo is the last position whose state the user may see.
	upTo int64
	// root is the state there.
	root snapshot.Ref
}

var errNoAccess = mxerr.Forbidden("You are not in that room")

// enter decides on access. Rooms that do not exist are refused like those that the user may not see.
func (a *API) enter(ctx context.Context, by *httpapi.Caller, roomID string) (*access, error) {
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil, errNoAccess
	}
	if err != nil {
		return nil, err
	}
	head := room.Head()
	acc := &access{room: room, upTo: head.Pos, root: head.State}
	e, err := a.rooms.StateEvent(ctx, room, head.State, "m.room.member", by.UserID)
	if err != nil {
		return nil, err
	}
	acc.membership = roomserver.Leave
	if e != nil {
		acc.membership = e.Membership()
	}
	if acc.membership == roomserver.Join {
		return acc, nil
	}
	visibility, err := a.rooms.HistoryVisibility(ctx, room, head.State)
	if err != nil {
		return nil, err
	}
	if visibility == roomserver.WorldReadable {
		return acc, nil
	}
	// Someone who was joined until this event sees the room as it was then.
	if e == nil || acc.membership == roomserver.Invite || acc.membership == roomserver.Knock {
		return nil, errNoAccess
	}
	before, err := a.rooms.MembershipAt(ctx, room, e.StateBefore, by.UserID)
	if err != nil {
		return nil, err
	}
	if before != roomserver.Join {
		return nil, errNoAccess
	}
	acc.upTo, acc.root = e.Anchor, e.StateAfter
	return acc, nil
}

// reader is how an answer outside /sync renders events for a caller.
func (a *API) reader(by *httpapi.Caller, v *roomserver.Viewer) *roomserver.Reader {
	return &roomserver.Reader{User: by.UserID, Device: by.DeviceID, RoomID: true, Now: a.now().UnixMilli(), Membership: v}
}
