package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	relationshipsPath = "/_matrix/federation/unstable/event_relationships"

	// maxThread bounds the events of one answer to /event_relationships, maxThreadAuth those of its auth chain and
	// maxThreadBytes all of it.
	maxThread      = 100
	maxThreadAuth  = 10_000
	maxThreadBytes = 16 << 20
)

// relationships is POST /event_relationships for servers (MSC2836, "Querying relationships over federation"). It tells what
// this server has and asks no other, lest two ask each other in turns.
func (a *API) relationships(ctx context.Context, by *httpapi.Caller, in *relations.Request) (*thread, error) {
	w, err := in.Walk()
	if err != nil {
		return nil, err
	}
	room, err := a.threadRoom(ctx, by, w)
	if err != nil {
		return nil, err
	}
	w.RoomID, w.Limit = room.ID, min(w.Limit, maxThread)
	if w.UpTo == 0 {
		w.UpTo = room.Head().Pos
	}
	tree := &serverTree{a.rooms, room, a.rooms.ServerViewer(room, by.Origin)}
	first, err := tree.Find(ctx, w.EventID, nil)
	if err != nil {
		return nil, err
	}
	if first == nil {
		return nil, mxerr.NotFound("Event not found")
	}
	out := &thread{}
	if out.Thread, err = w.From(ctx, tree, first); err != nil {
		return nil, err
	}
	out.auth, err = a.rooms.AuthChain(ctx, room, out.Events)
	return out, err
}

// threadRoom finds the room of a walk, which the asking server must be in.
func (a *API) threadRoom(ctx context.Context, by *httpapi.Caller, w *relations.Walk) (*roomserver.Room, error) {
	id := w.RoomID
	if id == "" {
		room, _, err := a.rooms.FindEvent(ctx, w.EventID)
		if errors.Is(err, roomserver.ErrUnknownEvent) {
			return nil, mxerr.NotFound("Event not found")
		}
		if err != nil {
			return nil, err
		}
		id = room.ID
	}
	return a.sharedRoom(ctx, by, id)
}

// serverTree is what another server sees of a room's threads.
type serverTree struct {
	rooms  *roomserver.Server
	room   *roomserver.Room
	viewer *roomserver.ServerViewer
}

// Find implements relations.Tree.
func (t *serverTree) Find(ctx context.Context, id string, _ *roomserver.Event) (*roomserver.Event, error) {
	e, err := t.rooms.Event(ctx, t.room, id)
	if errors.Is(err, roomserver.ErrUnknownEvent) || err == nil && (e.Rejected() || e.SoftFailed()) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ok, err := t.viewer.Sees(ctx, e)
	if err != nil || !ok {
		return nil, err
	}
	return e, nil
}

// Replies implements relations.Tree.
func (t *serverTree) Replies(ctx context.Context, e *roomserver.Event) ([]relations.Reply, error) {
	list, err := t.rooms.Relationships(ctx, t.room, e.ID)
	if err != nil {
		return nil, err
	}
	var out []relations.Reply
	for i := range list {
		c := &list[i]
		ok, err := t.viewer.SeesChild(ctx, &c.Child)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, relations.Reply{ID: c.ID, RelType: c.RelType, OriginServerTS: c.OriginServerTS, At: c.Token()})
		}
	}
	return out, nil
}

// thread is the answer to another server.
type thread struct {
	*relations.Thread
	auth events
}

// AppendJSON appends the answer.
func (t *thread) AppendJSON(dst []byte) ([]byte, error) {
	dst = append(dst, `{"events":[`...)
	for i, e := range t.Events {
		if i > 0 {
			dst = append(dst, ',')
		}
		unsigned := t.Unsigned(e)
		if unsigned == nil {
			dst = append(dst, e.JSON()...)
			continue
		}
		body := e.JSON()
		dst = append(append(dst, body[:len(body)-1]...), `,"unsigned":{`...)
		dst = append(append(dst, unsigned[1:]...), "}}"...)
	}
	dst, err := t.auth.AppendJSON(append(dst, `],"auth_chain":`...))
	return append(t.AppendEnd(dst), '}'), err
}

