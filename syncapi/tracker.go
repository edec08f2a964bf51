package syncapi

import (
	"slices"
	"sync"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// tracker knows, for what happened since the process started, the last position of each room and user, and
// which requests wait for whom.
type tracker struct {
	rooms *roomserver.Server
	start int64 // the log's head when tracking began

	mu      sync.RWMutex
	roomPos map[int64]int64
	// profilePos is the last position at which somebody's profile changed.
	profilePos int64
	userPos    map[string]int64
	waiters    map[string][]*waiter
	names      []string // scratch for members of a room
	pulses     map[int64]*pulse
}

// waiter is one request that waits.
type waiter struct {
	wake      chan struct{}
	interests interests
}

// interests are what a request waits for beside the log.
type interests uint8

const (
	inReceipts interests = 1 << iota
	inTyping
	inPresence
	inProfiles
	inLog      // every request is
	everything = inLog | inPresence | inTyping | inReceipts | inProfiles
)

func newTracker(rooms *roomserver.Server, head int64) *tracker {
	return &tracker{
		rooms: rooms, start: head,
		roomPos: map[int64]int64{}, userPos: map[string]int64{}, waiters: map[string][]*waiter{}, pulses: map[int64]*pulse{},
	}
}

// committed takes note of a batch. It is called in commit order. Receipts concern rooms, and keys and
// messages to devices are kept by others: neither is their user's data.
func (t *tracker) committed(batch []storage.Notice, _ int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range batch {
		if n.Room != 0 {
			t.roomPos[n.Room] = n.Pos
		}
		switch n.Kind {
		case storage.Profile:
			t.profilePos = n.Pos
		case storage.Receipt, storage.PrivateReceipt, storage.ToDevice, storage.DeviceKeys, storage.OneTimeKeys, storage.Pushers:
		default:
			if n.User != "" {
				t.userPos[n.User] = n.Pos
			}
		}
	}
}

// published wakes those whom a batch concerns. It comes after the log's head has advanced: who is woken earlier would
// look, find nothing, and wait again.
func (t *tracker) published(batch []storage.Notice, _ int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var last int64
	var told interests
	for _, n := range batch {
		if n.User != "" {
			t.wakeLocked(n.User, everything)
		}
		if n.Kind == storage.Profile {
			t.pulseLocked(allRooms, inProfiles)
		}
		// Account data, push rules and forgetting concern one user and not the room's members.
		var what interests
		switch n.Kind {
		case storage.Event, storage.State:
			what = everything
		case storage.Receipt:
			what = inReceipts
		}
		if n.Room == 0 || what == 0 || n.Room == last && told&what == what {
			continue
		}
		if what == everything {
			t.wakeRoomLocked(n.Room, what)
		} else {
			t.pulseLocked(n.Room, what)
		}
		last, told = n.Room, what
	}
}

func (t *tracker) wakeLocked(user string, what interests) {
	for _, w := range t.waiters[user] {
		if w.interests&what == 0 {
			continue
		}
		select {
		case w.wake <- struct{}{}:
		default: // it is awake already
		}
	}
}

// wakeRoomLocked wakes those joined members of a room that wait for such a thing.
func (t *tracker) wakeRoomLocked(nid int64, what interests) {
	if len(t.waiters) == 0 {
		return
	}
	// This may run on the publisher's goroutine, which must not wait for the database.
	room := t.rooms.ActiveRoom(nid)
	if room == nil {
		for user := range t.waiters {
			t.wakeLocked(user, what)
		}
		return
	}
	t.names = room.LocalMembers(t.names[:0])
	for _, user := range t.names {
		t.wakeLocked(user, what)
	}
}

// typing wakes the members of a room where who types has changed.
func (t *tracker) typing(nid int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pulseLocked(nid, inTyping)
}

// presence wakes users whose presence has changed, on their other devices, and those in the given rooms.
func (t *tracker) presence(users []string, rooms []int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range users {
		t.wakeLocked(u, inPresence)
	}
	for _, nid := range rooms {
		t.wakeRoomLocked(nid, inPresence)
	}
}

// wait registers a request of a user before it looks; the returned function takes it away.
func (t *tracker) wait(user string, what interests) (w *waiter, done func()) {
	w = &waiter{make(chan struct{}, 1), what}
	t.mu.Lock()
	t.waiters[user] = append(t.waiters[user], w)
	t.mu.Unlock()
	return w, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		list := t.waiters[user]
		for i, o := range list {
			if o == w {
				list[i] = list[len(list)-1]
				list = list[:len(list)-1]
				break
			}
		}
		if len(list) == 0 {
			delete(t.waiters, user)
		} else {
			t.waiters[user] = list
		}
	}
}

// changedRooms appends to dst those rooms that may have something to tell in a look: known to have changed, or not
// known not to have, or with account data, or where who types has changed, or whose state the client has wrong.
func (t *tracker) changedRooms(rooms []roomserver.UserRoom, l *look, dst []roomserver.UserRoom) []roomserver.UserRoom {
	t.mu.RLock()
	defer t.mu.RUnlock()
	since := l.since.Pos
	for _, r := range rooms {
		if r.Pos > since || since < t.start || t.roomPos[r.NID] > since || len(l.data) > 0 && l.data[r.RoomID] != nil ||
			l.volatile.typed && l.typingChanged(r.NID) || l.stickyWaits(r.NID) || slices.Contains(l.since.Outdated, r.NID) {
			dst = append(dst, r)
		}
	}
	return dst
}

// userChanged tells whether something that concerns the user alone may have changed after a position.
func (t *tracker) userChanged(user string, since int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return since < t.start || t.userPos[user] > since
}
