package clientapi

import (
	"context"
	"errors"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

// What suspended accounts may do beyond reading: leave rooms, redact their own events, and talk to those who run the
// server in the room of server notices. Endpoints that have nothing for them are declared UnlessSuspended.
//
// Spec: client-server API v1.19, "Account suspension".

// refuseSuspended refuses suspended callers everywhere but in the room in which the server talks to them.
func (a *API) refuseSuspended(ctx context.Context, by *httpapi.Caller, roomID string) error {
	if !by.Suspended {
		return nil
	}
	notices, err := a.options.NoticeRoom(ctx, by.UserID, roomID)
	if err != nil || notices {
		return err
	}
	return mxerr.Suspended()
}

// suspendedMaySend is refuseSuspended for events: the redaction of an own event is let through. redacts is empty for
// what is no redaction.
func (a *API) suspendedMaySend(ctx context.Context, by *httpapi.Caller, roomID, redacts string) error {
	refused := a.refuseSuspended(ctx, by, roomID)
	if refused == nil || redacts == "" {
		return refused
	}
	room, err := a.rooms.Room(ctx, roomID)
	if isUnknown(err) {
		return refused
	}
	if err != nil {
		return err
	}
	e, err := a.rooms.Event(ctx, room, redacts)
	if err != nil && !errors.Is(err, roomserver.ErrUnknownEvent) {
		return err
	}
	if err == nil && e.Sender == by.UserID {
		return nil
	}
	return refused
}

// callerMayPutState is refuseSuspended for state: leaving by way of one's own membership event is let through, unless
// nobody may leave that room.
func (a *API) callerMayPutState(ctx context.Context, by *httpapi.Caller, in *putStateRequest) error {
	if in.Type == "m.room.member" && in.StateKey == by.UserID && gjson.GetBytes(in.Content, "membership").Str == roomserver.Leave {
		return a.mayLeave(ctx, by, in.RoomID)
	}
	return a.refuseSuspended(ctx, by, in.RoomID)
}
