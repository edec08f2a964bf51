package syncapi

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// slidingPart is what one look finds in one room that the user is or was in: (from, to].
type slidingPart struct {
	look *slidingLook
	c    *slidingRoom
	room *roomserver.Room

	// membership is the user's membership event at the end of the look.
	membership *roomserver.Event
	from, to   int64
	// fresh tells that the client is sent the room as new.
	fresh      bool
	begin, end snapshot.Ref
	viewer     *roomserver.Viewer

	timeline          []*roomserver.Event
	limited, expanded bool
	prev              roomserver.HistoryToken
	depth             int64

	state []*roomserver.Event
	gone  []stateKey
	// What changed in the room beside that.
	members, name, avatar bool

	// unread and highlights are the counts of the drafts' dialect, plus one; counted tells that the client knows others.
	unread, highlights int64
	counted            bool
}

// endlessDepth is the depth of a room of which the client was sent everything.
const endlessDepth = math.MaxInt32

// room adds a room to the answer if there is anything to tell of it.
func (l *slidingLook) room(ctx context.Context, c *slidingRoom) error {
	dm := l.data.direct[c.id]
	if c.known && c.sent.at >= c.activity && c.sent.at >= c.since && (c.sent.flags&sentDM != 0) == dm && !l.stale(c) && !l.recount(c) {
		return nil
	}
	if c.outside != nil {
		if !c.known || c.outside.Pos > c.sent.at {
			l.appendOutside(c)
		}
		return nil
	}
	room, err := l.api.rooms.RoomByNID(ctx, c.nid)
	if err != nil {
		return err
	}
	p := &slidingPart{look: l, c: c, room: room, from: c.sent.at, to: l.upTo}
	if p.end, err = l.api.rooms.StateAt(ctx, room, l.upTo); err != nil {
		return err
	}
	if p.membership, err = l.api.rooms.StateEvent(ctx, room, p.end, memberType, l.user); err != nil {
		return err
	}
	if p.membership == nil {
		return p.lost(ctx)
	}
	switch p.membership.Membership() {
	case roomserver.Join:
		if room.PartialAt(l.upTo) && c.config.state.everyMember() {
			return nil
		}
		err = p.joined(ctx)
	case roomserver.Invite, roomserver.Knock:
		return p.stripped(ctx)
	default:
		var end *roomserver.Event
		if end, err = l.api.endOfStay(ctx, room, p.membership); err != nil {
			return err
		}
		if end == nil {
			if !c.known {
				return nil
			}
			if l.req.dialect == slidingDraft {
				return p.rejected(ctx)
			}
			return p.stripped(ctx)
		}
		err = p.left(ctx, end)
	}
	if err == nil {
		err = p.count(ctx)
	}
	if err != nil || p.empty(dm) {
		return err
	}
	return p.append(ctx, dm)
}

// recount tells whether the room's counts may have changed without anything else.
func (l *slidingLook) recount(c *slidingRoom) bool {
	return l.req.dialect == slidingDraft && c.membership == roomserver.Join && l.api.tracker.countsChanged(c.nid, c.sent.at, l.token.pos)
}

// countsChanged tells whether something may have happened in a room after it was sent: known to have, or not known not
// to have by a client that was last here before the start.
func (t *tracker) countsChanged(nid, sent, since int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return since < t.start || t.roomPos[nid] > sent
}

// count finds the counts that the drafts' dialect has.
func (p *slidingPart) count(ctx context.Context) error {
	if p.look.req.dialect != slidingDraft || p.membership.Membership() != roomserver.Join {
		return nil
	}
	u, err := p.look.api.unread.Unread(ctx, p.room, p.look.user, p.look.upTo)
	if err != nil {
		return err
	}
	total := u.Total()
	p.unread, p.highlights = total.Notifications+1, total.Highlights+1
	p.counted = p.unread != p.c.sent.unread || p.highlights != p.c.sent.highlights
	return nil
}

