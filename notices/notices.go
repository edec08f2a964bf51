// Package notices lets those who run the server talk to its users: each gets one room with the server's own user, into
// which administrators send what they have to say (table notice_rooms).
//
// The user is invited and cannot reject that, but may leave once they have joined; the next notice invites them again.
// Clients know the room by its tag, m.server_notice. Administrators send notices at /_synapse/admin/v1/send_server_notice,
// where existing tools look for that.
//
// Spec: client-server API v1.19, "Server Notices".
package notices

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema holds the tables of notices.
var Schema = storage.Schema{Feature: "notices", FS: migrations}

// Config is what an operator decides about notices.
type Config struct {
	// Localpart is that of the server's own user.
	Localpart string
	// DisplayName and AvatarURL are how that user looks; RoomName is what the rooms are called.
	DisplayName, AvatarURL, RoomName string
	// RoomVersion is the version of the rooms.
	RoomVersion string
}

// Deps are the other parts of the server that notices stand on.
type Deps struct {
	// DB must have been opened with Schema.
	DB *storage.DB
	// Rooms hold the notices.
	Rooms *roomserver.Server
	// Accounts make the server's own user.
	Accounts *accounts.API
}

// API sends notices. It is safe for concurrent use.
type API struct {
	cfg    Config
	db     *storage.DB
	rooms  *roomserver.Server
	people *accounts.API
	sender string

	// mu serialises the making of rooms and invites, so that each user gets one room.
	mu sync.Mutex
}

// New makes the API.
func New(cfg Config, deps Deps) *API {
	return &API{cfg: cfg, db: deps.DB, rooms: deps.Rooms, people: deps.Accounts, sender: "@" + cfg.Localpart + ":" + deps.Rooms.Name()}
}

// Endpoints lists the endpoints of notices.
func (a *API) Endpoints() []httpapi.Endpoint {
	const path = "/_synapse/admin/v1/send_server_notice"
	return []httpapi.Endpoint{
		httpapi.New(http.MethodPost, path, httpapi.Admin, ratelimit.Admin, a.post),
		httpapi.New(http.MethodPut, path+"/{txnId}", httpapi.Admin, ratelimit.Admin, a.put),
	}
}

// IsRoom tells whether a room is the one in which the server talks to a user.
func (a *API) IsRoom(ctx context.Context, userID, roomID string) (bool, error) {
	found, err := a.db.Get(ctx, `SELECT 1 FROM notice_rooms WHERE user_id = $1 AND room_id = $2`, []any{userID, roomID}, nil)
	if err != nil {
		return false, fmt.Errorf("look up room of notices: %w", err)
	}
	return found, nil
}

type postRequest struct {
	UserID   string          `json:"user_id" required:"true"`
	Type     string          `json:"type"`
	StateKey *string         `json:"state_key"`
	Content  json.RawMessage `json:"content" required:"true"`
}

type putRequest struct {
	TxnID string `path:"txnId"`
	postRequest
}

type eventIDResponse struct {
	EventID string `json:"event_id"`
}

func (a *API) post(ctx context.Context, by *httpapi.Caller, in *postRequest) (*eventIDResponse, error) {
	return a.notify(ctx, in, nil)
}

// put is post that may be repeated: the same transaction of the same device sends once.
func (a *API) put(ctx context.Context, by *httpapi.Caller, in *putRequest) (*eventIDResponse, error) {
	return a.notify(ctx, &in.postRequest, &roomserver.Txn{User: by.UserID, Device: by.DeviceID, Path: "server_notice", ID: in.TxnID})
}

func (a *API) notify(ctx context.Context, in *postRequest, txn *roomserver.Txn) (*eventIDResponse, error) {
	if content := strings.TrimSpace(string(in.Content)); !strings.HasPrefix(content, "{") {
		return nil, mxerr.BadJSON("content must be an object")
	}
	if in.Type == "" {
		in.Type = "m.room.message"
	}
	if in.StateKey != nil {
		txn = nil // state is the same when it is set twice
	}
	if err := a.reachable(ctx, in.UserID); err != nil {
		return nil, err
	}
	roomID, err := a.room(ctx, in.UserID)
	if err != nil {
		return nil, err
	}
	id, err := a.rooms.Send(ctx, roomID, roomserver.Draft{Sender: a.sender, Type: in.Type, StateKey: in.StateKey, Content: in.Content, Txn: txn})
	if err != nil {
		return nil, err
	}
	return &eventIDResponse{id}, nil
}

