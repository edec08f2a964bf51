package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// thirdPartyEndpoints turn invites to third-party identifiers into invites to users.
//
// spec: server-server-api v1.19 "Third-party invites"
func (a *API) thirdPartyEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("PUT", v1+"/exchange_third_party_invite/{roomId}", httpapi.Server, ratelimit.Federation, a.exchange),
		httpapi.New("PUT", v1+"/3pid/onbind", httpapi.Anyone, ratelimit.Federation, a.bound),
	}
}

// Invite invites a user of another server to a room that this server is in: that server has to sign the event before it
// becomes part of the room. The error is a *mxerr.Error: what the other server said, or 502 M_UNKNOWN.
func (a *API) Invite(ctx context.Context, m roomserver.MembershipChange) error {
	p, err := a.rooms.PrepareMembership(ctx, m)
	if err != nil {
		return err
	}
	room, err := a.rooms.Room(ctx, m.RoomID)
	if err != nil {
		return err
	}
	signed, err := a.signInvite(ctx, room, p)
	if err != nil {
		return err
	}
	_, err = a.rooms.Accept(ctx, m.RoomID, roomserver.Incoming{Event: signed})
	return err
}

// signInvite gets the signature of the invited user's server.
func (a *API) signInvite(ctx context.Context, room *roomserver.Room, p *pdu.Event) (*pdu.Event, error) {
	server := pdu.ServerOf(*p.StateKey)
	state, err := a.introduction(ctx, room, p.Sender)
	if err != nil {
		return nil, err
	}
	rawState, err := state.AppendJSON(nil)
	if err != nil {
		return nil, err
	}
	answer, err := a.sendInvite(ctx, server, room, p, rawState)
	var said *client.Error
	switch {
	case errors.As(err, &said) && said.Status >= 400 && said.Status < 500 && said.Code != "":
		return nil, passOn(said)
	case err != nil:
		return nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The server of the invited user could not be reached").With(err)
	}
	back, err := pdu.Parse(room.Version, answer)
	if err == nil && back.ID != p.ID {
		err = errors.New("it is another event")
	}
	if err == nil {
		p, err = a.countersigned(ctx, p, back, server)
	}
	if err != nil {
		return nil, mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The server of the invited user gave no sound answer").With(err)
	}
	return p, nil
}

// sendInvite makes the request of version 2, and where the other server does not know it, that of version 1.
func (a *API) sendInvite(ctx context.Context, server string, room *roomserver.Room, p *pdu.Event, state json.RawMessage) (json.RawMessage, error) {
	body, err := json.Marshal(invitedBody{room.Version.ID, p.JSON(), state})
	if err != nil {
		return nil, fmt.Errorf("encode an invite: %w", err)
	}
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodPut, Path: client.Path(v2+"/invite/%s/%s", room.ID, p.ID), Body: body,
	})
	var said *client.Error
	if errors.As(err, &said) && (said.Status == 400 || said.Status == 404) && room.Version.EventFormat == 1 {
		event := append(append(p.JSON()[:len(p.JSON())-1:len(p.JSON())-1], `,"unsigned":{"invite_room_state":`...), state...)
		answer, err = a.client.Do(ctx, client.Request{
			Server: server, Method: http.MethodPut, Path: client.Path(v1+"/invite/%s/%s", room.ID, p.ID), Body: append(event, "}}"...),
		})
		return json.RawMessage(gjson.GetBytes(answer, "1.event").Raw), err
	}
	return json.RawMessage(gjson.GetBytes(answer, "event").Raw), err
}

type invitedBody struct {
	Version string          `json:"room_version"`
	Event   json.RawMessage `json:"event"`
	State   json.RawMessage `json:"invite_room_state"`
}

// countersigned is an event with the valid signatures that a server added to a copy of it.
func (a *API) countersigned(ctx context.Context, p, copied *pdu.Event, server string) (*pdu.Event, error) {
	at := keys.Now
	err := fmt.Errorf("no signature of %s", server)
	signatures := copied.Signatures(server)
	for _, s := range signatures[:min(len(signatures), 10)] {
		key, bad := a.keys.Key(ctx, server, s.KeyID, at)
		if bad == nil {
			bad = copied.VerifySignature(server, s.KeyID, key)
		}
		if bad != nil {
			err = bad
			continue
		}
		return p.AddSignature(server, s.KeyID, s.Value)
	}
	return nil, err
}

type exchangeRequest struct {
	RoomID   string          `path:"roomId"`
	Type     string          `json:"type" required:"true"`
	InRoom   string          `json:"room_id" required:"true"`
	Sender   string          `json:"sender" required:"true"`
	StateKey string          `json:"state_key" required:"true"`
	Content  json.RawMessage `json:"content" required:"true"`
}

