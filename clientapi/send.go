package clientapi

import (
	"context"
	"encoding/json"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

type eventIDResponse struct {
	EventID string `json:"event_id"`
}

// sendResponse has the id of the event, or the one of a delayed event.
type sendResponse struct {
	EventID string `json:"event_id,omitempty"`
	DelayID string `json:"delay_id,omitempty"`
}

// sendOptions are the parameters of unstable features for sending events.
type sendOptions struct {
	// Delay is after how many milliseconds the event is to be sent (a former version of MSC4140).
	Delay *int64 `query:"org.matrix.msc4140.delay"`
	// Sticky is for how many milliseconds the event is sticky (MSC4354).
	Sticky *int64 `query:"org.matrix.msc4354.sticky_duration_ms" min:"0" max:"3600000"`
	// Attach are URIs of media that belong to the event (MSC3911).
	Attach []string `query:"org.matrix.msc3911.attach_media"`
}

// attach adds to a draft what attaches media to the event.
func (a *API) attach(ctx context.Context, o *sendOptions, d *roomserver.Draft) (err error) {
	if len(o.Attach) == 0 {
		return nil
	}
	if a.options.Attach == nil || o.Delay != nil {
		return mxerr.InvalidParam("Media cannot be attached to this event")
	}
	d.Beside, err = a.options.Attach(ctx, d.Sender, o.Attach)
	return err
}

// delay schedules an event.
func (a *API) delay(ctx context.Context, by *httpapi.Caller, roomID string, d roomserver.Draft, delayMS int64) (*sendResponse, error) {
	id, err := a.options.Delay(ctx, by, roomID, d, delayMS)
	if err != nil {
		return nil, err
	}
	return &sendResponse{DelayID: id}, nil
}

// SendDelayed sends an event whose time has come, as if its sender had just asked for it.
func (a *API) SendDelayed(ctx context.Context, roomID string, d roomserver.Draft) (eventID string, err error) {
	if d.StateKey == nil {
		if d.Type == "m.room.redaction" {
			d.Redacts = gjson.GetBytes(d.Content, "redacts").Str
		}
		return a.rooms.Send(ctx, roomID, d)
	}
	in := &putStateRequest{RoomID: roomID, Type: d.Type, StateKey: *d.StateKey, Content: d.Content}
	by := &httpapi.Caller{UserID: d.Sender}
	if err := a.callerMayPutState(ctx, by, in); err != nil {
		return "", err
	}
	if d.Content, err = a.stateContent(ctx, d.Sender, in); err != nil {
		return "", err
	}
	if in.Type == "m.room.member" && !a.rooms.IsLocal(in.StateKey) && gjson.GetBytes(d.Content, "membership").Str == roomserver.Invite {
		sent, err := a.inviteByState(ctx, by, in, d.Content)
		if err != nil {
			return "", err
		}
		return sent.EventID, nil
	}
	return a.rooms.Send(ctx, roomID, d)
}

type sendRequest struct {
	RoomID  string          `path:"roomId"`
	Type    string          `path:"eventType"`
	TxnID   string          `path:"txnId"`
	TS      int64           `query:"ts" min:"0"`
	Content json.RawMessage `body:"raw" default:"null"`
	sendOptions
}

// send: client-server API v1.19, PUT /rooms/{roomId}/send/{eventType}/{txnId}. Only who asks again for a delayed event
// need not say once more what it is.
func (a *API) send(ctx context.Context, by *httpapi.Caller, in *sendRequest) (*sendResponse, error) {
	if in.Content[0] != '{' {
		if in.Content = nil; in.Delay == nil {
			return nil, mxerr.NotJSON("The request has no body")
		}
	}
	d := roomserver.Draft{
		Sender: by.UserID, Type: in.Type, Content: in.Content, OriginServerTS: timestamp(by, in.TS), StickyMS: in.Sticky,
		Txn: &roomserver.Txn{User: by.UserID, Device: by.DeviceID, Path: "send/" + in.RoomID + "/" + in.Type, ID: in.TxnID},
	}
	if in.Type == "m.room.redaction" {
		d.Redacts = gjson.GetBytes(in.Content, "redacts").Str
	}
	if err := a.suspendedMaySend(ctx, by, in.RoomID, d.Redacts); err != nil {
		return nil, err
	}
	if err := a.attach(ctx, &in.sendOptions, &d); err != nil {
		return nil, err
	}
	if in.Delay != nil {
		return a.delay(ctx, by, in.RoomID, d, *in.Delay)
	}
	id, err := a.rooms.Send(ctx, in.RoomID, d)
	if err != nil {
		return nil, err
	}
	return &sendResponse{EventID: id}, nil
}

// timestamp is the time an application service gives its event; users have no say in it
// (application service API v1.19, "Timestamp massaging").
func timestamp(by *httpapi.Caller, ts int64) int64 {
	if by.Appservice == nil {
		return 0
	}
	return ts
}

type putStateRequest struct {
	RoomID   string          `path:"roomId"`
	Type     string          `path:"eventType"`
	StateKey string          `path:"stateKey"`
	TS       int64           `query:"ts" min:"0"`
	Content  json.RawMessage `body:"raw"`
	sendOptions
}

// putState: client-server API v1.19, PUT /rooms/{roomId}/state/{eventType}/{stateKey}.
func (a *API) putState(ctx context.Context, by *httpapi.Caller, in *putStateRequest) (*sendResponse, error) {
	if err := a.callerMayPutState(ctx, by, in); err != nil {
		return nil, err
	}
	d := roomserver.Draft{
		Sender: by.UserID, Type: in.Type, StateKey: &in.StateKey, Content: in.Content, OriginServerTS: timestamp(by, in.TS), StickyMS: in.Sticky,
	}
	if err := a.attach(ctx, &in.sendOptions, &d); err != nil {
		return nil, err
	}
	if in.Delay != nil {
		return a.delay(ctx, by, in.RoomID, d, *in.Delay)
	}
	var err error
	if d.Content, err = a.stateContent(ctx, by.UserID, in); err != nil {
		return nil, err
	}
	if in.Type == "m.room.member" && !a.rooms.IsLocal(in.StateKey) && gjson.GetBytes(d.Content, "membership").Str == roomserver.Invite {
		return a.inviteByState(ctx, by, in, d.Content)
	}
	id, err := a.rooms.Send(ctx, in.RoomID, d)
	if err != nil {
		return nil, err
	}
	return &sendResponse{EventID: id}, nil
}

// stateContent checks the content of state and returns what of it is sent.
func (a *API) stateContent(ctx context.Context, sender string, in *putStateRequest) (json.RawMessage, error) {
	if err := a.mayPutState(ctx, sender, in); err != nil {
		return nil, err
	}
	if in.Type == "m.room.canonical_alias" && in.StateKey == "" {
		if err := a.checkCanonicalAlias(ctx, in); err != nil {
			return nil, err
		}
	}
	if in.Type != "m.room.member" {
		return in.Content, nil
	}
	return withoutAuthoriser(in.Content)
}

// withoutAuthoriser drops join_authorised_via_users_server from the content of a membership. It is the server's to say,
// and clients send it back when they change a name in the event that they have.
func withoutAuthoriser(content json.RawMessage) (json.RawMessage, error) {
	const key = "join_authorised_via_users_server"
	if !gjson.GetBytes(content, key).Exists() {
		return content, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(content, &members); err != nil {
		return nil, mxerr.NotJSON("The content is not valid JSON").With(err)
	}
	delete(members, key)
	return json.Marshal(members)
}

func (a *API) checkCanonicalAlias(ctx context.Context, in *putStateRequest) error {
	content := gjson.ParseBytes(in.Content)
	for _, alias := range append(content.Get("alt_aliases").Array(), content.Get("alias")) {
		if alias.Type == gjson.Null || alias.Raw == `""` { // none
			continue
		}
		if err := checkAlias(alias.Str); err != nil {
			return err
		}
	}
	room, err := a.rooms.Room(ctx, in.RoomID)
	if isUnknown(err) {
		return nil // Send answers
	}
	if err != nil {
		return err
	}
	current, err := a.rooms.StateEvent(ctx, room, room.Head().State, in.Type, "")
	if err != nil {
		return err
	}
	return a.rooms.CheckCanonicalAlias(ctx, in.RoomID, in.Content, current)
}

type redactRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `path:"eventId"`
	TxnID   string `path:"txnId"`
	Reason  string `json:"reason"`
}

// redact: client-server API v1.19, PUT /rooms/{roomId}/redact/{eventId}/{txnId}.
func (a *API) redact(ctx context.Context, by *httpapi.Caller, in *redactRequest) (*eventIDResponse, error) {
	content := map[string]string{}
	if in.Reason != "" {
		content["reason"] = in.Reason
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, mxerr.BadJSON("reason cannot be encoded").With(err)
	}
	if err := a.suspendedMaySend(ctx, by, in.RoomID, in.EventID); err != nil {
		return nil, err
	}
	id, err := a.rooms.Send(ctx, in.RoomID, roomserver.Draft{
		Sender: by.UserID, Type: "m.room.redaction", Content: raw, Redacts: in.EventID,
		Txn: &roomserver.Txn{User: by.UserID, Device: by.DeviceID, Path: "redact/" + in.RoomID + "/" + in.EventID, ID: in.TxnID},
	})
	if err != nil {
		return nil, err
	}
	return &eventIDResponse{id}, nil
}