// Relationships asks other servers of a room for a walk until one of them has the event that it begins at. That none has is
// no error. It implements relations.Ask.
func (a *API) Relationships(ctx context.Context, room *roomserver.Room, want *relations.Walk, near *roomserver.Event) ([]relations.Found, error) {
	asked := *want
	asked.Limit = maxThread
	body, err := json.Marshal(&asked)
	if err != nil {
		return nil, fmt.Errorf("ask for a thread: %w", err)
	}
	sender := ""
	if near != nil {
		sender = near.Sender
	}
	for _, server := range a.historians(room, sender) {
		found, err := a.fetchThread(ctx, server, room, body)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			a.log.WithError(err).WithFields(logrus.Fields{"server": server, "event_id": want.EventID}).Debug("a thread could not be had")
			continue
		}
		if slices.ContainsFunc(found, func(f relations.Found) bool { return f.Event.ID == want.EventID }) {
			return found, nil
		}
	}
	return nil, nil
}

// claim is what a server said relates to an event of its answer.
type claim struct {
	replies int
	hash    string
}

// fetchThread asks a server for a walk, and returns what of its answer is in order.
func (a *API) fetchThread(ctx context.Context, server string, room *roomserver.Room, body json.RawMessage) ([]relations.Found, error) {
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodPost, Path: relationshipsPath, Body: body, Timeout: fetchTimeout, MaxBytes: maxThreadBytes,
	})
	if err != nil {
		return nil, err
	}
	told := gjson.ParseBytes(answer)
	list, claims := a.threadEvents(ctx, room, told.Get("events"))
	if list, err = a.wanted(ctx, room, list); err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(list))
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	known, err := a.rooms.EventsByID(ctx, room, ids)
	if err != nil {
		return nil, err
	}
	var found []relations.Found
	var unknown []*pdu.Event
	for _, p := range list {
		if e := known[p.ID]; e != nil {
			found = append(found, relations.Found{Event: e, Replies: claims[p.ID].replies, Hash: claims[p.ID].hash})
		} else {
			unknown = append(unknown, p)
		}
	}
	auth, err := a.threadAuth(ctx, room, unknown, told.Get("auth_chain"))
	if err != nil {
		return nil, err
	}
	detached, err := a.rooms.Detached(ctx, room, unknown, auth)
	for _, e := range detached {
		found = append(found, relations.Found{Event: e, Replies: claims[e.ID].replies, Hash: claims[e.ID].hash})
	}
	return found, err
}

// threadEvents reads events of a room, as many as were asked for, and what is said to relate to each. It drops what is not
// signed as it must be.
func (a *API) threadEvents(ctx context.Context, room *roomserver.Room, told gjson.Result) ([]*pdu.Event, map[string]claim) {
	var list []*pdu.Event
	claims := map[string]claim{}
	told.ForEach(func(_, raw gjson.Result) bool {
		p, err := pdu.Parse(room.Version, []byte(raw.Raw))
		if err != nil || p.RoomID != room.ID {
			return true
		}
		if _, twice := claims[p.ID]; twice {
			return true
		}
		c := claim{hash: raw.Get("unsigned.children_hash").Str}
		raw.Get("unsigned.children").ForEach(func(_, n gjson.Result) bool {
			c.replies += int(min(max(n.Int(), 0), maxThreadAuth))
			return c.replies < maxThreadAuth
		})
		claims[p.ID] = c
		list = append(list, p)
		return len(list) < maxThread
	})
	return a.signed(ctx, a.log.WithField("room_id", room.ID), list), claims
}

// threadAuth returns what came with events of a room to judge them by, if this server does not know it all.
func (a *API) threadAuth(ctx context.Context, room *roomserver.Room, list []*pdu.Event, told gjson.Result) ([]*pdu.Event, error) {
	var ids []string
	for _, p := range list {
		ids = append(ids, p.AuthEventIDs()...)
	}
	missing, err := a.rooms.Unknown(ctx, room, ids)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	if n := told.Get("#").Int(); n > maxThreadAuth {
		return nil, fmt.Errorf("%w: an auth chain of %d events", errUnsound, n)
	}
	return a.sound(ctx, room.Version, room.ID, told, nil), nil
}
