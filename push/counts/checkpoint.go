package counts

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"sort"
)

const (
	// maxEntries is how many unread events of a user and room are remembered one by one; older ones
	// become mere numbers (scope.older), half of the list at a time. Nobody tells 1100 unread
	// messages from 1101; the numbers stay exact but for redactions among the older ones.
	maxEntries = 1024
	// maxOldThreads bounds the threads for which older numbers are kept apart. Beyond that, older
	// unread events of other threads count for the main timeline.
	maxOldThreads = 256
)

// checkpoint is what is unread by a user in a room, of the events up to a position.
type checkpoint struct {
	// joined and ignored are what the checkpoint was counted for: the position of the join and the
	// version of the list of ignored users.
	joined, ignored int64
	// upTo is the position up to which events were judged.
	upTo int64
	// olderUpTo is the position up to which unread events are numbers only, 0 if none are.
	olderUpTo int64
	// olderTS is the latest origin_server_ts among these.
	olderTS int64
	// entries are the unread events after olderUpTo, by position.
	entries []entry
	// scopes are the main timeline, always the first, and the threads that entries refer to.
	scopes []scope
}

// entry is an unread event that notifies.
type entry struct {
	pos       int64
	ts        int64 // origin_server_ts; never for state
	scope     int32
	highlight bool
}

// never is the time stamp of what does not expire.
const never = math.MaxInt64

func (e *entry) counts() Counts {
	if e.highlight {
		return Counts{1, 1}
	}
	return Counts{1, 0}
}

// scope is the main timeline or a thread.
type scope struct {
	root  string // empty for the main timeline
	sum   Counts // of all that is unread
	older Counts // the part of sum that entries do not hold
	// readUpTo is how far receipts applied.
	readUpTo int64
}

func newCheckpoint(joined, ignored int64) *checkpoint {
	return &checkpoint{joined: joined, ignored: ignored, upTo: joined, scopes: make([]scope, 1)}
}

// scopeOf returns the index of a thread, made if need be.
func (cp *checkpoint) scopeOf(root string) int32 {
	for i := range cp.scopes { // few, and the threads of one conversation at the end
		if j := len(cp.scopes) - 1 - i; cp.scopes[j].root == root {
			return int32(j)
		}
	}
	cp.scopes = append(cp.scopes, scope{root: root})
	return int32(len(cp.scopes) - 1)
}

// add adds an unread event. Its position is beyond that of all others.
func (cp *checkpoint) add(pos, ts int64, scope int32, highlight bool) {
	if len(cp.entries) == maxEntries {
		cp.fold()
	}
	e := entry{pos, ts, scope, highlight}
	cp.entries = append(cp.entries, e)
	cp.scopes[scope].sum.add(e.counts())
}

// fold turns the older half of the entries into numbers.
func (cp *checkpoint) fold() {
	half := len(cp.entries) / 2
	threads := 0
	for i := range cp.scopes {
		if cp.scopes[i].older != (Counts{}) {
			threads++
		}
	}
	for i := range cp.entries[:half] {
		e := &cp.entries[i]
		s := &cp.scopes[e.scope]
		if s.older == (Counts{}) && e.scope != 0 {
			if threads >= maxOldThreads {
				s.sum.remove(e.counts())
				s = &cp.scopes[0]
				s.sum.add(e.counts())
			} else {
				threads++
			}
		}
		s.older.add(e.counts())
		cp.olderTS = max(cp.olderTS, e.ts)
	}
	cp.olderUpTo = cp.entries[half-1].pos
	cp.entries = slices.Delete(cp.entries, 0, half)
}

// read marks a scope as read up to a position. It returns false, having changed nothing, if that lies
// among the events of which only numbers are left, so that all has to be counted again.
func (cp *checkpoint) read(i int32, upTo int64) bool {
	s := &cp.scopes[i]
	if upTo <= s.readUpTo {
		return true
	}
	if s.older != (Counts{}) {
		if upTo < cp.olderUpTo {
			return false
		}
		s.sum.remove(s.older)
		s.older = Counts{}
	}
	s.readUpTo = upTo
	if s.sum == (Counts{}) {
		return true
	}
	kept := cp.entries[:0]
	for _, e := range cp.entries {
		if e.scope == i && e.pos <= upTo {
			s.sum.remove(e.counts())
			continue
		}
		kept = append(kept, e)
	}
	cp.entries = kept
	return true
}

// redact takes out the event at a position, if it is unread.
func (cp *checkpoint) redact(pos int64) {
	i, found := slices.BinarySearchFunc(cp.entries, pos, func(e entry, pos int64) int { return cmp.Compare(e.pos, pos) })
	if !found {
		return
	}
	e := &cp.entries[i]
	cp.scopes[e.scope].sum.remove(e.counts())
	cp.entries = slices.Delete(cp.entries, i, i+1)
}

// any tells whether there is anything unread.
func (cp *checkpoint) any() bool {
	if len(cp.entries) > 0 {
		return true
	}
	return slices.ContainsFunc(cp.scopes, func(s scope) bool { return s.older != (Counts{}) })
}

