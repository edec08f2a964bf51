package roomserver

import (
	"context"
	"errors"

	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// LevelsAt returns the power levels of a room at a root.
func (s *Server) LevelsAt(ctx context.Context, room *Room, root snapshot.Ref) (*authrules.Levels, error) {
	return s.levels(durableState{ctx, s, room, root})
}

// durableState gives the authorisation rules the state of a room at a durable root.
type durableState struct {
	ctx  context.Context
	s    *Server
	room *Room
	root snapshot.Ref
}

// Event implements authrules.State.
func (d durableState) Event(typ, key string) (*pdu.Event, error) {
	e, err := d.s.StateEvent(d.ctx, d.room, d.root, typ, key)
	if err != nil || e == nil {
		return nil, err
	}
	return e.Event, nil
}

// levels are the power levels of a state.
func (s *Server) levels(state authrules.State) (*authrules.Levels, error) {
	create, err := state.Event("m.room.create", "")
	if err != nil {
		return nil, err
	}
	if create == nil {
		return nil, errors.New("the room has no m.room.create in its state")
	}
	pl, err := state.Event("m.room.power_levels", "")
	if err != nil {
		return nil, err
	}
	return authrules.PowerLevels(pl, create), nil
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
