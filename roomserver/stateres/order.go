package stateres

import (
	"cmp"
	"container/heap"
	"math"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// powerEvents returns the power events of the full conflicted set and what they rest on
// within it, in the reverse topological power ordering: each event after its auth events,
// and among those that can come next the least by the sender's power level (descending),
// time and event ID.
//
// spec: rooms/v2 "State resolution: Reverse topological power ordering"
func (r *resolution) powerEvents(full []*vertex) ([]*vertex, error) {
	inFull := make(map[*vertex]bool, len(full))
	for _, v := range full {
		inFull[v] = true
	}
	waits := map[*vertex]int{}      // for how many of its auth events an event waits
	kids := map[*vertex][]*vertex{} // who waits for an event
	vertices := map[*vertex]bool{}  // the set X of the specification
	var todo, free []*vertex
	for _, v := range full {
		if isPowerEvent(v.Event.Event) {
			vertices[v] = true
			todo = append(todo, v)
		}
	}
	for len(todo) > 0 {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		auth, err := r.authOf(v)
		if err != nil {
			return nil, err
		}
		for _, a := range auth {
			if !inFull[a] {
				continue
			}
			waits[v]++
			kids[a] = append(kids[a], v)
			if !vertices[a] {
				vertices[a] = true
				todo = append(todo, a)
			}
		}
		if waits[v] == 0 {
			free = append(free, v)
		}
	}
	return r.kahn(free, waits, kids)
}

// kahn sorts by Kahn's algorithm, from the events that wait for no other.
func (r *resolution) kahn(free []*vertex, waits map[*vertex]int, kids map[*vertex][]*vertex) ([]*vertex, error) {
	var ready byPower
	var out []*vertex
	for {
		for _, v := range free {
			level, err := r.senderLevel(v)
			if err != nil {
				return nil, err
			}
			heap.Push(&ready, ranked{v, level})
		}
		if len(ready) == 0 {
			return out, nil
		}
		v := heap.Pop(&ready).(ranked).vertex
		out, free = append(out, v), free[:0]
		for _, k := range kids[v] {
			if waits[k]--; waits[k] == 0 {
				free = append(free, k)
			}
		}
	}
}

// ranked is an event that could come next, with its sender's power level.
type ranked struct {
	*vertex
	level int64
}

// senderLevel is the power level of an event's sender by the event's own auth events.
func (r *resolution) senderLevel(v *vertex) (int64, error) {
	if _, err := r.authOf(v); err != nil {
		return 0, err
	}
	var power, create *pdu.Event
	if v.power != nil {
		power = v.power.Event.Event
	}
	if v.create != nil {
		create = v.create.Event.Event
	}
	if r.Version.RoomIDIsCreateHash {
		var err error
		if create, err = r.create(); err != nil {
			return 0, err
		}
	}
	return authrules.PowerLevels(power, create).User(v.Sender), nil
}

// byPower is a heap with the event that comes first on top.
type byPower []ranked

func (h byPower) Len() int { return len(h) }
func (h byPower) Less(i, j int) bool {
	a, b := &h[i], &h[j]
	return cmp.Or(cmp.Compare(b.level, a.level), cmp.Compare(a.OriginServerTS, b.OriginServerTS), cmp.Compare(a.ID, b.ID)) < 0
}
func (h byPower) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byPower) Push(v any)   { *h = append(*h, v.(ranked)) }
func (h *byPower) Pop() any {
	old := *h
	v := old[len(old)-1]
	*h = old[:len(old)-1]
	return v
}

// sortByMainline sorts events by the mainline of the power levels of a state: those that
// rest on older power levels first, then by time and event ID.
//
// spec: rooms/v2 "State resolution: Mainline ordering"
func (r *resolution) sortByMainline(list []*vertex, s *partial) error {
	top, err := s.at(r.memory.slot(place{pdu.TypePowerLevels, ""}))
	if err != nil {
		return err
	}
	m := mainline{r: r, next: top, index: map[*vertex]int{}, of: map[*vertex]int{}}
	position := make(map[*vertex]int, len(list))
	for _, v := range list {
		if position[v], err = m.position(v); err != nil {
			return err
		}
	}
	slices.SortFunc(list, func(a, b *vertex) int {
		return cmp.Or(cmp.Compare(position[b], position[a]), cmp.Compare(a.OriginServerTS, b.OriginServerTS), cmp.Compare(a.ID, b.ID))
	})
	return nil
}

// mainline is the list of power levels that an m.room.power_levels event rests on, itself
// first. It is followed only as far back as the events to be sorted need: it can be as
// long as the room is old.
type mainline struct {
	r     *resolution
	next  *vertex         // the first event not yet followed, nil at the end
	index map[*vertex]int // position of those followed
	of    map[*vertex]int // positions already found of power levels off the mainline
}

// nowhere is the position of an event that rests on none of the mainline.
const nowhere = math.MaxInt

// position is the index of the first event of the mainline on the event's own line of
// power levels.
func (m *mainline) position(v *vertex) (int, error) {
	var passed []*vertex
	at := nowhere
	for {
		if _, err := m.r.authOf(v); err != nil {
			return 0, err
		}
		power := v.power
		if power == nil {
			break
		}
		on, err := m.follow(power)
		if err != nil {
			return 0, err
		}
		if on {
			at = m.index[power]
			break
		}
		if known, ok := m.of[power]; ok {
			at = known
			break
		}
		passed = append(passed, power)
		v = power
	}
	for _, p := range passed {
		m.of[p] = at
	}
	return at, nil
}

// follow goes on along the mainline until it is as old as the event power, and reports
// whether that is on it.
func (m *mainline) follow(power *vertex) (bool, error) {
	if _, on := m.index[power]; on || m.next == nil {
		return on, nil
	}
	goal, err := m.r.Auth.Generation(m.r.ctx, power.nid)
	if err != nil {
		return false, err
	}
	for m.next != nil {
		gen, err := m.r.Auth.Generation(m.r.ctx, m.next.nid)
		if err != nil {
			return false, err
		}
		if gen < goal {
			break
		}
		m.index[m.next] = len(m.index)
		if _, err := m.r.authOf(m.next); err != nil {
			return false, err
		}
		m.next = m.next.power
	}
	_, on := m.index[power]
	return on, nil
}
