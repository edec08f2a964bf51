package e2ee

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
)

const memberType = "m.room.member"

// DeviceLists tells of whose devices a local user has to know anew after going from one position of the log to a later
// one. changed are those, the user included, whose identity changed or was signed by the user and who share a room with
// the user at the end, and those who share a room at the end and did not at the beginning, or not all the time. left are
// those who share none any more. Both are sorted, and nobody is in both. Rooms that are known to have no news can be left
// out of rooms.
//
// Spec: client-server API v1.19, "Extensions to /sync" of the module.
func (a *API) DeviceLists(ctx context.Context, user string, from, to int64, rooms []roomserver.UserRoom) (changed, left []string, err error) {
	if to <= from {
		return nil, nil, nil
	}
	d := &listDiff{api: a, user: user, from: from, to: to, sure: map[string]bool{}, came: map[string]bool{}, went: map[string]bool{}}
	for i := range rooms {
		if err := d.room(ctx, &rooms[i]); err != nil {
			return nil, nil, fmt.Errorf("device lists of %s: %w", user, err)
		}
	}
	users, err := a.changedBetween(ctx, from, to)
	if err != nil {
		return nil, nil, err
	}
	signed, err := a.signedBetween(ctx, user, from, to)
	if err != nil {
		return nil, nil, err
	}
	users = append(users, signed...)
	if len(users) == 0 && len(d.sure) == 0 && len(d.came) == 0 && len(d.went) == 0 {
		return nil, nil, nil
	}
	if changed, left, err = d.settle(ctx, users); err != nil {
		return nil, nil, fmt.Errorf("device lists of %s: %w", user, err)
	}
	return changed, left, nil
}

// listDiff compares whom a user shares rooms with at two positions.
type listDiff struct {
	api      *API
	user     string
	from, to int64

	sure map[string]bool // to be told of whatever else is shared
	came map[string]bool // share a room that was not shared before
	went map[string]bool // shared a room that is not shared now
}

// room adds what one of the user's rooms has to say.
func (d *listDiff) room(ctx context.Context, r *roomserver.UserRoom) error {
	if r.Pos <= d.from && r.Membership != roomserver.Join {
		return nil
	}
	rooms := d.api.rooms
	room, err := rooms.RoomByNID(ctx, r.NID)
	if errors.Is(err, roomserver.ErrUnknownRoom) { // it was just removed, and nobody is in it
		return nil
	}
	if err != nil {
		return err
	}
	v := views{rooms: rooms, room: room}
	if v.before, err = rooms.StateAt(ctx, room, d.from); err != nil {
		return err
	}
	if v.after, err = rooms.StateAt(ctx, room, d.to); err != nil || v.before == v.after {
		return err
	}
	if err := v.learn(ctx, d.from, d.to); err != nil {
		return err
	}
	stay, err := v.stay(ctx, d.user)
	if err != nil {
		return err
	}
	switch stay {
	case stayed:
		return v.diff(ctx, d.both)
	case arrived, returned:
		d.sure[d.user] = true // the user's other devices may have to know
		into := d.came
		if stay == returned {
			into = d.sure
			if err := v.diff(ctx, d.both); err != nil {
				return err
			}
		}
		return d.present(ctx, &v, func(user string) { into[user] = true })
	case departed:
		return v.joined(ctx, v.before, func(user string) { d.went[user] = true })
	}
	return nil
}

// present calls fn with those who are in a room at the later position.
func (d *listDiff) present(ctx context.Context, v *views, fn func(user string)) error {
	var unsure []string
	err := v.rooms.MembershipsIn(ctx, v.room.NID, func(m roomserver.RoomMembership) {
		switch {
		case m.Pos > d.to: // what the row says came later
			unsure = append(unsure, m.User)
		case m.Membership == roomserver.Join:
			fn(m.User)
		}
	})
	if err != nil {
		return err
	}
	for _, user := range unsure {
		then, err := v.rooms.MembershipAt(ctx, v.room, v.after, user)
		if err != nil {
			return err
		}
		if then == roomserver.Join {
			fn(user)
		}
	}
	return nil
}

