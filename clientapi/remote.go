package clientapi

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

// Remote reaches rooms and users of other servers. It is implemented by federation. Errors are *mxerr.Error where they
// are for the client.
type Remote interface {
	// Join and Knock bring a user into a room, or knock on it, through the servers in via or others that may be in it.
	Join(ctx context.Context, user, roomID string, via []string, content map[string]any) error
	Knock(ctx context.Context, user, roomID string, via []string, content map[string]any) error
	// Leave rejects an invite or withdraws a knock; ok is false where there is none.
	Leave(ctx context.Context, user, roomID string, content map[string]any) (ok bool, err error)
	// Invite invites a user of another server.
	Invite(ctx context.Context, m roomserver.MembershipChange) error
	// ResolveAlias finds the room of an alias of another server, and servers that are in it.
	ResolveAlias(ctx context.Context, alias string) (roomID string, servers []string, err error)
}

// resident tells whether this server takes part in a room, so that it can decide who enters.
func (a *API) resident(ctx context.Context, roomID string) (bool, error) {
	room, err := a.rooms.Room(ctx, roomID)
	if isUnknown(err) {
		return false, nil
	}
	return err == nil && room.Resident(), err
}

// enterLocal joins a room that this server is in, or knocks on it. Where no user of this server may let the caller in, or it
// is not known who may come in, another server is asked to.
func (a *API) enterLocal(ctx context.Context, m roomserver.MembershipChange, via []string) error {
	room, err := a.rooms.Room(ctx, m.RoomID)
	if err != nil {
		return err
	}
	// Who is banned, or may come in, is not known as long as the members are not.
	if room.Partial() == nil || m.Membership != roomserver.Join || room.HasLocalMember(m.Target) {
		_, err = a.rooms.SetMembership(ctx, m)
		if e := mxerr.As(err); e == nil || e.Code != "M_UNABLE_TO_GRANT_JOIN" {
			return err
		}
	}
	if a.options.Remote == nil {
		return err
	}
	servers := slices.DeleteFunc(room.Servers(), func(name string) bool { return name == a.rooms.Name() })
	if len(servers) == 0 {
		return mxerr.Forbidden("Nobody who is in this room may let you in")
	}
	return a.options.Remote.Join(ctx, m.Target, m.RoomID, append(via, servers...), m.Content)
}

// enterRemote joins a room of other servers, or knocks on it.
func (a *API) enterRemote(ctx context.Context, by *httpapi.Caller, m roomserver.MembershipChange, via []string) error {
	switch {
	case a.options.Remote == nil:
		return notLocal("that room")
	case by.Guest:
		return mxerr.New(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not join rooms of other servers")
	case m.Membership == roomserver.Knock:
		return a.options.Remote.Knock(ctx, m.Target, m.RoomID, via, m.Content)
	}
	return a.options.Remote.Join(ctx, m.Target, m.RoomID, via, m.Content)
}

// inviteTo invites a user, wherever they are.
func (a *API) inviteTo(ctx context.Context, m roomserver.MembershipChange) error {
	if a.rooms.IsLocal(m.Target) || a.options.Remote == nil {
		return a.change(ctx, m)
	}
	switch resident, err := a.resident(ctx, m.RoomID); {
	case err != nil:
		return err
	case !resident:
		return mxerr.Forbidden("You are not in that room")
	}
	return a.options.Remote.Invite(ctx, m)
}

// leaveOutside rejects an invite to a room that this server is not in, or withdraws a knock.
func (a *API) leaveOutside(ctx context.Context, user string, in *leaveRequest) (ok bool, err error) {
	if a.options.Remote == nil {
		return a.rooms.LeaveOutside(ctx, user, in.RoomID, nil)
	}
	return a.options.Remote.Leave(ctx, user, in.RoomID, withReason(in.Reason))
}

// inviteElsewhere invites the users of other servers to a new room. The room is there already, so that what their servers
// say is only logged.
func (a *API) inviteElsewhere(ctx context.Context, creator, roomID string, users []string, content func(user string) map[string]any) {
	for _, u := range users {
		m := roomserver.MembershipChange{RoomID: roomID, Sender: creator, Target: u, Membership: roomserver.Invite, Content: content(u)}
		if err := a.inviteTo(ctx, m); err != nil {
			a.log.WithError(err).WithField("room_id", roomID).Warn("a user of another server could not be invited to a new room")
		}
	}
}

// inviteByState invites a user of another server whose membership a client sent as a state event.
func (a *API) inviteByState(ctx context.Context, by *httpapi.Caller, in *putStateRequest, raw json.RawMessage) (*sendResponse, error) {
	var content map[string]any
	if err := json.Unmarshal(raw, &content); err != nil {
		return nil, mxerr.NotJSON("The content is not valid JSON").With(err)
	}
	err := a.inviteTo(ctx, roomserver.MembershipChange{
		RoomID: in.RoomID, Sender: by.UserID, Target: in.StateKey, Membership: roomserver.Invite, Content: content, OriginServerTS: timestamp(by, in.TS),
	})
	if err != nil {
		return nil, err
	}
	room, err := a.rooms.Room(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	e, err := a.rooms.StateEvent(ctx, room, room.Head().State, in.Type, in.StateKey)
	if err != nil || e == nil {
		return nil, err
	}
	return &sendResponse{EventID: e.ID}, nil
}
