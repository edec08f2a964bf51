package syncapi

import (
	"context"
	"errors"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

func isUnknownEvent(err error) bool { return errors.Is(err, roomserver.ErrUnknownEvent) }

type roomRequest struct {
	RoomID string `path:"roomId"`
}

// state: client-server API v1.19, GET /rooms/{roomId}/state.
func (a *API) state(ctx context.Context, by *httpapi.Caller, in *roomRequest) (*rawJSON, error) {
	acc, err := a.enterWhole(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	events, err := a.rooms.StateEvents(ctx, acc.room, acc.root)
	if err != nil {
		return nil, err
	}
	b, err := a.rooms.AppendClientEvents(ctx, nil, acc.room, events, a.reader(by, nil))
	if err != nil {
		return nil, err
	}
	out := rawJSON(b)
	return &out, nil
}

type stateEventRequest struct {
	RoomID   string `path:"roomId"`
	Type     string `path:"eventType"`
	StateKey string `path:"stateKey"`
	Format   string `query:"format" enum:"content|event"`
}

// stateEvent: client-server API v1.19, GET /rooms/{roomId}/state/{eventType}/{stateKey}.
func (a *API) stateEvent(ctx context.Context, by *httpapi.Caller, in *stateEventRequest) (*rawJSON, error) {
	enter := a.enter
	if in.Type == memberType && !a.rooms.IsLocal(in.StateKey) {
		enter = a.enterWhole
	}
	acc, err := enter(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	e, err := a.rooms.StateEvent(ctx, acc.room, acc.root, in.Type, in.StateKey)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, mxerr.NotFound("The room has no such state event")
	}
	out := rawJSON(e.Content())
	if in.Format == "event" {
		b, err := a.rooms.AppendClientEvent(ctx, nil, acc.room, e, a.reader(by, nil))
		if err != nil {
			return nil, err
		}
		out = b
	}
	return &out, nil
}

type membersRequest struct {
	RoomID        string `path:"roomId"`
	At            string `query:"at"`
	Membership    string `query:"membership" enum:"join|invite|knock|leave|ban"`
	NotMembership string `query:"not_membership" enum:"join|invite|knock|leave|ban"`
}

// wants tells whether members with a membership are asked for: those with this one or without that one.
func (in *membersRequest) wants(membership string) bool {
	return membership == in.Membership || in.NotMembership != "" && membership != in.NotMembership
}

// members: client-server API v1.19, GET /rooms/{roomId}/members.
func (a *API) members(ctx context.Context, by *httpapi.Caller, in *membersRequest) (*rawJSON, error) {
	acc, err := a.enterWhole(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	root := acc.root
	if in.At != "" {
		if root, err = a.stateAtToken(ctx, acc, in.At); err != nil {
			return nil, err
		}
	}
	events, err := a.rooms.StateEventsOfType(ctx, acc.room, root, "m.room.member")
	if err != nil {
		return nil, err
	}
	if in.Membership != "" || in.NotMembership != "" {
		events = keep(events, func(e *roomserver.Event) bool { return in.wants(e.Membership()) })
	}
	b, err := a.rooms.AppendClientEvents(ctx, []byte(`{"chunk":`), acc.room, events, a.reader(by, nil))
	if err != nil {
		return nil, err
	}
	out := rawJSON(append(b, '}'))
	return &out, nil
}

// stateAtToken is the state of a room at a token. At the very beginning of a room there is none; who asks for it has
// the token from a timeline that goes back that far, and means the time of that answer.
func (a *API) stateAtToken(ctx context.Context, acc *access, token string) (snapshot.Ref, error) {
	t, err := parsePlace(token)
	if err != nil {
		return 0, err
	}
	root, err := a.rooms.StateAt(ctx, acc.room, acc.room.WholeFrom(min(t.Anchor-1, acc.upTo)))
	if err != nil || root != 0 {
		return root, err
	}
	if pos, ok := answeredAt(token); ok {
		return a.rooms.StateAt(ctx, acc.room, acc.room.WholeFrom(min(pos, acc.upTo)))
	}
	return 0, nil
}

type joinedMembersResponse struct {
	Joined map[string]joinedMember `json:"joined"`
}

type joinedMember struct {
	DisplayName *string `json:"display_name"`
	AvatarURL   *string `json:"avatar_url"`
}

// joinedMembers: client-server API v1.19, GET /rooms/{roomId}/joined_members.
func (a *API) joinedMembers(ctx context.Context, by *httpapi.Caller, in *roomRequest) (*joinedMembersResponse, error) {
	acc, err := a.enterWhole(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	if acc.membership != roomserver.Join {
		return nil, errNoAccess
	}
	events, err := a.rooms.StateEventsOfType(ctx, acc.room, acc.root, "m.room.member")
	if err != nil {
		return nil, err
	}
	out := &joinedMembersResponse{Joined: map[string]joinedMember{}}
	for _, e := range events {
		if e.Membership() != roomserver.Join {
			continue
		}
		var m joinedMember
		if name, ok := e.ContentString("displayname"); ok {
			m.DisplayName = &name
		}
		if avatar, ok := e.ContentString("avatar_url"); ok {
			m.AvatarURL = &avatar
		}
		out.Joined[*e.StateKey] = m
	}
	return out, nil
}

type joinedRoomsResponse struct {
	JoinedRooms []string `json:"joined_rooms"`
}

// joinedRooms: client-server API v1.19, GET /joined_rooms.
func (a *API) joinedRooms(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*joinedRoomsResponse, error) {
	rooms, err := a.rooms.UserRooms(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	out := &joinedRoomsResponse{JoinedRooms: []string{}}
	for _, r := range rooms {
		if r.Membership == roomserver.Join {
			out.JoinedRooms = append(out.JoinedRooms, r.RoomID)
		}
	}
	return out, nil
}

type timestampRequest struct {
	RoomID string `path:"roomId"`
	TS     int64  `query:"ts" required:"true" min:"0"`
	Dir    string `query:"dir" required:"true" enum:"b|f"`
}

type timestampResponse struct {
	EventID        string `json:"event_id"`
	OriginServerTS int64  `json:"origin_server_ts"`
}

// maxNear bounds the events that timestampToEvent looks at, nearPage those that it reads at once after the first.
const (
	maxNear  = 1000
	nearPage = 100
)

// timestampToEvent: client-server API v1.19, GET /rooms/{roomId}/timestamp_to_event.
func (a *API) timestampToEvent(ctx context.Context, by *httpapi.Caller, in *timestampRequest) (*timestampResponse, error) {
	acc, err := a.enter(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	v, err := a.rooms.Viewer(ctx, acc.room, by.UserID, acc.room.Head().Pos)
	if err != nil {
		return nil, err
	}
	if a.history != nil {
		if err := a.fillNear(ctx, acc.room, in); err != nil {
			return nil, err
		}
	}
	// Events that the user may not see are passed over, up to a bound.
	for skip, page := 0, 1; skip < maxNear; skip, page = skip+page, nearPage {
		events, err := a.rooms.EventsNear(ctx, acc.room, in.TS, in.Dir == "f", skip, page)
		if err != nil {
			return nil, err
		}
		seen, err := v.Filter(ctx, events)
		if err != nil {
			return nil, err
		}
		if len(seen) > 0 {
			return &timestampResponse{seen[0].ID, seen[0].OriginServerTS}, nil
		}
		if len(events) < page {
			break
		}
	}
	return nil, mxerr.NotFound("There is no event near that time")
}

// fillNear gets an event that other servers have and that is closer to the time than what is here.
func (a *API) fillNear(ctx context.Context, room *roomserver.Room, in *timestampRequest) error {
	near, err := a.rooms.EventsNear(ctx, room, in.TS, in.Dir == "f", 0, 1)
	if err != nil {
		return err
	}
	var have *roomserver.Event
	if len(near) > 0 {
		have = near[0]
	}
	return a.history.FillNear(ctx, room, in.TS, in.Dir == "f", have)
}

type eventRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `path:"eventId"`
}

// event: client-server API v1.19, GET /rooms/{roomId}/event/{eventId}.
func (a *API) event(ctx context.Context, by *httpapi.Caller, in *eventRequest) (*rawJSON, error) {
	acc, e, v, err := a.visibleEvent(ctx, by, in.RoomID, in.EventID)
	if errors.Is(err, errNoAccess) {
		err = mxerr.NotFound("Event not found")
	}
	if err != nil {
		return nil, err
	}
	r, err := a.bundling(ctx, by, acc.room, v, []*roomserver.Event{e})
	if err != nil {
		return nil, err
	}
	b, err := a.rooms.AppendClientEvent(ctx, nil, acc.room, e, r)
	if err != nil {
		return nil, err
	}
	out := rawJSON(b)
	return &out, nil
}
