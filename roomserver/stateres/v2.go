package stateres

import (
	"slices"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// resolveV2 resolves by the algorithm of room version 2, or that of version 12.
//
// spec: rooms/v2 "State resolution: Algorithm", rooms/v12 "State resolution: Algorithm"
func (r *resolution) resolveV2() (map[place]int64, error) {
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
	s := &partial{r: r, resolved: map[place]int64{}, fallback: true}
	if r.Version.StateRes == 2 {
		s.below = r.unconflicted
	}
	if err := s.apply(power); err != nil {
		return nil, err
	}
	// 3. The other events in the order of the mainline of the power levels so far.
	done := make(map[int64]bool, len(power))
	for _, nid := range power {
		done[nid] = true
	}
	others := slices.DeleteFunc(full, func(nid int64) bool { return done[nid] })
	if err := r.sortByMainline(others, s); err != nil {
		return nil, err
	}
	// 4. Check them too.
	if err := s.apply(others); err != nil {
		return nil, err
	}
	// 5. The unconflicted state stands.
	for p := range s.resolved {
		nid, err := r.unconflicted(p)
		if err != nil {
			return nil, err
		}
		if nid != 0 {
			delete(s.resolved, p)
		}
	}
	return s.resolved, nil
}

// apply runs the iterative auth checks.
func (s *partial) apply(nids []int64) error {
	for _, nid := range nids {
		ok, err := s.allows(nid)
		if err != nil {
			return err
		}
		if ok {
			e := s.r.events[nid]
			s.resolved[place{e.Type, *e.StateKey}] = nid
		}
	}
	return nil
}

// fullConflictedSet returns the conflicted state set, the auth difference and, in v2.1, the
// conflicted state subgraph.
func (r *resolution) fullConflictedSet() ([]int64, error) {
	var conflicted []int64
	sets := make([][]int64, len(r.States))
	for _, c := range r.conflicts {
		conflicted = append(conflicted, c.distinct()...)
		for i, nid := range c.nids {
			if nid != 0 {
				sets[i] = append(sets[i], nid)
			}
		}
	}
	if err := r.loadWithAuth(conflicted); err != nil {
		return nil, err
	}
	full, err := r.Auth.Difference(r.ctx, sets, r)
	if err != nil {
		return nil, err
	}
	full = append(full, conflicted...)
	if r.Version.StateRes > 2 {
		between, err := r.Auth.Paths(r.ctx, conflicted)
		if err != nil {
			return nil, err
		}
		full = append(full, between...)
	}
	slices.Sort(full)
	full = slices.Compact(full)
	return full, r.loadWithAuth(full)
}

// loadWithAuth brings events and the events they cite into memory, in two steps.
func (r *resolution) loadWithAuth(nids []int64) error {
	if err := r.load(nids); err != nil {
		return err
	}
	var cited []int64
	for _, nid := range nids {
		if _, err := r.place(nid); err != nil {
			return err
		}
		auth, err := r.Auth.AuthEvents(r.ctx, nid)
		if err != nil {
			return err
		}
		cited = append(cited, auth...)
	}
	return r.load(cited)
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
