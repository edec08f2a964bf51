package rules

import (
	"encoding/json"
	"slices"
	"strings"
)

// CarryRoom copies what the user has set for one room to another that replaces it: the room rule, and rules with a
// condition on the room's id. It tells whether that changed anything; done again, it does not.
func (o *Overlay) CarryRoom(from, to string) bool {
	changed := false
	for k := range Kind(kinds) {
		for _, r := range slices.Clone(o.own[k]) {
			c, ok := r.forRoom(k, from, to)
			if !ok || o.index(k, c.ID) >= 0 {
				continue
			}
			enabled := c.Enabled
			if o.Put(k, c, "", r.ID) == nil && o.SetEnabled(k, c.ID, enabled) == nil {
				changed = true
			}
		}
	}
	return changed
}

// forRoom is a rule about one room as a rule about another; ok is false where it is not about that room.
func (r Rule) forRoom(k Kind, from, to string) (c Rule, ok bool) {
	c = r
	if k == RoomSpecific {
		c.ID = to
		return c, r.ID == from
	}
	c.Conditions = slices.Clone(r.Conditions)
	for i, raw := range r.Conditions {
		condition := map[string]any{}
		if json.Unmarshal(raw, &condition) != nil || condition["kind"] != "event_match" || condition["key"] != "room_id" || condition["pattern"] != from {
			continue
		}
		condition["pattern"] = to
		changed, err := json.Marshal(condition)
		if err != nil {
			return c, false
		}
		c.Conditions[i], ok = changed, true
	}
	if c.ID = strings.ReplaceAll(r.ID, from, to); c.ID == r.ID {
		c.ID += "." + to
	}
	return c, ok
}
