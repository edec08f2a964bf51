package stateres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// Event is an event as resolution sees it.
type Event struct {
	*pdu.Event
	// Rejected says that the event is not authorised.
	Rejected bool
}

// Events gives the events of the room.
type Events interface {
	// Events returns the events nids, in their order. All of them are known; a missing one
	// is an error.
	Events(ctx context.Context, nids []int64) ([]Event, error)
}

// Input is what a resolution is about.
type Input struct {
	// Version is the room version.
	Version *pdu.Version
	// States are the states to be merged, all of one room: at least one, and no more than
	// authchain.MaxSets different ones.
	States []snapshot.Tree
	// Events gives the state events of the states and of their auth chains.
	Events Events
	// Auth holds the graph of these events.
	Auth *authchain.Index
	// Memory, if not nil, is what earlier resolutions of the room have left.
	Memory *Memory
}

// Resolve merges states. The result is an edit, to which the caller can add the change
// that its own event makes, or ask for its Root, before committing it; pack names the
// edit's pack. The order of the states does not matter to what the result says.
func Resolve(ctx context.Context, in Input, pack int64) (*snapshot.Edit, error) {
	r := &resolution{Input: in, ctx: ctx, memory: in.Memory, conflicts: map[*slot]*conflict{}, agreed: map[*slot]int64{}}
	if r.memory == nil {
		r.memory = NewMemory()
	}
	r.States = distinct(in.States)
	if len(r.States) == 0 {
		return nil, errors.New("resolve state: no states")
	}
	if len(r.States) == 1 {
		return r.States[0].Edit(pack), nil
	}
	edit, err := r.run(pack)
	if err != nil {
		return nil, fmt.Errorf("resolve %d states: %w", len(r.States), err)
	}
	return edit, nil
}

// distinct leaves out states that are there already. Equal states of different roots stay;
// they have no conflicts.
func distinct(states []snapshot.Tree) []snapshot.Tree {
	var out []snapshot.Tree
	for _, s := range states {
		if !slices.ContainsFunc(out, func(o snapshot.Tree) bool { return o.Root() == s.Root() }) {
			out = append(out, s)
		}
	}
	return out
}

// conflict is a slot in which the states differ, with what each of them has there; nil is nothing.
type conflict struct {
	*slot
	states []*vertex
}

// distinct returns the events of a conflict, each once.
func (c *conflict) distinct() []*vertex {
	out := make([]*vertex, 0, len(c.states))
	for _, v := range c.states {
		if v != nil && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// resolution is one run of Resolve.
type resolution struct {
	Input
	ctx       context.Context
	memory    *Memory
	conflicts map[*slot]*conflict
	agreed    map[*slot]int64 // slots outside of the conflicts that were looked up
}

func (r *resolution) run(pack int64) (*snapshot.Edit, error) {
	if err := r.findConflicts(); err != nil {
		return nil, err
	}
	if len(r.conflicts) == 0 {
		return r.States[0].Edit(pack), nil
	}
	var result map[*slot]*vertex
	var err error
	if r.Version.StateRes == 1 {
		result, err = r.resolveV1()
	} else {
		result, err = r.resolveV2()
	}
	if err != nil {
		return nil, err
	}
	return r.edit(result, pack), nil
}

// findConflicts compares the first state with each other one.
func (r *resolution) findConflicts() error {
	for i, s := range r.States[1:] {
		differences, err := r.diff(r.States[0], s)
		if err != nil {
			return err
		}
		for _, d := range differences {
			c := r.conflicts[d.slot]
			if c == nil {
				c = &conflict{d.slot, slices.Repeat([]*vertex{d.old}, len(r.States))}
				r.conflicts[d.slot] = c
			}
			c.states[i+1] = d.new
		}
	}
	return nil
}

// edit makes the result from the state that needs the fewest changes for it. result says
// what the slots in conflict become, and may say what others become.
func (r *resolution) edit(result map[*slot]*vertex, pack int64) *snapshot.Edit {
	differ := make([]int, len(r.States))
	for s, c := range r.conflicts {
		for i, v := range c.states {
			if v != result[s] {
				differ[i]++
			}
		}
	}
	nearest := slices.Index(differ, slices.Min(differ))
	edit := r.States[nearest].Edit(pack)
	for s, v := range result {
		if c := r.conflicts[s]; c == nil || c.states[nearest] != v {
			edit.Set(s.typ, s.key, v.nid)
		}
	}
	for s, c := range r.conflicts {
		if result[s] == nil && c.states[nearest] != nil {
			edit.Delete(s.typ, s.key)
		}
	}
	return edit
}

// unconflicted returns the number of the event that all states have in a slot; 0 if there is none or
// they are in conflict about it.
func (r *resolution) unconflicted(s *slot) (int64, error) {
	if r.conflicts[s] != nil {
		return 0, nil
	}
	nid, ok := r.agreed[s]
	if !ok {
		var err error
		if nid, err = r.States[0].Get(r.ctx, s.typ, s.key); err != nil {
			return 0, err
		}
		r.agreed[s] = nid
	}
	return nid, nil
}

// Same implements authchain.Shared.
func (r *resolution) Same(_ context.Context, nid int64) (int64, error) {
	v, err := r.event(nid)
	if err != nil {
		return 0, err
	}
	return r.unconflicted(v.slot)
}
