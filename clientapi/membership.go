package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

type joinRequest struct {
	RoomID string          `path:"roomId"`
	Body   json.RawMessage `body:"raw" default:"{}"`
}

// join: client-server API v1.19, POST /rooms/{roomId}/join.
func (a *API) join(ctx context.Context, by *httpapi.Caller, in *joinRequest) (*roomIDResponse, error) {
	return a.enter(ctx, by, in.RoomID, nil, roomserver.Join, in.Body)
}

// Join joins a caller to a room as POST /rooms/{roomId}/join does.
func (a *API) Join(ctx context.Context, by *httpapi.Caller, roomID string) error {
	_, err := a.enter(ctx, by, roomID, nil, roomserver.Join, json.RawMessage("{}"))
	return err
}

type joinByRequest struct {
	Room   string          `path:"roomIdOrAlias"`
	Via    []string        `query:"via"`
	Server []string        `query:"server_name"`
	Body   json.RawMessage `body:"raw" default:"{}"`
}

// joinByIDOrAlias: client-server API v1.19, POST /join/{roomIdOrAlias}.
func (a *API) joinByIDOrAlias(ctx context.Context, by *httpapi.Caller, in *joinByRequest) (*roomIDResponse, error) {
	id, via, err := a.resolve(ctx, in)
	if err != nil {
		return nil, err
	}
	return a.enter(ctx, by, id, via, roomserver.Join, in.Body)
}

// knock: client-server API v1.19, POST /knock/{roomIdOrAlias}.
func (a *API) knock(ctx context.Context, by *httpapi.Caller, in *joinByRequest) (*roomIDResponse, error) {
	id, via, err := a.resolve(ctx, in)
	if err != nil {
		return nil, err
	}
	return a.enter(ctx, by, id, via, roomserver.Knock, in.Body)
}

// resolve turns a room id or alias into a room id and the servers that may be in the room.
func (a *API) resolve(ctx context.Context, in *joinByRequest) (roomID string, via []string, err error) {
	via = slices.Concat(in.Via, in.Server)
	if !strings.HasPrefix(in.Room, "#") {
		return in.Room, via, nil
	}
	if a.options.Remote != nil && !a.rooms.IsLocal(in.Room) {
		roomID, servers, err := a.options.Remote.ResolveAlias(ctx, in.Room)
		return roomID, append(via, servers...), err
	}
	alias, ok, err := a.rooms.LookupAlias(ctx, in.Room)
	if err != nil {
		return "", nil, err
	}
	if !ok {
		return "", nil, notLocal("that room alias")
	}
	return alias.RoomID, via, nil
}

// entryContent is what a client wants to have in the event with which it joins or knocks: a reason, and what bridges
// and clients add of their own. What the server decides is not for the client to say.
func entryContent(body json.RawMessage) (map[string]any, error) {
	content := map[string]any{}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, mxerr.BadJSON("The body is not a JSON object").With(err)
	}
	for k, v := range raw {
		switch k {
		case "membership", "third_party_signed", "join_authorised_via_users_server", "displayname", "avatar_url":
		case "reason":
			var reason string
			if err := json.Unmarshal(v, &reason); err != nil {
				return nil, mxerr.BadJSON("reason must be a string").With(err)
			}
			if reason != "" {
				content[k] = reason
			}
		default:
			content[k] = v
		}
	}
	return content, nil
}

