package stateres

import (
	"crypto/sha1"
	"encoding/hex"
	"maps"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// oracle is the specification's text with maps: whole states, full auth chains as sets, no
// sharing, no index.
type oracle struct {
	t      testing.TB
	v      *pdu.Version
	events map[string]*record
}

type stateMap = map[place]string

func (o *oracle) resolve(states []stateMap) stateMap {
	if o.v.StateRes == 1 {
		return o.resolveV1(states)
	}
	unconflicted, conflicted := stateMap{}, map[string]bool{}
	keys := map[place]bool{}
	for _, s := range states {
		for p := range s {
			keys[p] = true
		}
	}
	for p := range keys {
		same := true
		for _, s := range states {
			same = same && s[p] == states[0][p]
		}
		for _, s := range states {
			if id := s[p]; same {
				unconflicted[p] = id
			} else if id != "" {
				conflicted[id] = true
			}
		}
	}
	if len(conflicted) == 0 {
		return unconflicted
	}
	full := o.difference(states)
	maps.Copy(full, conflicted)
	if o.v.StateRes == 3 {
		maps.Copy(full, o.subgraph(conflicted))
	}

	x := map[string]bool{}
	for id := range full {
		if o.isPower(id) {
			o.enlarge(x, id, full)
		}
	}
	state := stateMap{}
	if o.v.StateRes == 2 {
		maps.Copy(state, unconflicted)
	}
	state = o.check(state, o.sortPower(x), states)
	var rest []string
	for id := range full {
		if !x[id] {
			rest = append(rest, id)
		}
	}
	state = o.check(state, o.sortMainline(rest, state[place{pdu.TypePowerLevels, ""}]), states)
	maps.Copy(state, unconflicted)
	return state
}

// chain is an event with its full auth chain.
func (o *oracle) chain(id string, into map[string]bool) {
	if !into[id] {
		into[id] = true
		for _, a := range o.events[id].AuthEventIDs() {
			o.chain(a, into)
		}
	}
}

func (o *oracle) difference(states []stateMap) map[string]bool {
	count := map[string]int{}
	for _, s := range states {
		full := map[string]bool{}
		for _, id := range s {
			o.chain(id, full)
		}
		for id := range full {
			count[id]++
		}
	}
	out := map[string]bool{}
	for id, n := range count {
		if n < len(states) {
			out[id] = true
		}
	}
	return out
}

func (o *oracle) subgraph(conflicted map[string]bool) map[string]bool {
	out := map[string]bool{}
	for from := range conflicted {
		below := map[string]bool{}
		o.chain(from, below)
		for mid := range below {
			rest := map[string]bool{}
			o.chain(mid, rest)
			for to := range conflicted {
				if rest[to] {
					out[mid] = true
				}
			}
		}
	}
	return out
}

func (o *oracle) isPower(id string) bool {
	e := o.events[id]
	switch {
	case e.Is("m.room.power_levels", ""), e.Is("m.room.join_rules", ""):
		return true
	case e.Type == "m.room.member" && *e.StateKey != e.Sender:
		m, _ := e.ContentString("membership")
		return m == "leave" || m == "ban"
	}
	return false
}

func (o *oracle) enlarge(x map[string]bool, id string, full map[string]bool) {
	if x[id] {
		return
	}
	x[id] = true
	for _, a := range o.events[id].AuthEventIDs() {
		if full[a] {
			o.enlarge(x, a, full)
		}
	}
}

func (o *oracle) create() *pdu.Event {
	for _, e := range o.events {
		if e.Is(pdu.TypeCreate, "") {
			return e.Event
		}
	}
	return nil
}

func (o *oracle) level(id string) int64 {
	var power *pdu.Event
	create := o.create()
	for _, a := range o.events[id].AuthEventIDs() {
		if o.events[a].Is(pdu.TypePowerLevels, "") {
			power = o.events[a].Event
		}
	}
	return authrules.PowerLevels(power, create).User(o.events[id].Sender)
}

// sortPower takes the least event that waits for no other, again and again.
func (o *oracle) sortPower(x map[string]bool) []string {
	left := maps.Clone(x)
	var out []string
	for len(left) > 0 {
		best := ""
		for id := range left {
			waits := slices.ContainsFunc(o.events[id].AuthEventIDs(), func(a string) bool { return left[a] })
			if !waits && (best == "" || o.lessPower(id, best)) {
				best = id
			}
		}
		delete(left, best)
		out = append(out, best)
	}
	return out
}

func (o *oracle) lessPower(a, b string) bool {
	if x, y := o.level(a), o.level(b); x != y {
		return x > y
	}
	if x, y := o.events[a].OriginServerTS, o.events[b].OriginServerTS; x != y {
		return x < y
	}
	return a < b
}

func (o *oracle) check(state stateMap, ids []string, states []stateMap) stateMap {
	out := maps.Clone(state)
	for _, id := range ids {
		e := o.events[id]
		if e.rejected {
			continue
		}
		merged := map[place]*pdu.Event{}
		if o.v.RoomIDIsCreateHash {
			for _, s := range states {
				if c, ok := s[place{pdu.TypeCreate, ""}]; ok {
					merged[place{pdu.TypeCreate, ""}] = o.events[c].Event
				}
			}
		}
		for _, a := range e.AuthEventIDs() {
			if r := o.events[a]; !r.rejected {
				merged[place{r.Type, *r.StateKey}] = r.Event
			}
		}
		for p, id := range out {
			if r := o.events[id]; !r.rejected {
				merged[p] = r.Event
			}
		}
		if authrules.Check(e.Event, mapState(merged)) == nil {
			out[place{e.Type, *e.StateKey}] = id
		}
	}
	return out
}

type mapState map[place]*pdu.Event

func (m mapState) Event(typ, key string) (*pdu.Event, error) { return m[place{typ, key}], nil }

// accepted leaves out rejected events.
func (o *oracle) accepted(m map[place]*pdu.Event) mapState {
	out := maps.Clone(m)
	maps.DeleteFunc(out, func(_ place, e *pdu.Event) bool { return o.events[e.ID].rejected })
	return out
}

func (o *oracle) powerOf(id string) string {
	for _, a := range o.events[id].AuthEventIDs() {
		if o.events[a].Is(pdu.TypePowerLevels, "") {
			return a
		}
	}
	return ""
}

func (o *oracle) sortMainline(ids []string, power string) []string {
	var mainline []string
	for p := power; p != ""; p = o.powerOf(p) {
		mainline = append(mainline, p)
	}
	position := func(id string) int {
		for e := o.powerOf(id); e != ""; e = o.powerOf(e) {
			if i := slices.Index(mainline, e); i >= 0 {
				return i
			}
		}
		return 1 << 60
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, y := o.events[a], o.events[b]
		var less bool
		switch p, q := position(a), position(b); {
		case p != q:
			less = p > q
		case x.OriginServerTS != y.OriginServerTS:
			less = x.OriginServerTS < y.OriginServerTS
		default:
			less = a < b
		}
		if less {
			return -1
		}
		return 1
	})
	return ids
}