// reachable refuses users to whom the server cannot talk.
func (a *API) reachable(ctx context.Context, userID string) error {
	if !a.rooms.IsLocal(userID) {
		return mxerr.InvalidParam("The user does not belong to this server")
	}
	if userID == a.sender {
		return mxerr.InvalidParam("This is the server's own user")
	}
	active, err := a.people.Active(ctx, userID)
	if err == nil && !active {
		err = mxerr.NotFound("There is no such account")
	}
	return err
}

// room returns the room in which the server talks to a user, who is in it or invited.
func (a *API) room(ctx context.Context, userID string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.people.EnsureServerUser(ctx, a.cfg.Localpart, a.cfg.DisplayName, a.cfg.AvatarURL); err != nil {
		return "", err
	}
	var roomID string
	if _, err := a.db.Get(ctx, `SELECT room_id FROM notice_rooms WHERE user_id = $1`, []any{userID}, &roomID); err != nil {
		return "", fmt.Errorf("look up room of notices: %w", err)
	}
	usable, err := a.usable(ctx, roomID)
	if err != nil {
		return "", err
	}
	if !usable {
		if roomID, err = a.makeRoom(ctx, userID); err != nil {
			return "", err
		}
	}
	return roomID, a.invite(ctx, userID, roomID)
}

// usable tells whether the server's user can still send into a room.
func (a *API) usable(ctx context.Context, roomID string) (bool, error) {
	if roomID == "" {
		return false, nil
	}
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return false, nil
	}
	return err == nil && room.HasLocalMember(a.sender), err
}

// profile is what membership events of the server's user say.
func (a *API) profile() map[string]any {
	profile := map[string]any{}
	if a.cfg.DisplayName != "" {
		profile["displayname"] = a.cfg.DisplayName
	}
	if a.cfg.AvatarURL != "" {
		profile["avatar_url"] = a.cfg.AvatarURL
	}
	return profile
}

// makeRoom makes the room of a user. Should the server stop before it is written down, it is never used.
func (a *API) makeRoom(ctx context.Context, userID string) (string, error) {
	version, ok := pdu.Lookup(a.cfg.RoomVersion)
	if !ok {
		return "", fmt.Errorf("room version %q is unknown", a.cfg.RoomVersion)
	}
	roomID, err := a.rooms.CreateRoom(ctx, roomserver.NewRoom{
		Creator: a.sender, CreatorProfile: a.profile(), Version: version, Preset: roomserver.PrivateChat, Name: a.cfg.RoomName,
		// The user may answer, which is how those talk whose account is suspended, and nothing else.
		PowerLevels: map[string]json.RawMessage{"invite": json.RawMessage("50")},
	})
	if err != nil {
		return "", fmt.Errorf("make room of notices: %w", err)
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`INSERT INTO notice_rooms (user_id, room_id) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET room_id = excluded.room_id`, userID, roomID)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("write down room of notices: %w", err)
	}
	return roomID, nil
}

// invite tags the room of a user who is not in it and invites them, whether or not they want invites.
func (a *API) invite(ctx context.Context, userID, roomID string) error {
	room, err := a.rooms.Room(ctx, roomID)
	if err != nil {
		return err
	}
	membership, err := a.rooms.MembershipAt(ctx, room, room.Head().State, userID)
	if err != nil || membership == roomserver.Join || membership == roomserver.Invite {
		return err
	}
	content := map[string]any{}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		name, avatar, err := accounts.MemberProfile(tx, userID)
		if err != nil {
			return err
		}
		clear(content)
		if name != "" {
			content["displayname"] = name
		}
		if avatar != "" {
			content["avatar_url"] = avatar
		}
		return accounts.PutTag(tx, userID, roomID, "m.server_notice", json.RawMessage("{}"))
	})
	if err != nil {
		return fmt.Errorf("tag room of notices: %w", err)
	}
	_, err = a.rooms.SetMembership(ctx, roomserver.MembershipChange{
		RoomID: roomID, Sender: a.sender, Target: userID, Membership: roomserver.Invite, Content: content,
		From: []string{roomserver.Leave, roomserver.Knock},
	})
	return err
}
