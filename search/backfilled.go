package search

import (
	"context"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Backfilled brings into the index what was put into the past of a room, of which the log does not tell.
func (a *API) Backfilled(ctx context.Context, room *roomserver.Room, events []*roomserver.Event) {
	b := &batch{x: a.index, purges: a.index.purges.Load()}
	err := a.index.put(ctx, b, room, events)
	if err == nil {
		err = b.flush(ctx, &storage.Unit{})
	}
	if err != nil && ctx.Err() == nil {
		a.index.log.WithError(err).WithField("room", room.NID).Error("Older events of a room could not be brought into the search index")
	}
}
