package roomserver

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/myelin-im/myelin/storage"
)

// UserRoom is a local user's membership of one room, by the room's current state.
type UserRoom struct {
	// NID is the room's number, RoomID its id.
	NID    int64
	RoomID string
	// Membership is join, invite, knock, leave or ban.
	Membership string
	// EventNID is the membership event.
	EventNID int64
	// Pos is the position at which the membership became this one.
	Pos int64
	// Forgotten tells that the user has left and forgotten the room.
	Forgotten bool
}

// userRooms are the rooms of one local user. The slice is replaced and never changed, so readers keep it.
type userRooms struct {
	mu    sync.Mutex // held while loading, so that a commit meanwhile waits and is not lost
	rooms []UserRoom // by NID; nil until loaded
}

// maxUsers bounds the users whose rooms are kept in memory.
const maxUsers = 50_000

// userTable holds the rooms of active local users.
type userTable struct {
	mu sync.Mutex
	m  map[string]*userRooms
}

func (t *userTable) init() { t.m = map[string]*userRooms{} }

// entry returns the user's entry, making it if asked.
func (t *userTable) entry(user string, create bool) *userRooms {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.m[user]
	if u == nil && create {
		if len(t.m) >= maxUsers {
			n := maxUsers / 10
			for k := range t.m {
				delete(t.m, k)
				if n--; n == 0 {
					break
				}
			}
		}
		u = &userRooms{}
		t.m[user] = u
	}
	return u
}

// UserRooms returns all rooms in which a local user has a membership, including left and forgotten
// ones, ordered by room number. The slice must not be changed. It is current: memberships
// of later positions than the caller's may be in it, and Pos tells which.
func (s *Server) UserRooms(ctx context.Context, user string) ([]UserRoom, error) {
	u := s.users.entry(user, true)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rooms != nil {
		return u.rooms, nil
	}
	rooms := []UserRoom{}
	err := s.db.ReadOne(ctx, func(tx *storage.Tx) error {
		rows := tx.Query(`SELECT m.room, r.room_id, m.membership, m.event, m.pos, m.forgotten
			FROM room_members m JOIN rooms r ON r.nid = m.room
			WHERE m.user_id = $1 AND m.local ORDER BY m.room`, user)
		rooms = rooms[:0]
		for rows.Next() {
			var m UserRoom
			rows.Scan(&m.NID, &m.RoomID, &m.Membership, &m.EventNID, &m.Pos, &m.Forgotten)
			rooms = append(rooms, m)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("rooms of %s: %w", user, err)
	}
	u.rooms = rooms
	return rooms, nil
}

// applyUser advances the rooms of a user that is in memory.
func (s *Server) applyUser(user string, m UserRoom) {
	u := s.users.entry(user, false)
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.rooms == nil {
		return
	}
	i, found := slices.BinarySearchFunc(u.rooms, m.NID, func(r UserRoom, nid int64) int {
		return int(min(1, max(-1, r.NID-nid)))
	})
	rooms := make([]UserRoom, 0, len(u.rooms)+1)
	rooms = append(append(rooms, u.rooms[:i]...), m)
	if found {
		i++
	}
	u.rooms = append(rooms, u.rooms[i:]...)
}
