package queue

import (
	"context"
	"errors"

	"github.com/myelin-im/myelin/roomserver"
)

// PushSticky sends a server the sticky events of local users (MSC4354) at positions up to one in a room, as if they had
// just happened.
func (q *Queue) PushSticky(ctx context.Context, server string, room *roomserver.Room, upTo int64) error {
	refs, err := q.stickyOf(ctx, room, upTo)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range refs {
		q.add(server, r)
	}
	return nil
}

// stickyOf lists the places of the sticky events of local users at positions up to one.
func (q *Queue) stickyOf(ctx context.Context, room *roomserver.Room, upTo int64) (refs []ref, err error) {
	events, err := q.cfg.Rooms.StickyEvents(ctx, room, 0, upTo, q.cfg.Now().UnixMilli())
	for _, e := range events {
		if q.cfg.Rooms.IsLocal(e.Sender) && !e.Brought() && e.Sub == 0 && len(refs) < maxPending {
			refs = append(refs, ref{room.NID, e.Anchor})
		}
	}
	return refs, err
}

// passOver notes the rooms of which a server was sent only the last events while there are sticky ones. q.mu is held.
func (q *Queue) passOver(d *destination, rooms map[int64]int64) {
	now := q.cfg.Now().UnixMilli()
	for room := range rooms {
		if len(q.cfg.Rooms.StickyPositions(nil, room, 0, q.pos, now)) == 0 {
			continue
		}
		if d.passed == nil {
			d.passed = map[int64]struct{}{}
		}
		d.passed[room] = struct{}{}
	}
}

// missed lists the sticky events of the rooms of which a server was sent only the last events.
func (q *Queue) missed(ctx context.Context, rooms map[int64]struct{}) (refs []ref, err error) {
	for nid := range rooms {
		room, err := q.cfg.Rooms.RoomByNID(ctx, nid)
		if errors.Is(err, roomserver.ErrUnknownRoom) {
			continue
		}
		if err != nil {
			return nil, err
		}
		some, err := q.stickyOf(ctx, room, room.Head().Pos)
		if err != nil {
			return nil, err
		}
		refs = append(refs, some...)
	}
	return refs[:min(len(refs), maxPending)], nil
}
