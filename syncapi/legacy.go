package syncapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/syncapi/filter"
)

// What came before /sync: the same answers in another order. Messages to devices are not part of it, so that a client
// which peeks into a room with /events takes none away from /sync.

// legacyLook is a look at what /sync would tell a user, without their device.
func (a *API) legacyLook(user string, since Token) *look {
	return &look{api: a, user: user, stateAfter: true, since: since, filter: noFilter}
}

type allInitialSyncRequest struct {
	Limit    int  `query:"limit" default:"10" min:"0" max:"100"`
	Archived bool `query:"archived"`
}

// pagination is a part of a room's timeline.
type pagination struct {
	Start string            `json:"start,omitempty"`
	End   string            `json:"end"`
	Chunk []json.RawMessage `json:"chunk"`
}

// roomInfo is a room in an answer of /initialSync.
type roomInfo struct {
	RoomID      string            `json:"room_id"`
	Membership  string            `json:"membership"`
	Invite      json.RawMessage   `json:"invite,omitempty"`
	Messages    *pagination       `json:"messages,omitempty"`
	State       []json.RawMessage `json:"state,omitempty"`
	Visibility  string            `json:"visibility,omitempty"`
	AccountData []json.RawMessage `json:"account_data,omitempty"`
}

type allInitialSyncResponse struct {
	End      string            `json:"end"`
	Presence []json.RawMessage `json:"presence"`
	// Receipts are the m.receipt events of the rooms that the user is in. Clients of that time expect them, though the
	// specification does not name them.
	Receipts    []json.RawMessage `json:"receipts"`
	Rooms       []*roomInfo       `json:"rooms"`
	AccountData []json.RawMessage `json:"account_data"`
}

// initialSync: client-server API v1.19, GET /initialSync.
func (a *API) initialSync(ctx context.Context, by *httpapi.Caller, in *allInitialSyncRequest) (*allInitialSyncResponse, error) {
	l := a.legacyLook(by.UserID, Token{})
	text := fmt.Sprintf(`{"room":{"include_leave":%t,"timeline":{"limit":%d}}}`, in.Archived, max(in.Limit, 1))
	var err error
	if l.filter, err = filter.Parse([]byte(text)); err != nil {
		return nil, err
	}
	raw, _, err := l.take(ctx)
	if err != nil {
		return nil, err
	}
	answer := gjson.ParseBytes(*raw)
	out := &allInitialSyncResponse{
		End: answer.Get("next_batch").Str, Presence: list(answer.Get("presence.events")),
		AccountData: list(answer.Get("account_data.events")), Rooms: []*roomInfo{}, Receipts: []json.RawMessage{},
	}
	for _, section := range []string{"join", "leave"} {
		answer.Get("rooms." + section).ForEach(func(id, room gjson.Result) bool {
			var info *roomInfo
			if info, err = a.roomInfo(ctx, by.UserID, id.Str, room, in.Limit); err == nil {
				info.Messages.End = out.End
				out.Rooms = append(out.Rooms, info)
			}
			for _, e := range room.Get("ephemeral.events").Array() {
				if e.Get("type").Str == receiptType {
					out.Receipts = append(out.Receipts, inRoom(id.Str, e))
				}
			}
			return err == nil
		})
	}
	if err != nil {
		return nil, err
	}
	answer.Get("rooms.invite").ForEach(func(id, room gjson.Result) bool {
		for _, e := range room.Get("invite_state.events").Array() {
			if e.Get("type").Str == "m.room.member" && e.Get("state_key").Str == by.UserID {
				out.Rooms = append(out.Rooms, &roomInfo{RoomID: id.Str, Membership: roomserver.Invite, Invite: inRoom(id.Str, e)})
			}
		}
		return true
	})
	return out, nil
}

// roomInfo turns a room's part of /sync into that of /initialSync.
func (a *API) roomInfo(ctx context.Context, user, id string, room gjson.Result, limit int) (*roomInfo, error) {
	info := &roomInfo{RoomID: id, Membership: roomserver.Leave, AccountData: list(room.Get("account_data.events"))}
	info.Messages = &pagination{Start: room.Get("timeline.prev_batch").Str, Chunk: []json.RawMessage{}}
	if limit > 0 {
		info.Messages.Chunk = inRoomAll(id, room.Get("timeline.events"))
	}
	info.State = inRoomAll(id, room.Get("state_after.events"))
	for _, e := range room.Get("state_after.events").Array() {
		if e.Get("type").Str == "m.room.member" && e.Get("state_key").Str == user {
			info.Membership = e.Get("content.membership").Str
		}
	}
	var err error
	info.Visibility, err = a.visibility(ctx, id)
	return info, err
}

// visibility tells whether a room is in the directory.
func (a *API) visibility(ctx context.Context, id string) (string, error) {
	public, err := a.rooms.Public(ctx, id)
	if err != nil {
		return "", err
	}
	if public {
		return "public", nil
	}
	return "private", nil
}

// list is the elements of an array as they are.
func list(array gjson.Result) []json.RawMessage {
	out := []json.RawMessage{}
	for _, e := range array.Array() {
		out = append(out, json.RawMessage(e.Raw))
	}
	return out
}

// inRoom is an event of /sync, which does not say its room, with its room.
func inRoom(roomID string, event gjson.Result) json.RawMessage {
	quoted, err := json.Marshal(roomID)
	if err != nil || len(event.Raw) < 2 {
		return json.RawMessage(event.Raw)
	}
	out := append([]byte(`{"room_id":`), quoted...)
	if len(event.Raw) > len("{}") {
		out = append(out, ',')
	}
	return append(out, event.Raw[1:]...)
}

