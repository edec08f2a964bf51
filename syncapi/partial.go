package syncapi

import (
	"context"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// Of a room that was entered a moment ago not all members may be known (MSC3902). Clients that load members lazily are shown
// it at once; others get it, as a room that is new to them, when all members are known.

// memberOf returns the membership event of a user in a state, or nil. Of a sender in the timeline whose membership is not
// known yet, it is the one that they cite.
func (a *API) memberOf(ctx context.Context, room *roomserver.Room, root snapshot.Ref, user string, timeline []*roomserver.Event) (*roomserver.Event, error) {
	e, err := a.rooms.StateEvent(ctx, room, root, memberType, user)
	if err != nil || e != nil {
		return e, err
	}
	for _, sent := range timeline {
		if sent.Sender == user && sent.Partial() {
			return a.rooms.CitedMember(ctx, room, sent)
		}
	}
	return nil, nil
}

// everyMember tells whether a config wants all members, and not only those that the timeline needs.
func (c stateConfig) everyMember() bool {
	for i := range c {
		for _, e := range c[i].Include {
			if !c[i].Lazy && e.Key == nil && (e.Type == nil || *e.Type == memberType) {
				return true
			}
		}
	}
	return false
}

// withheld tells whether a room is kept from a client of /sync until its members are known, as it was at a position.
func (l *look) withheld(room *roomserver.Room, pos int64) bool {
	return !l.filter.Room.State.LazyLoadMembers && room.PartialAt(pos)
}
