package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// An upgrade is a sequence of units, each of one room: the new room with the state that it takes over and a row of
// room_upgrades; the bans, some at a time; the old room's tombstone with its aliases and its place in the directory;
// the spaces around it. All but the first may be done again without harm, so an upgrade that a crash cuts short
// goes on from its row.

// Upgrade describes the replacement of a room by one of another version.
type Upgrade struct {
	// RoomID is the room to replace, and User the local user who does so.
	RoomID, User string
	// Version is that of the new room.
	Version *pdu.Version
	// Creators are creators of the new room beside the user, where the version knows such.
	Creators []string
	// Profile are displayname and avatar_url for the user's membership event.
	Profile map[string]any
}

// Upgraded is an upgrade that is done.
type Upgraded struct{ User, From, To string }

// UpgradeRoom replaces a room and returns the id of the new one (client-server API v1.19, "Room Upgrades"). The same user
// asking again for the same version gets the room that is there.
func (s *Server) UpgradeRoom(ctx context.Context, u Upgrade) (string, error) {
	defer s.upgrades.lock(u.RoomID)()
	room, err := s.Room(ctx, u.RoomID)
	if errors.Is(err, ErrUnknownRoom) {
		return "", errNotInRoom()
	}
	if err != nil {
		return "", err
	}
	done, err := s.earlierUpgrade(ctx, room, &u)
	if err != nil || done != "" {
		return done, err
	}
	may, err := s.MaySendState(ctx, u.RoomID, u.User, "m.room.tombstone")
	if err != nil {
		return "", err
	}
	switch {
	case !room.HasLocalMember(u.User):
		return "", errNotInRoom()
	case !may:
		return "", mxerr.Forbidden("You cannot upgrade this room")
	}
	var to string
	for {
		// Another node of the cluster may have made the same room in the same millisecond.
		if to, err = s.makeReplacement(ctx, room, &u); !errors.Is(err, storage.ErrConflict) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	return to, s.finishUpgrade(ctx, Upgraded{u.User, u.RoomID, to})
}

// earlierUpgrade finishes an upgrade of the room that was begun before, and returns its result if it is what is asked for.
func (s *Server) earlierUpgrade(ctx context.Context, room *Room, u *Upgrade) (string, error) {
	d := Upgraded{From: room.ID}
	var found, finished bool
	err := s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = tx.Get(`SELECT new_room, user_id, finished FROM room_upgrades WHERE old_room = $1`, []any{room.ID}, &d.To, &d.User, &finished)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("look up upgrade of %s: %w", room.ID, err)
	}
	if !found {
		return "", nil
	}
	if !finished {
		if err := s.finishUpgrade(ctx, d); err != nil {
			return "", err
		}
	}
	head := room.Head().State
	tombstone, err := s.StateEvent(ctx, room, head, "m.room.tombstone", "")
	if err != nil || contentString(tombstone, "replacement_room") != d.To || d.User != u.User {
		return "", err
	}
	next, err := s.Room(ctx, d.To)
	if errors.Is(err, ErrUnknownRoom) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	create, err := s.StateEvent(ctx, next, next.Head().State, "m.room.create", "")
	if err != nil || create == nil || next.Version != u.Version || !sameUsers(authrules.Creators(create.Event), u.creators()) {
		return "", err
	}
	return d.To, nil
}

