package unread

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/push"
	"github.com/myelin-im/myelin/push/counts"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Deps are the other parts of the server that counting stands on.
type Deps struct {
	// DB must have been opened with push.Schema.
	DB *storage.DB
	// Rooms has the events, Receipts how far they were read, Rules what notifies.
	Rooms    *roomserver.Server
	Receipts *ephemeral.API
	Rules    *push.API
	// Log gets what operators should know.
	Log *logrus.Entry
}

// Counts answers what is unread. It is safe for concurrent use.
type Counts struct {
	log     *log
	counter *counts.Counter
	saver   *saver
}

const (
	// eventBytes bounds the events in memory that are ready to be judged.
	eventBytes = 16 << 20
	// maxJoins bounds the membership events of which it is known when the stay in the room began.
	maxJoins = 200_000
	// maxRooms bounds the rooms of which some states are known.
	maxRooms = 20_000
)

// New makes the Counts. It must be called before the first write.
func New(d Deps) *Counts {
	l := &log{rooms: d.Rooms, receipts: d.Receipts, rules: d.Rules, ignored: accounts.NewIgnoreLists(d.DB)}
	l.makeCaches()
	s := newSaver(d.DB, d.Log)
	return &Counts{log: l, counter: counts.New(l, counts.Options{Store: s}), saver: s}
}

// Unread returns what a user has not read in a room of the events up to a position; nothing for somebody who is not in
// it.
func (c *Counts) Unread(ctx context.Context, room *roomserver.Room, user string, at int64) (*counts.Unread, error) {
	return c.counter.Unread(ctx, room.NID, user, at)
}

// Ignored returns whom a user ignores, not to be changed.
func (c *Counts) Ignored(ctx context.Context, user string) (map[string]bool, error) {
	users, _, err := c.log.ignored.Of(ctx, user)
	return users, err
}

// Run writes checkpoints down until ctx ends, those that are left at last.
func (c *Counts) Run(ctx context.Context) { c.saver.run(ctx) }

// log is what a counter reads.
type log struct {
	rooms    *roomserver.Server
	receipts *ephemeral.API
	rules    *push.API
	ignored  *accounts.IgnoreLists

	events *cache.Cache[int64, prepared]    // by event number
	joins  *cache.Cache[int64, int64]       // by number of a membership event, where that stay began
	states *cache.Cache[int64, *roomStates] // by room
}

func (l *log) makeCaches() {
	l.events = cache.New[int64, prepared](eventBytes)
	l.joins = cache.New[int64, int64](maxJoins)
	l.states = cache.New[int64, *roomStates](maxRooms)
}

// prepared is an event that is ready to be judged, and about how many bytes it takes.
type prepared struct {
	*counts.Event
	size uint32
}

// Events implements counts.Log.
func (l *log) Events(ctx context.Context, nid, after, upTo int64, _ bool, limit int) ([]*counts.Event, error) {
	room, err := l.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	arrived, err := l.rooms.Arrived(ctx, room, after, upTo, limit)
	if err != nil || len(arrived) == 0 {
		return nil, err
	}
	out := make([]*counts.Event, len(arrived))
	for i, e := range arrived {
		known, ok := l.events.Get(e.NID)
		if !ok || known.Redacted != e.Redacted {
			if known, err = l.prepare(ctx, room, e); err != nil {
				return nil, err
			}
			l.events.Put(e.NID, known, int(known.size)+cache.Overhead)
		}
		out[i] = known.Event
	}
	return out, nil
}

// prepare works out what counting needs of an event, but for what only rules look at.
func (l *log) prepare(ctx context.Context, room *roomserver.Room, e *roomserver.Event) (prepared, error) {
	out := prepared{size: uint32(1000 + 2*len(e.Content()) + len(e.JSON())), Event: &counts.Event{
		Pos: e.Anchor, TS: e.OriginServerTS, Type: e.Type, Sender: e.Sender, State: e.IsState(), Redacted: e.Redacted,
		Facts: counts.NewFacts(func(ctx context.Context) (*rules.Prepared, *rules.Room, error) {
			facts, err := l.facts(ctx, room, e)
			if err != nil {
				return nil, nil, fmt.Errorf("room at %s: %w", e.ID, err)
			}
			return rules.Prepare(&rules.Event{
				Type: e.Type, Sender: e.Sender, RoomID: room.ID, EventID: e.ID, StateKey: e.StateKey,
				OriginServerTS: e.OriginServerTS, Content: e.Content(),
			}), facts, nil
		}),
	}}
	var err error
	if out.Thread, err = l.rooms.ThreadRoot(ctx, room, e); err != nil {
		return out, fmt.Errorf("thread of %s: %w", e.ID, err)
	}
	target, err := l.rooms.RedactionTarget(ctx, room, e)
	if err != nil {
		return out, fmt.Errorf("target of %s: %w", e.ID, err)
	}
	if target != nil {
		out.Redacts = target.Anchor
	}
	return out, nil
}

// JoinedSince implements counts.Log.
func (l *log) JoinedSince(ctx context.Context, nid int64, user string, at int64) (int64, bool, error) {
	room, err := l.rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	root, err := l.rooms.StateAt(ctx, room, at)
	if err != nil {
		return 0, false, err
	}
	e, err := l.rooms.StateEvent(ctx, room, root, "m.room.member", user)
	if err != nil || e == nil || e.Membership() != roomserver.Join {
		return 0, false, err
	}
	since, err := l.stayBegan(ctx, room, e)
	return since, true, err
}

// stayBegan goes back from a membership event of somebody who is joined to the one by which they joined: changes of
// profile write membership events, too.
func (l *log) stayBegan(ctx context.Context, room *roomserver.Room, e *roomserver.Event) (int64, error) {
	if since, ok := l.joins.Get(e.NID); ok {
		return since, nil
	}
	first := e
	var since int64
	for {
		known, ok := l.joins.Get(first.NID)
		if ok {
			since = known
			break
		}
		before, err := l.rooms.StateEvent(ctx, room, first.StateBefore, first.Type, *first.StateKey)
		if err != nil {
			return 0, err
		}
		if before == nil || before.Membership() != roomserver.Join {
			since = first.Anchor
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		first = before
	}
	l.joins.Put(e.NID, since, 1)
	return since, nil
}

// ReadUpTo implements counts.Log.
func (l *log) ReadUpTo(ctx context.Context, room int64, user, thread string) (int64, error) {
	return l.receipts.ReadUpTo(ctx, room, user, thread)
}

// RulesSpan implements counts.Log.
func (l *log) RulesSpan(ctx context.Context, user string, pos int64) (*rules.Compiled, int64, error) {
	return l.rules.RulesSpan(ctx, user, pos)
}

// DisplayName implements counts.Log.
func (l *log) DisplayName(ctx context.Context, nid int64, user string, pos int64) (string, error) {
	room, err := l.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return "", err
	}
	root, err := l.rooms.StateAt(ctx, room, pos)
	if err != nil {
		return "", err
	}
	e, err := l.rooms.StateEvent(ctx, room, root, "m.room.member", user)
	if err != nil || e == nil {
		return "", err
	}
	name, _ := e.ContentString("displayname")
	return name, nil
}

// Horizon implements counts.Log.
func (l *log) Horizon(ctx context.Context, nid int64) (int64, error) {
	room, err := l.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return 0, err
	}
	return l.rooms.Horizon(ctx, room)
}

// Ignored implements counts.Log.
func (l *log) Ignored(ctx context.Context, user string) (map[string]bool, int64, error) {
	return l.ignored.Of(ctx, user)
}
