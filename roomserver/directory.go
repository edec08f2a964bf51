package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// publish puts the room into this server's directory with the unit of the turn, which must append something.
func (t *Turn) publish() {
	t.unit.Exec(`INSERT INTO public_rooms (room_id) VALUES ($1) ON CONFLICT DO NOTHING`, t.room.ID)
	t.noteDirectory()
}

// noteDirectory tells those who keep lists of public rooms that the room's place in them has changed.
func (t *Turn) noteDirectory() {
	t.unit.Notices = append(t.unit.Notices, storage.Notice{Pos: 1, Kind: storage.Directory, Room: t.room.NID})
}

// Public tells whether a room is in this server's directory.
func (s *Server) Public(ctx context.Context, roomID string) (public bool, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		var id string
		public, err = tx.Get(`SELECT room_id FROM public_rooms WHERE room_id = $1`, []any{roomID}, &id)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("directory entry of %s: %w", roomID, err)
	}
	return public, nil
}

// SetPublic puts a room into this server's directory or takes it out. The error is ErrUnknownRoom where this server
// does not have the room.
func (s *Server) SetPublic(ctx context.Context, roomID string, public bool) error {
	room, err := s.Room(ctx, roomID)
	if err != nil {
		return err
	}
	statement := `DELETE FROM public_rooms WHERE room_id = $1`
	if public {
		statement = `INSERT INTO public_rooms (room_id) VALUES ($1) ON CONFLICT DO NOTHING`
	}
	err = s.db.Write(ctx, func(tx *storage.Tx) error {
		changed, err := tx.Exec(statement, roomID)
		if err != nil || changed == 0 {
			return err
		}
		return NoteDirectory(tx, room.NID)
	})
	if err != nil {
		return fmt.Errorf("directory entry of %s: %w", roomID, err)
	}
	return nil
}

// NoteDirectory tells those who keep lists of public rooms, once the Write is done, that the place of a room in them
// has changed.
func NoteDirectory(tx *storage.Tx, room int64) error {
	if _, err := tx.Position(); err != nil {
		return err
	}
	tx.Notice(storage.Notice{Kind: storage.Directory, Room: room})
	return nil
}

// PublicRooms returns the numbers of the rooms in this server's directory, the oldest first and at most limit.
func (s *Server) PublicRooms(ctx context.Context, limit int) (nids []int64, err error) {
	nids, err = storage.ReadList[int64](ctx, s.db, `SELECT r.nid FROM public_rooms p JOIN rooms r ON r.room_id = p.room_id ORDER BY r.nid LIMIT $1`, int64(limit))
	if err != nil {
		return nil, fmt.Errorf("read the directory: %w", err)
	}
	return nids, nil
}

// MutualRooms returns the ids of the rooms that both a local user and another user are joined to, sorted.
func (s *Server) MutualRooms(ctx context.Context, local, other string) (ids []string, err error) {
	ids, err = storage.ReadList[string](ctx, s.db, `SELECT r.room_id FROM room_members a
			JOIN room_members b ON b.room = a.room AND b.user_id = $2 AND b.membership = $3
			JOIN rooms r ON r.nid = a.room
			WHERE a.user_id = $1 AND a.local AND a.membership = $3 ORDER BY r.room_id`, local, other, Join)
	if err != nil {
		return nil, fmt.Errorf("rooms that %s shares: %w", local, err)
	}
	return ids, nil
}
