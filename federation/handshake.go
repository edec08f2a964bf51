package federation

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	v1 = "/_matrix/federation/v1"
	v2 = "/_matrix/federation/v2"
)

// handshakeEndpoints let users of other servers into rooms of this one, and out of them.
func (a *API) handshakeEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", v1+"/make_join/{roomId}/{userId}", httpapi.Server, ratelimit.Federation, a.makeJoin),
		httpapi.New("GET", v1+"/make_leave/{roomId}/{userId}", httpapi.Server, ratelimit.Federation, a.makeLeave),
		httpapi.New("GET", v1+"/make_knock/{roomId}/{userId}", httpapi.Server, ratelimit.Federation, a.makeKnock),
		httpapi.New("PUT", v2+"/send_join/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.sendJoin).WithMaxBody(maxEventBody),
		httpapi.New("PUT", v2+"/send_leave/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.sendLeave).WithMaxBody(maxEventBody),
		httpapi.New("PUT", v1+"/send_join/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.sendJoinV1).WithMaxBody(maxEventBody),
		httpapi.New("PUT", v1+"/send_leave/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.sendLeaveV1).WithMaxBody(maxEventBody),
		httpapi.New("PUT", v1+"/send_knock/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.sendKnock).WithMaxBody(maxEventBody),
	}
}

// maxEventBody bounds a body that is one event, which may have unsigned members beside its 64 KiB.
const maxEventBody = 256 << 10

type makeRequest struct {
	RoomID   string   `path:"roomId"`
	UserID   string   `path:"userId"`
	Versions []string `query:"ver"`
}

type makeAnswer struct {
	RoomVersion string          `json:"room_version"`
	Event       json.RawMessage `json:"event"`
}

// makeJoin: server-server API v1.19, GET /make_join.
func (a *API) makeJoin(ctx context.Context, by *httpapi.Caller, in *makeRequest) (*makeAnswer, error) {
	return a.make(ctx, by, in, roomserver.Join)
}

// makeKnock: server-server API v1.19, GET /make_knock.
func (a *API) makeKnock(ctx context.Context, by *httpapi.Caller, in *makeRequest) (*makeAnswer, error) {
	return a.make(ctx, by, in, roomserver.Knock)
}

// makeLeave: server-server API v1.19, GET /make_leave. It knows no list of versions.
func (a *API) makeLeave(ctx context.Context, by *httpapi.Caller, in *makeRequest) (*makeAnswer, error) {
	return a.make(ctx, by, in, roomserver.Leave)
}

func (a *API) make(ctx context.Context, by *httpapi.Caller, in *makeRequest, membership string) (*makeAnswer, error) {
	if pdu.ServerOf(in.UserID) != by.Origin {
		return nil, mxerr.Forbidden("The user is not of your server")
	}
	find := a.openRoom
	if membership == roomserver.Leave {
		find = a.roomOf
	}
	room, err := find(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	if membership != roomserver.Leave && !supports(in.Versions, room.Version) {
		return nil, incompatible(room.Version.ID)
	}
	v, event, err := a.rooms.Template(ctx, roomserver.MembershipChange{RoomID: in.RoomID, Target: in.UserID, Membership: membership})
	if err != nil {
		return nil, err
	}
	return &makeAnswer{v.ID, event}, nil
}

type sendRequest struct {
	RoomID  string          `path:"roomId"`
	EventID string          `path:"eventId"`
	Event   json.RawMessage `body:"raw"`
}

type sendJoinRequest struct {
	RoomID  string          `path:"roomId"`
	EventID string          `path:"eventId"`
	Omit    bool            `query:"omit_members"`
	Event   json.RawMessage `body:"raw"`
}

// sendJoin: server-server API v1.19, PUT /v2/send_join.
func (a *API) sendJoin(ctx context.Context, by *httpapi.Caller, in *sendJoinRequest) (*sendJoinAnswer, error) {
	room, err := a.openRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	out := &sendJoinAnswer{omitted: in.Omit, servers: room.Servers()}
	e, err := a.admit(ctx, by, room, &sendRequest{in.RoomID, in.EventID, in.Event}, roomserver.Join)
	if err != nil {
		return nil, err
	}
	out.event = e
	return out, a.describe(ctx, room, out)
}

// sendJoinV1: server-server API v1.12, PUT /v1/send_join, the last version that has it. Older servers fall back to it.
func (a *API) sendJoinV1(ctx context.Context, by *httpapi.Caller, in *sendRequest) (*paired, error) {
	out, err := a.sendJoin(ctx, by, &sendJoinRequest{RoomID: in.RoomID, EventID: in.EventID, Event: in.Event})
	if err != nil {
		return nil, err
	}
	return &paired{out}, nil
}

// paired is an answer in the form of the first endpoints of this API: [200, {…}].
type paired struct {
	answer interface{ AppendJSON([]byte) ([]byte, error) }
}

// AppendJSON appends the answer.
func (p *paired) AppendJSON(dst []byte) ([]byte, error) {
	dst, err := p.answer.AppendJSON(append(dst, "[200,"...))
	return append(dst, ']'), err
}

// admit takes a membership event of another server's own user into a room, to send it on to the others.
func (a *API) admit(ctx context.Context, by *httpapi.Caller, room *roomserver.Room, in *sendRequest, to string) (*roomserver.Event, error) {
	want := membership{roomID: in.RoomID, eventID: in.EventID, sender: by.Origin, membership: to, own: true}
	p, err := want.parse(room.Version, in.Event)
	if err != nil {
		return nil, err
	}
	if p, err = a.authorise(ctx, room, p); err != nil {
		return nil, err
	}
	if err := a.verify(ctx, p); err != nil {
		return nil, err
	}
	e, err := a.rooms.Accept(ctx, in.RoomID, roomserver.Incoming{Event: p, Relay: true})
	var missing *roomserver.MissingError
	if errors.As(err, &missing) {
		err = mxerr.InvalidParam("The event refers to others that this server does not know; ask for a new template").With(err)
	}
	return e, err
}

// authorise signs a join that names one of our users as the one who authorises it, if the join rule's conditions are
// fulfilled.
func (a *API) authorise(ctx context.Context, room *roomserver.Room, p *pdu.Event) (*pdu.Event, error) {
	user, present := p.AuthorisedVia()
	if !present || !room.Version.RestrictedJoins || !a.rooms.IsLocal(user) {
		return p, nil
	}
	if err := a.rooms.AuthoriseJoin(ctx, room.ID, p.Sender); err != nil {
		return nil, err
	}
	return a.rooms.Sign(p)
}

// sendJoinAnswer is the room as it was before a join.
type sendJoinAnswer struct {
	event       *roomserver.Event
	state, auth events
	omitted     bool
	servers     []string
}

// describe fills the answer with state and auth chain.
func (a *API) describe(ctx context.Context, room *roomserver.Room, out *sendJoinAnswer) error {
	state, err := a.rooms.StateEvents(ctx, room, out.event.StateBefore)
	if err != nil {
		return err
	}
	if out.omitted {
		if state, err = a.withoutMembers(ctx, room, state); err != nil {
			return err
		}
	}
	auth, err := a.rooms.AuthChain(ctx, room, append(state[:len(state):len(state)], out.event))
	if err != nil {
		return err
	}
	out.state, out.auth = state, auth
	if out.omitted {
		listed := make(map[int64]bool, len(state))
		for _, e := range state {
			listed[e.NID] = true
		}
		out.auth = nil
		for _, e := range auth {
			if !listed[e.NID] {
				out.auth = append(out.auth, e)
			}
		}
	}
	return nil
}

// withoutMembers leaves the memberships out of a state, but for those after whom a room without a name is named.
func (a *API) withoutMembers(ctx context.Context, room *roomserver.Room, state []*roomserver.Event) ([]*roomserver.Event, error) {
	named := false
	for _, e := range state {
		named = named || e.Is("m.room.name", "") || e.Is("m.room.canonical_alias", "")
	}
	keep := map[string]bool{}
	if !named {
		heroes, err := a.rooms.Heroes(ctx, room, "")
		if err != nil {
			return nil, err
		}
		for _, u := range heroes {
			keep[u] = true
		}
	}
	var out []*roomserver.Event
	for _, e := range state {
		if e.Type != "m.room.member" || keep[*e.StateKey] {
			out = append(out, e)
		}
	}
	return out, nil
}

// AppendJSON appends the answer to send_join.
func (s *sendJoinAnswer) AppendJSON(dst []byte) ([]byte, error) {
	dst, err := s.auth.AppendJSON(append(dst, `{"auth_chain":`...))
	if err != nil {
		return nil, err
	}
	if dst, err = s.state.AppendJSON(append(dst, `,"state":`...)); err != nil {
		return nil, err
	}
	dst = append(append(dst, `,"event":`...), s.event.JSON()...)
	dst = append(dst, `,"members_omitted":`...)
	if s.omitted {
		dst = append(dst, "true"...)
	} else {
		dst = append(dst, "false"...)
	}
	dst = append(dst, `,"servers_in_room":[`...)
	for i, name := range s.servers {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = canonicaljson.AppendString(dst, name)
	}
	return append(dst, "]}"...), nil
}

// sendLeave: server-server API v1.19, PUT /v2/send_leave.
func (a *API) sendLeave(ctx context.Context, by *httpapi.Caller, in *sendRequest) (*httpapi.Empty, error) {
	room, err := a.roomOf(ctx, by, in.RoomID)
	if err == nil {
		_, err = a.admit(ctx, by, room, in, roomserver.Leave)
	}
	return nil, err
}

// sendLeaveV1: server-server API v1.12, PUT /v1/send_leave, the last version that has it.
func (a *API) sendLeaveV1(ctx context.Context, by *httpapi.Caller, in *sendRequest) (*jsonAnswer, error) {
	if _, err := a.sendLeave(ctx, by, in); err != nil {
		return nil, err
	}
	return new(jsonAnswer("[200,{}]")), nil
}

type sendKnockAnswer struct {
	State json.RawMessage `json:"knock_room_state"`
}

// sendKnock: server-server API v1.19, PUT /send_knock.
func (a *API) sendKnock(ctx context.Context, by *httpapi.Caller, in *sendRequest) (*sendKnockAnswer, error) {
	room, err := a.openRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	if _, err := a.admit(ctx, by, room, in, roomserver.Knock); err != nil {
		return nil, err
	}
	state, err := a.introduction(ctx, room, "")
	if err != nil {
		return nil, err
	}
	raw, err := state.AppendJSON(nil)
	return &sendKnockAnswer{raw}, err
}

// introducing are the state events that help someone outside to recognise a room.
//
// spec: client-server-api v1.19 "Stripped state"
var introducing = []string{
	"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules", "m.room.canonical_alias", "m.room.encryption",
}

// introduction is the state that goes out with invites and to those who knock: whole events (MSC4311), among them the
// membership of the inviter, if there is one.
func (a *API) introduction(ctx context.Context, room *roomserver.Room, inviter string) (events, error) {
	root := room.Head().State
	var out events
	for _, typ := range introducing {
		e, err := a.rooms.StateEvent(ctx, room, root, typ, "")
		if err != nil {
			return nil, err
		}
		if e != nil {
			out = append(out, e)
		}
	}
	if inviter != "" {
		e, err := a.rooms.StateEvent(ctx, room, root, "m.room.member", inviter)
		if err != nil {
			return nil, err
		}
		if e != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// serverOfRoom is the server that a room's id names, "" where it names none (room version 12).
func serverOfRoom(id string) string {
	_, server, _ := strings.Cut(id, ":")
	return server
}
