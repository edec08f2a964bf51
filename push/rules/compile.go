package rules

import "strings"

// Compiled is one version of a user's rules, ready to be applied. It is immutable. That of a user
// who changed nothing takes a few words of memory, as the predefined rules are compiled once for all.
type Compiled struct {
	user, userFold string
	enabled        ruleSet             // of the predefined rules
	changed        map[int]*Actions    // of predefined rules whose actions the user set
	own            [kinds][]ownRule    // enabled rules of Override, Content, Underride
	rooms, senders map[string]*Actions // enabled rules of these kinds by room and user ID
	needsName      bool                // a rule asks for the display name
	threads        map[string]bool     // that the user has subscribed to
}

// ownRule is a rule of the user.
type ownRule struct {
	conditions []condition
	actions    *Actions
}

// Compile makes the user's rules ready to be applied. It keeps no reference to the overlay's lists of rules.
func Compile(o *Overlay, user string) *Compiled {
	c := &Compiled{user: user, userFold: strings.ToLower(user), enabled: enabledByDefault}
	if o.threads == nil {
		c.enabled &^= ofKind[PostContent]
	} else {
		c.threads = make(map[string]bool, len(*o.threads))
		for _, root := range *o.threads {
			c.threads[root] = true
		}
	}
	for id, change := range o.changes {
		i, ok := predefinedByID[id]
		if !ok { // no longer predefined
			continue
		}
		if change.Enabled != nil {
			c.enabled &^= 1 << i
			if *change.Enabled {
				c.enabled |= 1 << i
			}
		}
		if change.Actions != nil {
			if c.changed == nil {
				c.changed = make(map[int]*Actions)
			}
			c.changed[i] = compileActions(*change.Actions)
		}
	}
	for k := range Kind(kinds) {
		for i := range o.own[k] {
			if o.own[k][i].Enabled {
				c.add(k, &o.own[k][i])
			}
		}
	}
	return c
}

func (c *Compiled) add(k Kind, r *Rule) {
	actions := compileActions(r.Actions)
	switch k {
	case RoomSpecific:
		if c.rooms == nil {
			c.rooms = make(map[string]*Actions)
		}
		c.rooms[r.ID] = actions
	case SenderSpecific:
		if c.senders == nil {
			c.senders = make(map[string]*Actions)
		}
		c.senders[r.ID] = actions
	case Content:
		c.own[k] = append(c.own[k], ownRule{conditions: []condition{eventMatch("content.body", r.Pattern)}, actions: actions})
	default:
		own := ownRule{conditions: make([]condition, len(r.Conditions)), actions: actions}
		for i, raw := range r.Conditions {
			own.conditions[i] = compileCondition(raw)
			c.needsName = c.needsName || own.conditions[i].op == opDisplayName
		}
		c.own[k] = append(c.own[k], own)
	}
}

// NeedsDisplayName tells whether Evaluate looks at the display name: no predefined rule does.
func (c *Compiled) NeedsDisplayName() bool { return c.needsName }

// Evaluate gives the actions of the most important rule that matches, for the user whose rules
// these are and who is called displayName in the room (empty if the user has no name there). It
// never returns nil; an event of the user's own has no actions. The result is shared and not to be
// changed.
//
// spec: client-server-api v1.19 "Push Rules"
func (c *Compiled) Evaluate(p *Prepared, room *Room, displayName string) *Actions {
	if p.sender == c.user {
		return none
	}
	matching := p.defaults & c.enabled
	if matching&master != 0 {
		return c.actions(predefinedByID[masterID])
	}
	by := reader{user: c.user, userFold: c.userFold, displayName: displayName, budget: evaluationBudget, threads: c.threads}
	if a := c.ofKind(Override, matching, p, room, &by); a != nil {
		return a
	}
	if a := c.ofKind(Content, matching, p, room, &by); a != nil {
		return a
	}
	if a := c.ofKind(PostContent, matching, p, room, &by); a != nil {
		return a
	}
	if a, ok := c.rooms[p.roomID]; ok {
		return a
	}
	if a, ok := c.senders[p.sender]; ok {
		return a
	}
	if a := c.ofKind(Underride, matching, p, room, &by); a != nil {
		return a
	}
	return none
}

// ofKind asks the user's own rules of a kind and then the predefined ones, of which only those in
// matching can still match.
func (c *Compiled) ofKind(k Kind, matching ruleSet, p *Prepared, room *Room, by *reader) *Actions {
	for i := range c.own[k] {
		if holdAll(c.own[k][i].conditions, p, room, by) {
			return c.own[k][i].actions
		}
	}
	for s := matching & ofKind[k]; s != 0; {
		if i := s.first(); holdAll(predefined[i].dynamic, p, room, by) {
			return c.actions(i)
		}
	}
	return nil
}

// actions are those of a predefined rule.
func (c *Compiled) actions(i int) *Actions {
	if a, ok := c.changed[i]; ok {
		return a
	}
	return predefined[i].actions
}
