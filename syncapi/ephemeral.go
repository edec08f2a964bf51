package syncapi

import (
	"context"
	"strconv"
	"time"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/push/counts"
	"github.com/myelin-im/myelin/roomserver"
)

// The events of this file's sections.
const (
	receiptType  = "m.receipt"
	typingType   = "m.typing"
	presenceType = "m.presence"
)

// volatile is what one look has to tell of what is not in the log. The stamps are those of this boot; -1 stands for a
// client that knows nothing, which is told what is current.
type volatile struct {
	// typing is the stamp of the client's typing lists. typed tells that lists have changed since, wherever.
	typing int64
	typed  bool
	// stale tells that the client was shown somebody typing, in a list of which nobody knows any more: it is sent the lists
	// of all rooms, also empty ones.
	stale bool

	// next are the stamps up to which this is all.
	next Volatile
	// rooms are the user's rooms.
	rooms []roomserver.UserRoom
	// people are those whose presence has changed, whoever may see it; newcomers those in rooms that are new to the client.
	people, newcomers []ephemeral.Presence
}

// maxPeople bounds the changes of presence of one answer; the rest comes with the next.
const maxPeople = 1000

// interests are what a request with the look's filter waits for.
func (l *look) interests() interests {
	what, f := inLog, &l.filter.Room.Ephemeral.EventFilter
	if f.MatchType(receiptType) {
		what |= inReceipts
	}
	if f.MatchType(typingType) {
		what |= inTyping
	}
	if l.wantsPresence() {
		what |= inPresence
	}
	if len(l.filter.ProfileFields) > 0 {
		what |= inProfiles
	}
	return what
}

func (l *look) wantsPresence() bool {
	return !l.filter.Presence.None() && l.filter.Presence.MatchType(presenceType)
}

// beginVolatile finds out what there is to tell. The stamps are taken before the lists are read, so that what changes
// meanwhile is told again.
func (l *look) beginVolatile(ctx context.Context) (err error) {
	v := &l.volatile
	*v = volatile{typing: -1}
	if v.rooms, err = l.api.rooms.UserRooms(ctx, l.user); err != nil {
		return err
	}
	e, since := l.api.ephemeral, l.since.Volatile
	sameBoot := !l.initial() && since.Boot == e.Boot()
	stamp := e.TypingStamp()
	if sameBoot && e.TypingKnown(since.Typing>>1) {
		v.typing = since.Typing >> 1
	} else {
		v.stale = !l.initial() && since.Typing&1 == 1
	}
	v.typed = v.typing != stamp
	v.next = Volatile{Boot: e.Boot(), Typing: stamp << 1}
	if e.SomebodyTypes(v.rooms) {
		v.next.Typing |= 1
	}
	people := int64(-1)
	if sameBoot && e.PresenceKnown(since.Presence) {
		people = since.Presence
	}
	switch {
	case l.wantsPresence():
		v.people, v.next.Presence = e.PresenceSince(people, maxPeople)
	case sameBoot:
		v.next.Presence = since.Presence
	}
	return nil
}

// typingChanged tells whether the client has to be sent the typing list of a room.
func (l *look) typingChanged(nid int64) bool {
	return l.volatile.stale || l.api.ephemeral.TypingChanged(nid, l.volatile.typing)
}

// presence appends the presence of those of whom the user may know.
func (l *look) presence(ctx context.Context, out []byte) ([]byte, error) {
	v := &l.volatile
	if len(v.people)+len(v.newcomers) == 0 {
		return out, nil
	}
	ignored, err := l.ignored(ctx)
	if err != nil {
		return nil, err
	}
	now := time.UnixMilli(l.now)
	told := map[string]bool{}
	add := func(p *ephemeral.Presence) {
		if told[p.User] || ignored[p.User] || !l.filter.Presence.Match(presenceType, p.User) ||
			len(told) >= l.filter.Presence.Limit(maxPeople, maxPeople) {
			return
		}
		if len(told) == 0 {
			out = append(out, `,"presence":{"events":[`...)
		} else {
			out = append(out, ',')
		}
		told[p.User] = true
		out = p.AppendEvent(out, now)
	}
	for i := range v.people {
		visible, err := l.api.ephemeral.Visible(ctx, l.user, v.rooms, v.people[i].User)
		if err != nil {
			return nil, err
		}
		if visible {
			add(&v.people[i])
		}
	}
	for i := range v.newcomers {
		add(&v.newcomers[i])
	}
	if len(told) > 0 {
		out = append(out, "]}"...)
	}
	return out, nil
}

// appendEphemeral appends the room's receipts and who types, where something changed.
func (p *roomPart) appendEphemeral(ctx context.Context, b []byte) ([]byte, error) {
	l, e := p.look, p.look.api.ephemeral
	if p.fresh && !l.initial() && l.wantsPresence() {
		l.volatile.newcomers = append(l.volatile.newcomers, e.PresenceIn(p.room)...)
	}
	since := p.from
	if p.fresh {
		since = 0
	}
	receipts, err := e.Receipts(ctx, p.room.NID, l.user, since, p.to)
	if err != nil {
		return nil, err
	}
	for i := range receipts {
		p.counted = p.counted || receipts[i].User == l.user
	}
	f := &l.filter.Room.Ephemeral
	if !f.Allows(p.room.ID) {
		return b, nil
	}
	start := len(b)
	b = append(b, `,"ephemeral":{"events":[`...)
	empty := len(b)
	if len(receipts) > 0 && f.MatchType(receiptType) {
		b = ephemeral.AppendReceiptEvents(b, receipts)
	}
	typing := p.fresh && e.TypingChanged(p.room.NID, -1) || l.volatile.typed && l.typingChanged(p.room.NID)
	if typing && f.MatchType(typingType) {
		if len(b) > empty {
			b = append(b, ',')
		}
		b = e.AppendTypingEvent(b, p.room.NID)
	}
	if len(b) == empty && !p.fresh { // a room that is shown for the first time is shown whole
		return b[:start], nil
	}
	return append(b, "]}"...), nil
}

// appendUnread appends how many events of the room the user has not read.
//
// Spec: client-server API v1.19, GET /sync, "unread_notifications" and "unread_thread_notifications".
func (p *roomPart) appendUnread(ctx context.Context, b []byte) ([]byte, error) {
	u, err := p.look.api.unread.Unread(ctx, p.room, p.look.user, p.to)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"unread_notifications":`...)
	if !p.look.filter.Room.Timeline.UnreadThreadNotifications {
		return appendCounts(b, u.Total()), nil
	}
	b = appendCounts(b, u.Main)
	for i := range u.Threads {
		if i == 0 {
			b = append(b, `,"unread_thread_notifications":{`...)
		} else {
			b = append(b, ',')
		}
		b = append(canonicaljson.AppendString(b, u.Threads[i].Root), ':')
		b = appendCounts(b, u.Threads[i].Counts)
	}
	if len(u.Threads) > 0 {
		b = append(b, '}')
	}
	return b, nil
}

func appendCounts(b []byte, c counts.Counts) []byte {
	b = append(b, `{"highlight_count":`...)
	b = strconv.AppendInt(b, c.Highlights, 10)
	b = append(b, `,"notification_count":`...)
	return append(strconv.AppendInt(b, c.Notifications, 10), '}')
}
