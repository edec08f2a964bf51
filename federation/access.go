package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// allowed tells whether the room's current m.room.server_acl lets a server take part.
func (a *API) allowed(ctx context.Context, room *roomserver.Room, server string) (bool, error) {
	e, err := a.rooms.StateEvent(ctx, room, room.Head().State, "m.room.server_acl", "")
	if err != nil || e == nil {
		return err == nil, err
	}
	list := e.Cached(func(p *pdu.Event) any { return parseACL(p.Content()) }).(*acl)
	return list.allows(server), nil
}

// roomOf returns a room that this server takes part in and that a server asks about; it need not be in it.
func (a *API) roomOf(ctx context.Context, by *httpapi.Caller, id string) (*roomserver.Room, error) {
	room, err := a.rooms.Room(ctx, id)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
		return nil, mxerr.NotFound("This server is not in that room")
	}
	if err != nil {
		return nil, err
	}
	ok, err := a.allowed(ctx, room, by.Origin)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, mxerr.Forbidden("The room's access control list denies your server")
	}
	return room, nil
}

// openRoom is roomOf for users of other servers who want to enter. As long as the members are not known, nobody can be let
// in (MSC3902).
func (a *API) openRoom(ctx context.Context, by *httpapi.Caller, id string) (*roomserver.Room, error) {
	room, err := a.roomOf(ctx, by, id)
	if err == nil && room.Partial() != nil {
		return nil, mxerr.NotFound("This server has just entered that room and cannot let others in yet")
	}
	return room, err
}

// sharedRoom is roomOf for what only servers in the room may know.
func (a *API) sharedRoom(ctx context.Context, by *httpapi.Caller, id string) (*roomserver.Room, error) {
	room, err := a.roomOf(ctx, by, id)
	switch {
	case err != nil:
		return nil, err
	case room.HasServer(by.Origin):
		return room, nil
	case room.Partial() != nil:
		return nil, unableYet()
	}
	return nil, mxerr.Forbidden("Your server is not in that room")
}

// wholeRoom is sharedRoom for what takes all members.
func (a *API) wholeRoom(ctx context.Context, by *httpapi.Caller, id string) (*roomserver.Room, error) {
	room, err := a.sharedRoom(ctx, by, id)
	if err == nil && room.Partial() != nil {
		return nil, unableYet()
	}
	return room, err
}

// unableYet refuses what cannot be decided, or told, as long as a room's members are not known (MSC3895).
func unableYet() *mxerr.Error {
	return mxerr.New(http.StatusForbidden, "M_UNABLE_DUE_TO_PARTIAL_STATE", "This server has just entered that room and does not know all members yet")
}

// incompatible refuses a room version that one side does not know.
func incompatible(version string) error {
	return mxerr.New(http.StatusBadRequest, "M_INCOMPATIBLE_ROOM_VERSION", "Your server does not support room version "+version).
		WithField("room_version", version)
}

// membership is what a membership event that comes by itself must be.
type membership struct {
	roomID, eventID string
	sender          string // server of the sender
	membership      string
	own             bool // sender and state key are the same user
}

// parse reads a membership event of another server and checks it as far as that goes without its signatures.
func (m *membership) parse(v *pdu.Version, raw json.RawMessage) (*pdu.Event, error) {
	p, err := pdu.Parse(v, raw)
	if errors.Is(err, pdu.ErrTooLarge) {
		return nil, mxerr.TooLarge("The event is too large").With(err)
	}
	if err != nil {
		return nil, mxerr.BadJSON("The event does not have the format of its room version: " + err.Error())
	}
	switch {
	case p.RoomID != m.roomID:
		err = mxerr.InvalidParam("The event is of another room")
	case p.ID != m.eventID:
		err = mxerr.InvalidParam("The event has another ID: " + p.ID)
	case p.Redacted:
		err = mxerr.InvalidParam("The event's content hash is wrong")
	case p.Type != "m.room.member" || !p.IsState() || p.Membership() != m.membership:
		err = mxerr.InvalidParam("The event is not an m.room.member event with membership " + m.membership)
	case p.SenderServer() != m.sender:
		err = mxerr.InvalidParam("The sender is not a user of your server")
	case m.own && p.Sender != *p.StateKey:
		err = mxerr.InvalidParam("The state key is not the sender")
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// verify checks an event's signatures.
func (a *API) verify(ctx context.Context, p *pdu.Event) error {
	if err := a.keys.VerifyEvents(ctx, []*pdu.Event{p})[0]; err != nil {
		return mxerr.InvalidParam("The event is not signed as it must be").With(err)
	}
	return nil
}

// supports tells whether a list of room versions, which by default is that of the oldest, has one of them.
func supports(list []string, v *pdu.Version) bool {
	if len(list) == 0 {
		list = []string{"1"}
	}
	return slices.Contains(list, v.ID)
}

// events is a JSON array of events.
type events []*roomserver.Event

// AppendJSON appends the events as servers exchange them.
func (l events) AppendJSON(dst []byte) ([]byte, error) {
	dst = append(dst, '[')
	for i, e := range l {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, e.JSON()...)
	}
	return append(dst, ']'), nil
}
