package federation

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/roomserver"
)

// readingEndpoints tell other servers what they miss of rooms that they are in.
//
// spec: server-server-api v1.19 "Backfilling and retrieving missing events", "Retrieving events"
func (a *API) readingEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", v1+"/event/{eventId}", httpapi.Server, ratelimit.Federation, a.event),
		httpapi.New("GET", v1+"/state/{roomId}", httpapi.Server, ratelimit.Federation, a.state),
		httpapi.New("GET", v1+"/state_ids/{roomId}", httpapi.Server, ratelimit.Federation, a.stateIDs),
		httpapi.New("GET", v1+"/event_auth/{roomId}/{eventId}", httpapi.Server, ratelimit.Federation, a.eventAuth),
		httpapi.New("GET", v1+"/backfill/{roomId}", httpapi.Server, ratelimit.Federation, a.backfill),
		httpapi.New("POST", v1+"/get_missing_events/{roomId}", httpapi.Server, ratelimit.Federation, a.getMissingEvents),
		httpapi.New("GET", v1+"/timestamp_to_event/{roomId}", httpapi.Server, ratelimit.Federation, a.timestampToEvent),
		httpapi.New("POST", relationshipsPath, httpapi.Server, ratelimit.Federation, a.relationships),
	}
}

const (
	// maxBackfill bounds the events of one answer to /backfill.
	maxBackfill = 100
	// maxMissing bounds the events of one answer to /get_missing_events.
	maxMissing = 20
	// maxGiven bounds how many event ids a request may name.
	maxGiven = 50
)

// pdus is an answer with events, as far as a server may see them.
type pdus struct {
	origin, key string
	list        []json.RawMessage
}

// AppendJSON appends the answer.
func (p *pdus) AppendJSON(dst []byte) ([]byte, error) {
	dst = append(dst, '{')
	if p.origin != "" {
		dst = canonicaljson.AppendString(append(dst, `"origin":`...), p.origin)
		dst = strconv.AppendInt(append(dst, `,"origin_server_ts":`...), time.Now().UnixMilli(), 10)
		dst = append(dst, ',')
	}
	dst = append(append(append(dst, '"'), p.key...), `":[`...)
	for i, e := range p.list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, e...)
	}
	return append(dst, "]}"...), nil
}

// shown renders events for a server; what it may not see is redacted.
func (a *API) shown(ctx context.Context, room *roomserver.Room, server string, list []*roomserver.Event) ([]json.RawMessage, error) {
	v := a.rooms.ServerViewer(room, server)
	out := make([]json.RawMessage, len(list))
	for i, e := range list {
		ok, err := v.Sees(ctx, e)
		if err != nil {
			return nil, err
		}
		if out[i] = e.JSON(); !ok {
			out[i] = e.Redact().JSON()
		}
	}
	return out, nil
}

// unexpired leaves out messages that have expired.
func (a *API) unexpired(ctx context.Context, room *roomserver.Room, list []*roomserver.Event) ([]*roomserver.Event, error) {
	horizon, err := a.rooms.Horizon(ctx, room)
	if err != nil || horizon == 0 {
		return list, err
	}
	return slices.DeleteFunc(list, func(e *roomserver.Event) bool { return !e.IsState() && e.OriginServerTS < horizon }), nil
}

type eventRequest struct {
	EventID string `path:"eventId"`
}

// event: server-server API v1.19, GET /event.
func (a *API) event(ctx context.Context, by *httpapi.Caller, in *eventRequest) (*pdus, error) {
	room, e, err := a.rooms.FindEvent(ctx, in.EventID)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, mxerr.NotFound("Event not found")
	}
	if err != nil {
		return nil, err
	}
	if _, err := a.sharedRoom(ctx, by, room.ID); err != nil {
		return nil, err
	}
	kept, err := a.unexpired(ctx, room, []*roomserver.Event{e})
	if err != nil {
		return nil, err
	}
	if e.Rejected() || len(kept) == 0 {
		return nil, mxerr.NotFound("Event not found")
	}
	out := &pdus{origin: a.name, key: "pdus", list: []json.RawMessage{e.JSON()}}
	if !e.Outlier() { // those are state, which every server in the room knows
		out.list, err = a.shown(ctx, room, by.Origin, []*roomserver.Event{e})
	}
	return out, err
}

type stateRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `query:"event_id" required:"true"`
}

// stateAt finds the state before an event, and its auth chain.
func (a *API) stateAt(ctx context.Context, by *httpapi.Caller, in *stateRequest) (state, auth events, err error) {
	room, err := a.wholeRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, nil, err
	}
	e, err := a.eventIn(ctx, room, in.EventID)
	if err != nil {
		return nil, nil, err
	}
	if state, err = a.rooms.StateEvents(ctx, room, e.StateBefore); err != nil {
		return nil, nil, err
	}
	auth, err = a.rooms.AuthChain(ctx, room, state)
	return state, auth, err
}

// eventIn returns an event of a room that has a state.
func (a *API) eventIn(ctx context.Context, room *roomserver.Room, id string) (*roomserver.Event, error) {
	e, err := a.rooms.Event(ctx, room, id)
	if errors.Is(err, roomserver.ErrUnknownEvent) || err == nil && e.Outlier() {
		return nil, mxerr.NotFound("Could not find event " + id)
	}
	return e, err
}

// stateAnswer is a state with its auth chain, as events or as their ids.
type stateAnswer struct {
	state, auth events
	ids         bool
}

