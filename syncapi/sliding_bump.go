package syncapi

import (
	"cmp"
	"context"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
)

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
