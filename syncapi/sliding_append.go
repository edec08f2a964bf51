package syncapi

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
)

// sent notes what the client will know of a room.
func (l *slidingLook) sent(c *slidingRoom, s sentRoom) {
	l.dirty = true
	c.sent, c.known = s, true
	if c.noted > 0 {
		l.change.rooms[c.noted-1] = s
		return
	}
	l.change.rooms = append(l.change.rooms, s)
	c.noted = len(l.change.rooms)
}

// open begins a room's object in the answer with what all rooms have.
func (l *slidingLook) open(c *slidingRoom, membership string, stamp int64) []byte {
	b := l.roomsOut
	if len(b) > 0 {
		b = append(b, ',')
	}
	b = append(canonicaljson.AppendString(b, c.id), `:{"bump_stamp":`...)
	b = strconv.AppendInt(b, stamp, 10)
	if l.req.dialect == slidingDraft {
		return b
	}
	b = canonicaljson.AppendString(append(b, `,"membership":`...), membership)
	for i, name := range c.lists {
		if i == 0 {
			b = append(b, `,"lists":[`...)
		} else {
			b = append(b, ',')
		}
		b = canonicaljson.AppendString(b, name)
	}
	if len(c.lists) > 0 {
		b = append(b, ']')
	}
	return b
}

// append adds the room to the answer.
func (p *slidingPart) append(ctx context.Context, dm bool) error {
	l := p.look
	membership, stamp := p.membership.Membership(), p.membership.Anchor
	var err error
	if membership == roomserver.Join {
		if stamp, err = l.api.bumpStamp(ctx, p.room, l.upTo, stamp); err != nil {
			return err
		}
	}
	b := l.open(p.c, membership, stamp)
	if p.fresh {
		b = append(b, `,"initial":true`...)
	}
	if dm != (p.c.sent.flags&sentDM != 0) || p.fresh && dm {
		b = strconv.AppendBool(append(b, `,"is_dm":`...), dm)
	}
	if b, err = p.appendIdentity(ctx, b); err != nil {
		return err
	}
	if b, err = p.appendEvents(ctx, b); err != nil {
		return err
	}
	if (p.fresh || p.members) && membership == roomserver.Join {
		joined, invited, err := l.api.rooms.MemberCountsAt(ctx, p.room, p.end)
		if err != nil {
			return err
		}
		b = strconv.AppendInt(append(b, `,"joined_count":`...), int64(joined), 10)
		b = strconv.AppendInt(append(b, `,"invited_count":`...), int64(invited), 10)
	}
	if p.unread > 0 {
		b = strconv.AppendInt(append(b, `,"notification_count":`...), p.unread-1, 10)
		b = strconv.AppendInt(append(b, `,"highlight_count":`...), p.highlights-1, 10)
	}
	b = append(b, '}')
	l.roomsOut = b
	if p.fresh {
		if l.shown == nil {
			l.shown = map[int64][]*roomserver.Event{}
		}
		l.shown[p.c.nid] = p.timeline
		p.c.sent.flags &^= knowsData | knowsReceipts | knowsProfiles
	}
	if x := &l.req.extensions.Profiles; x.Enabled && x.covers(p.c) {
		for _, e := range p.state {
			l.people.note(l.api, e)
		}
	}
	if len(p.timeline) > 0 {
		if l.timelines == nil {
			l.timelines = map[int64][]*roomserver.Event{}
		}
		l.timelines[p.c.nid] = p.timeline
	}
	p.remember(dm)
	return nil
}

// appendIdentity appends name, avatar and heroes, as far as they may have changed.
func (p *slidingPart) appendIdentity(ctx context.Context, b []byte) ([]byte, error) {
	get := func(typ, member string) (string, error) {
		e, err := p.look.api.rooms.StateEvent(ctx, p.room, p.end, typ, "")
		if err != nil || e == nil {
			return "", err
		}
		v, _ := e.ContentString(member)
		return v, nil
	}
	put := func(b []byte, member, value string) []byte {
		if value != "" {
			return canonicaljson.AppendString(append(append(append(b, `,"`...), member...), `":`...), value)
		}
		if p.fresh || p.look.req.dialect == slidingDraft {
			return b
		}
		return append(append(append(b, `,"`...), member...), `":null`...)
	}
	name, err := get("m.room.name", "name")
	if err != nil {
		return nil, err
	}
	if p.fresh || p.name {
		b = put(b, "name", name)
	}
	if p.fresh || p.avatar {
		avatar, err := get("m.room.avatar", "url")
		if err != nil {
			return nil, err
		}
		b = put(b, "avatar", avatar)
	}
	if name != "" || !p.fresh && !p.name && !p.members {
		return b, nil
	}
	return p.appendHeroes(ctx, b)
}

