package syncapi

import (
	"context"

	"github.com/myelin-im/myelin/roomserver"
)

// rejected adds the user's own membership to a room that they know as invited to, in the dialect that has no stripped
// state for that.
func (p *slidingPart) rejected(ctx context.Context) (err error) {
	if p.c.known && p.c.sent.at >= p.membership.Anchor {
		return nil
	}
	l := p.look
	if p.viewer, err = l.api.rooms.Viewer(ctx, p.room, l.user, l.upTo); err != nil {
		return err
	}
	p.timeline, p.state = []*roomserver.Event{p.membership}, []*roomserver.Event{p.membership}
	reader := &roomserver.Reader{User: l.user, Device: l.device, Now: l.now, Membership: p.viewer, Erased: l.api.accounts.Erased}
	b := append(l.open(p.c, p.membership.Membership(), p.membership.Anchor), `,"initial":true,"timeline":`...)
	if b, err = l.api.rooms.AppendClientEvents(ctx, b, p.room, p.timeline, reader); err != nil {
		return err
	}
	if b, err = p.appendState(ctx, b, reader); err != nil {
		return err
	}
	b = append(b, '}')
	l.roomsOut = b
	l.sent(p.c, sentRoom{nid: p.c.nid, at: l.upTo})
	return nil
}

// lost tells of a room in which state resolution has left the user without a membership. A client that does not know the
// room is told nothing: the membership is newer than the look.
func (p *slidingPart) lost(ctx context.Context) error {
	l, c := p.look, p.c
	if !c.known || c.sent.at >= c.since {
		return nil
	}
	b := append(l.open(c, roomserver.Leave, c.since), `,"initial":true`...)
	p.gone = []stateKey{{memberType, l.user}}
	b, err := p.appendState(ctx, b, &roomserver.Reader{User: l.user, Device: l.device, Now: l.now})
	if err != nil {
		return err
	}
	b = append(b, '}')
	l.roomsOut = b
	l.sent(c, sentRoom{nid: c.nid, at: l.upTo})
	return nil
}

// strippedMember is the name of the stripped state.
func (l *slidingLook) strippedMember() string {
	if l.req.dialect == slidingDraft {
		return `,"initial":true,"invite_state":[`
	}
	return `,"initial":true,"stripped_state":[`
}

// stripped adds an invite or a knock, or how that ended without the user getting in.
func (p *slidingPart) stripped(ctx context.Context) error {
	l := p.look
	if p.c.known && p.c.sent.at >= p.membership.Anchor {
		return nil
	}
	events, err := l.api.rooms.Stripped(ctx, p.room, p.membership)
	if err != nil {
		return err
	}
	b := append(l.open(p.c, p.membership.Membership(), p.membership.Anchor), l.strippedMember()...)
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = e.AppendStripped(b)
	}
	l.closeStripped(p.c, b)
	return nil
}

// appendOutside is stripped for a room that this server is not in. In the dialect that does not say what the membership is,
// clients take a room for joined, unless the event that ended it is in the state.
func (l *slidingLook) appendOutside(c *slidingRoom) {
	o := c.outside
	ended := o.Membership == roomserver.Leave || o.Membership == roomserver.Ban
	if ended && l.req.dialect == slidingDraft {
		b := append(l.open(c, o.Membership, o.Pos), `,"initial":true`...)
		if m := o.Event.Membership(); m == roomserver.Leave || m == roomserver.Ban {
			b = append(o.Event.AppendClient(append(b, `,"required_state":[`...)), ']')
		}
		b = append(b, '}')
		l.roomsOut = b
		l.sent(c, sentRoom{nid: c.nid, at: l.upTo})
		return
	}
	b := append(l.open(c, o.Membership, o.Pos), l.strippedMember()...)
	if state := o.Stripped[1 : len(o.Stripped)-1]; len(state) > 0 {
		b = append(append(b, state...), ',')
	}
	l.closeStripped(c, o.Event.AppendStripped(b))
}

func (l *slidingLook) closeStripped(c *slidingRoom, b []byte) {
	b = append(b, ']')
	s := sentRoom{nid: c.nid, at: l.upTo}
	if l.data.direct[c.id] {
		b, s.flags = append(b, `,"is_dm":true`...), sentDM
	}
	b = append(b, '}')
	l.roomsOut = b
	l.sent(c, s)
}
