package stateres

import (
	"errors"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// partial is a state under construction, on top of a state that is not copied. It is the
// authrules.State by which events are judged.
type partial struct {
	r        *resolution
	resolved map[*slot]*vertex
	// below looks up what resolved does not have; nil for the empty state.
	below func(*slot) (*vertex, error)
	// fallback says that the auth events of the event on trial stand in for what the
	// state lacks, as the iterative auth checks demand.
	fallback bool
	trial    *vertex
}

// allows reports whether the state allows an event. Rejected events never are.
func (s *partial) allows(v *vertex) (bool, error) {
	if v.Rejected {
		return false, nil
	}
	s.trial = v
	err := authrules.Check(v.Event.Event, s)
	if refused := (*authrules.Error)(nil); errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// at returns the event in a slot; nil if the state has none.
func (s *partial) at(slot *slot) (*vertex, error) {
	if v, ok := s.resolved[slot]; ok || s.below == nil {
		return v, nil
	}
	return s.below(slot)
}

// Event implements authrules.State.
func (s *partial) Event(typ, key string) (*pdu.Event, error) {
	slot := s.r.memory.slot(place{typ, key})
	v, err := s.at(slot)
	if err != nil {
		return nil, err
	}
	if v != nil && !v.Rejected {
		return v.Event.Event, nil
	}
	if s.fallback {
		return s.cited(slot)
	}
	return nil, nil
}

// cited returns the event that the one on trial cites for a slot. From room
// version 12 on the create event is cited by the room id.
func (s *partial) cited(slot *slot) (*pdu.Event, error) {
	auth, err := s.r.authOf(s.trial)
	if err != nil {
		return nil, err
	}
	for _, v := range auth {
		if v.slot == slot && !v.Rejected {
			return v.Event.Event, nil
		}
	}
	if slot.typ == pdu.TypeCreate && slot.key == "" && s.r.Version.RoomIDIsCreateHash {
		return s.r.create()
	}
	return nil, nil
}

// create returns the create event of a room whose events do not cite it: the one in its
// states, nil if they have none.
func (r *resolution) create() (*pdu.Event, error) {
	slot := r.memory.slot(place{pdu.TypeCreate, ""})
	v, err := r.below(slot)
	if err != nil {
		return nil, err
	}
	if c := r.conflicts[slot]; c != nil { // some lack it
		v = c.distinct()[0]
	}
	if v == nil || v.Rejected {
		return nil, nil
	}
	return v.Event.Event, nil
}

// below is the state that is not in conflict, as what others are judged by.
func (r *resolution) below(s *slot) (*vertex, error) {
	nid, err := r.unconflicted(s)
	if err != nil {
		return nil, err
	}
	return r.event(nid)
}
