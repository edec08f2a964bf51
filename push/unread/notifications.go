package unread

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/push/counts"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/roomserver"
)

// Notification is an event that notifies a user, and how.
type Notification struct {
	// Event is the event.
	Event *roomserver.Event
	// Actions are those of the push rule that matched, not to be changed.
	Actions *rules.Actions
}

// Notifications returns which of up to limit events that arrived in a room at positions in (after, upTo] notify a user,
// oldest first, whether they are read or not, and up to which position it has looked: upTo, or less if there were more.
// Only events of the user's stay in the room count, and invites.
func (c *Counts) Notifications(ctx context.Context, room *roomserver.Room, user string, after, upTo int64, limit int) (list []Notification, next int64, err error) {
	arrived, err := c.log.rooms.Arrived(ctx, room, after, upTo, limit)
	if err != nil || len(arrived) == 0 {
		return nil, upTo, err
	}
	last := arrived[len(arrived)-1].Anchor
	if next = upTo; len(arrived) == limit {
		next = last
	}
	events, err := c.log.Events(ctx, room.NID, after, last, false, limit)
	if err != nil {
		return nil, 0, err
	}
	if len(events) != len(arrived) { // a purge came between; what is gone notifies nobody
		return nil, next, nil
	}
	since, joined, err := c.log.JoinedSince(ctx, room.NID, user, last)
	if err != nil {
		return nil, 0, fmt.Errorf("stay of %s: %w", user, err)
	}
	actions, err := c.counter.Judge(ctx, room.NID, user, events)
	if err != nil {
		return nil, 0, err
	}
	for i, e := range arrived {
		invite := e.Type == "m.room.member" && *e.StateKey == user && e.Membership() == roomserver.Invite
		if actions[i].Notify && (invite || joined && e.Anchor > since) {
			list = append(list, Notification{e, actions[i]})
		}
	}
	return list, next, nil
}

// JudgeInvite returns what the push rules of the invited user say of an invite to a room that this server is not in. The
// actions are not to be changed.
func (c *Counts) JudgeInvite(ctx context.Context, o *roomserver.Outside) (*rules.Actions, error) {
	ignored, err := c.Ignored(ctx, o.User)
	if err != nil {
		return nil, err
	}
	if ignored[o.Event.Sender] {
		return &rules.Actions{}, nil
	}
	compiled, _, err := c.log.rules.RulesSpan(ctx, o.User, o.Pos)
	if err != nil {
		return nil, fmt.Errorf("push rules of %s: %w", o.User, err)
	}
	prepared := rules.Prepare(&rules.Event{
		Type: o.Event.Type, Sender: o.Event.Sender, RoomID: o.RoomID, EventID: o.Event.ID, StateKey: o.Event.StateKey,
		OriginServerTS: o.Event.OriginServerTS, Content: o.Event.Content(),
	})
	return compiled.Evaluate(prepared, &rules.Room{}, ""), nil
}

// IsRead tells whether a user's receipts cover an event.
func (c *Counts) IsRead(ctx context.Context, room *roomserver.Room, user string, e *roomserver.Event) (bool, error) {
	thread, err := c.log.rooms.ThreadRoot(ctx, room, e)
	if err != nil {
		return false, fmt.Errorf("thread of %s: %w", e.ID, err)
	}
	if thread == "" {
		thread = counts.Main
	}
	for _, scope := range []string{counts.Unthreaded, thread} {
		upTo, err := c.log.ReadUpTo(ctx, room.NID, user, scope)
		if err != nil || e.Anchor <= upTo {
			return err == nil, err
		}
	}
	return false, nil
}
