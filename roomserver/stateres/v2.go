package stateres

import (
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// resolveV2 resolves by the algorithm of room version 2, or that of version 12.
//
// spec: rooms/v2 "State resolution: Algorithm", rooms/v12 "State resolution: Algorithm"
func (r *resolution) resolveV2() (map[*slot]*vertex, error) {
	full, err := r.fullConflictedSet()
	if err != nil {
		return nil, err
	}
	// 1. The power events, with what they rest on, in the reverse topological power ordering.
	power, err := r.powerEvents(full)
	if err != nil {
		return nil, err
	}
	// 2. Check them one by one against the unconflicted state; in v2.1 against nothing.
	s := &partial{r: r, resolved: map[*slot]*vertex{}, fallback: true}
	if r.Version.StateRes == 2 {
		s.below = r.below
	}
	if err := s.apply(power); err != nil {
		return nil, err
	}
	// 3. The other events in the order of the mainline of the power levels so far.
	done := make(map[*vertex]bool, len(power))
	for _, v := range power {
		done[v] = true
	}
	others := slices.DeleteFunc(full, func(v *vertex) bool { return done[v] })
	if err := r.sortByMainline(others, s); err != nil {
		return nil, err
	}
	// 4. Check them too.
	if err := s.apply(others); err != nil {
		return nil, err
	}
	// 5. The unconflicted state stands.
	for slot := range s.resolved {
		nid, err := r.unconflicted(slot)
		if err != nil {
			return nil, err
		}
		if nid != 0 {
			delete(s.resolved, slot)
		}
	}
	return s.resolved, nil
}

// apply runs the iterative auth checks.
func (s *partial) apply(list []*vertex) error {
	for _, v := range list {
		ok, err := s.allows(v)
		if err != nil {
			return err
		}
		if ok {
			s.resolved[v.slot] = v
		}
	}
	return nil
}

// fullConflictedSet returns the conflicted state set, the auth difference and, in v2.1, the
// conflicted state subgraph, and brings into memory what they cite.
func (r *resolution) fullConflictedSet() ([]*vertex, error) {
	var conflicted []*vertex
	sets := make([][]int64, len(r.States))
	for _, c := range r.conflicts {
		conflicted = append(conflicted, c.distinct()...)
		for i, v := range c.states {
			if v != nil {
				sets[i] = append(sets[i], v.nid)
			}
		}
	}
	if err := r.cite(conflicted); err != nil {
		return nil, err
	}
	nids, err := r.Auth.Difference(r.ctx, sets, r)
	if err != nil {
		return nil, err
	}
	for _, v := range conflicted {
		nids = append(nids, v.nid)
	}
	if r.Version.StateRes > 2 {
		between, err := r.Auth.Paths(r.ctx, nids[len(nids)-len(conflicted):])
		if err != nil {
			return nil, err
		}
		nids = append(nids, between...)
	}
	slices.Sort(nids)
	full, err := r.load(slices.Compact(nids))
	if err != nil {
		return nil, err
	}
	return full, r.cite(full)
}

// isPowerEvent reports whether an event can remove somebody's ability to do something.
//
// spec: rooms/v2 "State resolution: Power events"
func isPowerEvent(e *pdu.Event) bool {
	switch e.Type {
	case pdu.TypePowerLevels, pdu.TypeJoinRules:
		return *e.StateKey == ""
	case pdu.TypeMember:
		m := e.Membership()
		return (m == authrules.MembershipLeave || m == authrules.MembershipBan) && e.Sender != *e.StateKey
	}
	return false
}
