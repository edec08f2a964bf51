package e2ee

import (
	"context"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// stay is what became of a user's presence in a room between two states of it.
type stay uint8

const (
	absent   stay = iota // not there at the end nor at the beginning
	stayed               // there all the time
	arrived              // there at the end only
	departed             // there at the beginning only
	returned             // there at both, and not in between
)

// views are two states of a room, an earlier and a later one.
type views struct {
	rooms         *roomserver.Server
	room          *roomserver.Room
	before, after snapshot.Ref
	// quiet tells that those who were there before they became known are no news.
	quiet bool
}

// stay judges a user.
func (v *views) stay(ctx context.Context, user string) (stay, error) {
	old, err := v.rooms.StateEvent(ctx, v.room, v.before, memberType, user)
	if err != nil {
		return absent, err
	}
	now, err := v.rooms.StateEvent(ctx, v.room, v.after, memberType, user)
	if err != nil {
		return absent, err
	}
	return v.judge(ctx, old, now, user)
}

// judge compares two membership events of a user, either of which may be nil.
func (v *views) judge(ctx context.Context, old, now *roomserver.Event, user string) (stay, error) {
	was, is := old != nil && old.Membership() == roomserver.Join, now != nil && now.Membership() == roomserver.Join
	switch {
	case !was && !is:
		return absent, nil
	case !was:
		return arrived, nil
	case !is:
		return departed, nil
	case old.NID == now.NID:
		return stayed, nil
	}
	// A changed profile, or out and in again.
	between, err := v.rooms.MembershipAt(ctx, v.room, now.StateBefore, user)
	if err != nil {
		return absent, err
	}
	if between != roomserver.Join {
		return returned, nil
	}
	return stayed, nil
}

// diff calls fn with those whose membership event differs in the two states.
func (v *views) diff(ctx context.Context, fn func(user string, s stay)) error {
	deltas, err := v.rooms.StateDiff(ctx, v.room, v.before, v.after)
	if err != nil {
		return err
	}
	for _, d := range deltas {
		e := d.New
		if e == nil {
			e = d.Old
		}
		if e.Type != memberType || e.StateKey == nil {
			continue
		}
		s, err := v.judge(ctx, d.Old, d.New, *e.StateKey)
		if err != nil {
			return err
		}
		if v.quiet && s == arrived && d.New.Anchor == 0 { // nobody saw them come
			continue
		}
		fn(*e.StateKey, s)
	}
	return nil
}

// learn finds out whether the members of the room, which was entered without them, became known between two positions.
// Unless it is encrypted, clients have no use for all their devices, and hear of those that change.
func (v *views) learn(ctx context.Context, from, to int64) error {
	if !v.room.PartialAt(from) || v.room.PartialAt(to) {
		return nil
	}
	encryption, err := v.rooms.StateEvent(ctx, v.room, v.after, "m.room.encryption", "")
	v.quiet = err == nil && encryption == nil
	return err
}

// joined calls fn with the joined members of a state.
func (v *views) joined(ctx context.Context, root snapshot.Ref, fn func(user string)) error {
	members, err := v.rooms.StateEventsOfType(ctx, v.room, root, memberType)
	if err != nil {
		return err
	}
	for _, e := range members {
		if e.StateKey != nil && e.Membership() == roomserver.Join {
			fn(*e.StateKey)
		}
	}
	return nil
}
