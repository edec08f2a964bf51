package relations

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

const (
	// maxDepth and maxBreadth bound a walk's window, maxLimit one answer.
	maxDepth   = 1000
	maxBreadth = 1000
	maxLimit   = 500
	// maxVisits bounds the events that one request looks at or has in front of it, those of earlier pages included.
	maxVisits = 10_000
	// maxBatchToken bounds a batch token, in bytes: an event id, a room id and numbers.
	maxBatchToken = 2000
)

// Request is the body of POST /event_relationships, from clients and from servers (MSC2836, "Querying relationships").
type Request struct {
	EventID         string `json:"event_id"`
	RoomID          string `json:"room_id"`
	MaxDepth        *int   `json:"max_depth"`
	MaxBreadth      *int   `json:"max_breadth"`
	Limit           *int   `json:"limit"`
	DepthFirst      bool   `json:"depth_first"`
	RecentFirst     *bool  `json:"recent_first"`
	IncludeParent   bool   `json:"include_parent"`
	IncludeChildren bool   `json:"include_children"`
	Direction       string `json:"direction"`
	Batch           string `json:"batch"`
	// AutoJoin asks to join the room first, which is for clients alone.
	AutoJoin bool `json:"auto_join"`
}

// Walk returns the walk that is asked for, with the proposal's defaults. One that goes on with a batch is the one that the
// batch is of, whatever else the request says.
func (r *Request) Walk() (*Walk, error) {
	if r.Batch != "" {
		return resumed(r.Batch)
	}
	or := func(v *int, fallback int) int {
		if v == nil {
			return fallback
		}
		return *v
	}
	w := &Walk{
		EventID: r.EventID, RoomID: r.RoomID, Direction: cmp.Or(r.Direction, Down),
		MaxDepth: or(r.MaxDepth, 3), MaxBreadth: or(r.MaxBreadth, 10), Limit: or(r.Limit, 100),
		DepthFirst: r.DepthFirst, RecentFirst: r.RecentFirst == nil || *r.RecentFirst,
		IncludeParent: r.IncludeParent, IncludeChildren: r.IncludeChildren,
	}
	switch {
	case w.EventID == "":
		return nil, mxerr.MissingParam("event_id is required")
	case w.Direction != Up && w.Direction != Down:
		return nil, mxerr.InvalidParam("direction must be up or down")
	case w.Limit < 1:
		return nil, mxerr.InvalidParam("limit must be at least 1")
	}
	w.bound()
	return w, nil
}

// The directions of a walk: to what an event relates to, or to what relates to it.
const (
	Up   = "up"
	Down = "down"
)

// Walk says which part of a thread is wanted, in the names of MSC2836; as JSON it is a request to another server.
type Walk struct {
	// EventID is where the walk begins. RoomID is its room, or empty.
	EventID string `json:"event_id"`
	RoomID  string `json:"room_id,omitempty"`
	// Direction is Up or Down.
	Direction string `json:"direction"`
	// MaxDepth is how many steps away from the first event may be, MaxBreadth how many of the events that relate to one
	// are followed.
	MaxDepth   int `json:"max_depth"`
	MaxBreadth int `json:"max_breadth"`
	// Limit is the most events of one answer.
	Limit int `json:"limit"`
	// DepthFirst follows each event to its end before the next, RecentFirst takes the latest of several first.
	DepthFirst  bool `json:"depth_first"`
	RecentFirst bool `json:"recent_first"`
	// IncludeParent and IncludeChildren ask for what is next to the first event, before the walk.
	IncludeParent   bool `json:"include_parent"`
	IncludeChildren bool `json:"include_children"`
	// Skip is how many events earlier answers had, UpTo the log position beyond which an event is not part of the walk;
	// 0 before the first answer.
	Skip int   `json:"skip,omitempty"`
	UpTo int64 `json:"up_to,omitempty"`
}

// bound brings the numbers into range; a negative depth or breadth means no bound of the client's.
func (w *Walk) bound() {
	limit := func(v *int, most int) {
		if *v < 0 || *v > most {
			*v = most
		}
	}
	limit(&w.MaxDepth, maxDepth)
	limit(&w.MaxBreadth, maxBreadth)
	limit(&w.Limit, maxLimit)
	limit(&w.Skip, maxVisits)
}

