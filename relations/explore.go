package relations

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/roomserver"
)

const (
	// knownBytes bounds the memory for events that only other servers have.
	knownBytes = 16 << 20
	// maxKnownReplies bounds the replies to one event among them.
	maxKnownReplies = 1000
	// maxAsks is how often one request makes this server ask others, patience how long it waits for them in all.
	maxAsks  = 5
	patience = 30 * time.Second
	// rest is how long an event is not asked for again that nobody had.
	rest = time.Minute
)

// Found is an event of a thread as another server told of it.
type Found struct {
	// Event is in order by its signatures and auth events. It is detached, unless this server had it.
	Event *roomserver.Event
	// Replies is how many events relate to it according to that server, Hash the hash of their ids; 0 if it did not say.
	Replies int
	Hash    string
}

// Ask asks the servers of a room for a walk. near is an event that is known and close to its beginning, or nil. That no
// server has it is no error.
type Ask func(ctx context.Context, room *roomserver.Room, want *Walk, near *roomserver.Event) ([]Found, error)

// Explorer walks threads of which parts are known only to other servers (MSC2836, "Exploring dense threads"). What those
// tell stays in memory, where it is found as long as there is room for it: such events have no place in the history of
// their room, and are asked for again when they are wanted again. It is safe for concurrent use.
type Explorer struct {
	rooms *roomserver.Server
	ask   Ask

	mu    sync.Mutex // held while a spot is changed
	spots *cache.Cache[spotKey, spot]
}

type spotKey struct {
	room int64
	id   string
}

// spot is what is known of an event of which other servers told. It is not changed but replaced.
type spot struct {
	// event is nil if this server has it, or nobody.
	event *roomserver.Event
	// replies are the ids of events without a place that relate to it.
	replies []string
	// claimed and hash are what a server said of its replies, explored that it was asked for them.
	claimed  int
	hash     string
	explored bool
	// missed is when nobody had it.
	missed time.Time
}

func (s *spot) cost() int {
	n := 300 + 64*len(s.replies)
	if s.event != nil {
		n += 2*len(s.event.JSON()) + 600
	}
	return n
}

// NewExplorer makes an explorer. Without ask, it shows what this server has.
func NewExplorer(rooms *roomserver.Server, ask Ask) *Explorer {
	return &Explorer{rooms: rooms, ask: ask, spots: cache.New[spotKey, spot](knownBytes)}
}

// RoomOf finds the room of an event by its id alone; roomserver.ErrUnknownEvent where there is none.
func (x *Explorer) RoomOf(ctx context.Context, id string) (*roomserver.Room, error) {
	room, _, err := x.rooms.FindEvent(ctx, id)
	if !errors.Is(err, roomserver.ErrUnknownEvent) {
		return room, err
	}
	if nid, ok := x.rooms.RoomOfDetached(id); ok {
		room, err := x.rooms.RoomByNID(ctx, nid)
		if !errors.Is(err, roomserver.ErrUnknownRoom) {
			return room, err
		}
	}
	return nil, roomserver.ErrUnknownEvent
}

// change replaces what is known of an event.
func (x *Explorer) change(room *roomserver.Room, id string, fn func(*spot)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := spotKey{room.NID, id}
	s, _ := x.spots.Get(key)
	fn(&s)
	x.spots.Put(key, s, s.cost())
}

// learn remembers what a server told.
func (x *Explorer) learn(room *roomserver.Room, found []Found) {
	for _, f := range found {
		unknown := f.Event.NID == 0
		if unknown || f.Replies > 0 {
			x.change(room, f.Event.ID, func(s *spot) {
				if unknown {
					s.event = f.Event
				}
				if f.Replies > 0 && (f.Replies != s.claimed || f.Hash != s.hash) {
					s.claimed, s.hash, s.explored = f.Replies, f.Hash, false
				}
			})
		}
		if !f.Event.Outlier() {
			continue // it is in the index of relations
		}
		if parent := f.Event.Relationship().EventID; parent != "" {
			x.change(room, parent, func(s *spot) {
				if len(s.replies) < maxKnownReplies && !slices.Contains(s.replies, f.Event.ID) {
					s.replies = append(slices.Clone(s.replies), f.Event.ID)
				}
			})
		}
	}
}

// Tree is what a user sees of a room's threads. It is for one request, whose walk it makes other servers know.
func (x *Explorer) Tree(v *View, w *Walk) Tree {
	t := &userTree{Explorer: x, View: v, walk: w, until: time.Now().Add(patience)}
	if v.Viewer.JoinedUntil() == math.MaxInt64 && v.Room.Resident() && x.ask != nil {
		t.asks = maxAsks
	}
	return t
}

// userTree is the tree of one user.
type userTree struct {
	*Explorer
	*View
	walk *Walk
	// asks is how often others may still be asked, until when.
	asks  int
	until time.Time
	// ignored are those whom the user ignores, once asked.
	ignored map[string]bool
}

// Find is Tree's.
func (t *userTree) Find(ctx context.Context, id string, near *roomserver.Event) (*roomserver.Event, error) {
	e, err := t.known(ctx, id)
	if err == nil && e == nil {
		want := *t.walk
		want.EventID = id
		if err = t.explore(ctx, &want, near); err == nil {
			e, err = t.known(ctx, id)
		}
	}
	if err != nil || e == nil {
		return nil, err
	}
	ok, err := t.sees(ctx, e)
	if err != nil || !ok {
		return nil, err
	}
	return e, nil
}

