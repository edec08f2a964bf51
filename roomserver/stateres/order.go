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
func (r *resolution) powerEvents(full []int64) ([]int64, error) {
	inFull := make(map[int64]bool, len(full))
	for _, nid := range full {
		inFull[nid] = true
	}
	waits := map[int64]int{}     // for how many of its auth events an event waits
	kids := map[int64][]int64{}  // who waits for an event
	vertices := map[int64]bool{} // the set X of the specification
	var todo, free []int64
	for _, nid := range full {
		if isPowerEvent(r.events[nid].Event) {
			vertices[nid] = true
			todo = append(todo, nid)
		}
	}
	for len(todo) > 0 {
		nid := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		auth, err := r.authEvents(nid)
		if err != nil {
			return nil, err
		}
		for _, a := range auth {
			if !inFull[a] {
				continue
			}
			waits[nid]++
			kids[a] = append(kids[a], nid)
			if !vertices[a] {
				vertices[a] = true
				todo = append(todo, a)
			}
		}
		if waits[nid] == 0 {
			free = append(free, nid)
		}
	}
	return r.kahn(free, waits, kids)
}

// kahn sorts by Kahn's algorithm, from the events that wait for no other.
func (r *resolution) kahn(free []int64, waits map[int64]int, kids map[int64][]int64) ([]int64, error) {
	var ready byPower
	var out []int64
	for {
		for _, nid := range free {
			level, err := r.senderLevel(nid)
			if err != nil {
				return nil, err
			}
			e := r.events[nid]
			heap.Push(&ready, ranked{nid, level, e.OriginServerTS, e.ID})
		}
		if len(ready) == 0 {
			return out, nil
		}
		nid := heap.Pop(&ready).(ranked).nid
		out, free = append(out, nid), free[:0]
		for _, k := range kids[nid] {
			if waits[k]--; waits[k] == 0 {
				free = append(free, k)
			}
		}
	}
}

// ranked is an event with what decides its place among others that could come next.
type ranked struct {
	nid   int64
	level int64
	ts    int64
	id    string
}

// senderLevel is the power level of an event's sender by the event's own auth events.
func (r *resolution) senderLevel(nid int64) (int64, error) {
	auth, err := r.authEvents(nid)
	if err != nil {
		return 0, err
	}
	var power, create *pdu.Event
	for _, a := range auth {
		switch e := r.events[a]; {
		case e.Is(pdu.TypePowerLevels, ""):
			power = e.Event
		case e.Is(pdu.TypeCreate, ""):
			create = e.Event
		}
	}
	if r.Version.RoomIDIsCreateHash {
		if create, err = r.create(); err != nil {
			return 0, err
		}
	}
	return authrules.PowerLevels(power, create).User(r.events[nid].Sender), nil
}

// byPower is a heap with the event that comes first on top.
type byPower []ranked

func (h byPower) Len() int { return len(h) }
func (h byPower) Less(i, j int) bool {
	a, b := &h[i], &h[j]
	return cmp.Or(cmp.Compare(b.level, a.level), cmp.Compare(a.ts, b.ts), cmp.Compare(a.id, b.id)) < 0
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
func (r *resolution) sortByMainline(nids []int64, s *partial) error {
	top, err := s.at(place{pdu.TypePowerLevels, ""})
	if err != nil {
		return err
	}
	m := mainline{r: r, next: top, index: map[int64]int{}, of: map[int64]int{}}
	position := make(map[int64]int, len(nids))
	for _, nid := range nids {
		if position[nid], err = m.position(nid); err != nil {
			return err
		}
	}
	slices.SortFunc(nids, func(a, b int64) int {
		x, y := r.events[a], r.events[b]
		return cmp.Or(cmp.Compare(position[b], position[a]),
			cmp.Compare(x.OriginServerTS, y.OriginServerTS), cmp.Compare(x.ID, y.ID))
	})
	return nil
}

// mainline is the list of power levels that an m.room.power_levels event rests on, itself
// first. It is followed only as far back as the events to be sorted need: it can be as
// long as the room is old.
type mainline struct {
	r     *resolution
	next  int64         // the first event not yet followed, 0 at the end
	index map[int64]int // position of those followed
	of    map[int64]int // positions already found of power levels off the mainline
}

// nowhere is the position of an event that rests on none of the mainline.
const nowhere = math.MaxInt

// position is the index of the first event of the mainline on the event's own line of
// power levels.
func (m *mainline) position(nid int64) (int, error) {
	var passed []int64
	at := nowhere
	for {
		power, err := m.r.powerLevelsOf(nid)
		if err != nil {
			return 0, err
		}
		if power == 0 {
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
		nid = power
	}
	for _, p := range passed {
		m.of[p] = at
	}
	return at, nil
}

// follow goes on along the mainline until it is as old as the event power, and reports
// whether that is on it.
func (m *mainline) follow(power int64) (bool, error) {
	goal, err := m.r.Auth.Generation(m.r.ctx, power)
	if err != nil {
		return false, err
	}
	for m.next != 0 {
		gen, err := m.r.Auth.Generation(m.r.ctx, m.next)
		if err != nil {
			return false, err
		}
		if gen < goal {
			break
		}
		m.index[m.next] = len(m.index)
		if m.next, err = m.r.powerLevelsOf(m.next); err != nil {
			return false, err
		}
	}
	_, on := m.index[power]
	return on, nil
}

// powerLevelsOf returns the m.room.power_levels event among the auth events of an event;
// 0 if there is none.
func (r *resolution) powerLevelsOf(nid int64) (int64, error) {
	auth, err := r.authEvents(nid)
	if err != nil {
		return 0, err
	}
	for _, a := range auth {
		if e := r.events[a]; e.Is(pdu.TypePowerLevels, "") {
			return a, nil
		}
	}
	return 0, nil
}
