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
	resolved map[place]int64
	// below looks up what resolved does not have; nil for the empty state.
	below func(place) (int64, error)
	// fallback says that the auth events of the event on trial stand in for what the
	// state lacks, as the iterative auth checks demand.
	fallback bool
	trial    int64
}

// allows reports whether the state allows an event. Rejected events never are.
func (s *partial) allows(nid int64) (bool, error) {
	e, err := s.r.event(nid)
	if err != nil || e.Rejected {
		return false, err
	}
	s.trial = nid
	err = authrules.Check(e.Event, s)
	if refused := (*authrules.Error)(nil); errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// at returns the event in a place; 0 if the state has none.
func (s *partial) at(p place) (int64, error) {
	if nid, ok := s.resolved[p]; ok || s.below == nil {
		return nid, nil
	}
	return s.below(p)
}

// Event implements authrules.State.
func (s *partial) Event(typ, key string) (*pdu.Event, error) {
	nid, err := s.at(place{typ, key})
	if err != nil {
		return nil, err
	}
	if nid != 0 {
		if e, err := s.r.event(nid); err != nil || !e.Rejected {
			return e.Event, err
		}
	}
	if s.fallback {
		return s.cited(typ, key)
	}
	return nil, nil
}

// cited returns the event that the one on trial cites for a type and state key. From room
// version 12 on the create event is cited by the room id.
func (s *partial) cited(typ, key string) (*pdu.Event, error) {
	nids, err := s.r.authEvents(s.trial)
	if err != nil {
		return nil, err
	}
	for _, nid := range nids {
		if e := s.r.events[nid]; !e.Rejected && e.Is(typ, key) {
			return e.Event, nil
		}
	}
	if typ == pdu.TypeCreate && key == "" && s.r.Version.RoomIDIsCreateHash {
		return s.r.create()
	}
	return nil, nil
}

// create returns the create event of a room whose events do not cite it: the one in its
// states, nil if they have none.
func (r *resolution) create() (*pdu.Event, error) {
	p := place{pdu.TypeCreate, ""}
	nid, err := r.unconflicted(p)
	if err != nil {
		return nil, err
	}
	if c := r.conflicts[p]; c != nil { // some lack it
		nid = c.distinct()[0]
	}
	if nid == 0 {
		return nil, nil
	}
	e, err := r.event(nid)
	if err != nil || e.Rejected {
		return nil, err
	}
	return e.Event, nil
}