// expire takes out what is from before a time: of the events of which only numbers are left, all at once, when the last
// of them is.
func (cp *checkpoint) expire(horizon int64) {
	if cp.olderTS < horizon {
		for i := range cp.scopes {
			s := &cp.scopes[i]
			s.sum.remove(s.older)
			s.older = Counts{}
		}
		cp.olderTS = 0
	}
	cp.entries = slices.DeleteFunc(cp.entries, func(e entry) bool {
		if e.ts < horizon {
			cp.scopes[e.scope].sum.remove(e.counts())
		}
		return e.ts < horizon
	})
}

// tidy forgets threads without anything unread, when there are many. It changes the indexes of scopes.
func (cp *checkpoint) tidy() {
	live := 1
	for i := range cp.scopes[1:] {
		if cp.scopes[i+1].sum != (Counts{}) {
			live++
		}
	}
	if len(cp.scopes) < 2*live+16 {
		return
	}
	moved := make([]int32, len(cp.scopes))
	kept := cp.scopes[:1]
	for i := 1; i < len(moved); i++ {
		if s := cp.scopes[i]; s.sum != (Counts{}) {
			moved[i] = int32(len(kept))
			kept = append(kept, s)
		}
	}
	clear(cp.scopes[len(kept):])
	cp.scopes = kept
	for i := range cp.entries {
		cp.entries[i].scope = moved[cp.entries[i].scope]
	}
}

// unread gives the counts as of upTo.
func (cp *checkpoint) unread() *Unread {
	out := &Unread{Main: cp.scopes[0].sum}
	for i := range cp.scopes[1:] {
		if s := &cp.scopes[i+1]; s.sum != (Counts{}) {
			out.Threads = append(out.Threads, Thread{s.root, s.sum})
		}
	}
	return out
}

// before gives the counts as of a position before upTo, or false if the checkpoint cannot tell.
func (cp *checkpoint) before(pos int64) (*Unread, bool) {
	if pos < cp.olderUpTo || pos < cp.joined {
		return nil, false
	}
	past := checkpoint{scopes: slices.Clone(cp.scopes)}
	after := sort.Search(len(cp.entries), func(i int) bool { return cp.entries[i].pos > pos })
	for _, e := range cp.entries[after:] {
		past.scopes[e.scope].sum.remove(e.counts())
	}
	return past.unread(), true
}

// size is about what the checkpoint takes in memory.
func (cp *checkpoint) size() int {
	n := 160 + 24*cap(cp.entries) + 64*cap(cp.scopes)
	for i := range cp.scopes {
		n += len(cp.scopes[i].root)
	}
	return n
}

// encodingVersion begins an encoded checkpoint. Others are not read: they are counted again.
const encodingVersion = 2

// encode gives the checkpoint for a Store.
func (cp *checkpoint) encode() []byte {
	cp.tidy()
	b := []byte{encodingVersion}
	put := func(values ...int64) {
		for _, v := range values {
			b = binary.AppendVarint(b, v)
		}
	}
	put(cp.joined, cp.ignored, cp.upTo, cp.olderUpTo, cp.olderTS, int64(len(cp.scopes)))
	for i := range cp.scopes {
		s := &cp.scopes[i]
		put(int64(len(s.root)))
		b = append(b, s.root...)
		put(s.older.Notifications, s.older.Highlights, s.readUpTo)
	}
	put(int64(len(cp.entries)))
	last := cp.olderUpTo
	for i := range cp.entries {
		e := &cp.entries[i]
		what := int64(e.scope) << 1
		if e.highlight {
			what |= 1
		}
		put(e.pos-last, e.ts, what)
		last = e.pos
	}
	return b
}

// decode reads an encoded checkpoint, or returns nil.
func decode(b []byte) *checkpoint {
	if len(b) == 0 || b[0] != encodingVersion {
		return nil
	}
	b = b[1:]
	ok := true
	next := func() int64 {
		v, n := binary.Varint(b)
		if n <= 0 {
			ok = false
			return 0
		}
		b = b[n:]
		return v
	}
	cp := &checkpoint{joined: next(), ignored: next(), upTo: next(), olderUpTo: next(), olderTS: next()}
	for n := next(); ok && n > 0; n-- {
		size := next()
		if size < 0 || size > int64(len(b)) {
			return nil
		}
		s := scope{root: string(b[:size])}
		b = b[size:]
		s.older = Counts{next(), next()}
		s.sum, s.readUpTo = s.older, next()
		cp.scopes = append(cp.scopes, s)
	}
	last := cp.olderUpTo
	for n := next(); ok && n > 0; n-- {
		pos, ts, what := last+next(), next(), next()
		if pos <= last || what>>1 < 0 || what>>1 >= int64(len(cp.scopes)) || len(cp.entries) == maxEntries {
			return nil
		}
		e := entry{pos, ts, int32(what >> 1), what&1 == 1}
		cp.entries = append(cp.entries, e)
		cp.scopes[e.scope].sum.add(e.counts())
		last = pos
	}
	if !ok || len(b) > 0 || len(cp.scopes) == 0 {
		return nil
	}
	return cp
}
