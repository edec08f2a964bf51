package roomserver

import (
	"context"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// Recheck works out the current state of a room again, from the states at its forward extremities, without what the auth
// events of a state event refuse, and makes the result the current state. It returns the types and state keys in
// which that differs from what was there, sorted, none if all was well.
func (s *Server) Recheck(ctx context.Context, roomID string) (changed []string, err error) {
	_, err = s.Turn(ctx, roomID, func(t *Turn) error {
		changed = nil
		state, err := t.resolve(statesAfter(t.head.Extremities))
		if err == nil {
			state, err = t.withoutRefused(state)
		}
		if err != nil {
			return err
		}
		err = t.s.tree(t.room, t.head.State).Diff(t.ctx, state, func(old, new int64) error {
			e, err := t.event(max(old, new)) // either tells the place
			if err == nil {
				changed = append(changed, e.Type+" "+*e.StateKey)
			}
			return err
		})
		if err != nil || len(changed) == 0 {
			return err
		}
		return t.setCurrent(state)
	})
	if err != nil {
		return nil, fmt.Errorf("check %s again: %w", roomID, err)
	}
	slices.Sort(changed)
	return changed, nil
}

// withoutRefused leaves out of a state what its own auth events refuse, or what they are unknown of.
func (t *Turn) withoutRefused(state snapshot.Ref) (snapshot.Ref, error) {
	var nids []int64
	if err := t.s.tree(t.room, state).Walk(t.ctx, func(nid int64) error { nids = append(nids, nid); return nil }); err != nil {
		return 0, err
	}
	pack, err := t.s.nids.Next(t.ctx)
	if err != nil {
		return 0, fmt.Errorf("take a number: %w", err)
	}
	edit := t.s.tree(t.room, state).Edit(pack)
	refused := false
	for _, nid := range nids {
		e, err := t.event(nid)
		if err != nil {
			return 0, err
		}
		ok, err := t.allowedByAuthEvents(e)
		if err != nil {
			return 0, err
		}
		if !ok {
			refused = true
			edit.Delete(e.Type, *e.StateKey)
		}
	}
	if !refused {
		return state, nil
	}
	return t.commit(edit, pack)
}

// allowedByAuthEvents judges a stored event by its auth events once more.
func (t *Turn) allowedByAuthEvents(e *Event) (bool, error) {
	if e.Rejected() {
		return false, nil
	}
	auth, err := t.authEvents(e.Event)
	if err != nil {
		return false, err
	}
	reason, err := t.refusedByAuthEvents(e, auth)
	return reason == nil, err
}

// setCurrent changes the current state without an event.
func (t *Turn) setCurrent(state snapshot.Ref) error {
	at := &Event{}
	t.place(at)
	if err := t.logState(at, t.head.State, state); err != nil {
		return err
	}
	t.unit.Notices = append(t.unit.Notices, storage.Notice{Pos: int64(at.offset), Kind: storage.State, Room: t.room.NID})
	t.head = &Head{Extremities: t.head.Extremities, State: state}
	return nil
}
