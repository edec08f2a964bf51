package federation

import (
	"context"
	"slices"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// pushSticky sends a server that has just come into a room the sticky events of our users from before (MSC4354).
func (a *API) pushSticky(ctx context.Context, room *roomserver.Room, who arrival) error {
	if len(a.rooms.StickyPositions(nil, room.NID, 0, who.pos, time.Now().UnixMilli())) == 0 {
		return nil
	}
	joins, err := a.rooms.Arrived(ctx, room, who.pos-1, who.pos, 1)
	if err != nil || len(joins) == 0 {
		return err
	}
	before, err := a.rooms.ServersAt(ctx, room, joins[0].StateBefore)
	server := pdu.ServerOf(who.user)
	if err != nil || slices.Contains(before, server) {
		return err
	}
	return a.queue.PushSticky(ctx, server, room, who.pos)
}
