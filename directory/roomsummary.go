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
	id, via, err := a.roomOf(ctx, by, in)
	if err != nil {
		return nil, err
	}
	room, err := a.rooms.Room(ctx, id)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
		return a.remoteSummary(ctx, by, id, via)
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

// roomOf finds out which room is asked for, and which servers may be in it.
func (a *API) roomOf(ctx context.Context, by *httpapi.Caller, in *roomSummaryRequest) (id string, via []string, err error) {
	switch {
	case !strings.HasPrefix(in.Room, "#"):
		return in.Room, in.Via, nil
	case !a.rooms.IsLocal(in.Room):
		if a.alias == nil || by.UserID == "" {
			return "", nil, errNoRoom // strangers cannot have us ask other servers
		}
		id, via, err = a.alias(ctx, in.Room)
		return id, append(via, in.Via...), err
	}
	alias, ok, err := a.rooms.LookupAlias(ctx, in.Room)
	if err == nil && !ok {
		err = errNoRoom
	}
	return alias.RoomID, in.Via, err
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
