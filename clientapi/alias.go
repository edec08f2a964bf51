package clientapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

type aliasRequest struct {
	Alias string `path:"roomAlias"`
}

type aliasResponse struct {
	RoomID  string   `json:"room_id"`
	Servers []string `json:"servers"`
}

// getAlias: client-server API v1.19, GET /directory/room/{roomAlias}.
func (a *API) getAlias(ctx context.Context, _ *httpapi.Caller, in *aliasRequest) (*aliasResponse, error) {
	if err := checkAlias(in.Alias); err != nil {
		return nil, err
	}
	if a.options.Remote != nil && !a.rooms.IsLocal(in.Alias) {
		roomID, servers, err := a.options.Remote.ResolveAlias(ctx, in.Alias)
		if err != nil {
			return nil, err
		}
		return &aliasResponse{roomID, servers}, nil
	}
	alias, ok, err := a.rooms.LookupAlias(ctx, in.Alias)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notLocal("that room alias")
	}
	room, err := a.rooms.Room(ctx, alias.RoomID)
	if err != nil {
		return nil, err
	}
	servers := []string{a.rooms.Name()}
	for _, s := range room.Servers() {
		if s != a.rooms.Name() {
			servers = append(servers, s)
		}
	}
	return &aliasResponse{alias.RoomID, servers}, nil
}

// checkAlias refuses what is no room alias.
func checkAlias(alias string) error {
	localpart, server, ok := strings.Cut(strings.TrimPrefix(alias, "#"), ":")
	if !ok || !strings.HasPrefix(alias, "#") || localpart == "" || !pdu.ValidServerName(server) ||
		strings.ContainsRune(alias, 0) || len(alias) > pdu.MaxFieldSize {
		return mxerr.InvalidParam("That is not a room alias")
	}
	return nil
}

type putAliasRequest struct {
	Alias  string `path:"roomAlias"`
	RoomID string `json:"room_id" required:"true"`
}

// putAlias: client-server API v1.19, PUT /directory/room/{roomAlias}.
func (a *API) putAlias(ctx context.Context, by *httpapi.Caller, in *putAliasRequest) (*httpapi.Empty, error) {
	if err := checkAlias(in.Alias); err != nil {
		return nil, err
	}
	if !a.rooms.IsLocal(in.Alias) {
		return nil, mxerr.InvalidParam("The alias belongs to another server")
	}
	if !strings.HasPrefix(in.RoomID, "!") {
		return nil, mxerr.InvalidParam("room_id is not a room ID")
	}
	if err := a.mayMakeAlias(ctx, by, in.RoomID, in.Alias); err != nil {
		return nil, err
	}
	return nil, a.rooms.SetAlias(ctx, roomserver.Alias{Alias: in.Alias, RoomID: in.RoomID, Creator: by.UserID})
}

// mayMakeAlias refuses aliases of rooms that the caller is not in, unless they run the server or a bridge, and aliases
// that another application service keeps for itself.
func (a *API) mayMakeAlias(ctx context.Context, by *httpapi.Caller, roomID, alias string) error {
	if err := a.aliasFree(by, alias); err != nil || by.Admin || by.Appservice != nil {
		return err
	}
	room, err := a.rooms.Room(ctx, roomID)
	if err == nil && room.HasLocalMember(by.UserID) {
		return nil
	}
	if err == nil || isUnknown(err) {
		err = mxerr.Forbidden("You are not in that room")
	}
	return err
}

// aliasFree refuses aliases in the exclusive namespace of an application service to everybody else.
//
// Spec: application service API v1.19, "Registration".
func (a *API) aliasFree(by *httpapi.Caller, alias string) error {
	if a.options.Appservices == nil {
		return nil
	}
	owner := a.options.Appservices.ReservedAlias(alias)
	if owner == nil || by.Appservice != nil && by.Appservice.ID == owner.ID {
		return nil
	}
	return mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "This room alias is reserved by an application service")
}

// deleteAlias: client-server API v1.19, DELETE /directory/room/{roomAlias}. Allowed are who made the alias, who may
// set the room's canonical alias, and server administrators.
func (a *API) deleteAlias(ctx context.Context, by *httpapi.Caller, in *aliasRequest) (*httpapi.Empty, error) {
	if err := checkAlias(in.Alias); err != nil {
		return nil, err
	}
	alias, ok, err := a.rooms.LookupAlias(ctx, in.Alias)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notLocal("that room alias")
	}
	if alias.Creator != by.UserID && !by.Admin {
		may, err := a.rooms.MaySendState(ctx, alias.RoomID, by.UserID, "m.room.canonical_alias")
		if err != nil {
			return nil, err
		}
		if !may {
			return nil, mxerr.Forbidden("You may not delete this alias")
		}
	}
	if err := a.rooms.DeleteAlias(ctx, in.Alias); err != nil {
		return nil, err
	}
	return nil, a.rooms.DropCanonicalAlias(ctx, alias.RoomID, by.UserID, in.Alias)
}

type aliasesResponse struct {
	Aliases []string `json:"aliases"`
}

// listAliases: client-server API v1.19, GET /rooms/{roomId}/aliases, for members and, in world-readable rooms, anyone.
func (a *API) listAliases(ctx context.Context, by *httpapi.Caller, in *roomRequest) (*aliasesResponse, error) {
	room, err := a.rooms.Room(ctx, in.RoomID)
	if isUnknown(err) {
		return nil, mxerr.Forbidden("You are not in that room")
	}
	if err != nil {
		return nil, err
	}
	if !room.HasLocalMember(by.UserID) {
		v, err := a.rooms.HistoryVisibility(ctx, room, room.Head().State)
		if err != nil {
			return nil, err
		}
		if v != roomserver.WorldReadable {
			return nil, mxerr.Forbidden("You are not in that room")
		}
	}
	aliases, err := a.rooms.Aliases(ctx, in.RoomID)
	if err != nil {
		return nil, err
	}
	return &aliasesResponse{aliases}, nil
}
