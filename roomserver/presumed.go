package roomserver

import (
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/roomserver/stateres"
)

// presumed is a state without most members, with what an event cites of them.
type presumed struct {
	known authState
	other map[authrules.StateKeyTuple]*pdu.Event // instead of what is known; nil for what there is not
}

// Event implements authrules.State.
func (p presumed) Event(typ, key string) (*pdu.Event, error) {
	if e, ok := p.other[authrules.StateKeyTuple{Type: typ, StateKey: key}]; ok {
		return e, nil
	}
	return p.known.Event(typ, key)
}

// refusedPresumably judges an event of a partial room by what is known of the state before it, resolved with the event's
// auth events: the sender is taken to be in the room if they cite that, unless something known says otherwise (MSC3902).
func (t *Turn) refusedPresumably(e *Event, auth []*Event) (reason, err error) {
	state := presumed{authState{t, e.StateBefore}, map[authrules.StateKeyTuple]*pdu.Event{}}
	conflict := false
	for _, a := range auth {
		known, err := t.stateEvent(e.StateBefore, a.Type, *a.StateKey)
		if err != nil {
			return nil, err
		}
		if known == nil {
			state.other[authrules.StateKeyTuple{Type: a.Type, StateKey: *a.StateKey}] = a.Event
		}
		conflict = conflict || known != nil && known.NID != a.NID
	}
	if conflict {
		if err := t.presume(e, auth, state.other); err != nil {
			return nil, fmt.Errorf("state before %s: %w", e.ID, err)
		}
	}
	return verdict(authrules.Check(e.Event, state))
}

// presume resolves the part of the state before an event that its judgement needs with its auth events.
func (t *Turn) presume(e *Event, auth []*Event, into map[authrules.StateKeyTuple]*pdu.Event) error {
	places := authrules.Required(t.room.Version, authrules.Header{Type: e.Type, StateKey: e.StateKey, Sender: e.Sender, Content: e.Content()})
	places = append(places, authrules.StateKeyTuple{Type: pdu.TypeCreate})
	cited := map[authrules.StateKeyTuple]int64{}
	for _, a := range auth {
		place := authrules.StateKeyTuple{Type: a.Type, StateKey: *a.StateKey}
		cited[place] = a.NID
		if !slices.Contains(places, place) {
			places = append(places, place)
		}
	}
	in := stateres.Input{Version: t.room.Version, Events: resolvable{t}, Auth: t.room.chains}
	var drops []func()
	defer func() {
		for _, drop := range drops {
			drop()
		}
	}()
	for _, prefer := range []bool{false, true} {
		tree, drop, err := t.sketch(e.StateBefore, places, cited, prefer)
		if err != nil {
			return err
		}
		drops = append(drops, drop)
		in.States = append(in.States, tree)
	}
	pack, err := t.s.nids.Next(t.ctx)
	if err != nil {
		return fmt.Errorf("take a number: %w", err)
	}
	edit, err := stateres.Resolve(t.ctx, in, pack)
	if err != nil {
		return err
	}
	for _, place := range places {
		nid, err := edit.Get(t.ctx, place.Type, place.StateKey)
		if err != nil {
			return err
		}
		into[place] = nil
		if nid != 0 {
			found, err := t.event(nid)
			if err != nil {
				return err
			}
			into[place] = found.Event
		}
	}
	return nil
}

// sketch is a state of a few places, which is not kept: what is known in them or, where prefer is set or nothing is known,
// what is cited for them. drop forgets it.
func (t *Turn) sketch(known snapshot.Ref, places []authrules.StateKeyTuple, cited map[authrules.StateKeyTuple]int64, prefer bool) (tree snapshot.Tree, drop func(), err error) {
	pack, err := t.s.nids.Next(t.ctx)
	if err != nil {
		return tree, nil, fmt.Errorf("take a number: %w", err)
	}
	edit := t.s.tree(t.room, 0).Edit(pack)
	for _, place := range places {
		nid, err := t.s.tree(t.room, known).Get(t.ctx, place.Type, place.StateKey)
		if err != nil {
			return tree, nil, err
		}
		if instead := cited[place]; instead != 0 && (nid == 0 || prefer) {
			nid = instead
		}
		if nid != 0 {
			edit.Set(place.Type, place.StateKey, nid)
		}
	}
	root, _, err := edit.Commit(t.ctx)
	return t.s.tree(t.room, root), func() { t.s.states.Drop(t.room.NID, pack) }, err
}
