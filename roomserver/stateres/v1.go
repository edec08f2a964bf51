package stateres

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"slices"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

// resolveV1 resolves by the algorithm of room version 1. A place that some states lack is
// not in conflict there.
//
// spec: rooms/v1 "State resolution"
func (r *resolution) resolveV1() (map[place]int64, error) {
	result := map[place]int64{}
	groups := [4][]*conflict{} // power levels, join rules, memberships, others
	for p, c := range r.conflicts {
		nids := c.distinct()
		if err := r.load(nids); err != nil {
			return nil, err
		}
		if len(nids) == 1 {
			result[p] = nids[0]
			continue
		}
		groups[v1Group(p)] = append(groups[v1Group(p)], c)
	}
	for i, group := range groups {
		// The conflicts of one group do not see each other's results.
		resolved := make(map[place]int64, len(group))
		for _, c := range group {
			var err error
			if i < 3 {
				resolved[c.place], err = r.resolveAuthV1(c, result)
			} else {
				resolved[c.place], err = r.resolveOtherV1(c, result)
			}
			if err != nil {
				return nil, err
			}
		}
		for p, nid := range resolved {
			if nid != 0 {
				result[p] = nid
			}
		}
	}
	return result, nil
}

func v1Group(p place) int {
	switch {
	case p == place{pdu.TypePowerLevels, ""}:
		return 0
	case p.typ == pdu.TypeJoinRules:
		return 1
	case p.typ == pdu.TypeMember:
		return 2
	}
	return 3
}

// candidatesV1 returns the events of a conflict by ascending depth, then descending SHA-1
// of the event ID.
func (r *resolution) candidatesV1(c *conflict) []int64 {
	nids := slices.DeleteFunc(c.distinct(), func(nid int64) bool { return r.events[nid].Rejected })
	slices.SortFunc(nids, func(a, b int64) int {
		x, y := r.events[a], r.events[b]
		p, q := sha1.Sum([]byte(x.ID)), sha1.Sum([]byte(y.ID))
		return cmp.Or(cmp.Compare(x.Depth, y.Depth), bytes.Compare(q[:], p[:]))
	})
	return nids
}

// resolveAuthV1 goes up from the oldest event as long as the next one is allowed by it.
func (r *resolution) resolveAuthV1(c *conflict, result map[place]int64) (int64, error) {
	nids := r.candidatesV1(c)
	if len(nids) == 0 {
		return 0, nil
	}
	last := nids[0]
	s := &partial{r: r, resolved: map[place]int64{c.place: last}, below: r.belowV1(result)}
	for _, nid := range nids[1:] {
		ok, err := s.allows(nid)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		last = nid
		s.resolved[c.place] = nid
	}
	return last, nil
}

// resolveOtherV1 takes the newest event that is allowed, or the oldest one.
func (r *resolution) resolveOtherV1(c *conflict, result map[place]int64) (int64, error) {
	nids := r.candidatesV1(c)
	if len(nids) == 0 {
		return 0, nil
	}
	s := &partial{r: r, below: r.belowV1(result)}
	for _, nid := range slices.Backward(nids) {
		if ok, err := s.allows(nid); ok || err != nil {
			return nid, err
		}
	}
	return nids[0], nil
}

// belowV1 is the union of the states without what is still in conflict.
func (r *resolution) belowV1(result map[place]int64) func(place) (int64, error) {
	return func(p place) (int64, error) {
		if nid, ok := result[p]; ok {
			return nid, nil
		}
		return r.unconflicted(p)
	}
}
