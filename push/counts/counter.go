package counts

import (
	"context"
	"fmt"
	"sync"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/push/rules"
)

const (
	// batch is how many events are read at a time.
	batch = 256
	// saveAfter is after how many judged events a checkpoint is saved: what a restart may cost.
	saveAfter = 256
)

// Options bound a Counter. Zero values take defaults.
type Options struct {
	// Bytes bounds the checkpoints in memory (default 32 MiB). One with little unread takes some 300
	// bytes, the largest about 100 KiB.
	Bytes int
	// Store, if set, keeps checkpoints over restarts.
	Store Store
}

// Counter answers what is unread. It is safe for concurrent use.
type Counter struct {
	log   Log
	store Store
	slots *cache.Cache[place, *slot]
}

type place struct {
	room int64
	user string
}

// slot is where the checkpoint of a user and room stands.
type slot struct {
	mu      sync.Mutex
	cp      *checkpoint // guarded by mu
	unsaved int         // events judged since the last save; guarded by mu
}

// New makes a Counter on a log.
func New(log Log, opt Options) *Counter {
	if opt.Bytes <= 0 {
		opt.Bytes = 32 << 20
	}
	return &Counter{log: log, store: opt.Store, slots: cache.New[place, *slot](opt.Bytes)}
}

// Unread returns what the user has not read in the room of the events up to a position. It is nothing
// if the user is not a member there. If ctx ends on the way, what was counted so far is kept.
func (c *Counter) Unread(ctx context.Context, room int64, user string, at int64) (*Unread, error) {
	out, err := c.unread(ctx, place{room, user}, at)
	if err != nil {
		return nil, fmt.Errorf("count unread of %s: %w", user, err)
	}
	return out, nil
}

