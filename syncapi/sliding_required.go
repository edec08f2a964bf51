package syncapi

import (
	"context"

	"github.com/myelin-im/myelin/roomserver"
)

// readState finds what changed in the state, and what the client has not been sent of it yet.
func (p *slidingPart) readState(ctx context.Context) error {
	want := p.c.config.state
	if p.fresh {
		if err := p.required(ctx, want, nil); err != nil {
			return err
		}
		return p.lazyMembers(ctx)
	}
	deltas, err := p.look.api.rooms.StateDiff(ctx, p.room, p.begin, p.end)
	if err != nil {
		return err
	}
	lazy := want.lazy()
	for _, d := range deltas {
		e := d.New
		if e == nil {
			e = d.Old
		}
		typ, key := e.Type, *e.StateKey
		p.members = p.members || typ == memberType
		if typ == memberType && p.look.req.extensions.Profiles.Enabled && (d.New == nil || d.Old == nil || d.New.Membership() != d.Old.Membership()) {
			p.look.people.note(p.look.api, e)
		}
		p.name = p.name || typ == "m.room.name" && key == ""
		p.avatar = p.avatar || typ == "m.room.avatar" && key == ""
		if !want.matches(typ, key) && (!lazy || typ != memberType || p.limited) {
			continue
		}
		if d.New == nil {
			p.gone = append(p.gone, stateKey{typ, key})
			continue
		}
		p.state = append(p.state, e)
	}
	if p.look.configOf(p.c.config) != p.c.sent.config {
		if err := p.required(ctx, want, p.look.turn.base.configs[p.c.sent.config].state); err != nil {
			return err
		}
	}
	return p.lazyMembers(ctx)
}

// required adds the state that one config wants and another does not.
func (p *slidingPart) required(ctx context.Context, want, had stateConfig) error {
	events, err := p.candidates(ctx, want)
	if err != nil {
		return err
	}
	have := make(map[int64]bool, len(p.state))
	for _, e := range p.state {
		have[e.NID] = true
	}
	for _, e := range events {
		if have[e.NID] || !want.matches(e.Type, *e.StateKey) || had.matches(e.Type, *e.StateKey) {
			continue
		}
		have[e.NID] = true
		p.state = append(p.state, e)
	}
	return nil
}

// candidates reads the state among which everything is that a config wants.
func (p *slidingPart) candidates(ctx context.Context, want stateConfig) (events []*roomserver.Event, err error) {
	rooms := p.look.api.rooms
	for i := range want {
		r := &want[i]
		for j := range r.Include {
			var some []*roomserver.Event
			switch e := &r.Include[j]; {
			case e.Type == nil && r.Lazy && e.Key == nil:
				some, err = rooms.StateEventsBut(ctx, p.room, p.end, memberType)
			case e.Type == nil:
				return rooms.StateEvents(ctx, p.room, p.end)
			case e.Key == nil && (*e.Type != memberType || !r.Lazy):
				some, err = rooms.StateEventsOfType(ctx, p.room, p.end, *e.Type)
			case e.Key != nil:
				var one *roomserver.Event
				if one, err = rooms.StateEvent(ctx, p.room, p.end, *e.Type, *e.Key); one != nil {
					some = []*roomserver.Event{one}
				}
			}
			if err != nil {
				return nil, err
			}
			events = append(events, some...)
		}
	}
	return events, nil
}

// lazyMembers adds the members of whom the timeline speaks, as far as the client was not sent them (MSC4186, "Lazy
// loaded memberships"). After a gap the client has forgotten all of them.
func (p *slidingPart) lazyMembers(ctx context.Context) error {
	want := p.c.config.state
	if !want.lazy() {
		return nil
	}
	l := p.look
	if l.members == nil {
		l.members = map[lazyMember]int64{}
	}
	forgotten := p.fresh || p.limited
	if forgotten {
		l.members[lazyMember{p.room.NID, ""}] = 0
	}
	have := map[string]bool{}
	for _, e := range p.state {
		if e.Type == memberType {
			have[*e.StateKey] = true
			l.members[lazyMember{p.room.NID, *e.StateKey}] = e.NID
		}
	}
	add := func(user string) error {
		if have[user] {
			return nil
		}
		have[user] = true
		e, err := l.api.memberOf(ctx, p.room, p.end, user, p.timeline)
		key := lazyMember{p.room.NID, user}
		if err != nil || e == nil || !forgotten && l.turn.members[key] == e.NID {
			return err
		}
		l.members[key] = e.NID
		p.state = append(p.state, e)
		return nil
	}
	for _, e := range p.timeline {
		if err := add(e.Sender); err != nil {
			return err
		}
		if e.IsState() && e.Type == memberType {
			if err := add(*e.StateKey); err != nil {
				return err
			}
		}
	}
	return nil
}