// exchange: server-server API v1.19, PUT /exchange_third_party_invite.
func (a *API) exchange(ctx context.Context, by *httpapi.Caller, in *exchangeRequest) (*httpapi.Empty, error) {
	if _, err := a.roomOf(ctx, by, in.RoomID); err != nil {
		return nil, err
	}
	content := gjson.ParseBytes(in.Content)
	invite := content.Get("third_party_invite")
	switch {
	case in.Type != "m.room.member" || in.InRoom != in.RoomID || content.Get("membership").Str != roomserver.Invite || !invite.IsObject():
		return nil, mxerr.InvalidParam("This is no third-party invite to the room")
	case !a.rooms.IsLocal(in.Sender) || !pdu.ValidUserID(in.StateKey) || invite.Get("signed.mxid").Str != in.StateKey:
		return nil, mxerr.InvalidParam("sender or state_key are not those of the invite")
	}
	return nil, a.inviteThirdParty(ctx, in.RoomID, in.Sender, in.StateKey, json.RawMessage(invite.Raw))
}

// inviteThirdParty invites the user to whom a third-party identifier belongs, in the name of who invited that. The
// room's rules check the identity server's signature.
func (a *API) inviteThirdParty(ctx context.Context, roomID, sender, user string, invite json.RawMessage) error {
	m := roomserver.MembershipChange{
		RoomID: roomID, Sender: sender, Target: user, Membership: roomserver.Invite,
		From:    []string{roomserver.Leave, roomserver.Invite, roomserver.Knock},
		Content: map[string]any{"third_party_invite": invite},
	}
	if a.rooms.IsLocal(user) {
		if err := a.mayInvite(ctx, user, sender); err != nil {
			return err
		}
		_, err := a.rooms.SetMembership(ctx, m)
		return err
	}
	return a.Invite(ctx, m)
}

type boundRequest struct {
	MXID    string            `json:"mxid" required:"true"`
	Invites []json.RawMessage `json:"invites"`
}

// maxBound bounds the invites that wait for one third-party identifier.
const maxBound = 100

// bound: server-server API v1.19, PUT /3pid/onbind. An identity server tells that an identifier belongs to a local user
// now. Nothing of it is believed: the invites are signed by the identity server that the room names.
func (a *API) bound(ctx context.Context, _ *httpapi.Caller, in *boundRequest) (*httpapi.Empty, error) {
	if !a.rooms.IsLocal(in.MXID) || !pdu.ValidUserID(in.MXID) {
		return nil, mxerr.InvalidParam("mxid is no user of this server")
	}
	for _, raw := range in.Invites[:min(len(in.Invites), maxBound)] {
		invite := gjson.ParseBytes(raw)
		if err := a.exchangeBound(ctx, in.MXID, invite); err != nil {
			a.log.WithError(err).WithField("room_id", invite.Get("room_id").Str).Info("an invite to a third-party identifier could not be exchanged")
		}
	}
	return nil, nil
}

// exchangeBound turns one invite of a third-party identifier into one of the user: here or on the inviter's server.
func (a *API) exchangeBound(ctx context.Context, user string, invite gjson.Result) error {
	roomID, sender, signed := invite.Get("room_id").Str, invite.Get("sender").Str, invite.Get("signed")
	if signed.Get("mxid").Str != user || !pdu.ValidUserID(sender) || roomID == "" {
		return errors.New("the invite is of another user or malformed")
	}
	thirdParty, err := json.Marshal(map[string]any{"display_name": invite.Get("address").Str, "signed": json.RawMessage(signed.Raw)})
	if err != nil {
		return err
	}
	if a.rooms.IsLocal(sender) {
		return a.inviteThirdParty(ctx, roomID, sender, user, thirdParty)
	}
	body, err := json.Marshal(map[string]any{
		"type": "m.room.member", "room_id": roomID, "sender": sender, "state_key": user,
		"content": map[string]any{"membership": roomserver.Invite, "third_party_invite": json.RawMessage(thirdParty)},
	})
	if err != nil {
		return err
	}
	for _, server := range slices.Compact([]string{pdu.ServerOf(sender), serverOfRoom(roomID)}) {
		if server == "" || server == a.name {
			continue
		}
		_, err = a.client.Do(ctx, client.Request{
			Server: server, Method: http.MethodPut, Path: client.Path(v1+"/exchange_third_party_invite/%s", roomID), Body: body,
		})
		if err == nil {
			return nil
		}
	}
	return err
}
