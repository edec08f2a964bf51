package syncapi

import (
	"context"
	"math"
	"slices"

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

// chosen adds those rooms to the answer that lists and subscriptions have chosen and of which there is anything to tell. Those
// that this server is in are read ahead.
func (l *slidingLook) chosen(ctx context.Context) error {
	var inside []*slidingRoom
	var rooms []roomserver.UserRoom
	newest := 0
	for i := range l.rooms {
		c := &l.rooms[i]
		switch {
		case c.config == nil || !l.changed(c):
		case c.outside == nil:
			inside = append(inside, c)
			newest = max(newest, c.config.limit)
			rooms = append(rooms, roomserver.UserRoom{NID: c.nid, RoomID: c.id, Membership: c.membership, EventNID: c.event})
		case !c.known || c.outside.Pos > c.sent.at:
			l.appendOutside(c)
		}
	}
	next := 0
	return l.api.rooms.Visit(ctx, rooms, newest, func(roomserver.UserRoom) error {
		next++
		return l.room(ctx, inside[next-1])
	})
}

// changed tells whether there may be something to tell of a room.
func (l *slidingLook) changed(c *slidingRoom) bool {
	return !c.known || c.sent.at < c.activity || c.sent.at < c.since || (c.sent.flags&sentDM != 0) != l.data.direct[c.id] || l.stale(c) || l.recount(c)
}

// room adds a room to the answer if there is anything to tell of it.
func (l *slidingLook) room(ctx context.Context, c *slidingRoom) error {
	dm := l.data.direct[c.id]
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
