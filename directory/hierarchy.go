package directory

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

const (
	// hierarchyPage and maxHierarchyPage bound the rooms of one answer.
	hierarchyPage    = 50
	maxHierarchyPage = 100
	// maxDepth bounds how far below the space the walk goes, and maxWalk how many rooms it looks at.
	maxDepth = 50
	maxWalk  = 10_000
	// maxChildren bounds the children of one space; the first ones in their order stay.
	maxChildren = 2_000
)

type hierarchyRequest struct {
	RoomID        string `path:"roomId"`
	SuggestedOnly *bool  `query:"suggested_only"`
	MaxDepth      *int   `query:"max_depth" min:"0"`
	Limit         int    `query:"limit" default:"50" min:"1"`
	From          string `query:"from"`
	// Via are servers that may know the space (MSC4235).
	Via []string `query:"org.matrix.msc4235.via"`
}

type hierarchyRoom struct {
	described
	Children json.RawMessage `json:"children_state"`
}

type hierarchyResponse struct {
	Rooms     []*hierarchyRoom `json:"rooms"`
	NextBatch string           `json:"next_batch,omitempty"`
}

// hierarchyToken is where a page ended: which walk it is, how many rooms it has shown, and the last of them.
type hierarchyToken struct {
	Root      string   `json:"o"`
	Via       []string `json:"v,omitempty"`
	Suggested bool     `json:"s,omitempty"`
	Depth     int      `json:"d"`
	Count     int      `json:"n"`
	Last      string   `json:"l"`
}

var errOtherWalk = mxerr.InvalidParam("suggested_only and max_depth cannot change on paginated requests")