func (o *oracle) resolveV1(states []stateMap) stateMap {
	all := map[place]map[string]bool{}
	for _, s := range states {
		for p, id := range s {
			if all[p] == nil {
				all[p] = map[string]bool{}
			}
			all[p][id] = true
		}
	}
	result := map[place]*pdu.Event{}
	groups := make([][]place, 4)
	for p, ids := range all {
		if len(ids) == 1 {
			for id := range ids {
				result[p] = o.events[id].Event
			}
			continue
		}
		switch {
		case p == place{"m.room.power_levels", ""}:
			groups[0] = append(groups[0], p)
		case p.typ == "m.room.join_rules":
			groups[1] = append(groups[1], p)
		case p.typ == "m.room.member":
			groups[2] = append(groups[2], p)
		default:
			groups[3] = append(groups[3], p)
		}
	}
	for i, group := range groups {
		next := maps.Clone(result)
		for _, p := range group {
			var list []*pdu.Event
			for id := range all[p] {
				if !o.events[id].rejected {
					list = append(list, o.events[id].Event)
				}
			}
			if len(list) == 0 {
				continue
			}
			slices.SortFunc(list, func(a, b *pdu.Event) int {
				if a.Depth != b.Depth {
					return int(a.Depth - b.Depth)
				}
				x, y := sha1.Sum([]byte(a.ID)), sha1.Sum([]byte(b.ID))
				if hex.EncodeToString(x[:]) > hex.EncodeToString(y[:]) {
					return -1
				}
				return 1
			})
			if i == 3 {
				next[p] = list[0]
				for _, e := range list {
					if authrules.Check(e, o.accepted(result)) == nil {
						next[p] = e // the last one is the newest
					}
				}
				continue
			}
			r := maps.Clone(result)
			r[p] = list[0]
			for _, e := range list[1:] {
				if authrules.Check(e, o.accepted(r)) != nil {
					break
				}
				r[p] = e
			}
			next[p] = r[p]
		}
		result = next
	}
	out := stateMap{}
	for p, e := range result {
		out[p] = e.ID
	}
	return out
}
