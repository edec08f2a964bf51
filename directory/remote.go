package directory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// remoteTimeout bounds a request to another server.
	remoteTimeout = 10 * time.Second
	// maxRemoteAnswer bounds its answer, in bytes.
	maxRemoteAnswer = 4 << 20
	// treeFresh is how long the answer about a room of other servers is remembered, and how long it is that there was
	// none; maxTrees is how many answers are. A refusal is not remembered: it ends when somebody joins.
	treeFresh = time.Minute
	maxTrees  = 2000
	// maxAsked bounds the servers that are asked about a room, and maxRemoteSteps the rooms of one page of a hierarchy
	// about which servers are asked.
	maxAsked       = 3
	maxRemoteSteps = 50
)

// remotePublicRooms asks another server for its directory.
func (a *API) remotePublicRooms(ctx context.Context, in *searchPublicRoomsRequest) (*publicRoomsResponse, error) {
	if a.client == nil {
		return nil, mxerr.NotFound("This server does not show the directories of other servers")
	}
	body, err := json.Marshal(tellMatchingRoomsRequest{Limit: min(in.Limit, maxPage), Since: in.Since, Filter: in.Filter, All: in.All, Instance: in.Instance})
	if err != nil {
		return nil, err
	}
	raw, err := a.client.Do(ctx, client.Request{
		Server: in.Server, Method: http.MethodPost, Path: "/_matrix/federation/v1/publicRooms", Body: withoutEmpty(body),
		Timeout: remoteTimeout, MaxBytes: maxRemoteAnswer,
	})
	if err != nil {
		return nil, noAnswer(err)
	}
	out := new(publicRoomsResponse)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, noAnswer(err)
	}
	out.Chunk = slices.DeleteFunc(out.Chunk[:min(len(out.Chunk), maxPage)], func(p *published) bool { return p == nil || p.RoomID == "" })
	if out.Chunk == nil {
		out.Chunk = []*published{}
	}
	return out, nil
}

// withoutEmpty leaves out the members that say nothing; some servers take an empty since for a token.
func withoutEmpty(body []byte) json.RawMessage {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return body
	}
	for name, value := range members {
		if v := string(value); v == `""` || v == "0" || v == "false" {
			delete(members, name)
		}
	}
	if filter := gjson.ParseBytes(members["filter"]); filter.Get("generic_search_term").Str == "" && !filter.Get("room_types").IsArray() {
		delete(members, "filter")
	}
	out, err := json.Marshal(members)
	if err != nil {
		return body
	}
	return out
}

// noAnswer is what clients are told when another server does not answer, or refuses to.
func noAnswer(err error) error {
	var said *client.Error
	if errors.As(err, &said) && said.Code != "" && (said.Status == http.StatusForbidden || said.Status == http.StatusNotFound) {
		return mxerr.New(said.Status, said.Code, said.Text).With(err)
	}
	return mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The other server gave no answer").With(err)
}

// tree is what another server says of a room and, if that is a space, of its children. It is immutable.
type tree struct {
	room     *described // nil: nobody knows the room, or may tell of it
	children *childList
	known    map[string]*described
	refused  map[string]bool // children that we may not see
	until    time.Time
}

// treeOf asks the servers, until one answers, for a room that this server is not in. That none of them answers is
// remembered of these servers only: others may know the room.
func (a *API) treeOf(ctx context.Context, roomID string, via []string) *tree {
	servers := a.askable(roomID, via)
	unknown := roomID + " " + strings.Join(servers, " ")
	for _, key := range [...]string{roomID, unknown} {
		if t, ok := a.trees.Get(key); ok && time.Now().Before(t.until) {
			return t
		}
	}
	t := &tree{until: time.Now().Add(treeFresh)}
	if a.client == nil {
		return t
	}
	refused := false
	for _, server := range servers {
		raw, err := a.client.Do(ctx, client.Request{
			Server: server, Method: http.MethodGet, Path: client.Path("/_matrix/federation/v1/hierarchy/%s", roomID) + "?suggested_only=false",
			Timeout: remoteTimeout, MaxBytes: maxRemoteAnswer,
		})
		if err != nil {
			var said *client.Error
			refused = refused || errors.As(err, &said)
			continue
		}
		if found, err := parseTree(raw, roomID); err == nil {
			t = found
			break
		}
	}
	switch {
	case t.room != nil:
		a.trees.Put(strings.Clone(roomID), t, 1)
	case ctx.Err() == nil && !refused:
		a.trees.Put(unknown, t, 1)
	}
	return t
}

// askable are the servers to ask about a room: a few of those that are named, and the one that made it.
func (a *API) askable(roomID string, via []string) (servers []string) {
	if server := pdu.ServerOf(roomID); server != "" {
		via = append(slices.Clip(via), server)
	}
	for _, server := range via {
		if len(servers) < maxAsked && server != a.rooms.Name() && !slices.Contains(servers, server) && pdu.ValidServerName(server) {
			servers = append(servers, server)
		}
	}
	return servers
}

