package unread

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// memberCounts remembers how many members one room had in some of its states. The number in another state
// follows from what differs.
type memberCounts struct {
	mu sync.Mutex
	// known are the states asked about last, the newest first: readers at the end of the room and one
	// who catches up do not drive each other out.
	known []memberCount
}

type memberCount struct {
	root   snapshot.Ref
	anchor int64 // of the event after which the state was asked about
	joined int64
}

const maxKnownCounts = 4

// joined returns the number of joined members in the state after an event.
func (l *log) joined(ctx context.Context, room *roomserver.Room, e *roomserver.Event) (int64, error) {
	m, ok := l.members.GetIfPresent(room.NID)
	if !ok {
		m, _ = l.members.SetIfAbsent(room.NID, &memberCounts{})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	from := -1
	for i, k := range m.known {
		if k.root == e.StateAfter {
			return k.joined, nil
		}
		if k.root == e.StateBefore && e.Type != "m.room.member" { // it changed something else
			m.remember(memberCount{e.StateAfter, e.Anchor, k.joined}, i)
			return k.joined, nil
		}
		if from < 0 || distance(k.anchor, e.Anchor) < distance(m.known[from].anchor, e.Anchor) {
			from = i
		}
	}
	var base memberCount
	if from >= 0 {
		base = m.known[from]
	} else {
		joined, root := room.JoinedAt()
		base = memberCount{root: root, joined: int64(joined)}
	}
	next := memberCount{e.StateAfter, e.Anchor, base.joined}
	deltas, err := l.rooms.StateDiff(ctx, room, base.root, e.StateAfter)
	if err != nil {
		return 0, fmt.Errorf("count members: %w", err)
	}
	for _, d := range deltas {
		if d.Old != nil && d.Old.Membership() == roomserver.Join {
			next.joined--
		}
		if d.New != nil && d.New.Membership() == roomserver.Join {
			next.joined++
		}
	}
	m.remember(next, from)
	return next.joined, nil
}

// remember puts a count first. The one that it was made from gives way if there are many.
func (m *memberCounts) remember(c memberCount, from int) {
	if len(m.known) == maxKnownCounts { // so that from is one of them
		m.known = slices.Delete(m.known, from, from+1)
	}
	m.known = slices.Insert(m.known, 0, c)
}

func distance(a, b int64) int64 {
	if a > b {
		return a - b
	}
	return b - a
}
