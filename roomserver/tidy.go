package roomserver

import (
	"context"
	"slices"

	"github.com/myelin-im/myelin/internal/mxerr"
)

const (
	// dummyType is the type of events that only join the ends of a room's graph. Clients do not see them.
	dummyType = "org.matrix.dummy_event"
	// tidyAbove is how many forward extremities a room may have before this server joins them.
	tidyAbove = 10
	// maxTidiers bounds how many local users are tried as the sender.
	maxTidiers = 20
)

// Tidy joins the forward extremities of a room by an event without meaning, if there are many and a local user may
// send one: each of them costs every following event a part of a state resolution.
func (s *Server) Tidy(ctx context.Context, roomID string) error {
	room, err := s.Room(ctx, roomID)
	if err != nil || len(room.Head().Extremities) <= tidyAbove {
		return err
	}
	users := room.LocalMembers(nil)
	slices.Sort(users)
	_, err = s.Turn(ctx, roomID, func(t *Turn) error {
		for _, user := range users[:min(len(users), maxTidiers)] {
			if len(t.head.Extremities) <= tidyAbove {
				return nil
			}
			_, err := t.Append(Draft{Sender: user, Type: dummyType, Content: []byte(`{}`)})
			if err == nil {
				return nil
			}
			if e := mxerr.As(err); e == nil || e.Code != "M_FORBIDDEN" {
				return err
			}
		}
		return nil
	})
	return err
}
