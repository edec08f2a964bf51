package directory

import (
	"context"
	"errors"
	"net/http"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
)

// federationEndpoints tell other servers what this one knows of rooms.
//
// spec: server-server-api v1.19 "Public Room Directory", "Spaces"
func (a *API) federationEndpoints() []httpapi.Endpoint {
	const v1 = "/_matrix/federation/v1"
	return []httpapi.Endpoint{
		httpapi.New(http.MethodGet, v1+"/publicRooms", httpapi.Server, ratelimit.Federation, a.tellPublicRooms),
		httpapi.New(http.MethodPost, v1+"/publicRooms", httpapi.Server, ratelimit.Federation, a.tellMatchingRooms),
		httpapi.New(http.MethodGet, v1+"/hierarchy/{roomId}", httpapi.Server, ratelimit.Federation, a.tellHierarchy),
	}
}

type tellPublicRoomsRequest struct {
	Limit    int    `query:"limit" min:"0"`
	Since    string `query:"since"`
	All      bool   `query:"include_all_networks"`
	Instance string `query:"third_party_instance_id"`
}

func (a *API) tellPublicRooms(ctx context.Context, by *httpapi.Caller, in *tellPublicRoomsRequest) (*publicRoomsResponse, error) {
	return a.tellMatchingRooms(ctx, by, &tellMatchingRoomsRequest{in.Limit, in.Since, publicFilter{}, in.All, in.Instance})
}

type tellMatchingRoomsRequest struct {
	Limit    int          `json:"limit"`
	Since    string       `json:"since"`
	Filter   publicFilter `json:"filter"`
	All      bool         `json:"include_all_networks"`
	Instance string       `json:"third_party_instance_id"`
}

func (a *API) tellMatchingRooms(ctx context.Context, by *httpapi.Caller, in *tellMatchingRoomsRequest) (*publicRoomsResponse, error) {
	return a.searchPublicRooms(ctx, by, &searchPublicRoomsRequest{
		Limit: in.Limit, Since: in.Since, Filter: in.Filter, All: in.All, Instance: in.Instance,
	})
}

// maxToldChildren bounds the children of which one answer has a summary.
const maxToldChildren = 100

type tellHierarchyRequest struct {
	RoomID    string `path:"roomId"`
	Suggested bool   `query:"suggested_only"`
}

type tellHierarchyResponse struct {
	Room         *hierarchyRoom `json:"room"`
	Children     []*described   `json:"children"`
	Inaccessible []string       `json:"inaccessible_children"`
}

// tellHierarchy: server-server API v1.19, GET /hierarchy/{roomId}.
func (a *API) tellHierarchy(ctx context.Context, by *httpapi.Caller, in *tellHierarchyRequest) (*tellHierarchyResponse, error) {
	top, room, err := a.tellRoom(ctx, by.Origin, in.RoomID)
	if err != nil {
		return nil, err
	}
	if top == nil {
		return nil, mxerr.NotFound("This server does not have that room, or does not show it to yours")
	}
	out := &tellHierarchyResponse{Room: &hierarchyRoom{described: *top, Children: emptyArray}, Children: []*described{}, Inaccessible: []string{}}
	if top.RoomType != "m.space" {
		return out, nil
	}
	l, err := a.childrenOf(ctx, room, room.Head().State)
	if err != nil {
		return nil, err
	}
	out.Room.Children = l.render(in.Suggested)
	for _, c := range l.list {
		if in.Suggested && !c.suggested || len(out.Children)+len(out.Inaccessible) >= maxToldChildren {
			continue
		}
		d, room, err := a.tellRoom(ctx, by.Origin, c.roomID)
		switch {
		case err != nil:
			return nil, err
		case d != nil:
			out.Children = append(out.Children, d)
		case room != nil:
			out.Inaccessible = append(out.Inaccessible, c.roomID)
		}
	}
	return out, nil
}

// tellRoom returns what a server may know of a room: nil if nothing. The room is nil if this server is not in it.
func (a *API) tellRoom(ctx context.Context, server, roomID string) (*described, *roomserver.Room, error) {
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	s, err := a.summary(ctx, room)
	if err != nil {
		return nil, nil, err
	}
	ok := s.WorldReadable || s.public || s.knockable || room.HasServer(server)
	for i := 0; i < len(s.allowed) && !ok; i++ { // rooms whose members may join
		allowed, err := a.rooms.Room(ctx, s.allowed[i])
		if err != nil && !errors.Is(err, roomserver.ErrUnknownRoom) {
			return nil, nil, err
		}
		ok = err == nil && allowed.HasServer(server)
	}
	if !ok {
		return nil, room, nil
	}
	d := s.described
	d.Joined, _ = room.MemberCounts()
	return &d, room, nil
}
