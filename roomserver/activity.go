package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// Activity appends to dst, for each of a local user's rooms, the position of the room's last entry in the log. Rooms
// that are not in memory are read together and not loaded.
func (s *Server) Activity(ctx context.Context, user string, rooms []UserRoom, dst []int64) ([]int64, error) {
	start, missing := len(dst), false
	s.rooms.mu.RLock()
	for _, r := range rooms {
		var pos int64
		if room := s.rooms.byNID[r.NID]; room != nil {
			pos = room.Head().Pos
		} else {
			missing = true
		}
		dst = append(dst, pos)
	}
	s.rooms.mu.RUnlock()
	if !missing {
		return dst, nil
	}
	heads := map[int64]int64{}
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		rows := tx.Query(`SELECT h.room, h.pos FROM room_members m JOIN room_heads h ON h.room = m.room WHERE m.user_id = $1 AND m.local`, user)
		var nid, pos int64
		for rows.Next() {
			rows.Scan(&nid, &pos)
			heads[nid] = pos
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("activity in the rooms of %s: %w", user, err)
	}
	for i, r := range rooms {
		if dst[start+i] == 0 {
			dst[start+i] = heads[r.NID]
		}
	}
	return dst, nil
}