// known returns an event that this server has, or another one told of; else nil.
func (t *userTree) known(ctx context.Context, id string) (*roomserver.Event, error) {
	e, err := t.Rooms.Event(ctx, t.Room, id)
	if !errors.Is(err, roomserver.ErrUnknownEvent) {
		return e, err
	}
	s, _ := t.spots.Get(spotKey{t.Room.NID, id})
	if s.event == nil {
		return nil, nil
	}
	return t.Rooms.RedactDetached(ctx, t.Room, s.event)
}

// explore asks other servers for a walk, if that may be.
func (t *userTree) explore(ctx context.Context, want *Walk, near *roomserver.Event) error {
	s, _ := t.spots.Get(spotKey{t.Room.NID, want.EventID})
	if t.asks == 0 || time.Since(s.missed) < rest {
		return nil
	}
	t.asks--
	want.RoomID, want.Skip, want.UpTo = t.Room.ID, 0, 0
	asking, cancel := context.WithDeadline(ctx, t.until)
	defer cancel()
	found, err := t.ask(asking, t.Room, want, near)
	if err != nil {
		if asking.Err() != nil && ctx.Err() == nil {
			return nil // without what they know
		}
		return fmt.Errorf("ask for %s: %w", want.EventID, err)
	}
	t.learn(t.Room, found)
	if !slices.ContainsFunc(found, func(f Found) bool { return f.Event.ID == want.EventID }) {
		t.change(t.Room, want.EventID, func(s *spot) { s.missed = time.Now() })
	}
	return nil
}

// ignores tells whether the user ignores a sender.
func (t *userTree) ignores(ctx context.Context, sender string) (bool, error) {
	if t.ignored == nil {
		ignored, err := t.Ignored(ctx)
		if err != nil {
			return false, err
		}
		if t.ignored = ignored; ignored == nil {
			t.ignored = map[string]bool{}
		}
	}
	return sender != t.User && t.ignored[sender], nil
}

// sees tells whether the user may see an event, and wants to.
func (t *userTree) sees(ctx context.Context, e *roomserver.Event) (bool, error) {
	if ignored, err := t.ignores(ctx, e.Sender); err != nil || ignored {
		return false, err
	}
	if e.Outlier() {
		return t.Viewer.SeesDetached(ctx, e)
	}
	return t.Viewer.Sees(ctx, e)
}

// Replies is Tree's. It asks other servers if one of them is said to know more.
func (t *userTree) Replies(ctx context.Context, e *roomserver.Event) ([]Reply, error) {
	here, there, err := t.related(ctx, e)
	if err != nil {
		return nil, err
	}
	if s, _ := t.spots.Get(spotKey{t.Room.NID, e.ID}); t.asks > 0 && s.unexplored(here, there) {
		want := *t.walk
		want.EventID, want.Direction, want.MaxDepth = e.ID, Down, max(want.MaxDepth, 1)
		t.change(t.Room, e.ID, func(s *spot) { s.explored = true })
		if err := t.explore(ctx, &want, e); err != nil {
			return nil, err
		}
		if here, there, err = t.related(ctx, e); err != nil {
			return nil, err
		}
	}
	var out []Reply
	for i := range here {
		c := &here[i]
		ignored, err := t.ignores(ctx, c.Sender)
		if err != nil {
			return nil, err
		}
		ok, err := t.Viewer.SeesChild(ctx, &c.Child)
		if err != nil {
			return nil, err
		}
		if ok && !ignored {
			out = append(out, Reply{c.ID, c.RelType, c.OriginServerTS, c.Token()})
		}
	}
	return t.appendDetached(ctx, out, e, there)
}

// appendDetached appends those of the events with these ids that have no place here, relate to e and are for the user to see.
func (t *userTree) appendDetached(ctx context.Context, out []Reply, e *roomserver.Event, ids []string) ([]Reply, error) {
	for _, id := range ids {
		c, err := t.known(ctx, id)
		if err != nil {
			return nil, err
		}
		if c == nil || !c.Outlier() {
			continue // forgotten, or it has come meanwhile and does not relate to e any more
		}
		r := c.Relationship()
		if r.EventID != e.ID {
			continue
		}
		ok, err := t.sees(ctx, c)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, Reply{ID: c.ID, RelType: r.Type, OriginServerTS: c.OriginServerTS})
		}
	}
	return out, nil
}

// related lists what relates to an event, whoever may see it: in the room's timeline here, and, by their ids, what else other
// servers told of.
func (t *userTree) related(ctx context.Context, e *roomserver.Event) (here []roomserver.Related, there []string, err error) {
	if here, err = t.Rooms.Relationships(ctx, t.Room, e.ID); err != nil {
		return nil, nil, err
	}
	s, _ := t.spots.Get(spotKey{t.Room.NID, e.ID})
	have := make(map[string]bool, len(here))
	for i := range here {
		have[here[i].ID] = true
	}
	for _, id := range s.replies {
		if !have[id] {
			there = append(there, id)
		}
	}
	return here, there, nil
}

// unexplored tells whether a server is said to have more replies to the event than are known here, or others.
func (s *spot) unexplored(here []roomserver.Related, there []string) bool {
	n := len(here) + len(there)
	if s.explored || s.claimed < n || s.claimed == 0 {
		return false
	}
	ids := slices.Clone(there)
	for i := range here {
		ids = append(ids, here[i].ID)
	}
	return s.claimed > n || s.hash != hash(ids)
}