// AppendJSON appends the answer.
func (s *stateAnswer) AppendJSON(dst []byte) ([]byte, error) {
	if s.ids {
		dst = appendIDs(append(dst, `{"auth_chain_ids":`...), s.auth)
		dst = appendIDs(append(dst, `,"pdu_ids":`...), s.state)
		return append(dst, '}'), nil
	}
	dst, err := s.auth.AppendJSON(append(dst, `{"auth_chain":`...))
	if err == nil {
		dst, err = s.state.AppendJSON(append(dst, `,"pdus":`...))
	}
	return append(dst, '}'), err
}

func appendIDs(dst []byte, list events) []byte {
	dst = append(dst, '[')
	for i, e := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = canonicaljson.AppendString(dst, e.ID)
	}
	return append(dst, ']')
}

// state: server-server API v1.19, GET /state.
func (a *API) state(ctx context.Context, by *httpapi.Caller, in *stateRequest) (*stateAnswer, error) {
	state, auth, err := a.stateAt(ctx, by, in)
	return &stateAnswer{state, auth, false}, err
}

// stateIDs: server-server API v1.19, GET /state_ids.
func (a *API) stateIDs(ctx context.Context, by *httpapi.Caller, in *stateRequest) (*stateAnswer, error) {
	state, auth, err := a.stateAt(ctx, by, in)
	return &stateAnswer{state, auth, true}, err
}

type eventAuthRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `path:"eventId"`
}

type eventAuthAnswer struct{ auth events }

// AppendJSON appends the answer.
func (e *eventAuthAnswer) AppendJSON(dst []byte) ([]byte, error) {
	dst, err := e.auth.AppendJSON(append(dst, `{"auth_chain":`...))
	return append(dst, '}'), err
}

// eventAuth: server-server API v1.19, GET /event_auth.
func (a *API) eventAuth(ctx context.Context, by *httpapi.Caller, in *eventAuthRequest) (*eventAuthAnswer, error) {
	room, err := a.wholeRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	e, err := a.rooms.Event(ctx, room, in.EventID)
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, mxerr.NotFound("Could not find event " + in.EventID)
	}
	if err != nil {
		return nil, err
	}
	auth, err := a.rooms.AuthChain(ctx, room, []*roomserver.Event{e})
	return &eventAuthAnswer{auth}, err
}

type backfillRequest struct {
	RoomID string   `path:"roomId"`
	From   []string `query:"v" required:"true"`
	Limit  int      `query:"limit" default:"10" min:"0"`
}

// backfill: server-server API v1.19, GET /backfill. Messages that have expired are left out, as they will be once they are
// purged.
func (a *API) backfill(ctx context.Context, by *httpapi.Caller, in *backfillRequest) (*pdus, error) {
	room, err := a.sharedRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	if len(in.From) == 0 || len(in.From) > maxGiven {
		return nil, mxerr.InvalidParam("v must name 1 to " + strconv.Itoa(maxGiven) + " events")
	}
	list, err := a.rooms.Ancestors(ctx, room, in.From, nil, true, min(in.Limit, maxBackfill))
	if err != nil {
		return nil, err
	}
	if list, err = a.unexpired(ctx, room, list); err != nil {
		return nil, err
	}
	out := &pdus{origin: a.name, key: "pdus"}
	out.list, err = a.shown(ctx, room, by.Origin, list)
	return out, err
}

type missingRequest struct {
	RoomID   string   `path:"roomId"`
	Limit    int      `json:"limit"`
	MinDepth int64    `json:"min_depth"`
	Earliest []string `json:"earliest_events"`
	Latest   []string `json:"latest_events"`
}

// getMissingEvents: server-server API v1.19, POST /get_missing_events. The answer is oldest first. Messages that have
// expired are redacted and not left out: without them, the asking server could not connect what it has.
func (a *API) getMissingEvents(ctx context.Context, by *httpapi.Caller, in *missingRequest) (*pdus, error) {
	room, err := a.sharedRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	if len(in.Latest) > maxGiven || len(in.Earliest) > maxGiven {
		return nil, mxerr.InvalidParam("Too many events are named")
	}
	limit := in.Limit
	if limit <= 0 {
		limit = 10
	}
	list, err := a.rooms.Ancestors(ctx, room, in.Latest, in.Earliest, false, min(limit, maxMissing))
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(e *roomserver.Event) bool { return e.Depth < in.MinDepth })
	slices.Reverse(list)
	out := &pdus{key: "events"}
	out.list, err = a.shown(ctx, room, by.Origin, list)
	return out, err
}

type timestampRequest struct {
	RoomID string `path:"roomId"`
	TS     int64  `query:"ts" required:"true"`
	Dir    string `query:"dir" enum:"f|b" required:"true"`
}

type timestampAnswer struct {
	EventID string `json:"event_id"`
	TS      int64  `json:"origin_server_ts"`
}

// timestampToEvent: server-server API v1.19, GET /timestamp_to_event.
func (a *API) timestampToEvent(ctx context.Context, by *httpapi.Caller, in *timestampRequest) (*timestampAnswer, error) {
	room, err := a.sharedRoom(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	v := a.rooms.ServerViewer(room, by.Origin)
	e, err := a.rooms.EventNear(ctx, room, in.TS, in.Dir == "f")
	if err != nil {
		return nil, err
	}
	if e != nil {
		ok, err := v.Sees(ctx, e)
		if err != nil {
			return nil, err
		}
		if ok {
			return &timestampAnswer{e.ID, e.OriginServerTS}, nil
		}
	}
	return nil, mxerr.NotFound("Unable to find event from " + strconv.FormatInt(in.TS, 10) + " in that direction")
}