// slidingHero is a Hero of MSC4186.
type slidingHero struct {
	UserID      string `json:"user_id"`
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

// appendHeroes appends those after whom a room without a name is named. Someone who has left learns nothing of those
// who came later.
func (p *slidingPart) appendHeroes(ctx context.Context, b []byte) ([]byte, error) {
	rooms := p.look.api.rooms
	users, err := rooms.Heroes(ctx, p.room, p.look.user)
	if err != nil {
		return nil, err
	}
	heroes := make([]slidingHero, 0, len(users))
	for _, user := range users {
		e, err := rooms.StateEvent(ctx, p.room, p.end, memberType, user)
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		h := slidingHero{UserID: user}
		h.DisplayName, _ = e.ContentString("displayname")
		h.AvatarURL, _ = e.ContentString("avatar_url")
		heroes = append(heroes, h)
	}
	raw, err := json.Marshal(heroes)
	if err != nil {
		return nil, err
	}
	return append(append(b, `,"heroes":`...), raw...), nil
}

// appendEvents appends timeline and state.
func (p *slidingPart) appendEvents(ctx context.Context, b []byte) ([]byte, error) {
	l := p.look
	reader := &roomserver.Reader{User: l.user, Device: l.device, Now: l.now, Membership: p.viewer, Erased: l.api.accounts.Erased}
	var err error
	if len(p.timeline) > 0 {
		if p.limited || p.expanded || p.fresh {
			v := l.api.view(l.user, p.room, p.viewer)
			v.UpTo = p.to
			if err := v.Bundle(ctx, reader, p.timeline); err != nil {
				return nil, err
			}
		}
		b = append(b, `,"timeline":`...)
		if b, err = l.api.rooms.AppendClientEvents(ctx, b, p.room, p.timeline, reader); err != nil {
			return nil, err
		}
		live := 0
		for _, e := range p.timeline {
			if !l.initial() && e.Anchor > l.token.pos {
				live++
			}
		}
		b = strconv.AppendInt(append(b, `,"num_live":`...), int64(live), 10)
	}
	if p.limited {
		b = append(b, `,"limited":true`...)
	}
	if p.expanded {
		if l.req.dialect == slidingDraft {
			b = append(b, `,"unstable_expanded_timeline":true`...)
		} else {
			b = append(b, `,"expanded_timeline":true`...)
		}
	}
	if len(p.timeline) > 0 || p.fresh || p.limited {
		b = append(append(append(b, `,"prev_batch":"`...), historyTokenAt(p.prev, p.to)...), '"')
	}
	return p.appendState(ctx, b, reader)
}

// appendState appends the state that changed, with stubs for what is gone.
func (p *slidingPart) appendState(ctx context.Context, b []byte, reader *roomserver.Reader) ([]byte, error) {
	stubs := p.gone
	if p.look.req.dialect == slidingDraft {
		stubs = nil
	}
	if len(p.state) == 0 && len(stubs) == 0 {
		return b, nil
	}
	b, err := p.look.api.rooms.AppendClientEvents(ctx, append(b, `,"required_state":`...), p.room, p.state, reader)
	if err != nil {
		return nil, err
	}
	b = b[:len(b)-1]
	for i, k := range stubs {
		if i > 0 || len(p.state) > 0 {
			b = append(b, ',')
		}
		b = canonicaljson.AppendString(append(b, `{"type":`...), k.typ)
		b = append(canonicaljson.AppendString(append(b, `,"state_key":`...), k.key), '}')
	}
	return append(b, ']'), nil
}
