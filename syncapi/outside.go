package syncapi

import (
	"context"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
)

// outside adds the user's invites and knocks in rooms that this server is not in, and how they or stays there ended, unless
// the room's state, among the rooms given, tells that. Of an end the client is told also after another device has forgotten
// the room.
func (l *look) outside(ctx context.Context, s *sections, rooms []roomserver.UserRoom) error {
	if !l.initial() && !l.api.tracker.userChanged(l.user, l.since.Pos) {
		return nil
	}
	records, err := l.api.rooms.OutsideOf(ctx, l.user)
	if err != nil {
		return err
	}
	for _, o := range records {
		if o.Pos <= l.since.Pos || o.Pos > l.upTo || o.Forgotten && l.initial() || !l.filter.Room.Allows(o.RoomID) {
			continue
		}
		if slices.ContainsFunc(rooms, func(r roomserver.UserRoom) bool { return r.RoomID == o.RoomID && r.Pos >= o.Pos }) {
			continue
		}
		if err := l.outsideRoom(ctx, s, o); err != nil {
			return err
		}
	}
	return nil
}

func (l *look) outsideRoom(ctx context.Context, s *sections, o roomserver.Outside) error {
	section, member := sectionInvite, "invite_state"
	switch o.Membership {
	case roomserver.Invite:
		if hidden, err := l.hidesInvite(ctx, o.Event.Sender); err != nil || hidden {
			return err
		}
	case roomserver.Knock:
		section, member = sectionKnock, "knock_state"
	default:
		if l.initial() && !l.filter.Room.IncludeLeave {
			return nil
		}
		b := append(s.begin(sectionLeave, o.RoomID), `{"timeline":{"events":[`...)
		if m := o.Event.Membership(); m == roomserver.Leave || m == roomserver.Ban {
			b = append(o.Event.AppendClient(b), '}')
		}
		s[sectionLeave] = append(b, `],"limited":false,"prev_batch":"p0"},"state":{"events":[]}}`...)
		return nil
	}
	b := append(append(s.begin(section, o.RoomID), `{"`...), member...)
	b = append(b, `":{"events":[`...)
	if state := o.Stripped[1 : len(o.Stripped)-1]; len(state) > 0 {
		b = append(append(b, state...), ',')
	}
	s[section] = append(o.Event.AppendStripped(b), "]}}"...)
	return nil
}
