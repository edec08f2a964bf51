package ephemeral

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

const (
	// defaultTyping is how long somebody types who does not say for how long; the others are the bounds.
	defaultTyping = 30 * time.Second
	minTyping     = time.Second
	maxTyping     = 2 * time.Minute
	// maxTypists bounds those who type in one room at once.
	maxTypists = 100
	// maxTypingRooms is from how many rooms on those are forgotten where nobody types any more.
	maxTypingRooms = 10_000
)

// typing is who types where.
type typing struct {
	mu    sync.RWMutex
	stamp int64 // grows with each change of a list; guarded by mu, as is the rest
	floor int64 // lists that changed at or before it may have been forgotten
	rooms map[int64]*typists
	busy  int // rooms in which somebody types
	// next is when somebody's typing ends, as far as the background knows; zero if nobody types.
	next time.Time
}

// typists are those who type in one room.
type typists struct {
	changed int64 // the stamp of the last change
	list    []typist
}

type typist struct {
	user  string
	until time.Time
}

func newTyping() typing { return typing{rooms: map[int64]*typists{}} }

// set makes a user type in a room until some time, or stop typing if that is zero. It tells whether the list changed.
func (t *typing) set(room int64, user string, until time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[room]
	i := -1
	if r != nil {
		i = slices.IndexFunc(r.list, func(p typist) bool { return p.user == user })
	}
	switch {
	case until.IsZero() && i < 0:
		return false
	case until.IsZero():
		r.list = slices.Delete(r.list, i, i+1)
	case i >= 0:
		r.list[i].until = until
		return false
	default:
		if r == nil {
			r = t.room(room)
		}
		if len(r.list) >= maxTypists {
			return false
		}
		r.list = append(r.list, typist{user, until})
		if len(r.list) == 1 {
			t.busy++
		}
	}
	t.changed(r)
	return true
}

// room makes an entry. When there are many, those of rooms where nobody types are forgotten.
func (t *typing) room(room int64) *typists {
	if len(t.rooms) >= maxTypingRooms && t.busy < len(t.rooms)/2 {
		for id, r := range t.rooms {
			if len(r.list) == 0 {
				delete(t.rooms, id)
			}
		}
		t.floor = t.stamp
	}
	r := &typists{}
	t.rooms[room] = r
	return r
}

// changed notes a change of a list, which has been made.
func (t *typing) changed(r *typists) {
	t.stamp++
	r.changed = t.stamp
	if len(r.list) == 0 {
		t.busy--
	}
}

// expire ends what should have ended by now, and returns the rooms concerned and when the next one ends (zero: none).
func (t *typing) expire(now time.Time) (rooms []int64, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer func() { t.next = next }()
	if t.busy == 0 {
		return nil, next
	}
	for id, r := range t.rooms {
		if len(r.list) == 0 {
			continue
		}
		before := len(r.list)
		r.list = slices.DeleteFunc(r.list, func(p typist) bool { return !now.Before(p.until) })
		for _, p := range r.list {
			if next.IsZero() || p.until.Before(next) {
				next = p.until
			}
		}
		if len(r.list) != before {
			t.changed(r)
			rooms = append(rooms, id)
		}
	}
	return rooms, next
}

// expireTyping tells those who wait about who stopped typing without saying so, and returns when to come again.
func (a *API) expireTyping() time.Duration {
	now := a.now()
	rooms, next := a.typing.expire(now)
	for _, room := range rooms {
		a.listener.Typing(room)
	}
	if next.IsZero() {
		return maxPause
	}
	return next.Sub(now)
}

// SetTyping makes a user, who is in the room, type there for some time, or stop if that is not positive.
func (a *API) SetTyping(room int64, user string, duration time.Duration) {
	var until time.Time
	if duration > 0 {
		until = a.now().Add(min(max(duration, minTyping), maxTyping))
	}
	if a.typing.set(room, user, until) {
		a.listener.Typing(room)
	}
	if duration > 0 && a.typing.endsFirst(until) {
		a.wake()
	}
}

// endsFirst tells whether the background must come earlier than it thinks.
func (t *typing) endsFirst(until time.Time) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.next.IsZero() || until.Before(t.next)
}

// TypingStamp is the stamp of the lists as they are.
func (a *API) TypingStamp() int64 {
	a.typing.mu.RLock()
	defer a.typing.mu.RUnlock()
	return a.typing.stamp
}

// TypingKnown tells whether all changes since a stamp of this boot are remembered.
func (a *API) TypingKnown(stamp int64) bool {
	a.typing.mu.RLock()
	defer a.typing.mu.RUnlock()
	return stamp >= a.typing.floor && stamp <= a.typing.stamp
}

// TypingChanged tells whether the list of a room changed since a stamp. Below all stamps, with a negative one, it
// tells whether somebody types.
func (a *API) TypingChanged(room, stamp int64) bool {
	a.typing.mu.RLock()
	defer a.typing.mu.RUnlock()
	r := a.typing.rooms[room]
	if r == nil || stamp < 0 {
		return r != nil && len(r.list) > 0
	}
	return r.changed > stamp
}

// SomebodyTypes tells whether somebody types in one of the rooms to which the user is joined.
func (a *API) SomebodyTypes(rooms []roomserver.UserRoom) bool {
	a.typing.mu.RLock()
	defer a.typing.mu.RUnlock()
	if a.typing.busy == 0 {
		return false
	}
	for i := range rooms {
		if rooms[i].Membership != roomserver.Join {
			continue
		}
		if r := a.typing.rooms[rooms[i].NID]; r != nil && len(r.list) > 0 {
			return true
		}
	}
	return false
}

// AppendTypingEvent appends the m.typing event of a room as it is.
func (a *API) AppendTypingEvent(dst []byte, room int64) []byte {
	a.typing.mu.RLock()
	defer a.typing.mu.RUnlock()
	dst = append(dst, `{"content":{"user_ids":[`...)
	if r := a.typing.rooms[room]; r != nil {
		for i := range r.list {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = canonicaljson.AppendString(dst, r.list[i].user)
		}
	}
	return append(dst, `]},"type":"m.typing"}`...)
}

type typingRequest struct {
	RoomID string `path:"roomId"`
	UserID string `path:"userId"`
	Typing bool   `json:"typing" required:"true"`
	// Timeout is in milliseconds.
	Timeout *int64 `json:"timeout"`
}

// putTyping: client-server API v1.19, PUT /rooms/{roomId}/typing/{userId}.
func (a *API) putTyping(ctx context.Context, by *httpapi.Caller, in *typingRequest) (*httpapi.Empty, error) {
	if in.UserID != by.UserID {
		return nil, mxerr.Forbidden("You cannot type for somebody else")
	}
	room, err := a.enter(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	duration := time.Duration(0)
	if in.Typing {
		duration = defaultTyping
		if in.Timeout != nil {
			duration = time.Duration(min(max(*in.Timeout, 1), maxTyping.Milliseconds())) * time.Millisecond
		}
		a.active(by.UserID)
	}
	a.SetTyping(room.NID, by.UserID, duration)
	return nil, nil
}
