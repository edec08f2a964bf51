package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// RoomsSince returns the numbers of rooms with entries in the log beyond a position, in order: those with numbers above
// after, at most limit. It looks at all rooms, and is for readers that follow the log and were away.
func (s *Server) RoomsSince(ctx context.Context, pos, after int64, limit int) (nids []int64, err error) {
	nids, err = storage.ReadList[int64](ctx, s.db, `SELECT room FROM room_heads WHERE room > $1 AND pos > $2 ORDER BY room LIMIT $3`, after, pos, int64(limit))
	if err != nil {
		return nil, fmt.Errorf("rooms with news: %w", err)
	}
	return nids, nil
}

// JoinedMember is a joined member of a room with their membership event.
type JoinedMember struct {
	UserID   string
	EventNID int64
}

// JoinedMembers returns the joined members of a room's current state in the order of their ids: those after a user, at
// most limit.
func (s *Server) JoinedMembers(ctx context.Context, room *Room, after string, limit int) (members []JoinedMember, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		members = members[:0]
		rows := tx.Query(`SELECT user_id, event FROM room_members WHERE room = $1 AND user_id > $2 AND membership = $3
			ORDER BY user_id LIMIT $4`, room.NID, after, Join, int64(limit))
		var m JoinedMember
		for rows.Next() {
			rows.Scan(&m.UserID, &m.EventNID)
			members = append(members, m)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("members of %s: %w", room.ID, err)
	}
	return members, nil
}
