package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// maxInvites bounds the invites of one createRoom.
const maxInvites = 1000

type createRoomRequest struct {
	CreationContent    map[string]json.RawMessage `json:"creation_content"`
	InitialState       []initialState             `json:"initial_state"`
	Invite             []string                   `json:"invite"`
	Invite3PID         []json.RawMessage          `json:"invite_3pid"`
	IsDirect           bool                       `json:"is_direct"`
	Name               string                     `json:"name"`
	Topic              string                     `json:"topic"`
	PowerLevelOverride map[string]json.RawMessage `json:"power_level_content_override"`
	Preset             string                     `json:"preset"`
	AliasName          *string                    `json:"room_alias_name"`
	RoomVersion        *string                    `json:"room_version"`
	Visibility         string                     `json:"visibility"`
}

type initialState struct {
	Type     string                     `json:"type"`
	StateKey string                     `json:"state_key"`
	Content  map[string]json.RawMessage `json:"content"`
}

type roomIDResponse struct {
	RoomID string `json:"room_id"`
}

// createRoom: client-server API v1.19, POST /createRoom.
func (a *API) createRoom(ctx context.Context, by *httpapi.Caller, in *createRoomRequest) (*roomIDResponse, error) {
	n, err := in.room(by.UserID, a.rooms.Name(), a.options.DefaultVersion)
	if err != nil {
		return nil, err
	}
	if n.Alias != "" {
		if err := a.aliasFree(by, n.Alias); err != nil {
			return nil, err
		}
	}
	if err := a.mayInvite(ctx, by.UserID, n.Invite...); err != nil {
		return nil, err
	}
	if n.CreatorProfile, err = a.memberContent(ctx, by.UserID); err != nil {
		return nil, err
	}
	profiles := map[string]map[string]any{}
	for _, u := range n.Invite {
		if profiles[u], err = a.memberContent(ctx, u); err != nil {
			return nil, err
		}
		if in.IsDirect {
			profiles[u]["is_direct"] = true
		}
	}
	n.InviteContent = func(user string) map[string]any { return profiles[user] }
	if a.options.Remote != nil {
		n.Elsewhere = slices.DeleteFunc(slices.Clone(n.Invite), a.rooms.IsLocal)
		n.Invite = slices.DeleteFunc(n.Invite, func(u string) bool { return !a.rooms.IsLocal(u) })
	}
	id, err := a.rooms.CreateRoom(ctx, *n)
	if e := mxerr.As(err); e != nil && e.Code == "M_FORBIDDEN" {
		// The creator may do everything: what the rules refuse is a contradiction in the request.
		err = mxerr.New(400, "M_INVALID_ROOM_STATE", "The requested room is not valid: "+e.Text).With(err)
	}
	if err != nil {
		return nil, err
	}
	a.carryOver(ctx, by.UserID, id)
	a.inviteElsewhere(ctx, by.UserID, id, n.Elsewhere, n.InviteContent)
	return &roomIDResponse{id}, nil
}

// room checks the request and translates it.
func (in *createRoomRequest) room(creator, server, defaultVersion string) (*roomserver.NewRoom, error) {
	n := &roomserver.NewRoom{
		Creator: creator, CreationContent: in.CreationContent, PowerLevels: in.PowerLevelOverride,
		Name: in.Name, Topic: in.Topic, Preset: in.Preset, Public: in.Visibility == "public",
	}
	if len(in.Invite3PID) > 0 {
		return nil, mxerr.New(403, "M_THREEPID_DENIED", "Inviting by e-mail address or telephone number is not offered")
	}
	var err error
	if n.Version, err = in.version(defaultVersion); err != nil {
		return nil, err
	}
	switch in.Visibility {
	case "", "private", "public":
	default:
		return nil, mxerr.InvalidParam("visibility must be public or private")
	}
	switch in.Preset {
	case roomserver.PrivateChat, roomserver.TrustedPrivateChat, roomserver.PublicChat:
	case "":
		n.Preset = roomserver.PrivateChat
		if n.Public {
			n.Preset = roomserver.PublicChat
		}
	default:
		return nil, mxerr.InvalidParam("Unknown preset")
	}
	if in.AliasName != nil {
		if n.Alias, err = localAlias(*in.AliasName, server); err != nil {
			return nil, err
		}
	}
	if n.Invite, err = invitees(in.Invite, creator); err != nil {
		return nil, err
	}
	for _, s := range in.InitialState {
		if s.Type == "" || s.Content == nil {
			return nil, mxerr.BadJSON("initial_state needs a type and content")
		}
		raw, err := json.Marshal(s.Content)
		if err != nil {
			return nil, mxerr.BadJSON("initial_state cannot be encoded").With(err)
		}
		n.InitialState = append(n.InitialState, roomserver.StateDraft{Type: s.Type, StateKey: s.StateKey, Content: raw})
	}
	return n, nil
}

// version returns the version that is asked for, else the one with this id.
func (in *createRoomRequest) version(id string) (*pdu.Version, error) {
	if in.RoomVersion != nil {
		id = *in.RoomVersion
	}
	v, ok := pdu.Lookup(id)
	if !ok {
		return nil, mxerr.New(400, "M_UNSUPPORTED_ROOM_VERSION", "This server does not support that room version")
	}
	return v, nil
}

// localAlias makes a room alias of this server from its localpart.
func localAlias(localpart, server string) (string, error) {
	alias := "#" + localpart + ":" + server
	if localpart == "" || strings.ContainsAny(localpart, ":#\x00") || len(alias) > pdu.MaxFieldSize {
		return "", mxerr.InvalidParam("room_alias_name is not the localpart of a room alias")
	}
	return alias, nil
}

// invitees checks the users to invite and drops repetitions.
func invitees(users []string, creator string) (out []string, err error) {
	if len(users) > maxInvites {
		return nil, mxerr.InvalidParam("Too many invites")
	}
	seen := map[string]bool{creator: true}
	for _, u := range users {
		if !pdu.ValidUserID(u) {
			return nil, mxerr.InvalidParam("invite has something that is not a user ID")
		}
		if !seen[u] {
			seen[u] = true
			out = append(out, u)
		}
	}
	return out, nil
}

// merge returns the union of contents; later ones win.
func merge(contents ...map[string]any) map[string]any {
	out := map[string]any{}
	for _, c := range contents {
		maps.Copy(out, c)
	}
	return out
}

// isUnknown tells that the roomserver does not have the room.
func isUnknown(err error) bool { return errors.Is(err, roomserver.ErrUnknownRoom) }