// resumed reads a batch token, which anybody may have made.
func resumed(token string) (*Walk, error) {
	bad := mxerr.InvalidParam("batch is no token of this server")
	if len(token) > maxBatchToken {
		return nil, bad
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return nil, bad
	}
	w := &Walk{}
	if err := json.Unmarshal(raw, w); err != nil || w.EventID == "" || w.Limit < 1 || w.Skip < 1 || w.UpTo < 1 {
		return nil, bad
	}
	w.bound()
	return w, nil
}

// after is the token for what comes after skip events.
func (w *Walk) after(skip int) (string, error) {
	next := *w
	next.Skip = skip
	raw, err := json.Marshal(&next)
	if err != nil {
		return "", fmt.Errorf("make a batch token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

// Reply is an event that relates to another one.
type Reply struct {
	ID, RelType string
	// OriginServerTS is the event's, At its place in the room; zero for one that has none here.
	OriginServerTS int64
	At             roomserver.HistoryToken
}

// later orders replies by time. What came at the same time has the order of the room.
func (r Reply) later(o Reply) int {
	return cmp.Or(cmp.Compare(r.OriginServerTS, o.OriginServerTS), cmp.Compare(r.At.Anchor, o.At.Anchor), cmp.Compare(r.At.Sub, o.At.Sub), cmp.Compare(r.ID, o.ID))
}

// Tree is what a reader sees of the events of one room and how they relate.
type Tree interface {
	// Find returns an event, nil if there is none that the reader may see. near is one that relates to it, or nil.
	Find(ctx context.Context, id string, near *roomserver.Event) (*roomserver.Event, error)
	// Replies returns what relates to an event, as far as the reader may see it, each once.
	Replies(ctx context.Context, e *roomserver.Event) ([]Reply, error)
}

// Thread is one answer to a walk.
type Thread struct {
	// Events are in the order in which they were come to.
	Events []*roomserver.Event
	// Limited says that there are more, NextBatch is the token with which these are had; empty where the walk would
	// become too long.
	Limited   bool
	NextBatch string

	unsigned map[string][]byte
}

// Unsigned returns the members children and children_hash of an event of the thread for unsigned, each with a comma before
// it; nil if nothing relates to the event.
func (t *Thread) Unsigned(e *roomserver.Event) []byte { return t.unsigned[e.ID] }

// AppendEnd appends the members limited and next_batch of an answer, each with a comma before it.
func (t *Thread) AppendEnd(dst []byte) []byte {
	dst = fmt.Appendf(dst, `,"limited":%t`, t.Limited)
	if t.NextBatch != "" {
		dst = fmt.Appendf(dst, `,"next_batch":%q`, t.NextBatch)
	}
	return dst
}

// From walks from an event that the reader may see.
func (w *Walk) From(ctx context.Context, tree Tree, first *roomserver.Event) (*Thread, error) {
	r := walking{Walk: w, tree: tree, replies: map[string][]Reply{}, seen: map[string]bool{}}
	if err := r.run(ctx, first); err != nil {
		return nil, err
	}
	t := &Thread{Events: r.events, Limited: r.more, unsigned: make(map[string][]byte, len(r.events))}
	for _, e := range t.Events {
		replies, err := r.below(ctx, e)
		if err != nil {
			return nil, err
		}
		if t.unsigned[e.ID], err = summary(replies); err != nil {
			return nil, err
		}
	}
	if r.more && !r.exhausted {
		var err error
		if t.NextBatch, err = w.after(w.Skip + len(r.events)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// walking is a walk under way.
type walking struct {
	*Walk
	tree Tree
	// replies are what relates to events, by id and in the order of the walk.
	replies map[string][]Reply
	// seen are the events that the answer has, or an earlier one had.
	seen   map[string]bool
	events []*roomserver.Event
	// more says that an event was left over, exhausted that the walk was too long.
	more, exhausted bool
}

// step is an event that the walk has before it.
type step struct {
	id    string
	near  *roomserver.Event
	depth int
}

// run goes through the window until the answer is full.
func (r *walking) run(ctx context.Context, first *roomserver.Event) error {
	if ok, err := r.surroundings(ctx, first); err != nil || !ok {
		return err
	}
	visited := map[string]bool{first.ID: true}
	front, err := r.next(ctx, nil, first, 1)
	for len(front) > 0 && err == nil {
		if len(visited)+len(front) > maxVisits {
			r.more, r.exhausted = true, true
			return nil
		}
		at := front[0]
		if r.DepthFirst {
			at, front = front[len(front)-1], front[:len(front)-1]
		} else {
			front = front[1:]
		}
		if visited[at.id] {
			continue
		}
		visited[at.id] = true
		var e *roomserver.Event
		if e, err = r.tree.Find(ctx, at.id, at.near); err != nil || e == nil {
			continue
		}
		if !r.add(e) {
			return nil
		}
		front, err = r.next(ctx, front, e, at.depth+1)
	}
	return err
}

// surroundings adds the first event and what the request wants to have with it; false if there was more than fits.
func (r *walking) surroundings(ctx context.Context, first *roomserver.Event) (bool, error) {
	r.add(first)
	var ids []string
	if r.IncludeParent {
		if parent := first.Relationship().EventID; parent != "" {
			ids = append(ids, parent)
		}
	}
	if r.IncludeChildren {
		replies, err := r.below(ctx, first)
		if err != nil {
			return false, err
		}
		for _, c := range replies {
			ids = append(ids, c.ID)
		}
	}
	for _, id := range ids {
		e, err := r.tree.Find(ctx, id, first)
		if err != nil {
			return false, err
		}
		if e != nil && !r.add(e) {
			return false, nil
		}
	}
	return true, nil
}

// add puts an event into the answer, unless it or an earlier one has it; false if there was no room.
func (r *walking) add(e *roomserver.Event) bool {
	switch {
	case r.seen[e.ID]:
		return true
	case len(r.seen) == r.Skip+r.Limit:
		r.more = true
		return false
	}
	if r.seen[e.ID] = true; len(r.seen) > r.Skip {
		r.events = append(r.events, e)
	}
	return true
}

// below is what relates to an event, in the order of the walk.
func (r *walking) below(ctx context.Context, e *roomserver.Event) ([]Reply, error) {
	if list, ok := r.replies[e.ID]; ok {
		return list, nil
	}
	list, err := r.tree.Replies(ctx, e)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c Reply) bool { return c.At.Sub == 0 && c.At.Anchor > r.UpTo })
	slices.SortFunc(list, Reply.later)
	if r.RecentFirst {
		slices.Reverse(list)
	}
	r.replies[e.ID] = list
	return list, nil
}

// next puts the events that follow e before the walk, at the end from which they are taken next, or the other.
func (r *walking) next(ctx context.Context, front []step, e *roomserver.Event, depth int) ([]step, error) {
	if depth > r.MaxDepth {
		return front, nil
	}
	if r.Direction == Up {
		if parent := e.Relationship().EventID; parent != "" {
			front = append(front, step{parent, e, depth})
		}
		return front, nil
	}
	list, err := r.below(ctx, e)
	if err != nil {
		return nil, err
	}
	n := len(front)
	for _, c := range list[:min(len(list), r.MaxBreadth)] {
		front = append(front, step{c.ID, e, depth})
	}
	if r.DepthFirst {
		slices.Reverse(front[n:])
	}
	return front, nil
}

// summary counts replies by their type, and hashes their ids.
func summary(replies []Reply) ([]byte, error) {
	if len(replies) == 0 {
		return nil, nil
	}
	counts := map[string]int{}
	ids := make([]string, 0, len(replies))
	for _, c := range replies {
		counts[c.RelType]++
		ids = append(ids, c.ID)
	}
	children, err := json.Marshal(counts)
	if err != nil {
		return nil, fmt.Errorf("count replies: %w", err)
	}
	return fmt.Appendf(nil, `,"children":%s,"children_hash":"%s"`, children, hash(ids)), nil
}

// hash is the children_hash of events with these ids, which it sorts.
func hash(ids []string) string {
	slices.Sort(ids)
	h := sha256.New()
	for _, id := range ids {
		_, _ = io.WriteString(h, id) // a hash takes everything
	}
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil))
}
