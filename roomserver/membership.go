package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

// MembershipChange is a request of a local user to change a membership.
type MembershipChange struct {
	// RoomID, Sender and Target say where, who and whose.
	RoomID, Sender, Target string
	// Membership is the new one: Join, Invite, Knock, Leave or Ban.
	Membership string
	// From, if not empty, are the memberships that Target must have now, else M_FORBIDDEN.
	From []string
	// Content are further members of the event's content: displayname, avatar_url, reason,
	// is_direct, third_party_invite.
	Content map[string]any
	// OriginServerTS overrides the clock; 0 is now.
	OriginServerTS int64
}

// SetMembership changes a membership and returns the membership event. A join of someone who is joined, or a leave of
// someone who has left, changes nothing and returns the standing event: such a request repeats one whose answer got lost.
func (s *Server) SetMembership(ctx context.Context, m MembershipChange) (*Event, error) {
	var out *Event
	if err := s.awaitTarget(ctx, &m); err != nil {
		return nil, err
	}
	policed, err := s.policed(ctx, m.RoomID)
	if err != nil {
		return nil, err
	}
	if policed {
		d := new(Draft)
		return s.sendPoliced(ctx, m.RoomID, d, func(t *Turn) (p *pdu.Event, old *Event, err error) {
			if *d, old, err = t.membershipDraft(&m); err == nil && old == nil {
				p, old, err = t.prepareDraft(d)
			}
			return p, old, err
		})
	}
	_, err = s.Turn(ctx, m.RoomID, func(t *Turn) (err error) {
		out, err = t.SetMembership(m)
		return err
	})
	return out, err
}

// awaitTarget waits until it is known which membership the target of a change has, if they are of another server: of local
// users it always is.
func (s *Server) awaitTarget(ctx context.Context, m *MembershipChange) error {
	if s.IsLocal(m.Target) {
		return nil
	}
	room, err := s.Room(ctx, m.RoomID)
	if err != nil {
		return err
	}
	return s.AwaitWhole(ctx, room)
}

// SetMembership is Server.SetMembership within a turn.
func (t *Turn) SetMembership(m MembershipChange) (*Event, error) {
	d, old, err := t.membershipDraft(&m)
	if err != nil || old != nil {
		return old, err
	}
	return t.sendOrKeep(d)
}

// membershipDraft makes the draft of a change, unless it changes nothing: then it returns the event that stands.
func (t *Turn) membershipDraft(m *MembershipChange) (d Draft, old *Event, err error) {
	if old, err = t.State("m.room.member", m.Target); err != nil {
		return d, nil, err
	}
	current := Leave
	if old != nil {
		current = old.Membership()
	}
	if old != nil && m.Sender == m.Target && m.Membership == current && (current == Join || current == Leave) {
		return d, old, nil
	}
	if err := t.checkFrom(m, current); err != nil {
		return d, nil, err
	}
	via := ""
	if m.Membership == Join && current != Invite {
		if via, err = t.authoriseRestricted(m.Target); err != nil {
			return d, nil, err
		}
	}
	d, err = m.draft(via)
	return d, nil, err
}

// checkFrom refuses a change from a membership that is not among those expected. Who is not in the room learns nothing of
// who is.
func (t *Turn) checkFrom(m *MembershipChange, current string) error {
	if len(m.From) == 0 || slices.Contains(m.From, current) {
		return nil
	}
	sender, err := t.Membership(m.Sender)
	if err != nil {
		return err
	}
	if m.Sender == m.Target && sender == Leave || m.Sender != m.Target && sender != Join {
		return errNotInRoom()
	}
	return mxerr.Forbidden(fmt.Sprintf("%s has membership %q in this room", m.Target, current))
}

// authoriseRestricted finds the local user in whose name a join to a restricted room is allowed: someone
// who may invite, if the joining user is in one of the rooms that the join rule names. It returns ""
// where the join rule asks for no such thing (spec: client-server API v1.19, "Restricted rooms").
func (t *Turn) authoriseRestricted(user string) (string, error) {
	rules, err := t.State("m.room.join_rules", "")
	if err != nil || rules == nil {
		return "", err
	}
	rule := contentString(rules, "join_rule")
	restricted := rule == "restricted" && t.room.Version.RestrictedJoins || rule == "knock_restricted" && t.room.Version.KnockRestricted
	if !restricted {
		return "", nil
	}
	allowed, err := t.s.inAllowedRoom(t.ctx, rules, user)
	if err != nil {
		return "", err
	}
	if !allowed {
		return "", mxerr.Forbidden("You are in none of the rooms whose members may join this one")
	}
	levels, err := t.Levels()
	if err != nil {
		return "", err
	}
	return t.inviter(levels)
}