// stale tells whether the config of a room asks for more than what the client was sent, or may do so.
func (l *slidingLook) stale(c *slidingRoom) bool {
	if c.sent.flags&sentStay == 0 {
		return false
	}
	return int64(c.config.limit) > c.sent.depth || l.configOf(c.config) != c.sent.config
}

// joined reads a room that the user is in. It is new to the client if it was not sent as such, or if the user has left
// and joined again since.
func (p *slidingPart) joined(ctx context.Context) (err error) {
	rooms := p.look.api.rooms
	p.fresh = !p.c.known || p.c.sent.flags&sentStay == 0
	if !p.fresh {
		if p.begin, err = rooms.StateAt(ctx, p.room, p.from); err != nil {
			return err
		}
		before, err := rooms.StateEvent(ctx, p.room, p.begin, memberType, p.look.user)
		if err != nil {
			return err
		}
		if before == nil || before.Membership() != roomserver.Join {
			p.fresh = true
		} else if before.NID != p.membership.NID {
			m, err := rooms.MembershipAt(ctx, p.room, p.membership.StateBefore, p.look.user)
			if err != nil {
				return err
			}
			p.fresh = m != roomserver.Join
		}
	}
	return p.read(ctx)
}

// left reads a room that the user is not in any more, up to the end of their stay. Of what happened afterwards only
// their own membership is theirs to see.
func (p *slidingPart) left(ctx context.Context, end *roomserver.Event) (err error) {
	rooms := p.look.api.rooms
	p.fresh = !p.c.known || p.c.sent.flags&sentStay == 0
	if !p.fresh {
		if p.begin, err = rooms.StateAt(ctx, p.room, p.from); err != nil {
			return err
		}
		before, err := rooms.MembershipAt(ctx, p.room, p.begin, p.look.user)
		if err != nil {
			return err
		}
		if before != roomserver.Join {
			p.fresh = end.Anchor > p.from // joined and left again since
		}
	}
	p.to = end.Anchor
	if p.end, err = rooms.StateAt(ctx, p.room, p.to); err != nil {
		return err
	}
	if p.fresh || end.Anchor > p.from {
		if err := p.read(ctx); err != nil {
			return err
		}
	} else if p.viewer, err = rooms.Viewer(ctx, p.room, p.look.user, p.look.upTo); err != nil {
		return err
	} else {
		p.depth, p.prev, p.begin = p.c.sent.depth, roomserver.AfterPosition(p.to), p.end
	}
	if p.membership.NID != end.NID && (p.fresh || p.membership.Anchor > p.from) {
		p.timeline = append(slices.Clip(p.timeline), p.membership)
		p.state = append(keep(p.state, func(e *roomserver.Event) bool { return !e.Is(memberType, p.look.user) }), p.membership)
	}
	return nil
}

// read finds timeline and state.
func (p *slidingPart) read(ctx context.Context) (err error) {
	if p.viewer, err = p.look.api.rooms.Viewer(ctx, p.room, p.look.user, p.to); err != nil {
		return err
	}
	if err := p.readTimeline(ctx); err != nil {
		return err
	}
	return p.readState(ctx)
}

// readTimeline finds the newest events.
func (p *slidingPart) readTimeline(ctx context.Context) error {
	rooms, limit := p.look.api.rooms, p.c.config.limit
	after := p.from
	if p.fresh {
		after = 0
	}
	events, more, err := rooms.Timeline(ctx, p.room, after, p.to, max(limit, 1))
	if err != nil {
		return err
	}
	if !p.fresh {
		p.depth = p.c.sent.depth
		if p.depth != endlessDepth {
			p.depth = min(p.depth+int64(len(events)), endlessDepth)
		}
		if !more && int64(limit) > p.depth {
			news := len(events)
			if events, more, err = rooms.Timeline(ctx, p.room, 0, p.to, limit); err != nil {
				return err
			}
			p.expanded = len(events) > news
			after = 0
		}
	}
	if after == 0 || more {
		if p.depth = int64(limit); !more {
			p.depth = endlessDepth
		}
	}
	p.prev = roomserver.AfterPosition(p.to)
	if limit == 0 {
		p.limited = len(events) > 0
		return nil
	}
	p.limited = more
	if len(events) > 0 {
		p.prev = events[0].Token()
	}
	if events, err = p.viewer.Filter(ctx, events); err != nil {
		return err
	}
	ignored := p.look.data.ignored
	p.timeline = keep(events, func(e *roomserver.Event) bool { return len(ignored) == 0 || e.IsState() || !ignored[e.Sender] })
	return nil
}

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

