package clientapi

import (
	"context"
	"fmt"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

type upgradeRequest struct {
	RoomID   string   `path:"roomId"`
	Version  string   `json:"new_version" required:"true"`
	Creators []string `json:"additional_creators"`
}

type upgradeResponse struct {
	Replacement string `json:"replacement_room"`
}

// maxCreators bounds the additional creators of a room.
const maxCreators = 100

// upgrade: client-server API v1.19, POST /rooms/{roomId}/upgrade. A client that goes away does not stop it half-way.
func (a *API) upgrade(ctx context.Context, by *httpapi.Caller, in *upgradeRequest) (*upgradeResponse, error) {
	v, ok := pdu.Lookup(in.Version)
	if !ok {
		return nil, mxerr.New(400, "M_UNSUPPORTED_ROOM_VERSION", "This server does not support that room version")
	}
	if len(in.Creators) > maxCreators {
		return nil, mxerr.InvalidParam("Too many additional creators")
	}
	for _, u := range in.Creators {
		if !pdu.ValidUserID(u) {
			return nil, mxerr.InvalidParam("additional_creators has something that is not a user ID")
		}
	}
	profile, err := a.memberContent(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	id, err := a.rooms.UpgradeRoom(ctx, roomserver.Upgrade{
		RoomID: in.RoomID, User: by.UserID, Version: v, Creators: in.Creators, Profile: profile,
	})
	if err != nil {
		return nil, err
	}
	a.carryOver(ctx, by.UserID, id)
	return &upgradeResponse{id}, nil
}

// Run goes on with upgrades of rooms that the last stop of the server cut short, and removes guests from rooms that are
// not open to them any more, until ctx ends.
func (a *API) Run(ctx context.Context) {
	a.resumeUpgrades(ctx)
	a.guests.run(ctx)
}

func (a *API) resumeUpgrades(ctx context.Context) {
	done, err := a.rooms.ResumeUpgrades(ctx)
	for _, d := range done {
		a.carryOver(ctx, d.User, d.To)
	}
	if err != nil && ctx.Err() == nil {
		a.log.WithError(err).Warn("cannot go on with upgrades of rooms")
	}
}

// carryOver gives a user who has come into a room that replaces another what they had set for that one: tags, push
// rules, and that it is a direct chat. The user is in the room whether or not that succeeds.
func (a *API) carryOver(ctx context.Context, user, roomID string) {
	if err := a.tryCarryOver(ctx, user, roomID); err != nil {
		a.log.WithError(err).WithField("room_id", roomID).Warn("cannot carry a user's settings over to an upgraded room")
	}
}

func (a *API) tryCarryOver(ctx context.Context, user, roomID string) error {
	room, err := a.rooms.Room(ctx, roomID)
	if err != nil {
		return fmt.Errorf("find the room: %w", err)
	}
	create, err := a.rooms.StateEvent(ctx, room, room.Head().State, "m.room.create", "")
	if err != nil || create == nil {
		return err
	}
	from := gjson.GetBytes(create.ContentField("predecessor"), "room_id").Str
	if from == "" || from == roomID {
		return nil
	}
	return a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := accounts.CarryRoomData(tx, user, from, roomID); err != nil {
			return err
		}
		return push.CarryRules(tx, user, from, roomID)
	})
}
