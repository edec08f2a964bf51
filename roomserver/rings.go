package roomserver

import (
	"sync"
	"sync/atomic"

	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// ringSize is how many recent events and state changes a room keeps at hand: what a client that is
// following the room asks for. Older ones come from the database.
const ringSize = 64

// timelineRing is the newest part of a room's timeline in arrival order. It is complete for positions
// above from.
type timelineRing struct {
	mu     sync.RWMutex
	loaded bool
	whole  bool // nothing is before it
	from   int64
	events []*Event // oldest first; the backing array is never overwritten, so slices of it may be kept

	bytes int64         // about what the events take
	total *atomic.Int64 // the sum over all rooms that are kept in memory; nil if this room is none of them
}

// account tells the sum what the events take by now; the caller holds mu.
func (t *timelineRing) account() {
	before := t.bytes
	t.bytes = 0
	for _, e := range t.events {
		t.bytes += int64(e.cost())
	}
	if t.total != nil {
		t.total.Add(t.bytes - before)
	}
}

// countIn makes the ring part of a sum.
func (t *timelineRing) countIn(total *atomic.Int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total = total
	total.Add(t.bytes)
}

// countOut takes the ring out of its sum.
func (t *timelineRing) countOut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total != nil {
		t.total.Add(-t.bytes)
		t.total = nil
	}
}

// unload forgets the events, which come from the database when they are next asked for. It leaves a ring alone that is
// in use, and returns how many bytes it freed.
func (t *timelineRing) unload() int64 {
	if !t.mu.TryLock() {
		return 0
	}
	defer t.mu.Unlock()
	freed := t.bytes
	t.loaded, t.whole, t.from, t.events = false, false, 0, nil
	t.account()
	return freed
}

// beginAt makes the ring begin at a position: what is before it has to be read, because backfill puts events there.
func (t *timelineRing) beginAt(pos int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.whole = false; !t.loaded || t.from >= pos-1 {
		return
	}
	t.from = pos - 1
	i := 0
	for i < len(t.events) && t.events[i].Anchor < pos {
		i++
	}
	t.events = t.events[i:]
	t.account()
}

// push appends a durable event.
func (t *timelineRing) push(e *Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.loaded {
		return
	}
	if len(t.events) >= 2*ringSize {
		kept := make([]*Event, ringSize, 2*ringSize+1)
		copy(kept, t.events[len(t.events)-ringSize:])
		t.from, t.whole = t.events[len(t.events)-ringSize-1].Anchor, false
		t.events = kept
		t.account()
	}
	if n := len(t.events); n > 0 && t.events[n-1].Anchor >= e.Anchor {
		return // the load that waited for this commit has read it
	}
	t.events = append(t.events, e)
	cost := int64(e.cost())
	if t.bytes += cost; t.total != nil {
		t.total.Add(cost)
	}
}

// since returns the events with positions in (after, upTo], oldest first, and whether the ring
// covers that range.
func (t *timelineRing) since(after, upTo int64) (events []*Event, covered bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.loaded || after < t.from {
		return nil, false
	}
	end := len(t.events)
	for end > 0 && t.events[end-1].Anchor > upTo {
		end--
	}
	start := end
	for start > 0 && t.events[start-1].Anchor > after {
		start--
	}
	return t.events[start:end:end], true
}

// last returns up to n events with positions of at most upTo, oldest first, and whether the ring
// has that many or covers the whole room.
func (t *timelineRing) last(n int, upTo int64) (events []*Event, covered bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.loaded {
		return nil, false
	}
	end := len(t.events)
	for end > 0 && t.events[end-1].Anchor > upTo {
		end--
	}
	start := max(0, end-n)
	return t.events[start:end:end], end-start == n || t.whole
}

// load gives the ring the newest events of the room from the database, unless it has them. Commits
// meanwhile wait in push, so none is lost.
func (t *timelineRing) load(read func() ([]*Event, error)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loaded {
		return nil
	}
	events, err := read()
	if err != nil {
		return err
	}
	t.whole = len(events) < ringSize
	// Backfilled events have no arrival of their own: the ring begins after the last of them.
	for i := len(events) - 1; i >= 0; i-- {
		if events[i].Sub != 0 {
			t.from, t.whole, events = events[i].Anchor-1, false, events[i+1:]
			break
		}
	}
	if t.from == 0 && !t.whole && len(events) > 0 {
		t.from = events[0].Anchor - 1
	}
	t.loaded, t.events = true, events
	t.account()
	return nil
}

// stateChange is one row of state_log.
type stateChange struct {
	pos      int64
	old, new snapshot.Ref
}

// stateRing is the newest part of a room's state_log, complete above from.
type stateRing struct {
	mu      sync.RWMutex
	from    int64
	changes []stateChange
}

func (t *stateRing) reset(from int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.from, t.changes = from, nil
}

func (t *stateRing) push(c stateChange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.changes) >= 2*ringSize {
		t.from = t.changes[len(t.changes)-ringSize-1].pos
		t.changes = append(make([]stateChange, 0, 2*ringSize+1), t.changes[len(t.changes)-ringSize:]...)
	}
	t.changes = append(t.changes, c)
}

// at returns the current state's root as of a position, if the ring reaches that far back.
func (t *stateRing) at(pos int64, current snapshot.Ref) (snapshot.Ref, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if pos < t.from {
		return 0, false
	}
	for i := len(t.changes) - 1; i >= 0; i-- {
		if t.changes[i].pos <= pos {
			return t.changes[i].new, true
		}
	}
	if len(t.changes) > 0 {
		return t.changes[0].old, true
	}
	return current, true
}
