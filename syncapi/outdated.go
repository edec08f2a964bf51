package syncapi

import (
	"context"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// A client that does not ask for state_after takes the last state event of a timeline to be current, and state, which
// comes before the timeline, cannot correct that. It is not current if it lost state resolution, or if the filter hides
// what came after it. Then the token names the room, and the state of the next answer has what is current.

// stateKey names a place in the state.
type stateKey struct{ typ, key string }

// changes are the places in the state that the timeline changes, each with the last event that does. With state_after, it
// changes none.
func (p *roomPart) changes() map[stateKey]*roomserver.Event {
	if p.look.stateAfter {
		return nil
	}
	var last map[stateKey]*roomserver.Event
	for _, e := range p.timeline {
		if e.IsState() {
			if last == nil {
				last = map[stateKey]*roomserver.Event{}
			}
			last[stateKey{e.Type, *e.StateKey}] = e
		}
	}
	return last
}

// correct finds what of the changes of a timeline is wrong in the state at the end, with what is current there.
func (p *roomPart) correct(ctx context.Context, changes map[stateKey]*roomserver.Event, end snapshot.Ref) (map[stateKey]*roomserver.Event, error) {
	var current map[stateKey]*roomserver.Event
	for k, last := range changes {
		if last.StateAfter == end {
			continue
		}
		e, err := p.look.api.rooms.StateEvent(ctx, p.room, end, k.typ, k.key)
		if err != nil {
			return nil, err
		}
		if e == nil || e.NID == last.NID {
			continue
		}
		if current == nil {
			current = map[stateKey]*roomserver.Event{}
		}
		current[k] = e
	}
	return current, nil
}

// endTimeline makes the timeline end with what is current, where what follows older events is missing only because of the
// history visibility: the user may see it, since it is part of the state at the end. Other differences are noted. It returns
// what the timeline changes.
func (p *roomPart) endTimeline(ctx context.Context, end snapshot.Ref) (changes map[stateKey]*roomserver.Event, err error) {
	last := p.changes()
	current, err := p.correct(ctx, last, end)
	if err != nil || len(current) == 0 {
		return last, err
	}
	for k, e := range current {
		if !last[k].Token().Before(e.Token()) || !matches(&p.look.filter.Room.Timeline, e) {
			p.outdated = true
			continue
		}
		at, _ := slices.BinarySearchFunc(p.timeline, e, func(a, b *roomserver.Event) int {
			if a.Token().Before(b.Token()) {
				return -1
			}
			return 1
		})
		p.timeline = slices.Insert(slices.Clip(p.timeline), at, e)
	}
	if over := len(p.timeline) - p.look.filter.Room.Timeline.Limit(defaultTimeline, maxTimeline); over > 0 {
		p.timeline = p.timeline[over:]
		p.prev, p.limited = p.timeline[0].Token(), true
	}
	return p.changes(), nil
}

// repairState adds to the state what the timeline of the answer before left wrong. That timeline is read again; where it
// goes back further than it did then, more is repaired than was wrong.
func (p *roomPart) repairState(ctx context.Context, end snapshot.Ref, deltas []roomserver.StateDelta, inTimeline map[stateKey]*roomserver.Event) error {
	before := roomPart{look: p.look, room: p.room, to: p.from, fresh: true}
	var err error
	if before.viewer, err = p.look.api.rooms.Viewer(ctx, p.room, p.look.user, p.from); err != nil {
		return err
	}
	if err := before.readTimeline(ctx); err != nil {
		return err
	}
	current, err := before.correct(ctx, before.changes(), end)
	if err != nil {
		return err
	}
	for _, d := range deltas {
		if d.New != nil {
			delete(current, stateKey{d.New.Type, *d.New.StateKey})
		}
	}
	for k, e := range current {
		if inTimeline[k] == nil {
			p.state = append(p.state, e)
		}
	}
	return nil
}