// inAllowedRoom tells whether the user is joined to a room that an m.room.join_rules event allows.
func (s *Server) inAllowedRoom(ctx context.Context, rules *Event, user string) (bool, error) {
	ids := map[string]bool{}
	for _, a := range gjson.GetBytes(rules.Content(), "allow").Array() {
		if a.Get("type").Str == "m.room_membership" {
			ids[a.Get("room_id").Str] = true
		}
	}
	rooms, err := s.UserRooms(ctx, user)
	if err != nil {
		return false, err
	}
	for _, r := range rooms {
		if r.Membership == Join && ids[r.RoomID] {
			return true, nil
		}
	}
	return false, nil
}

// inviter returns a joined local user who may invite, by the state that the turn sees.
func (t *Turn) inviter(levels *authrules.Levels) (string, error) {
	best := ""
	for _, u := range t.room.LocalMembers(nil) {
		if levels.User(u) < levels.Invite() {
			continue
		}
		m, err := t.Membership(u)
		if err != nil {
			return "", err
		}
		if m == Join && (best == "" || levels.User(u) > levels.User(best)) {
			best = u
		}
	}
	if best == "" {
		return "", mxerr.New(400, "M_UNABLE_TO_GRANT_JOIN", "No local user may invite to this room")
	}
	return best, nil
}

// Forget hides a room that the user has left from the user's lists. It fails while the user is in it.
func (s *Server) Forget(ctx context.Context, user, roomID string) error {
	room, err := s.Room(ctx, roomID)
	if errors.Is(err, ErrUnknownRoom) {
		return s.forgetOutside(ctx, user, roomID)
	}
	if err != nil {
		return err
	}
	var m UserRoom
	err = s.db.Write(ctx, func(tx *storage.Tx) error {
		m = UserRoom{NID: room.NID, RoomID: room.ID, Forgotten: true}
		found, err := tx.Get(`SELECT membership, event, pos FROM room_members WHERE room = $1 AND user_id = $2`,
			[]any{room.NID, user}, &m.Membership, &m.EventNID, &m.Pos)
		if err != nil {
			return err
		}
		if !found {
			return mxerr.NotFound("You have never been in this room")
		}
		if m.Membership != Leave && m.Membership != Ban {
			return mxerr.New(400, "M_UNKNOWN", "You must leave the room before forgetting it")
		}
		if _, err := tx.Exec(`UPDATE room_members SET forgotten = $1 WHERE room = $2 AND user_id = $3`, true, room.NID, user); err != nil {
			return err
		}
		// It may have been the last one who had anything to do with the room.
		if _, err := tx.Exec(`INSERT INTO room_removals (room, room_id, since, begun) VALUES ($1, $2, $3, $4)
			ON CONFLICT (room) DO UPDATE SET since = excluded.since`, room.NID, room.ID, s.now().UnixMilli(), false); err != nil {
			return err
		}
		pos, err := tx.Position()
		if err == nil {
			tx.Notice(storage.Notice{Pos: pos, Kind: storage.Membership, Room: room.NID, User: user})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("forget %s: %w", roomID, err)
	}
	s.applyForgotten(user, m)
	return nil
}

// applyForgotten marks a room as forgotten in memory, unless the membership changed meanwhile.
func (s *Server) applyForgotten(user string, m UserRoom) {
	u := s.users.entry(user, false)
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, r := range u.rooms {
		if r.NID == m.NID && r.EventNID == m.EventNID {
			u.rooms = slices.Clone(u.rooms)
			u.rooms[i] = m
		}
	}
}

// forgetOutside forgets an invite or knock that ended in a room this server is not in.
func (s *Server) forgetOutside(ctx context.Context, user, roomID string) error {
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		n, err := tx.Exec(`UPDATE outside_memberships SET forgotten = $1 WHERE user_id = $2 AND room_id = $3 AND (membership = $4 OR membership = $5)`,
			true, user, roomID, Leave, Ban)
		if err == nil && n == 0 {
			err = mxerr.NotFound("You have never been in this room")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("forget %s: %w", roomID, err)
	}
	return nil
}
