package stateres

import (
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// Memory is what resolutions of one room leave for the next ones: what events say and cite, and how states differ. When
// the branches of a fork arrive one event after the other, nearly all of that is the same each time. It changes no result,
// is for one goroutine, and holds only as long as no event that it knows becomes rejected.
type Memory struct {
	slots    map[place]*slot
	vertices map[int64]*vertex
	diffs    map[[2]snapshot.Ref][]difference
	kept     int // differences in diffs
}

// maxKept bounds the differences that are remembered.
const maxKept = 100_000

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{slots: map[place]*slot{}, vertices: map[int64]*vertex{}, diffs: map[[2]snapshot.Ref][]difference{}}
}

// place is a type and state key.
type place struct{ typ, key string }

// slot stands for a place. There is one for each, so that pointers to them can be compared.
type slot struct{ place }

// difference is a slot in which two states differ, with what is there in each of them; nil is nothing.
type difference struct {
	*slot
	old, new *vertex
}

// vertex is a state event and its place in the graph of auth events.
type vertex struct {
	Event
	nid int64
	*slot

	// The rest is there after resolution.cite.
	cited         bool
	auth          []*vertex // its auth events
	power, create *vertex   // those of them that its sender's power level rests on, or nil
}

// slot returns what stands for a type and state key.
func (m *Memory) slot(p place) *slot {
	s := m.slots[p]
	if s == nil {
		s = &slot{p}
		m.slots[p] = s
	}
	return s
}

// load returns the vertices of events, nil for 0.
func (r *resolution) load(nids []int64) ([]*vertex, error) {
	out := make([]*vertex, len(nids))
	var missing []int64
	for i, nid := range nids {
		if out[i] = r.memory.vertices[nid]; out[i] == nil && nid != 0 {
			missing = append(missing, nid)
		}
	}
	if len(missing) == 0 {
		return out, nil
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	events, err := r.Events.Events(r.ctx, missing)
	if err != nil {
		return nil, fmt.Errorf("load %d events: %w", len(missing), err)
	}
	if len(events) != len(missing) {
		return nil, fmt.Errorf("load %d events: got %d", len(missing), len(events))
	}
	for i, e := range events {
		if e.StateKey == nil {
			return nil, fmt.Errorf("event %s is not a state event", e.ID)
		}
		r.memory.vertices[missing[i]] = &vertex{Event: e, nid: missing[i], slot: r.memory.slot(place{e.Type, *e.StateKey})}
	}
	for i, nid := range nids {
		out[i] = r.memory.vertices[nid]
	}
	return out, nil
}

// event returns the vertex of one event, nil for 0.
func (r *resolution) event(nid int64) (*vertex, error) {
	if v := r.memory.vertices[nid]; v != nil || nid == 0 {
		return v, nil
	}
	list, err := r.load([]int64{nid})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// cite brings what events cite into memory, all at once.
func (r *resolution) cite(list []*vertex) error {
	var todo []*vertex
	var auth [][]int64
	for _, v := range list {
		if v.cited {
			continue
		}
		nids, err := r.Auth.AuthEvents(r.ctx, v.nid)
		if err != nil {
			return err
		}
		todo, auth = append(todo, v), append(auth, nids)
	}
	if len(todo) == 0 {
		return nil
	}
	all, err := r.load(slices.Concat(auth...))
	if err != nil {
		return err
	}
	for i, v := range todo {
		n := len(auth[i])
		v.auth, all = all[:n:n], all[n:]
		for _, a := range v.auth {
			switch {
			case a.Is(pdu.TypePowerLevels, ""):
				v.power = a
			case a.Is(pdu.TypeCreate, ""):
				v.create = a
			}
		}
		v.cited = true
	}
	return nil
}

// authOf returns what an event cites.
func (r *resolution) authOf(v *vertex) ([]*vertex, error) {
	if v.cited {
		return v.auth, nil
	}
	err := r.cite([]*vertex{v})
	return v.auth, err
}

// diff compares two states.
func (r *resolution) diff(a, b snapshot.Tree) ([]difference, error) {
	key := [2]snapshot.Ref{a.Root(), b.Root()}
	if d, ok := r.memory.diffs[key]; ok {
		return d, nil
	}
	var nids []int64
	if err := a.Diff(r.ctx, b.Root(), func(old, new int64) error { nids = append(nids, old, new); return nil }); err != nil {
		return nil, err
	}
	list, err := r.load(nids)
	if err != nil {
		return nil, err
	}
	out := make([]difference, 0, len(list)/2)
	for pair := range slices.Chunk(list, 2) {
		d := difference{old: pair[0], new: pair[1]}
		if d.old != nil {
			d.slot = d.old.slot
		} else {
			d.slot = d.new.slot
		}
		out = append(out, d)
	}
	if m := r.memory; m.kept+len(out) > maxKept {
		clear(m.diffs)
		m.kept = 0
	}
	r.memory.kept += len(out)
	r.memory.diffs[key] = out
	return out, nil
}
