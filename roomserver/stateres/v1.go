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
func (r *resolution) resolveV1() (map[*slot]*vertex, error) {
	result := map[*slot]*vertex{}
	groups := [4][]*conflict{} // power levels, join rules, memberships, others
	for s, c := range r.conflicts {
		if list := c.distinct(); len(list) == 1 {
			result[s] = list[0]
			continue
		}
		group := v1Group(s.place)
		groups[group] = append(groups[group], c)
	}
	for i, group := range groups {
		// The conflicts of one group do not see each other's results.
		resolved := make(map[*slot]*vertex, len(group))
		for _, c := range group {
			var err error
			if i < 3 {
				resolved[c.slot], err = r.resolveAuthV1(c, result)
			} else {
				resolved[c.slot], err = r.resolveOtherV1(c, result)
			}
			if err != nil {
				return nil, err
			}
		}
		for s, v := range resolved {
			if v != nil {
				result[s] = v
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
func candidatesV1(c *conflict) []*vertex {
	list := slices.DeleteFunc(c.distinct(), func(v *vertex) bool { return v.Rejected })
	slices.SortFunc(list, func(x, y *vertex) int {
		p, q := sha1.Sum([]byte(x.ID)), sha1.Sum([]byte(y.ID))
		return cmp.Or(cmp.Compare(x.Depth, y.Depth), bytes.Compare(q[:], p[:]))
	})
	return list
}

// resolveAuthV1 goes up from the oldest event as long as the next one is allowed by it.
func (r *resolution) resolveAuthV1(c *conflict, result map[*slot]*vertex) (*vertex, error) {
	list := candidatesV1(c)
	if len(list) == 0 {
		return nil, nil
	}
	last := list[0]
	s := &partial{r: r, resolved: map[*slot]*vertex{c.slot: last}, below: r.belowV1(result)}
	for _, v := range list[1:] {
		ok, err := s.allows(v)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		last = v
		s.resolved[c.slot] = v
	}
	return last, nil
}

// resolveOtherV1 takes the newest event that is allowed, or the oldest one.
func (r *resolution) resolveOtherV1(c *conflict, result map[*slot]*vertex) (*vertex, error) {
	list := candidatesV1(c)
	if len(list) == 0 {
		return nil, nil
	}
	s := &partial{r: r, below: r.belowV1(result)}
	for _, v := range slices.Backward(list) {
		if ok, err := s.allows(v); ok || err != nil {
			return v, err
		}
	}
	return list[0], nil
}

// belowV1 is the union of the states without what is still in conflict.
func (r *resolution) belowV1(result map[*slot]*vertex) func(*slot) (*vertex, error) {
	return func(s *slot) (*vertex, error) {
		if v, ok := result[s]; ok {
			return v, nil
		}
		return r.below(s)
	}
}
