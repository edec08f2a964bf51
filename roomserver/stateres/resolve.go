package stateres

import (
	"cmp"
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
}

// Resolve merges states. The result is an edit, to which the caller can add the change
// that its own event makes, or ask for its Root, before committing it; pack names the
// edit's pack. The order of the states does not matter to what the result says.
func Resolve(ctx context.Context, in Input, pack int64) (*snapshot.Edit, error) {
	r := &resolution{Input: in, ctx: ctx, events: map[int64]Event{}, conflicts: map[place]*conflict{}, agreed: map[place]int64{}}
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

// place is a type and state key.
type place struct{ typ, key string }

// conflict is a place in which the states differ, with what each of them has there; 0 is
// nothing.
type conflict struct {
	place
	nids []int64
}

// distinct returns the events of a conflict, each once.
func (c *conflict) distinct() []int64 {
	nids := slices.Compact(slices.Sorted(slices.Values(c.nids)))
	if nids[0] == 0 {
		nids = nids[1:]
	}
	return nids
}

// resolution is one run of Resolve.
type resolution struct {
	Input
	ctx       context.Context
	events    map[int64]Event // those loaded so far
	conflicts map[place]*conflict
	agreed    map[place]int64 // places outside of the conflicts that were looked up
}

func (r *resolution) run(pack int64) (*snapshot.Edit, error) {
	if err := r.findConflicts(); err != nil {
		return nil, err
	}
	if len(r.conflicts) == 0 {
		return r.States[0].Edit(pack), nil
	}
	var result map[place]int64
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
	type change struct {
		state    int
		old, new int64
	}
	var changes []change
	for i, s := range r.States[1:] {
		err := r.States[0].Diff(r.ctx, s.Root(), func(old, new int64) error {
			changes = append(changes, change{i + 1, old, new})
			return nil
		})
		if err != nil {
			return err
		}
	}
	nids := make([]int64, 0, len(changes))
	for _, c := range changes {
		nids = append(nids, cmp.Or(c.old, c.new))
	}
	if err := r.load(nids); err != nil {
		return err
	}
	for _, c := range changes {
		p, err := r.place(cmp.Or(c.old, c.new))
		if err != nil {
			return err
		}
		k := r.conflicts[p]
		if k == nil {
			k = &conflict{p, slices.Repeat([]int64{c.old}, len(r.States))}
			r.conflicts[p] = k
		}
		k.nids[c.state] = c.new
	}
	return nil
}

// edit makes the result from the state that needs the fewest changes for it. result says
// what the places in conflict become, and may say what others become.
func (r *resolution) edit(result map[place]int64, pack int64) *snapshot.Edit {
	differ := make([]int, len(r.States))
	for p, c := range r.conflicts {
		for i, nid := range c.nids {
			if nid != result[p] {
				differ[i]++
			}
		}
	}
	nearest := slices.Index(differ, slices.Min(differ))
	edit := r.States[nearest].Edit(pack)
	for p, nid := range result {
		if c := r.conflicts[p]; c == nil || c.nids[nearest] != nid {
			edit.Set(p.typ, p.key, nid)
		}
	}
	for p, c := range r.conflicts {
		if result[p] == 0 && c.nids[nearest] != 0 {
			edit.Delete(p.typ, p.key)
		}
	}
	return edit
}

// load brings events into memory.
func (r *resolution) load(nids []int64) error {
	missing := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(nids))), func(nid int64) bool {
		_, ok := r.events[nid]
		return ok
	})
	if len(missing) == 0 {
		return nil
	}
	events, err := r.Events.Events(r.ctx, missing)
	if err != nil {
		return fmt.Errorf("load %d events: %w", len(missing), err)
	}
	if len(events) != len(missing) {
		return fmt.Errorf("load %d events: got %d", len(missing), len(events))
	}
	for i, nid := range missing {
		r.events[nid] = events[i]
	}
	return nil
}

// event returns one event.
func (r *resolution) event(nid int64) (Event, error) {
	if e, ok := r.events[nid]; ok {
		return e, nil
	}
	err := r.load([]int64{nid})
	return r.events[nid], err
}

// place returns the place of a state event.
func (r *resolution) place(nid int64) (place, error) {
	e, err := r.event(nid)
	if err != nil {
		return place{}, err
	}
	if e.StateKey == nil {
		return place{}, fmt.Errorf("event %s is not a state event", e.ID)
	}
	return place{e.Type, *e.StateKey}, nil
}

// unconflicted returns the event that all states have in a place; 0 if there is none or
// they are in conflict about it.
func (r *resolution) unconflicted(p place) (int64, error) {
	if r.conflicts[p] != nil {
		return 0, nil
	}
	nid, ok := r.agreed[p]
	if !ok {
		var err error
		if nid, err = r.States[0].Get(r.ctx, p.typ, p.key); err != nil {
			return 0, err
		}
		r.agreed[p] = nid
	}
	return nid, nil
}

// Same implements authchain.Shared.
func (r *resolution) Same(_ context.Context, nid int64) (int64, error) {
	p, err := r.place(nid)
	if err != nil {
		return 0, err
	}
	return r.unconflicted(p)
}

// authEvents loads the auth events of an event.
func (r *resolution) authEvents(nid int64) ([]int64, error) {
	nids, err := r.Auth.AuthEvents(r.ctx, nid)
	if err != nil {
		return nil, err
	}
	return nids, r.load(nids)
}