// both takes a member of a room that the user was in all the time.
func (d *listDiff) both(user string, s stay) {
	switch s {
	case arrived:
		d.came[user] = true
	case returned:
		d.sure[user] = true
	case departed:
		d.went[user] = true
	}
}

// settle sorts the candidates, and users whose identity changed, into those whom the answer names.
func (d *listDiff) settle(ctx context.Context, users []string) (changed, left []string, err error) {
	ask := map[string]bool{}
	for user := range d.went {
		ask[user] = true
	}
	for _, user := range users {
		ask[user] = true
	}
	now, err := d.api.sharing(ctx, d.user, ask, d.to)
	if err != nil {
		return nil, nil, err
	}
	before, err := d.api.sharing(ctx, d.user, d.came, d.from)
	if err != nil {
		return nil, nil, err
	}
	for _, user := range users {
		if user == d.user || now[user] {
			d.sure[user] = true
		}
	}
	for user := range d.came {
		// Whoever left one room and came into another may have been away in between, when their server told nobody of changes.
		away := d.went[user] && !d.api.isLocal(user)
		if (away || !before[user]) && user != d.user {
			d.sure[user] = true
		}
	}
	for user := range d.sure {
		changed = append(changed, user)
	}
	for user := range d.went {
		if !now[user] && user != d.user && !d.sure[user] {
			left = append(left, user)
		}
	}
	slices.Sort(changed)
	slices.Sort(left)
	return changed, left, nil
}

// maxSharingCandidates is up to how many users their own rooms are looked at, instead of all members of one's own.
const maxSharingCandidates = 200

// sharing finds those of the candidates who share a room with a local user at a position: both are joined to it.
func (a *API) sharing(ctx context.Context, user string, candidates map[string]bool, pos int64) (map[string]bool, error) {
	shared := map[string]bool{}
	if len(candidates) == 0 {
		return shared, nil
	}
	list, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	mine := make(map[int64]bool, len(list))
	for i := range list {
		in, err := a.joinedAt(ctx, user, list[i].NID, list[i].Membership, list[i].Pos, pos)
		if err != nil {
			return nil, err
		}
		if in {
			mine[list[i].NID] = true
		}
	}
	var unsure []roomserver.RoomMembership
	take := func(m roomserver.RoomMembership) {
		switch {
		case !candidates[m.User] || !mine[m.Room] || shared[m.User]:
		case m.Pos > pos:
			unsure = append(unsure, m)
		case m.Membership == roomserver.Join:
			shared[m.User] = true
		}
	}
	if len(candidates) <= maxSharingCandidates {
		names := make([]string, 0, len(candidates))
		for name := range candidates {
			names = append(names, name)
		}
		err = a.rooms.MembershipsOf(ctx, names, take)
	} else {
		for nid := range mine {
			if err = a.rooms.MembershipsIn(ctx, nid, take); err != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, err
	}
	for _, m := range unsure { // what the rows say came later
		if shared[m.User] {
			continue
		}
		in, err := a.joinedAt(ctx, m.User, m.Room, m.Membership, m.Pos, pos)
		if err != nil {
			return nil, err
		}
		if in {
			shared[m.User] = true
		}
	}
	return shared, nil
}

// joinedAt tells whether a user is joined to a room at a position, of whom it is known which membership they have since
// when.
func (a *API) joinedAt(ctx context.Context, user string, nid int64, membership string, since, pos int64) (bool, error) {
	if since <= pos {
		return membership == roomserver.Join, nil
	}
	room, err := a.rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	root, err := a.rooms.StateAt(ctx, room, pos)
	if err != nil {
		return false, err
	}
	then, err := a.rooms.MembershipAt(ctx, room, root, user)
	return then == roomserver.Join, err
}
