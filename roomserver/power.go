package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// LevelsAt returns the power levels of a room at a root.
func (s *Server) LevelsAt(ctx context.Context, room *Room, root snapshot.Ref) (*authrules.Levels, error) {
	create, err := s.StateEvent(ctx, room, root, "m.room.create", "")
	if err != nil {
		return nil, err
	}
	if create == nil {
		return nil, fmt.Errorf("room %s has no m.room.create in its state", room.ID)
	}
	pl, err := s.StateEvent(ctx, room, root, "m.room.power_levels", "")
	if err != nil {
		return nil, err
	}
	var p *pdu.Event
	if pl != nil {
		p = pl.Event
	}
	return authrules.PowerLevels(p, create.Event), nil
}

// MaySendState tells whether a local user is joined to a room and has the power to send state events of a type.
func (s *Server) MaySendState(ctx context.Context, roomID, user, typ string) (bool, error) {
	room, err := s.Room(ctx, roomID)
	if err != nil {
		return false, err
	}
	if !room.HasLocalMember(user) {
		return false, nil
	}
	levels, err := s.LevelsAt(ctx, room, room.Head().State)
	if err != nil {
		return false, err
	}
	return levels.User(user) >= levels.Event(typ, true), nil
}
