package roomserver

import (
	"context"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/roomserver/stateres"
)

// resolutions is what the state resolutions of a turn have in common. The branches of a fork arrive event by event, and
// each time the current state is resolved from all of them, of which one has changed a little.
type resolutions struct {
	memory *stateres.Memory
	// roots, sorted, were resolved last, to state.
	roots []snapshot.Ref
	state snapshot.Ref
}

func newResolutions() *resolutions { return &resolutions{memory: stateres.NewMemory()} }

// resolve merges states by the room version's algorithm.
func (t *Turn) resolve(roots []snapshot.Ref) (snapshot.Ref, error) {
	switch len(roots) {
	case 0:
		return 0, nil
	case 1:
		return roots[0], nil
	}
	if t.resolved == nil {
		return t.resolveWith(nil, roots)
	}
	sorted := slices.Sorted(slices.Values(roots))
	if slices.Equal(sorted, t.resolved.roots) {
		return t.resolved.state, nil
	}
	state, err := t.resolveWith(t.resolved.memory, roots)
	if err == nil {
		t.resolved.roots, t.resolved.state = sorted, state
	}
	return state, err
}

// resolveWith is resolve for at least two states, with what earlier resolutions of the turn have left, if anything.
func (t *Turn) resolveWith(memory *stateres.Memory, roots []snapshot.Ref) (snapshot.Ref, error) {
	in := stateres.Input{Version: t.room.Version, Events: resolvable{t}, Auth: t.room.chains, Memory: memory}
	for _, root := range roots {
		in.States = append(in.States, t.s.tree(t.room, root))
	}
	pack, err := t.s.nids.Next(t.ctx)
	if err != nil {
		return 0, fmt.Errorf("take a number: %w", err)
	}
	edit, err := stateres.Resolve(t.ctx, in, pack)
	if err != nil {
		return 0, err
	}
	return t.commit(edit, pack)
}

// resolvable gives the room's events to state resolution.
type resolvable struct{ t *Turn }

// Events implements stateres.Events.
func (r resolvable) Events(_ context.Context, nids []int64) ([]stateres.Event, error) {
	events, err := r.t.load(nids)
	if err != nil {
		return nil, err
	}
	out := make([]stateres.Event, len(nids))
	for i, e := range events {
		out[i] = stateres.Event{Event: e.Event, Rejected: e.Rejected()}
	}
	return out, nil
}
