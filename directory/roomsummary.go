package directory

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
)

type roomSummaryRequest struct {
	Room string   `path:"roomIdOrAlias"`
	Via  []string `query:"via"`
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
	room, err := a.rooms.Room(ctx, id)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
		return a.remoteSummary(ctx, by, id, in.Via)
	}
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

// remoteSummary is roomSummary for a room that this server is not in.
func (a *API) remoteSummary(ctx context.Context, by *httpapi.Caller, id string, via []string) (*roomSummaryResponse, error) {
	if by.UserID == "" || !strings.HasPrefix(id, "!") {
		return nil, errNoRoom // strangers cannot have us ask other servers
	}
	t := a.treeOf(ctx, id, via)
	if t.room == nil {
		return nil, errNoRoom
	}
	if ok, err := a.showsRemote(ctx, t.room, by.UserID); err != nil || !ok {
		return nil, cmp.Or(err, error(errNoRoom))
	}
	out := &roomSummaryResponse{described: *t.room, Membership: roomserver.Leave}
	outside, err := a.rooms.OutsideOf(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	for _, o := range outside {
		if o.RoomID == id {
			out.Membership = o.Membership
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
