package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// SetMemberField puts a new value of a profile field (displayname, avatar_url) into the user's membership event of
// every room that the user is joined to; "" removes it. With unless not nil, rooms whose event has another
// value than *unless are left alone. Rooms where the event is refused are passed over. Doing it again changes nothing.
func (s *Server) SetMemberField(ctx context.Context, user, field, value string, unless *string) error {
	rooms, err := s.UserRooms(ctx, user)
	if err != nil {
		return err
	}
	for _, r := range rooms {
		if r.Membership != Join {
			continue
		}
		_, err := s.Turn(ctx, r.RoomID, func(t *Turn) error { return t.setMemberField(user, field, value, unless) })
		if e := mxerr.As(err); e != nil && e.Code == "M_FORBIDDEN" {
			continue
		}
		if err != nil {
			return fmt.Errorf("profile of %s in %s: %w", user, r.RoomID, err)
		}
	}
	return nil
}

func (t *Turn) setMemberField(user, field, value string, unless *string) error {
	old, err := t.State("m.room.member", user)
	if err != nil || old == nil || old.Membership() != Join {
		return err
	}
	if now := contentString(old, field); now == value || unless != nil && now != *unless {
		return nil
	}
	content := map[string]json.RawMessage{}
	if err := json.Unmarshal(old.Content(), &content); err != nil {
		return fmt.Errorf("membership of %s: %w", user, err)
	}
	delete(content, "join_authorised_via_users_server") // it authorised the join, which this is not
	delete(content, "reason")
	if value == "" {
		delete(content, field)
	} else if content[field], err = json.Marshal(value); err != nil {
		return fmt.Errorf("profile field: %w", err)
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("membership content: %w", err)
	}
	_, err = t.Append(Draft{Sender: user, Type: "m.room.member", StateKey: &user, Content: raw})
	return err
}

// LeaveAll makes a local user leave all rooms and reject all invites and withdraw all knocks, and forget them: it is for
// users who will not come back, on whose account no room is to be kept.
func (s *Server) LeaveAll(ctx context.Context, user string) error {
	rooms, err := s.UserRooms(ctx, user)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range rooms {
		if err := s.leaveForGood(ctx, user, r); err != nil {
			errs = append(errs, fmt.Errorf("leave %s: %w", r.RoomID, err))
		}
	}
	outside, err := s.OutsideOf(ctx, user)
	if err != nil {
		errs = append(errs, err)
	}
	for _, o := range outside {
		if o.Membership != Invite && o.Membership != Knock {
			continue
		}
		if _, err := s.LeaveOutside(ctx, user, o.RoomID, nil); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// leaveForGood leaves a room, if need be, and forgets it.
func (s *Server) leaveForGood(ctx context.Context, user string, r UserRoom) error {
	if r.Membership != Leave && r.Membership != Ban {
		if _, err := s.SetMembership(ctx, MembershipChange{RoomID: r.RoomID, Sender: user, Target: user, Membership: Leave}); err != nil {
			return err
		}
	}
	if r.Forgotten {
		return nil
	}
	return s.Forget(ctx, user, r.RoomID)
}