// enter joins a room or knocks on it.
func (a *API) enter(ctx context.Context, by *httpapi.Caller, roomID string, via []string, membership string, body json.RawMessage) (*roomIDResponse, error) {
	own, err := entryContent(body)
	if err != nil {
		return nil, err
	}
	if err := a.refuseSuspended(ctx, by, roomID); err != nil {
		return nil, err
	}
	resident, err := a.resident(ctx, roomID)
	if err != nil {
		return nil, err
	}
	if by.Guest && resident {
		if err := a.checkGuestAccess(ctx, roomID); err != nil {
			return nil, err
		}
	}
	content, err := a.memberContent(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	m := roomserver.MembershipChange{RoomID: roomID, Sender: by.UserID, Target: by.UserID, Membership: membership, Content: merge(content, own)}
	if resident {
		err = a.enterLocal(ctx, m, via)
	} else {
		err = a.enterRemote(ctx, by, m, via)
	}
	if isUnknown(err) {
		err = notLocal("that room")
	}
	if err != nil {
		return nil, err
	}
	if by.Guest && membership == roomserver.Join {
		// The room may have closed its doors while the guest was on the way in.
		if err := a.checkGuestAccess(ctx, roomID); err != nil {
			return nil, errors.Join(err, a.removeGuest(ctx, roomID, by.UserID))
		}
	}
	if membership == roomserver.Join {
		a.carryOver(ctx, by.UserID, roomID)
	}
	return &roomIDResponse{roomID}, nil
}

// checkGuestAccess refuses guests where the room does not let them in (client-server API v1.19, "Guest access").
func (a *API) checkGuestAccess(ctx context.Context, roomID string) error {
	room, err := a.rooms.Room(ctx, roomID)
	if isUnknown(err) {
		return notLocal("that room")
	}
	if err != nil {
		return err
	}
	open, _, err := a.guestAccess(ctx, room)
	if err != nil || open {
		return err
	}
	return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not join this room")
}

// guestAccess tells whether guests may be in a room, and which event says so; 0: there is none.
func (a *API) guestAccess(ctx context.Context, room *roomserver.Room) (open bool, decider int64, err error) {
	e, err := a.rooms.StateEvent(ctx, room, room.Head().State, "m.room.guest_access", "")
	if err != nil || e == nil {
		return false, 0, err
	}
	access, _ := e.ContentString("guest_access")
	return access == "can_join", e.NID, nil
}

func withReason(reason string) map[string]any {
	if reason == "" {
		return nil
	}
	return map[string]any{"reason": reason}
}

type leaveRequest struct {
	RoomID string `path:"roomId"`
	Reason string `json:"reason"`
}

// leave: client-server API v1.19, POST /rooms/{roomId}/leave.
func (a *API) leave(ctx context.Context, by *httpapi.Caller, in *leaveRequest) (*httpapi.Empty, error) {
	resident, err := a.resident(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	if !resident {
		if ok, err := a.leaveOutside(ctx, by.UserID, in); ok || err != nil {
			return nil, err
		}
	}
	if err := a.mayLeave(ctx, by, in.RoomID); err != nil {
		return nil, err
	}
	return nil, a.change(ctx, roomserver.MembershipChange{
		RoomID: in.RoomID, Sender: by.UserID, Target: by.UserID, Membership: roomserver.Leave, Content: withReason(in.Reason),
		From: []string{roomserver.Join, roomserver.Invite, roomserver.Knock},
	})
}

// mayLeave refuses to reject the invite to the room in which the server talks to the user. Who has joined may leave.
//
// Spec: client-server API v1.19, "Server Notices".
func (a *API) mayLeave(ctx context.Context, by *httpapi.Caller, roomID string) error {
	notices, err := a.options.NoticeRoom(ctx, by.UserID, roomID)
	if err != nil || !notices {
		return err
	}
	room, err := a.rooms.Room(ctx, roomID)
	if err != nil || room.HasLocalMember(by.UserID) {
		return err
	}
	return mxerr.New(http.StatusForbidden, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "You cannot reject this invite")
}

type roomRequest struct {
	RoomID string `path:"roomId"`
}

// forget: client-server API v1.19, POST /rooms/{roomId}/forget.
func (a *API) forget(ctx context.Context, by *httpapi.Caller, in *roomRequest) (*httpapi.Empty, error) {
	return nil, a.rooms.Forget(ctx, by.UserID, in.RoomID)
}

type targetRequest struct {
	RoomID string `path:"roomId"`
	UserID string `json:"user_id"`
	Reason string `json:"reason"`
	// IDServer, Medium and Address invite by a third-party identifier.
	IDServer string `json:"id_server"`
	Medium   string `json:"medium"`
	Address  string `json:"address"`
}

// target checks whom the request is about.
func (in *targetRequest) target() error {
	if in.UserID == "" {
		return mxerr.MissingParam("user_id is missing")
	}
	if !strings.HasPrefix(in.UserID, "@") || !strings.Contains(in.UserID, ":") {
		return mxerr.InvalidParam("user_id is not a user ID")
	}
	return nil
}

// invite: client-server API v1.19, POST /rooms/{roomId}/invite.
func (a *API) invite(ctx context.Context, by *httpapi.Caller, in *targetRequest) (*httpapi.Empty, error) {
	if in.UserID == "" && in.Medium != "" {
		return nil, mxerr.New(http.StatusForbidden, "M_THREEPID_DENIED", "Inviting by e-mail address or telephone number is not offered")
	}
	if err := in.target(); err != nil {
		return nil, err
	}
	if err := a.mayInvite(ctx, by.UserID, in.UserID); err != nil {
		return nil, err
	}
	content, err := a.memberContent(ctx, in.UserID)
	if err != nil {
		return nil, err
	}
	return nil, a.inviteTo(ctx, roomserver.MembershipChange{
		RoomID: in.RoomID, Sender: by.UserID, Target: in.UserID, Membership: roomserver.Invite, Content: merge(content, withReason(in.Reason)),
		From: []string{roomserver.Leave, roomserver.Invite, roomserver.Knock},
	})
}

// kick: client-server API v1.19, POST /rooms/{roomId}/kick.
func (a *API) kick(ctx context.Context, by *httpapi.Caller, in *targetRequest) (*httpapi.Empty, error) {
	return nil, a.moderate(ctx, by, in, roomserver.Leave, roomserver.Join, roomserver.Invite, roomserver.Knock)
}

// ban: client-server API v1.19, POST /rooms/{roomId}/ban.
func (a *API) ban(ctx context.Context, by *httpapi.Caller, in *targetRequest) (*httpapi.Empty, error) {
	return nil, a.moderate(ctx, by, in, roomserver.Ban)
}

// unban: client-server API v1.19, POST /rooms/{roomId}/unban.
func (a *API) unban(ctx context.Context, by *httpapi.Caller, in *targetRequest) (*httpapi.Empty, error) {
	return nil, a.moderate(ctx, by, in, roomserver.Leave, roomserver.Ban)
}

// moderate changes someone else's membership.
func (a *API) moderate(ctx context.Context, by *httpapi.Caller, in *targetRequest, membership string, from ...string) error {
	if err := in.target(); err != nil {
		return err
	}
	return a.change(ctx, roomserver.MembershipChange{
		RoomID: in.RoomID, Sender: by.UserID, Target: in.UserID, Membership: membership, From: from, Content: withReason(in.Reason),
	})
}

// change applies a membership change to a room that the caller should be in.
func (a *API) change(ctx context.Context, m roomserver.MembershipChange) error {
	_, err := a.rooms.SetMembership(ctx, m)
	if isUnknown(err) {
		return mxerr.Forbidden("You are not in that room").With(err)
	}
	return err
}