// empty tells that there is nothing to tell. A config that wants more without there being more is noted.
func (p *slidingPart) empty(dm bool) bool {
	c := p.c
	if p.fresh || len(p.timeline) > 0 || p.limited || p.expanded || len(p.state) > 0 || len(p.gone) > 0 ||
		p.members || p.name || p.avatar || p.counted || (c.sent.flags&sentDM != 0) != dm {
		return false
	}
	if p.look.stale(c) {
		p.remember(dm)
	}
	return true
}

// remember notes what the client will know of the room.
func (p *slidingPart) remember(dm bool) {
	s := sentRoom{nid: p.c.nid, at: p.look.upTo, depth: max(p.depth, int64(p.c.config.limit)), config: p.look.configOf(p.c.config), unread: p.unread, highlights: p.highlights}
	s.flags = p.c.sent.flags&(knowsData|knowsReceipts|knowsProfiles) | sentStay
	if dm {
		s.flags |= sentDM
	}
	p.look.sent(p.c, s)
}

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
	l.roomsOut = append(b, '}')
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

// appendOutside is stripped for a room that this server is not in.
func (l *slidingLook) appendOutside(c *slidingRoom) {
	o := c.outside
	ended := o.Membership == roomserver.Leave || o.Membership == roomserver.Ban
	if ended && l.req.dialect == slidingDraft {
		l.roomsOut = append(l.open(c, o.Membership, o.Pos), `,"initial":true}`...)
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

// bumpMark is a room's bump stamp as of a position.
type bumpMark struct{ stamp, upTo int64 }

const (
	maxBumps = 50_000
	// bumpPage and maxBumpPages bound how far back an event that bumps is looked for.
	bumpPage     = 100
	maxBumpPages = 10
)

// bumps tells whether an event moves a room up in the clients' lists (MSC4186, bump_stamp).
func bumps(e *roomserver.Event) bool {
	switch e.Type {
	case "m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite",
		"m.poll.start", "org.matrix.msc3381.poll.start", "m.beacon_info", "org.matrix.msc3672.beacon_info":
		return true
	}
	return false
}

// bumpStamp finds the position of the newest event that bumps a room, up to a position; otherwise if there is none
// near.
func (a *API) bumpStamp(ctx context.Context, room *roomserver.Room, upTo, otherwise int64) (int64, error) {
	mark, known := a.sliding.bumps.Get(room.NID)
	if known && mark.upTo >= upTo && mark.stamp <= upTo {
		return cmp.Or(mark.stamp, otherwise), nil
	}
	known = known && mark.upTo <= upTo
	var stamp int64
	place := roomserver.AfterPosition(upTo)
	for page := range maxBumpPages {
		var events []*roomserver.Event
		var err error
		if page == 0 { // mostly at hand
			if events, _, err = a.rooms.Timeline(ctx, room, 0, upTo, 20); err == nil && len(events) > 0 {
				place = events[0].Token()
			}
			events = slices.Clone(events)
			slices.Reverse(events)
		} else if events, err = a.rooms.HistoryBefore(ctx, room, place, bumpPage); err == nil && len(events) > 0 {
			place = events[len(events)-1].Token()
		}
		if err != nil {
			return 0, err
		}
		i := slices.IndexFunc(events, func(e *roomserver.Event) bool {
			return bumps(e) || known && e.Anchor <= mark.upTo
		})
		if i >= 0 {
			if stamp = mark.stamp; bumps(events[i]) {
				stamp = events[i].Anchor
			}
			break
		}
		if len(events) == 0 {
			break
		}
	}
	a.sliding.bumps.Put(room.NID, bumpMark{stamp, upTo}, 1)
	return cmp.Or(stamp, otherwise), nil
}
