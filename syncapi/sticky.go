package syncapi

import (
	"context"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
)

// maxSticky bounds the sticky events of one answer, beside those of rooms that are new to the client; the rest comes with
// the next ones.
const maxSticky = 500

// boundSticky decides up to which position the answer has sticky events (MSC4354), and notes it in the next token.
func (l *look) boundSticky(rooms []roomserver.UserRoom, next *Token) {
	l.stickyTo = l.upTo
	if l.initial() || !l.api.rooms.StickySince(l.since.sticky()) {
		return
	}
	var positions []int64
	for _, r := range rooms {
		if r.Membership == roomserver.Join {
			positions = l.api.rooms.StickyPositions(positions, r.NID, l.since.sticky(), l.upTo, l.now)
		}
	}
	if len(positions) > maxSticky {
		slices.Sort(positions)
		l.stickyTo = positions[maxSticky-1]
		next.Sticky = l.stickyTo
	}
}

// stickyWaits tells whether a room has sticky events that did not fit into former answers.
func (l *look) stickyWaits(nid int64) bool {
	return l.since.Sticky > 0 && len(l.api.rooms.StickyPositions(nil, nid, l.since.Sticky, l.since.Pos, l.now)) > 0
}

// appendSticky appends the sticky events that the timeline of the answer does not have. Neither filters nor the history
// visibility apply to them.
func (p *roomPart) appendSticky(ctx context.Context, b []byte) ([]byte, error) {
	l := p.look
	after := l.since.sticky()
	if p.fresh {
		after = 0
	}
	events, err := l.api.stickyEvents(ctx, l.user, p.room, after, l.stickyTo, l.now, p.timeline)
	if err != nil || len(events) == 0 {
		return b, err
	}
	reader := &roomserver.Reader{User: l.user, Device: l.device, Now: l.now, Erased: l.api.accounts.Erased}
	if b, err = l.api.rooms.AppendClientEvents(ctx, append(b, `,"msc4354_sticky":{"events":`...), p.room, events, reader); err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// stickyEvents are the sticky events of a room for one user, without those that their timeline has.
func (a *API) stickyEvents(ctx context.Context, user string, room *roomserver.Room, after, upTo, now int64, timeline []*roomserver.Event) ([]*roomserver.Event, error) {
	events, err := a.rooms.StickyEvents(ctx, room, after, upTo, now)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	ignored, err := a.ignoredUsers(ctx, user)
	if err != nil {
		return nil, err
	}
	return keep(events, func(e *roomserver.Event) bool {
		return (e.IsState() || !ignored[e.Sender]) && !slices.ContainsFunc(timeline, func(o *roomserver.Event) bool { return o.NID == e.NID })
	}), nil
}
