package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// inviteEndpoints take invites to local users.
func (a *API) inviteEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("PUT", v2+"/invite/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.invited).WithMaxBody(maxInviteBody),
		httpapi.New("PUT", v1+"/invite/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.invitedV1).WithMaxBody(maxInviteBody),
	}
}

const (
	// maxInviteBody bounds an invite with the state that introduces the room, in bytes.
	maxInviteBody = 2 << 20
	// maxStripped bounds how many events introduce a room.
	maxStripped = 100
)

type invitedRequest struct {
	RoomID  string            `path:"roomId"`
	EventID string            `path:"eventId"`
	Version string            `json:"room_version"`
	Event   json.RawMessage   `json:"event"`
	State   []json.RawMessage `json:"invite_room_state"`
}

type invitedAnswer struct {
	Event json.RawMessage `json:"event"`
}

// invited: server-server API v1.19, PUT /v2/invite.
func (a *API) invited(ctx context.Context, by *httpapi.Caller, in *invitedRequest) (*invitedAnswer, error) {
	v, ok := pdu.Lookup(in.Version)
	if !ok {
		return nil, mxerr.New(http.StatusBadRequest, "M_INCOMPATIBLE_ROOM_VERSION", "This server does not support that room version").
			WithField("room_version", in.Version)
	}
	p, err := a.takeInvite(ctx, by, v, in)
	if err != nil {
		return nil, err
	}
	return &invitedAnswer{p.JSON()}, nil
}

type invitedV1Request struct {
	RoomID  string          `path:"roomId"`
	EventID string          `path:"eventId"`
	Event   json.RawMessage `body:"raw"`
}

// invitedV1Answer is [200, {"event": …}].
type invitedV1Answer struct{ event *pdu.Event }

// AppendJSON appends the answer.
func (i *invitedV1Answer) AppendJSON(dst []byte) ([]byte, error) {
	return append(append(append(dst, `[200,{"event":`...), i.event.JSON()...), "}]"...), nil
}

// invitedV1: server-server API v1.19, PUT /v1/invite, which is for the room versions 1 and 2.
func (a *API) invitedV1(ctx context.Context, by *httpapi.Caller, in *invitedV1Request) (*invitedV1Answer, error) {
	v, _ := pdu.Lookup("1") // which reads the events of version 2 as well
	var state []json.RawMessage
	for _, s := range gjson.GetBytes(in.Event, "unsigned.invite_room_state").Array() {
		state = append(state, json.RawMessage(s.Raw))
	}
	p, err := a.takeInvite(ctx, by, v, &invitedRequest{RoomID: in.RoomID, EventID: in.EventID, Event: in.Event, State: state})
	if err != nil {
		return nil, err
	}
	return &invitedV1Answer{p}, nil
}

// takeInvite checks an invite, keeps it for the user unless the room itself will, and returns it signed.
func (a *API) takeInvite(ctx context.Context, by *httpapi.Caller, v *pdu.Version, in *invitedRequest) (*pdu.Event, error) {
	want := membership{roomID: in.RoomID, eventID: in.EventID, sender: by.Origin, membership: roomserver.Invite}
	p, err := want.parse(v, in.Event)
	if err != nil {
		return nil, err
	}
	user := *p.StateKey
	if !a.rooms.IsLocal(user) || !pdu.ValidUserID(user) {
		return nil, mxerr.InvalidParam("The state key is no user of this server")
	}
	if err := a.verify(ctx, p); err != nil {
		return nil, err
	}
	stripped, err := a.stripped(ctx, v, in.RoomID, in.State)
	if err != nil {
		return nil, err
	}
	if err := a.mayInvite(ctx, user, p.Sender); err != nil {
		return nil, err
	}
	resident := false
	switch room, err := a.rooms.Room(ctx, in.RoomID); {
	case err == nil:
		if resident = room.Resident(); resident {
			if ok, err := a.allowed(ctx, room, by.Origin); err != nil || !ok {
				return nil, errors.Join(err, mxerr.Forbidden("The room's access control list denies your server"))
			}
		}
	case !errors.Is(err, roomserver.ErrUnknownRoom):
		return nil, err
	}
	signed, err := a.rooms.Sign(p)
	if err != nil || resident { // then it comes in a transaction, too
		return signed, err
	}
	return signed, a.rooms.PutOutside(ctx, roomserver.Outside{
		User: user, RoomID: in.RoomID, Version: v, Membership: roomserver.Invite, Event: signed, Stripped: stripped,
	})
}

// stripped checks the state that introduces a room and returns it as clients get it. From room version 12 on it must be
// made of sound events, m.room.create among them; in older versions what older servers send is let through. Where nothing
// is an event, it is let through in all versions: servers went on sending state in that form long after they had version 12,
// and an invite is worth more than the proof of what it says of the room.
//
// spec: server-server-api v1.19 "PUT /v2/invite" (MSC4311)
func (a *API) stripped(ctx context.Context, v *pdu.Version, roomID string, state []json.RawMessage) (json.RawMessage, error) {
	if len(state) > maxStripped {
		return nil, mxerr.InvalidParam("invite_room_state has too many events")
	}
	strict := v.RoomIDIsCreateHash && slices.ContainsFunc(state, claimsEvent)
	list := make([]*pdu.Event, len(state))
	var parsed []*pdu.Event
	created := false
	for i, raw := range state {
		p, err := pdu.Parse(v, raw)
		if err != nil || p.RoomID != roomID || !p.IsState() {
			if strict {
				return nil, mxerr.InvalidParam("invite_room_state has what is not a state event of the room")
			}
			continue
		}
		created = created || p.Is("m.room.create", "")
		list[i], parsed = p, append(parsed, p)
	}
	if strict && !created {
		return nil, mxerr.InvalidParam("invite_room_state lacks m.room.create")
	}
	wrong := map[*pdu.Event]bool{}
	for i, err := range a.keys.VerifyEvents(ctx, parsed) {
		if err != nil && strict {
			return nil, mxerr.InvalidParam("invite_room_state has an event with a wrong signature").With(err)
		}
		wrong[parsed[i]] = err != nil
	}
	out := []byte{'['}
	add := func(event []byte) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, event...)
	}
	for i, p := range list {
		switch {
		case p == nil:
			if s := oldStripped(state[i]); s != nil {
				add(s)
			}
		case !wrong[p]:
			add(p.AppendStripped(nil))
		}
	}
	return append(out, ']'), nil
}

// claimsEvent tells whether a member of invite_room_state is meant as an event, with signatures to check.
func claimsEvent(raw json.RawMessage) bool { return gjson.GetBytes(raw, "signatures").Exists() }

// oldStripped takes from stripped state, as servers used to send it, what clients get; nil if it is none.
func oldStripped(raw json.RawMessage) []byte {
	var s struct {
		Content  map[string]json.RawMessage `json:"content"`
		Sender   string                     `json:"sender"`
		StateKey *string                    `json:"state_key"`
		Type     string                     `json:"type"`
	}
	if json.Unmarshal(raw, &s) != nil || s.Content == nil || s.StateKey == nil || s.Type == "" || !pdu.ValidUserID(s.Sender) {
		return nil
	}
	out, err := json.Marshal(s)
	if err != nil {
		return nil
	}
	return out
}