// parseTree reads the answer of another server.
func parseTree(raw []byte, roomID string) (*tree, error) {
	var answer struct {
		Room struct {
			described
			Children []json.RawMessage `json:"children_state"`
		} `json:"room"`
		Children     []*described `json:"children"`
		Inaccessible []string     `json:"inaccessible_children"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, err
	}
	if answer.Room.RoomID != roomID {
		return nil, fmt.Errorf("it is about %.100q", answer.Room.RoomID)
	}
	t := &tree{
		room: &answer.Room.described, children: &childList{}, known: map[string]*described{}, refused: map[string]bool{},
		until: time.Now().Add(treeFresh),
	}
	for _, event := range answer.Room.Children[:min(len(answer.Room.Children), maxChildren)] {
		if c, ok := remoteChild(event); ok {
			t.children.list = append(t.children.list, c)
		}
	}
	slices.SortFunc(t.children.list, compareChildren)
	for _, d := range answer.Children[:min(len(answer.Children), maxChildren)] {
		if d != nil {
			t.known[d.RoomID] = d
		}
	}
	for _, id := range answer.Inaccessible[:min(len(answer.Inaccessible), maxChildren)] {
		t.refused[id] = true
	}
	return t, nil
}

// remoteChild reads an m.space.child event that another server shows.
func remoteChild(event json.RawMessage) (child, bool) {
	e := gjson.ParseBytes(event)
	id, content := e.Get("state_key").Str, e.Get("content")
	if e.Get("type").Str != "m.space.child" || !strings.HasPrefix(id, "!") || len(id) > pdu.MaxFieldSize || !content.IsObject() || !hasVia([]byte(content.Raw)) {
		return child{}, false
	}
	c := child{roomID: id, ts: e.Get("origin_server_ts").Int(), suggested: content.Get("suggested").Type == gjson.True, event: event}
	if order := content.Get("order"); order.Type == gjson.String && validOrder(order.Str) {
		c.order = order.Str
	}
	return c, true
}

// viaOf are the servers through which a child may be reached.
func viaOf(event []byte) (via []string) {
	gjson.GetBytes(event, "content.via").ForEach(func(_, server gjson.Result) bool {
		if server.Type == gjson.String {
			via = append(via, server.Str)
		}
		return len(via) < 10
	})
	return via
}

// nextRemote returns what is shown of a room that this server is not in, nil if nothing is, and puts its children on the
// stack.
func (w *walk) nextRemote(ctx context.Context, at step) (*hierarchyRoom, error) {
	if at.parent != nil {
		if at.parent.refused[at.roomID] {
			return nil, nil
		}
		if d := at.parent.known[at.roomID]; d != nil && d.RoomType != "m.space" {
			return w.showRemote(ctx, d, emptyArray)
		}
	}
	if w.asked++; w.asked > maxRemoteSteps {
		return nil, nil
	}
	t := w.api.treeOf(ctx, at.roomID, at.via)
	if t.room == nil {
		return nil, ctx.Err()
	}
	r, err := w.showRemote(ctx, t.room, emptyArray)
	if err != nil || r == nil || t.room.RoomType != "m.space" {
		return r, err
	}
	r.Children = t.children.render(w.suggested)
	w.push(t.children.list, at.depth, t)
	return r, nil
}

// showRemote returns what is shown of a room of other servers, nil if the user may not see it.
func (w *walk) showRemote(ctx context.Context, d *described, children json.RawMessage) (*hierarchyRoom, error) {
	ok, err := w.api.showsRemote(ctx, d, w.user)
	if err != nil || !ok {
		return nil, err
	}
	return &hierarchyRoom{described: *d, Children: children}, nil
}

// showsRemote tells whether a local user may see what other servers say of a room: as shows does.
func (a *API) showsRemote(ctx context.Context, d *described, user string) (bool, error) {
	switch d.JoinRule {
	case "public", "knock", "knock_restricted", "": // without a rule it is an old server's answer about a public room
		return true, nil
	}
	if d.WorldReadable {
		return true, nil
	}
	if user == "" {
		return false, nil
	}
	outside, err := a.rooms.OutsideOf(ctx, user)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(outside, func(o roomserver.Outside) bool {
		return o.RoomID == d.RoomID && (o.Membership == roomserver.Invite || o.Membership == roomserver.Knock)
	}) {
		return true, nil
	}
	if len(d.Allowed) == 0 {
		return false, nil
	}
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(rooms, func(r roomserver.UserRoom) bool {
		return r.Membership == roomserver.Join && slices.Contains(d.Allowed, r.RoomID)
	}), nil
}