func inRoomAll(roomID string, events gjson.Result) []json.RawMessage {
	out := []json.RawMessage{}
	for _, e := range events.Array() {
		out = append(out, inRoom(roomID, e))
	}
	return out
}

type eventsRequest struct {
	From    string `query:"from"`
	Timeout int64  `query:"timeout" min:"0"`
	// RoomID confines the stream to one room, of which the caller need not be a member.
	RoomID string `query:"room_id"`
}

type eventsResponse struct {
	Start string            `json:"start"`
	End   string            `json:"end"`
	Chunk []json.RawMessage `json:"chunk"`
}

// events: client-server API v1.19, GET /events, of a user's rooms or, with room_id, of one room.
func (a *API) events(ctx context.Context, by *httpapi.Caller, in *eventsRequest) (*eventsResponse, error) {
	since := Token{Generation: a.db.Generation(), Pos: a.db.Head()}
	if in.From != "" {
		var err error
		if since, err = parseToken(in.From); err != nil {
			return nil, err
		}
		if since.Generation != a.db.Generation() || since.Pos > a.db.Head() {
			return nil, mxerr.InvalidParam("from is not a token of this server")
		}
	}
	timeout := min(time.Duration(in.Timeout)*time.Millisecond, maxTimeout)
	if in.RoomID != "" {
		return a.peek(ctx, by, in.RoomID, since, timeout)
	}
	if by.Guest {
		return nil, mxerr.New(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests must say in which room")
	}
	raw, err := a.poll(ctx, a.legacyLook(by.UserID, since), timeout)
	if err != nil {
		return nil, err
	}
	answer := gjson.ParseBytes(*raw)
	out := &eventsResponse{Start: since.String(), End: answer.Get("next_batch").Str, Chunk: list(answer.Get("presence.events"))}
	for _, section := range []string{"invite", "join", "leave"} {
		answer.Get("rooms." + section).ForEach(func(id, room gjson.Result) bool {
			for _, part := range []string{"invite_state", "timeline", "ephemeral"} {
				out.Chunk = append(out.Chunk, inRoomAll(id.Str, room.Get(part+".events"))...)
			}
			return true
		})
	}
	return out, nil
}

const (
	// peekLook is how often a room that somebody peeks into is looked at. It costs nothing while nothing happens.
	peekLook = 250 * time.Millisecond
	// maxPeeked bounds the events of one answer.
	maxPeeked = 100
)

// peek waits for events of a room that the caller may look into.
func (a *API) peek(ctx context.Context, by *httpapi.Caller, roomID string, since Token, timeout time.Duration) (*eventsResponse, error) {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(peekLook)
	defer tick.Stop()
	for {
		acc, err := a.enter(ctx, by, roomID)
		if err != nil {
			return nil, err
		}
		seen := acc.room.Head().Pos
		out, err := a.peeked(ctx, by, acc, since)
		if err != nil || len(out.Chunk) > 0 {
			return out, err
		}
		for acc.room.Head().Pos <= seen {
			select {
			case <-tick.C:
				continue
			case <-deadline.C:
			case <-a.released:
			case <-ctx.Done():
			}
			return out, ctx.Err()
		}
	}
}

// peeked is what has come into a room since a token, oldest first.
func (a *API) peeked(ctx context.Context, by *httpapi.Caller, acc *access, since Token) (*eventsResponse, error) {
	arrived, err := a.rooms.Arrived(ctx, acc.room, since.Pos, acc.upTo, maxPeeked)
	if err != nil {
		return nil, err
	}
	end := since
	end.Pos = max(since.Pos, acc.upTo)
	if len(arrived) == maxPeeked {
		end.Pos = arrived[len(arrived)-1].Anchor
	}
	v, err := a.rooms.Viewer(ctx, acc.room, by.UserID, acc.upTo)
	if err != nil {
		return nil, err
	}
	if arrived, err = v.Filter(ctx, arrived); err != nil {
		return nil, err
	}
	out := &eventsResponse{Start: since.String(), End: end.String(), Chunk: make([]json.RawMessage, 0, len(arrived))}
	r := a.reader(by, v)
	for _, e := range arrived {
		b, err := a.rooms.AppendClientEvent(ctx, nil, acc.room, e, r)
		if err != nil {
			return nil, err
		}
		out.Chunk = append(out.Chunk, b)
	}
	return out, nil
}

type oneEventRequest struct {
	EventID string `path:"eventId"`
}

// oneEvent: client-server API v1.19, GET /events/{eventId}.
func (a *API) oneEvent(ctx context.Context, by *httpapi.Caller, in *oneEventRequest) (*rawJSON, error) {
	nids, err := a.rooms.RoomsWithEvent(ctx, in.EventID)
	if err != nil {
		return nil, err
	}
	for _, nid := range nids {
		room, err := a.rooms.RoomByNID(ctx, nid)
		if errors.Is(err, roomserver.ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out, err := a.event(ctx, by, &eventRequest{RoomID: room.ID, EventID: in.EventID})
		if e := mxerr.As(err); e != nil && e.Status < 500 {
			continue // it is in another room, or not for this user
		}
		return out, err
	}
	return nil, mxerr.NotFound("Event not found")
}
