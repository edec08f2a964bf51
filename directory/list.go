package directory

import (
	"context"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

type roomRequest struct {
	RoomID string `path:"roomId"`
}

type visibilityResponse struct {
	Visibility string `json:"visibility"`
}

// errNoRoom answers requests about rooms that this server does not have or does not show.
var errNoRoom = mxerr.NotFound("Room not found")

// room returns a room, or 404.
func (a *API) room(ctx context.Context, id string) (*roomserver.Room, error) {
	room, err := a.rooms.Room(ctx, id)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		err = errNoRoom
	}
	return room, err
}

// getVisibility: client-server API v1.19, GET /directory/list/room/{roomId}.
func (a *API) getVisibility(ctx context.Context, _ *httpapi.Caller, in *roomRequest) (*visibilityResponse, error) {
	if _, err := a.room(ctx, in.RoomID); err != nil {
		return nil, err
	}
	public, err := a.rooms.Public(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	if public {
		return &visibilityResponse{"public"}, nil
	}
	return &visibilityResponse{"private"}, nil
}

type putVisibilityRequest struct {
	RoomID     string `path:"roomId"`
	Visibility string `json:"visibility"`
}

// putVisibility: client-server API v1.19, PUT /directory/list/room/{roomId}. Allowed are members who may set the room's
// canonical alias, and server administrators.
func (a *API) putVisibility(ctx context.Context, by *httpapi.Caller, in *putVisibilityRequest) (*httpapi.Empty, error) {
	if in.Visibility == "" {
		in.Visibility = "public"
	}
	public, err := isPublic(in.Visibility)
	if err != nil {
		return nil, err
	}
	if _, err := a.room(ctx, in.RoomID); err != nil {
		return nil, err
	}
	if !by.Admin {
		may, err := a.rooms.MaySendState(ctx, in.RoomID, by.UserID, "m.room.canonical_alias")
		if err != nil {
			return nil, err
		}
		if !may {
			return nil, mxerr.Forbidden("You may not change whether this room is published")
		}
	}
	return nil, a.rooms.SetPublic(ctx, in.RoomID, public)
}

func isPublic(visibility string) (bool, error) {
	switch visibility {
	case "public":
		return true, nil
	case "private":
		return false, nil
	}
	return false, mxerr.InvalidParam("visibility must be public or private")
}

type putNetworkVisibilityRequest struct {
	Network    string `path:"networkId"`
	RoomID     string `path:"roomId"`
	Visibility string `json:"visibility" required:"true"`
}

const maxNetwork = 255 // bytes of a network's name

// putNetworkVisibility: application service API v1.19, PUT /directory/list/appservice/{networkId}/{roomId}.
func (a *API) putNetworkVisibility(ctx context.Context, by *httpapi.Caller, in *putNetworkVisibilityRequest) (*httpapi.Empty, error) {
	public, err := isPublic(in.Visibility)
	if err != nil {
		return nil, err
	}
	if len(in.Network) > maxNetwork {
		return nil, mxerr.InvalidParam("networkId is too long")
	}
	room, err := a.room(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	statement := `DELETE FROM appservice_rooms WHERE appservice = $1 AND network = $2 AND room = $3`
	if public {
		statement = `INSERT INTO appservice_rooms (appservice, network, room) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		changed, err := tx.Exec(statement, by.Appservice.ID, in.Network, room.NID)
		if err != nil || changed == 0 {
			return err
		}
		return roomserver.NoteDirectory(tx, room.NID)
	})
	if err != nil {
		return nil, fmt.Errorf("change the list of %s: %w", in.Network, err)
	}
	return nil, nil
}
