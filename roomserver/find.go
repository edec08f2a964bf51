package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// maxRoomsWithEvent bounds the rooms that RoomsWithEvent returns. In versions 1 and 2 a sender may choose the id of
// another room's event.
const maxRoomsWithEvent = 10

// RoomsWithEvent returns the numbers of the rooms that have an event with this id, at most 10 of them.
func (s *Server) RoomsWithEvent(ctx context.Context, id string) (nids []int64, err error) {
	nids, err = storage.ReadList[int64](ctx, s.db, `SELECT room FROM events WHERE event_id = $1 ORDER BY room LIMIT $2`, eventKey(id), maxRoomsWithEvent)
	if err != nil {
		return nil, fmt.Errorf("rooms of event %s: %w", id, err)
	}
	return nids, nil
}