func (c *Counter) unread(ctx context.Context, p place, at int64) (*Unread, error) {
	joined, is, err := c.log.JoinedSince(ctx, p.room, p.user, at)
	if err != nil || !is {
		return &Unread{}, err
	}
	r := reader{Log: c.log, place: p, joined: joined}
	if r.ignored, r.ignoredVersion, err = c.log.Ignored(ctx, p.user); err != nil {
		return nil, err
	}
	s, ok := c.slots.Get(p)
	if !ok {
		s = c.slots.GetOrPut(p, &slot{}, 256+cache.Overhead)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cp == nil && c.store != nil {
		saved, err := c.store.Load(ctx, p.room, p.user)
		if err != nil {
			return nil, err
		}
		s.cp = decode(saved)
	}
	if s.cp != nil && s.cp.joined > joined {
		// The position lies before a later join; that of others must not lose what they know.
		return r.count(ctx, newCheckpoint(joined, r.ignoredVersion), at)
	}
	if s.cp == nil || s.cp.joined != joined || s.cp.ignored != r.ignoredVersion {
		s.cp = newCheckpoint(joined, r.ignoredVersion)
	}
	defer c.keep(p, s, &r)
	return c.advance(ctx, s, &r, at)
}

// advance counts with the checkpoint of a slot.
func (c *Counter) advance(ctx context.Context, s *slot, r *reader, at int64) (*Unread, error) {
	if ok, err := r.applyReceipts(ctx, s.cp); err != nil {
		return nil, err
	} else if !ok {
		s.cp = newCheckpoint(r.joined, r.ignoredVersion)
	}
	if at >= s.cp.upTo {
		return r.count(ctx, s.cp, at)
	}
	if err := r.expire(ctx, s.cp); err != nil {
		return nil, err
	}
	if out, ok := s.cp.before(at); ok {
		return out, nil
	}
	return r.count(ctx, newCheckpoint(r.joined, r.ignoredVersion), at)
}

// keep accounts for the size of the checkpoint and saves it if much happened.
func (c *Counter) keep(p place, s *slot, r *reader) {
	if r.judged > 0 {
		c.slots.Put(p, s, 128+s.cp.size()+cache.Overhead)
	}
	if s.unsaved += r.judged; c.store != nil && s.unsaved >= saveAfter {
		c.store.Save(p.room, p.user, s.cp.encode())
		s.unsaved = 0
	}
}

// reader is one count for one user.
type reader struct {
	Log
	place
	joined         int64
	ignored        map[string]bool
	ignoredVersion int64

	compiled *rules.Compiled
	until    int64 // how far compiled is valid
	judged   int   // events looked at
}

// applyReceipts applies the receipts to what is unread. It returns false if all has to be counted again.
func (r *reader) applyReceipts(ctx context.Context, cp *checkpoint) (bool, error) {
	everywhere, err := r.ReadUpTo(ctx, r.room, r.user, Unthreaded)
	if err != nil {
		return false, err
	}
	for i := range cp.scopes {
		s := &cp.scopes[i]
		if i > 0 && s.sum == (Counts{}) {
			continue
		}
		upTo, err := r.scopeReadUpTo(ctx, s.root, everywhere)
		if err != nil {
			return false, err
		}
		if !cp.read(int32(i), upTo) {
			return false, nil
		}
	}
	cp.tidy()
	return true, nil
}

// scopeReadUpTo is how far the user has read the main timeline or a thread.
func (r *reader) scopeReadUpTo(ctx context.Context, root string, everywhere int64) (int64, error) {
	if root == "" {
		root = Main
	}
	upTo, err := r.ReadUpTo(ctx, r.room, r.user, root)
	return max(upTo, everywhere), err
}

// count extends the checkpoint, in which no receipt need be applied, to a position and gives the counts.
func (r *reader) count(ctx context.Context, cp *checkpoint, at int64) (*Unread, error) {
	everywhere, err := r.ReadUpTo(ctx, r.room, r.user, Unthreaded)
	if err != nil {
		return nil, err
	}
	main, err := r.scopeReadUpTo(ctx, "", everywhere)
	if err != nil {
		return nil, err
	}
	cp.read(0, main)
	// What an unthreaded receipt covers need not be looked at. Where only the main timeline is read,
	// threads still are: in a room of long standing the difference is years.
	cp.upTo = max(cp.upTo, min(everywhere, at))
	if err := r.scan(ctx, cp, min(main, at), true, everywhere); err != nil {
		return nil, err
	}
	if err := r.scan(ctx, cp, at, false, everywhere); err != nil {
		return nil, err
	}
	if err := r.expire(ctx, cp); err != nil {
		return nil, err
	}
	return cp.unread(), nil
}

// expire takes out the messages that have expired.
func (r *reader) expire(ctx context.Context, cp *checkpoint) error {
	if !cp.any() {
		return nil
	}
	horizon, err := r.Horizon(ctx, r.room)
	if err == nil && horizon > 0 {
		cp.expire(horizon)
	}
	return err
}

// scan judges the events from where the checkpoint stands up to a position.
func (r *reader) scan(ctx context.Context, cp *checkpoint, upTo int64, skipMain bool, everywhere int64) error {
	for cp.upTo < upTo {
		events, err := r.Events(ctx, r.room, cp.upTo, upTo, skipMain, batch)
		if err != nil {
			return err
		}
		r.applyOwn(cp, events)
		for _, e := range events {
			if err := r.judge(ctx, cp, e, everywhere); err != nil {
				return err
			}
			cp.upTo = e.Pos
		}
		cp.tidy()
		if len(events) < batch {
			cp.upTo = upTo
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// applyOwn marks as read what stands before the user's own events. It sees events before they are judged, so that it need
// not be found out whether what they mark notifies.
//
// "When the user updates their read receipt (either by using the API or by sending an event), notifications prior to and
// including that event MUST be marked as read." Membership events do not count: a new profile picture sends one to each
// room. All of the scope's unread events stand before this one, so that even numbers alone can be cleared.
func (r *reader) applyOwn(cp *checkpoint, events []*Event) {
	for _, e := range events {
		if e.Sender == r.user && e.Type != "m.room.member" {
			cp.read(cp.scopeOf(e.Thread), e.Pos)
		}
	}
}

// judge adds an event to what is unread if it notifies, and applies what it does to others.
func (r *reader) judge(ctx context.Context, cp *checkpoint, e *Event, everywhere int64) error {
	r.judged++
	if e.Redacts != 0 {
		cp.redact(e.Redacts)
	}
	if e.Sender == r.user {
		return nil // applyOwn has seen it
	}
	if r.ignored[e.Sender] && !e.State || e.Redacted {
		return nil
	}
	i := cp.scopeOf(e.Thread)
	s := &cp.scopes[i]
	if s.sum == (Counts{}) && i != 0 { // a thread's receipt is asked for once it matters
		upTo, err := r.scopeReadUpTo(ctx, e.Thread, everywhere)
		if err != nil {
			return err
		}
		s.readUpTo = max(s.readUpTo, upTo)
	}
	if e.Pos <= s.readUpTo {
		return nil
	}
	actions, err := r.evaluate(ctx, e)
	if err != nil {
		return err
	}
	if actions.Notify {
		ts := e.TS
		if e.State {
			ts = never
		}
		cp.add(e.Pos, ts, i, actions.Highlight)
	}
	return nil
}

// evaluate applies the rules at the event's position.
func (r *reader) evaluate(ctx context.Context, e *Event) (*rules.Actions, error) {
	if r.compiled == nil || e.Pos > r.until {
		var err error
		if r.compiled, r.until, err = r.RulesSpan(ctx, r.user, e.Pos); err != nil {
			return nil, err
		}
	}
	name := ""
	if r.compiled.NeedsDisplayName() {
		var err error
		if name, err = r.DisplayName(ctx, r.room, r.user, e.Pos); err != nil {
			return nil, err
		}
	}
	prepared, room, err := e.Facts.get(ctx)
	if err != nil {
		return nil, err
	}
	return r.compiled.Evaluate(prepared, room, name), nil
}