// creators are all creators of the new room.
func (u *Upgrade) creators() []string {
	all := []string{u.User}
	if u.Version.CreatorsPrivileged {
		for _, c := range u.Creators {
			if !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	return all
}

func sameUsers(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// makeReplacement makes the new room with everything that it takes over but the bans.
func (s *Server) makeReplacement(ctx context.Context, old *Room, u *Upgrade) (string, error) {
	head := old.Head()
	content, err := s.replacementContent(ctx, old, head, u)
	if err != nil {
		return "", err
	}
	t, err := s.newRoom(ctx, &NewRoom{Creator: u.User, Version: u.Version, CreationContent: content})
	if err != nil {
		return "", err
	}
	if err := t.takeOver(old, head.State, u); err != nil {
		t.drop()
		return "", fmt.Errorf("take over the state of %s: %w", old.ID, err)
	}
	t.unit.Exec(`INSERT INTO room_upgrades (old_room, new_room, user_id, finished) VALUES ($1, $2, $3, $4)
		ON CONFLICT (old_room) DO UPDATE SET new_room = excluded.new_room, user_id = excluded.user_id, finished = excluded.finished`,
		old.ID, t.room.ID, u.User, false)
	return t.found()
}

// replacementContent is the content of the new room's m.room.create.
func (s *Server) replacementContent(ctx context.Context, old *Room, head *Head, u *Upgrade) (map[string]json.RawMessage, error) {
	create, err := s.StateEvent(ctx, old, head.State, "m.room.create", "")
	if err != nil {
		return nil, err
	}
	content := map[string]json.RawMessage{}
	for _, key := range []string{"type", "m.federate"} {
		if v := create.ContentField(key); v != nil {
			content[key] = v
		}
	}
	predecessor := map[string]string{"room_id": old.ID}
	if !u.Version.RoomIDIsCreateHash && len(head.Extremities) > 0 {
		predecessor["event_id"] = head.Extremities[0].ID
	}
	if content["predecessor"], err = json.Marshal(predecessor); err != nil {
		return nil, fmt.Errorf("encode predecessor: %w", err)
	}
	if more := u.creators()[1:]; len(more) > 0 {
		if content["additional_creators"], err = json.Marshal(more); err != nil {
			return nil, fmt.Errorf("encode additional_creators: %w", err)
		}
	}
	return content, nil
}

// transferred are the types of state that a new room takes over as they are, in this order. Power levels come last of
// all: until then the creator may do everything, also where their level in the old room is low.
var transferred = []string{
	"m.room.encryption", "m.room.join_rules", "m.room.history_visibility", "m.room.guest_access", "m.room.server_acl",
	"m.room.policy", "m.room.retention", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.canonical_alias",
}

// maxSpaceLinks bounds how many children and how many parents of a space an upgrade takes over.
const maxSpaceLinks = 2000

// takeOver appends the state of the old room to the new one.
func (t *Turn) takeOver(old *Room, root snapshot.Ref, u *Upgrade) error {
	join := map[string]any{"membership": Join}
	for k, v := range u.Profile {
		join[k] = v
	}
	if err := t.appendState(u.User, "m.room.member", u.User, join); err != nil {
		return err
	}
	for _, typ := range transferred {
		e, err := t.s.StateEvent(t.ctx, old, root, typ, "")
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		if err := t.copyState(u.User, e); err != nil {
			return err
		}
	}
	for _, typ := range []string{"m.space.child", "m.space.parent"} {
		links, err := t.s.StateEventsOfType(t.ctx, old, root, typ)
		if err != nil {
			return err
		}
		for _, e := range links[:min(len(links), maxSpaceLinks)] {
			if !linked(e) {
				continue
			}
			if err := t.copyState(u.User, e); err != nil {
				return err
			}
		}
	}
	levels, err := t.takenLevels(old, root, u)
	if err != nil {
		return err
	}
	return t.appendState(u.User, "m.room.power_levels", "", levels)
}

// copyState appends a state event of another room as a user's own. What the room's version does not take is left out.
func (t *Turn) copyState(user string, e *Event) error {
	content := e.Content()
	if e.Type == "m.room.join_rules" && !t.knowsJoinRule(contentString(e, "join_rule")) {
		content = json.RawMessage(`{"join_rule":"invite"}`)
	}
	_, err := t.Append(Draft{Sender: user, Type: e.Type, StateKey: e.StateKey, Content: content})
	if mxerr.As(err) != nil {
		return nil
	}
	return err
}

// knowsJoinRule tells whether people can join by a rule in the room's version.
func (t *Turn) knowsJoinRule(rule string) bool {
	v := t.room.Version
	switch rule {
	case authrules.JoinRuleKnock:
		return v.KnockAllowed
	case authrules.JoinRuleRestricted:
		return v.RestrictedJoins
	case authrules.JoinRuleKnockRestricted:
		return v.KnockRestricted
	}
	return true
}

// linked tells whether an m.space.child or m.space.parent links to anything: without via it does not.
func linked(e *Event) bool {
	via := gjson.GetBytes(e.Content(), "via")
	return via.IsArray() && via.Get("0").Type == gjson.String
}

// finishUpgrade does what follows the making of the new room. It may be called again.
func (s *Server) finishUpgrade(ctx context.Context, d Upgraded) error {
	from, err := s.Room(ctx, d.From)
	if err != nil {
		return fmt.Errorf("upgrade of %s: %w", d.From, err)
	}
	to, err := s.Room(ctx, d.To)
	if err != nil {
		return fmt.Errorf("upgrade of %s: %w", d.From, err)
	}
	err = s.moveBans(ctx, from, to, d.User)
	if err == nil {
		err = s.closeUpgraded(ctx, from, to, d.User)
	}
	if err == nil {
		err = s.relinkSpaces(ctx, from, to, d.User)
	}
	// If the user has lost the right to go on, the upgrade ends where it is.
	if refused := mxerr.As(err); err != nil && refused == nil {
		return fmt.Errorf("upgrade of %s: %w", d.From, err)
	}
	writeErr := s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE room_upgrades SET finished = $1 WHERE old_room = $2`, true, d.From)
		return err
	})
	if writeErr != nil {
		return fmt.Errorf("end the upgrade of %s: %w", d.From, writeErr)
	}
	return err
}

// ResumeUpgrades goes on with upgrades that a stop of the server cut short, and returns those that are now done.
func (s *Server) ResumeUpgrades(ctx context.Context) (done []Upgraded, err error) {
	var open []Upgraded
	err = s.db.Read(ctx, func(tx *storage.Tx) error {
		open = nil
		rows := tx.Query(`SELECT user_id, old_room, new_room FROM room_upgrades WHERE NOT finished`)
		var d Upgraded
		for rows.Next() {
			rows.Scan(&d.User, &d.From, &d.To)
			open = append(open, d)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read upgrades: %w", err)
	}
	var errs []error
	for _, d := range open {
		unlock := s.upgrades.lock(d.From)
		err := s.finishUpgrade(ctx, d)
		unlock()
		if err != nil {
			errs = append(errs, err)
		} else {
			done = append(done, d)
		}
	}
	return done, errors.Join(errs...)
}

// banBatch is how many bans one unit carries over.
const banBatch = 50

// moveBans bans in the new room who is banned in the old one, if the user has the power for it.
func (s *Server) moveBans(ctx context.Context, from, to *Room, user string) error {
	levels, err := s.LevelsAt(ctx, to, to.Head().State)
	if err != nil || levels.User(user) < levels.Ban() {
		return err
	}
	banned, err := storage.ReadList[string](ctx, s.db, `SELECT user_id FROM room_members WHERE room = $1 AND membership = $2 ORDER BY user_id`, from.NID, Ban)
	if err != nil {
		return fmt.Errorf("bans of %s: %w", from.ID, err)
	}
	root := from.Head().State
	for batch := range slices.Chunk(banned, banBatch) {
		contents := make([]map[string]any, len(batch))
		for i, u := range batch {
			e, err := s.StateEvent(ctx, from, root, "m.room.member", u)
			if err != nil {
				return err
			}
			contents[i] = map[string]any{"membership": Ban}
			if reason := contentString(e, "reason"); reason != "" {
				contents[i]["reason"] = reason
			}
		}
		_, err := s.Turn(ctx, to.ID, func(t *Turn) error { return t.ban(user, batch, contents) })
		if err != nil {
			return err
		}
	}
	return nil
}

// ban bans users who are not banned yet, and passes over those whom the sender has not the power to ban.
func (t *Turn) ban(sender string, users []string, contents []map[string]any) error {
	for i, u := range users {
		m, err := t.Membership(u)
		if err != nil {
			return err
		}
		if m == Ban {
			continue
		}
		if err := t.appendState(sender, "m.room.member", u, contents[i]); err != nil && mxerr.As(err) == nil {
			return err
		}
	}
	return nil
}

// closeUpgraded sets the old room's tombstone, and moves its aliases and its place in the directory with it.
func (s *Server) closeUpgraded(ctx context.Context, from, to *Room, user string) error {
	public, err := s.Public(ctx, from.ID)
	if err != nil {
		return err
	}
	_, err = s.Turn(ctx, from.ID, func(t *Turn) error {
		tombstone := map[string]string{"body": "This room has been replaced", "replacement_room": to.ID}
		old, err := t.State("m.room.tombstone", "")
		if err != nil || contentString(old, "replacement_room") == to.ID {
			return err
		}
		if err := t.appendState(user, "m.room.tombstone", "", tombstone); err != nil {
			return err
		}
		if err := t.silence(user); err != nil && mxerr.As(err) == nil {
			return err
		}
		t.unit.Exec(`UPDATE room_aliases SET room_id = $1 WHERE room_id = $2`, to.ID, from.ID)
		if public {
			t.unit.Exec(`DELETE FROM public_rooms WHERE room_id = $1`, from.ID)
			t.unit.Exec(`INSERT INTO public_rooms (room_id) VALUES ($1) ON CONFLICT DO NOTHING`, to.ID)
			t.noteDirectory()
		}
		return nil
	})
	return err
}

// relinkSpaces puts the new room in the place of the old one: in spaces that the user is in and, if it is a space itself,
// in what its children say of their parents. Where the user may not, things stay as they are.
func (s *Server) relinkSpaces(ctx context.Context, from, to *Room, user string) error {
	rooms, err := s.UserRooms(ctx, user)
	if err != nil {
		return err
	}
	for _, r := range rooms {
		if r.Membership != Join || r.RoomID == from.ID || r.RoomID == to.ID {
			continue
		}
		room, err := s.Room(ctx, r.RoomID)
		if err != nil {
			return err
		}
		for _, typ := range []string{"m.space.child", "m.space.parent"} {
			e, err := s.StateEvent(ctx, room, room.Head().State, typ, from.ID)
			if err != nil {
				return err
			}
			if e == nil || !linked(e) {
				continue
			}
			_, err = s.Turn(ctx, room.ID, func(t *Turn) error { return t.relink(user, typ, from.ID, to.ID) })
			if err != nil && mxerr.As(err) == nil {
				return err
			}
		}
	}
	return nil
}

// relink replaces a link to one room by a link to another.
func (t *Turn) relink(user, typ, from, to string) error {
	e, err := t.State(typ, from)
	if err != nil || e == nil || !linked(e) {
		return err
	}
	if _, err := t.sendOrKeep(Draft{Sender: user, Type: typ, StateKey: &to, Content: e.Content()}); err != nil {
		return err
	}
	return t.appendState(user, typ, from, struct{}{})
}
