package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// RoomMembership is a user's membership of a room in the room's current state.
type RoomMembership struct {
	User       string
	Room       int64 // number of the room
	Membership string
	// Pos is the position since when there is this membership event.
	Pos int64
}

// maxSharingUsers bounds the users of one query.
const maxSharingUsers = 100

// MembershipsOf calls fn with all memberships of users, local or not, in rooms that this server knows, in no particular
// order. Rooms that no local user is in any more are as they were then. fn must not use the database.
func (s *Server) MembershipsOf(ctx context.Context, users []string, fn func(RoomMembership)) error {
	for len(users) > 0 {
		n := min(len(users), maxSharingUsers)
		args := make([]any, n)
		for i, u := range users[:n] {
			args[i] = u
		}
		users = users[n:]
		err := s.db.Read(ctx, func(tx *storage.Tx) error {
			for _, where := range []string{"local", "NOT local"} { // each has its index
				err := scanMemberships(tx.Query(`SELECT user_id, room, membership, pos FROM room_members WHERE `+where+` AND user_id IN `+storage.In(n, 1), args...), fn)
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("rooms of users: %w", err)
		}
	}
	return nil
}

// MembershipsIn calls fn with all memberships of a room's current state, in no particular order. fn must not use the
// database.
func (s *Server) MembershipsIn(ctx context.Context, room int64, fn func(RoomMembership)) error {
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		return scanMemberships(tx.Query(`SELECT user_id, room, membership, pos FROM room_members WHERE room = $1`, room), fn)
	})
	if err != nil {
		return fmt.Errorf("members of a room: %w", err)
	}
	return nil
}

func scanMemberships(rows *storage.Rows, fn func(RoomMembership)) error {
	for rows.Next() {
		var m RoomMembership
		rows.Scan(&m.User, &m.Room, &m.Membership, &m.Pos)
		fn(m)
	}
	return rows.Close()
}

// remotePage is how many remote users are read at once.
const remotePage = 1000

// EachRemoteUser calls fn with every user of another server that has a membership, of any kind, in a room that this server
// knows, until it returns false. It reads an index of the database from end to end.
func (s *Server) EachRemoteUser(ctx context.Context, fn func(user string) bool) error {
	after := ""
	for {
		page, err := storage.ReadList[string](ctx, s.db, `SELECT DISTINCT user_id FROM room_members WHERE NOT local AND user_id > $1 ORDER BY user_id LIMIT $2`, after, int64(remotePage))
		if err != nil {
			return fmt.Errorf("list users of other servers: %w", err)
		}
		for _, user := range page {
			if !fn(user) {
				return nil
			}
		}
		if len(page) < remotePage {
			return nil
		}
		after = page[len(page)-1]
	}
}

// RoomsOfUserSince returns the numbers of the rooms of a local user with entries in the log beyond a position.
func (s *Server) RoomsOfUserSince(ctx context.Context, user string, pos int64) (nids map[int64]bool, err error) {
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		nids = map[int64]bool{}
		rows := tx.Query(`SELECT h.room FROM room_members m JOIN room_heads h ON h.room = m.room
			WHERE m.user_id = $1 AND m.local AND h.pos > $2`, user, pos)
		var nid int64
		for rows.Next() {
			rows.Scan(&nid)
			nids[nid] = true
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("rooms of %s with news: %w", user, err)
	}
	return nids, nil
}