// token reads the request's token, or makes that of a new walk.
func (in *hierarchyRequest) token() (*hierarchyToken, error) {
	t := &hierarchyToken{Root: in.RoomID, Via: in.Via[:min(len(in.Via), maxAsked)], Depth: maxDepth}
	if in.MaxDepth != nil {
		t.Depth = min(*in.MaxDepth, maxDepth)
	}
	if in.SuggestedOnly != nil {
		t.Suggested = *in.SuggestedOnly
	}
	if in.From == "" {
		return t, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(in.From)
	asked := *t
	*t = hierarchyToken{}
	if err != nil || json.Unmarshal(raw, t) != nil || t.Root != in.RoomID || t.Count < 1 || t.Depth < 0 || t.Depth > maxDepth {
		return nil, mxerr.InvalidParam("from is not a token of this hierarchy")
	}
	if in.MaxDepth != nil && asked.Depth != t.Depth || in.SuggestedOnly != nil && asked.Suggested != t.Suggested {
		return nil, errOtherWalk
	}
	return t, nil
}

func (t *hierarchyToken) encode() (string, error) {
	raw, err := json.Marshal(t)
	return base64.RawURLEncoding.EncodeToString(raw), err
}

// hierarchy: client-server API v1.19, GET /rooms/{roomId}/hierarchy. Every page walks from the root again, past what
// earlier pages have shown: the rooms' summaries are in memory, and nothing has to be kept between pages.
func (a *API) hierarchy(ctx context.Context, by *httpapi.Caller, in *hierarchyRequest) (*hierarchyResponse, error) {
	t, err := in.token()
	if err != nil {
		return nil, err
	}
	w := &walk{api: a, user: by.UserID, suggested: t.Suggested, depth: t.Depth, seen: map[string]bool{}, stack: []step{{roomID: in.RoomID, via: t.Via}}}
	for i := range t.Count {
		r, err := w.next(ctx)
		if err != nil {
			return nil, err
		}
		if r == nil && i == 0 {
			return nil, mxerr.Forbidden("You are not allowed to view this room")
		}
		if r == nil || r.RoomID == t.Last {
			break
		}
	}
	out := &hierarchyResponse{Rooms: []*hierarchyRoom{}}
	limit := min(in.Limit, maxHierarchyPage)
	for {
		r, err := w.next(ctx)
		if err != nil {
			return nil, err
		}
		if r == nil {
			break
		}
		if len(out.Rooms) == limit {
			t.Count += limit
			t.Last = out.Rooms[limit-1].RoomID
			if out.NextBatch, err = t.encode(); err != nil {
				return nil, err
			}
			break
		}
		out.Rooms = append(out.Rooms, r)
	}
	if t.Count == 0 && len(out.Rooms) == 0 {
		return nil, mxerr.Forbidden("You are not allowed to view this room")
	}
	return out, nil
}

// step is a room that a walk is yet to look at.
type step struct {
	roomID string
	depth  int
	via    []string
	parent *tree // nil if we are in the space that it is a child of
}

// walk goes through a tree of spaces, a space before its children and those in their order. It comes to each room once.
type walk struct {
	api       *API
	user      string
	suggested bool
	depth     int
	seen      map[string]bool
	stack     []step
	asked     int // rooms about which other servers were asked
}

// next returns the next room that the user may see, nil at the end. If the first one may not be seen, there is none.
func (w *walk) next(ctx context.Context) (*hierarchyRoom, error) {
	for len(w.stack) > 0 && len(w.seen) < maxWalk {
		at := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		if w.seen[at.roomID] {
			continue
		}
		w.seen[at.roomID] = true
		room, err := w.api.rooms.Room(ctx, at.roomID)
		if errors.Is(err, roomserver.ErrUnknownRoom) || err == nil && !room.Resident() {
			r, err := w.nextRemote(ctx, at)
			if err != nil || r != nil {
				return r, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		r, err := w.visit(ctx, room, at.depth)
		if err != nil || r != nil {
			return r, err
		}
	}
	return nil, nil
}

// visit returns what is shown of a room, nil if nothing is, and puts its children on the stack.
func (w *walk) visit(ctx context.Context, room *roomserver.Room, depth int) (*hierarchyRoom, error) {
	s, err := w.api.summary(ctx, room)
	if err != nil {
		return nil, err
	}
	if ok, err := w.api.shows(ctx, room, s, w.user); err != nil || !ok {
		return nil, err
	}
	r := &hierarchyRoom{described: s.described, Children: emptyArray}
	r.Joined, _ = room.MemberCounts()
	if !s.isSpace() {
		return r, nil
	}
	l, err := w.api.childrenOf(ctx, room, s.root)
	if err != nil {
		return nil, err
	}
	r.Children = l.render(w.suggested)
	w.push(l.list, depth, nil)
	return r, nil
}

// push puts the children of a space at some depth on the stack; parent is what another server said of it.
func (w *walk) push(children []child, depth int, parent *tree) {
	if depth == w.depth {
		return
	}
	for _, c := range slices.Backward(children) {
		if (c.suggested || !w.suggested) && !w.seen[c.roomID] {
			w.stack = append(w.stack, step{roomID: c.roomID, depth: depth + 1, via: viaOf(c.event), parent: parent})
		}
	}
}

var emptyArray = json.RawMessage("[]")

// child is one m.space.child of a space.
type child struct {
	roomID    string
	order     string // empty without a valid one
	ts        int64
	suggested bool
	event     []byte // as it is shown
}

// childList are the children of a space in their order. It is immutable.
type childList struct {
	root snapshot.Ref
	list []child
	cost int
}

// childrenOf returns the children of a space at the root of its state.
func (a *API) childrenOf(ctx context.Context, room *roomserver.Room, root snapshot.Ref) (*childList, error) {
	if l, ok := a.children.Get(room.NID); ok && l.root == root {
		return l, nil
	}
	events, err := a.rooms.StateEventsOfType(ctx, room, root, "m.space.child")
	if err != nil {
		return nil, err
	}
	l := &childList{root: root, cost: 100}
	for _, e := range events {
		if c, ok := childOf(e); ok {
			l.list = append(l.list, c)
		}
	}
	slices.SortFunc(l.list, compareChildren)
	l.list = l.list[:min(len(l.list), maxChildren)]
	for i := range l.list {
		l.cost += 100 + len(l.list[i].event) + len(l.list[i].roomID)
	}
	a.children.Put(room.NID, l, l.cost+cache.Overhead)
	return l, nil
}

// childOf reads an m.space.child. One without via is no child (client-server API v1.19, "m.space.child relationship").
func childOf(e *roomserver.Event) (c child, ok bool) {
	id := *e.StateKey
	if !strings.HasPrefix(id, "!") || len(id) > pdu.MaxFieldSize || !hasVia(e.Content()) {
		return c, false
	}
	c = child{roomID: strings.Clone(id), ts: e.OriginServerTS}
	c.suggested = gjson.GetBytes(e.Content(), "suggested").Type == gjson.True
	if order := gjson.GetBytes(e.Content(), "order"); order.Type == gjson.String && validOrder(order.Str) {
		c.order = order.String()
	}
	b := append([]byte(nil), `{"content":`...)
	b = append(append(b, e.Content()...), `,"origin_server_ts":`...)
	b = append(strconv.AppendInt(b, e.OriginServerTS, 10), `,"sender":`...)
	b = append(canonicaljson.AppendString(b, e.Sender), `,"state_key":`...)
	b = append(canonicaljson.AppendString(b, id), `,"type":"m.space.child"}`...)
	c.event = b
	return c, true
}

func hasVia(content []byte) bool {
	via := gjson.GetBytes(content, "via")
	return via.IsArray() && via.Get("0").Type == gjson.String
}

const maxOrder = 50 // characters of an order

// validOrder tells whether an order is one (client-server API v1.19, m.space.child).
func validOrder(order string) bool {
	return order != "" && len(order) <= maxOrder && !strings.ContainsFunc(order, func(r rune) bool { return r < 0x20 || r > 0x7e })
}

// compareChildren: client-server API v1.19, "Ordering of children within a space".
func compareChildren(a, b child) int {
	if (a.order == "") != (b.order == "") {
		if a.order == "" {
			return 1
		}
		return -1
	}
	return cmp.Or(strings.Compare(a.order, b.order), cmp.Compare(a.ts, b.ts), strings.Compare(a.roomID, b.roomID))
}

// render is the children as children_state shows them.
func (l *childList) render(suggested bool) json.RawMessage {
	b := []byte{'['}
	for i := range l.list {
		if suggested && !l.list[i].suggested {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(b, l.list[i].event...)
	}
	return append(b, ']')
}
