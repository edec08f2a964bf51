package unread

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// roomStates remembers what rules ask about some states of one room. What another state has follows from what differs.
type roomStates struct {
	mu sync.Mutex
	// known are the states asked about last, the newest first: readers at the end of the room and one
	// who catches up do not drive each other out.
	known []roomState
}

type roomState struct {
	root   snapshot.Ref
	anchor int64 // of the event after which the state was asked about
	joined int64 // members
	levels *authrules.Levels
}

const maxKnownStates = 4

// facts are what push rules ask about the room, by its state after the event.
func (l *log) facts(ctx context.Context, room *roomserver.Room, e *roomserver.Event) (*rules.Room, error) {
	m, ok := l.states.Get(room.NID)
	if !ok {
		m = l.states.GetOrPut(room.NID, &roomStates{}, 1)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := l.stateAfter(ctx, room, m, e)
	if err != nil {
		return nil, err
	}
	return &rules.Room{MemberCount: s.joined, SenderLevel: s.levels.User(e.Sender), NotificationLevels: s.levels.Notifications()}, nil
}

// stateAfter returns the state after an event.
func (l *log) stateAfter(ctx context.Context, room *roomserver.Room, m *roomStates, e *roomserver.Event) (next roomState, err error) {
	from, before := -1, -1
	for i, k := range m.known {
		if k.root == e.StateAfter {
			return k, nil
		}
		if k.root == e.StateBefore {
			before = i
		}
		if from < 0 || distance(k.anchor, e.Anchor) < distance(m.known[from].anchor, e.Anchor) {
			from = i
		}
	}
	if before >= 0 {
		from = before
	}
	next = roomState{root: e.StateAfter, anchor: e.Anchor}
	if before >= 0 && e.Type != "m.room.member" { // it changed something else
		next.joined = m.known[before].joined
	} else if next.joined, err = l.countMembers(ctx, room, m, from, e.StateAfter); err != nil {
		return next, err
	}
	if before >= 0 && e.Type != "m.room.power_levels" && e.Type != "m.room.create" {
		next.levels = m.known[before].levels
	} else if next.levels, err = l.rooms.LevelsAt(ctx, room, e.StateAfter); err != nil {
		return next, err
	}
	m.remember(next, from)
	return next, nil
}

// countMembers counts the joined members in a state, beginning with a known one, or with the current state.
func (l *log) countMembers(ctx context.Context, room *roomserver.Room, m *roomStates, from int, root snapshot.Ref) (int64, error) {
	var joined int64
	var base snapshot.Ref
	if from >= 0 {
		joined, base = m.known[from].joined, m.known[from].root
	} else {
		n, root := room.JoinedAt()
		joined, base = int64(n), root
	}
	deltas, err := l.rooms.StateDiff(ctx, room, base, root)
	if err != nil {
		return 0, fmt.Errorf("count members: %w", err)
	}
	for _, d := range deltas {
		if d.Old != nil && d.Old.Membership() == roomserver.Join {
			joined--
		}
		if d.New != nil && d.New.Membership() == roomserver.Join {
			joined++
		}
	}
	return joined, nil
}

// remember puts a state first. The one that it was made from gives way if there are many.
func (m *roomStates) remember(s roomState, from int) {
	if len(m.known) == maxKnownStates { // so that from is one of them
		m.known = slices.Delete(m.known, from, from+1)
	}
	m.known = slices.Insert(m.known, 0, s)
}

func distance(a, b int64) int64 {
	if a > b {
		return a - b
	}
	return b - a
}
