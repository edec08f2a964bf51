package directory

import (
	"context"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
)

type roomSummaryRequest struct {
	Room string `path:"roomIdOrAlias"`
}

type roomSummaryResponse struct {
	described
	Membership string `json:"membership,omitempty"`
}

// roomSummary: client-server API v1.19, GET /room_summary/{roomIdOrAlias}. A room that the caller may not see is
// answered like one that does not exist.
func (a *API) roomSummary(ctx context.Context, by *httpapi.Caller, in *roomSummaryRequest) (*roomSummaryResponse, error) {
	id := in.Room
	if strings.HasPrefix(id, "#") {
		alias, ok, err := a.rooms.LookupAlias(ctx, id)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errNoRoom
		}
		id = alias.RoomID
	}
	room, err := a.room(ctx, id)
	if err != nil {
		return nil, err
	}
	s, err := a.summary(ctx, room)
	if err != nil {
		return nil, err
	}
	if ok, err := a.shows(ctx, room, s, by.UserID); err != nil {
		return nil, err
	} else if !ok {
		return nil, errNoRoom
	}
	out := &roomSummaryResponse{described: s.described}
	out.Joined, _ = room.MemberCounts()
	if by.UserID != "" {
		if out.Membership, err = a.rooms.MembershipAt(ctx, room, s.root, by.UserID); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// unstableRoomSummaryResponse has the names of MSC3266 as well.
type unstableRoomSummaryResponse struct {
	*roomSummaryResponse
	UnstableEncryption string `json:"im.nheko.summary.encryption,omitempty"`
	UnstableVersion    string `json:"im.nheko.summary.room_version"`
}

func (a *API) unstableRoomSummary(ctx context.Context, by *httpapi.Caller, in *roomSummaryRequest) (*unstableRoomSummaryResponse, error) {
	s, err := a.roomSummary(ctx, by, in)
	if err != nil {
		return nil, err
	}
	return &unstableRoomSummaryResponse{s, s.Encryption, s.Version}, nil
}
