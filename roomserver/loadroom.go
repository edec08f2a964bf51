package roomserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/roomserver/authchain"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// loading is a room on its way into memory.
type loading struct {
	*Room
	head                Head
	extremities         []int64
	hasGaps, incomplete bool
	// recent are its newest events, oldest first, if they were asked for.
	recent []*Event
}

// loadRoom reads a room; the caller holds its load lock, so nobody is writing the room.
func (s *Server) loadRoom(ctx context.Context, id string) (*Room, error) {
	var list []*loading
	err := s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		list, err = s.readRooms(tx, []any{id})
		return err
	})
	if err == nil && len(list) == 0 {
		return nil, ErrUnknownRoom
	}
	if err == nil {
		err = s.enter(ctx, list[0])
	}
	if err != nil {
		return nil, fmt.Errorf("load room: %w", err)
	}
	return list[0].Room, nil
}

// readRooms reads the rooms of some ids, in no order: all but events. An id of no room, like nil, is skipped.
func (s *Server) readRooms(tx *storage.Tx, ids []any) (list []*loading, err error) {
	rows := tx.Query(`SELECT r.nid, r.room_id, r.version, r.seed, h.extremities, h.state, h.pos,
			EXISTS (SELECT 1 FROM room_gaps g WHERE g.room = r.nid), EXISTS (SELECT 1 FROM partial_rooms p WHERE p.room = r.nid)
		FROM rooms r LEFT JOIN room_heads h ON h.room = r.nid WHERE r.room_id IN `+storage.In(len(ids), 1), ids...)
	for rows.Next() {
		r, err := s.scanRoom(rows)
		if err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		list = append(list, r)
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.gaps.Store(&[]Gap{}); r.hasGaps {
			if err := r.loadGaps(tx); err != nil {
				return nil, err
			}
		}
		if r.incomplete {
			if err := r.loadPartial(tx, s); err != nil {
				return nil, err
			}
		}
	}
	return list, s.readMembers(tx, list, len(ids))
}

// scanRoom makes a room of its row.
func (s *Server) scanRoom(rows *storage.Rows) (*loading, error) {
	r := &loading{Room: &Room{pending: newPending()}}
	var version string
	var seed, extremities []byte
	var state, pos sql.NullInt64
	rows.Scan(&r.NID, &r.ID, &version, &seed, &extremities, &state, &pos, &r.hasGaps, &r.incomplete)
	if !pos.Valid {
		return nil, fmt.Errorf("room %s has no head", r.ID)
	}
	r.head.State, r.head.Pos = snapshot.Ref(state.Int64), pos.Int64
	var ok bool
	if r.Version, ok = pdu.Lookup(version); !ok {
		return nil, fmt.Errorf("room %s has unknown version %q", r.ID, version)
	}
	copy(r.seed[:], seed)
	r.chains = authchain.New(chainLoader{s.db}, r.NID)
	var err error
	if r.extremities, err = decodeNIDs(extremities); err != nil {
		return nil, fmt.Errorf("forward extremities of %s: %w", r.ID, err)
	}
	r.members.begin(r.head.State)
	return r, nil
}

// readMembers counts the members of rooms, with a query that asks for n.
func (s *Server) readMembers(tx *storage.Tx, list []*loading, n int) error {
	rooms, args := byNumber(list, n)
	rows := tx.Query(`SELECT room, user_id, membership FROM room_members WHERE room IN `+storage.In(n, 1), args...)
	var nid int64
	var user, membership string
	for rows.Next() {
		rows.Scan(&nid, &user, &membership)
		rooms[nid].members.count(s, user, membership, 1)
	}
	return rows.Close()
}

// byNumber gives rooms by their numbers, and these as arguments of a query that asks for n rooms.
func byNumber(list []*loading, n int) (rooms map[int64]*loading, args []any) {
	rooms, args = make(map[int64]*loading, len(list)), make([]any, n)
	for i := range args {
		args[i] = int64(0) // no room has it
	}
	for i, r := range list {
		rooms[r.NID], args[i] = r, r.NID
	}
	return rooms, args
}

// enter puts a room that was read into memory.
func (s *Server) enter(ctx context.Context, r *loading) (err error) {
	if r.head.Extremities, err = s.eventsByNID(ctx, r.Room, r.extremities); err != nil {
		return fmt.Errorf("forward extremities of %s: %w", r.ID, err)
	}
	head := r.head
	r.next = &head
	r.durable.Store(&head)
	r.changes.reset(head.Pos)
	s.rooms.add(r.Room)
	return nil
}
