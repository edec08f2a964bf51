package syncapi

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
)

// profilesExtension is the request of the extension profiles (MSC4262).
type profilesExtension struct {
	roomExtension
	// Fields are the profile fields that the client wants; nil means all.
	Fields *[]string `json:"fields"`
}

// mark stands for the wanted fields in tokens: another one than in the token means that the client does not have what it
// wants now. 0 is that of a request without the extension.
func (x *profilesExtension) mark() int64 {
	switch {
	case !x.Enabled:
		return 0
	case x.Fields == nil:
		return 1
	}
	fields := slices.Sorted(slices.Values(*x.Fields))
	h := fnv.New32a()
	for _, f := range slices.Compact(fields) {
		h.Write([]byte(f + "\x00")) // never fails
	}
	return int64(h.Sum32()) + 2
}

func (x *profilesExtension) wants(field string) bool {
	return x.Fields == nil || slices.Contains(*x.Fields, field)
}

// shownUser is a user in the extension's answer.
type shownUser struct {
	Updated map[string]json.RawMessage `json:"updated,omitempty"`
	Removed []string                   `json:"removed,omitempty"`
}

// profiles is the extension profiles: of a room that is new to it the profiles of its members, as far as the client is
// sent those, and then what changes in the profile of anyone who shares a room with the user.
func (l *slidingLook) profiles(ctx context.Context) ([]byte, error) {
	x := &l.req.extensions.Profiles
	all := l.initial() || l.token.fields != x.mark()
	if !x.Enabled {
		return nil, nil
	}
	if all {
		l.people.add(l.user, nil)
	}
	for i := range l.rooms {
		c := &l.rooms[i]
		if all {
			l.flagRoom(c, knowsProfiles, false)
		}
		if !c.known || c.nid < 0 || c.membership != roomserver.Join || !x.covers(c) || c.sent.flags&knowsProfiles != 0 {
			continue
		}
		l.flagRoom(c, knowsProfiles, true)
		if err := l.meet(ctx, c); err != nil {
			return nil, err
		}
	}
	after := l.token.pos
	if all {
		after = l.upTo
	}
	news, err := l.api.profileNews(ctx, l.user, &l.people, after, l.upTo, x.wants)
	if err != nil || len(news) == 0 {
		return nil, err
	}
	shown := make(map[string]*shownUser, len(news))
	for user, profile := range news {
		if profile == nil {
			shown[user] = nil
			continue
		}
		u := &shownUser{}
		for field, value := range profile {
			if value == nil {
				u.Removed = append(u.Removed, field)
				continue
			}
			if u.Updated == nil {
				u.Updated = map[string]json.RawMessage{}
			}
			u.Updated[field] = value
		}
		slices.Sort(u.Removed)
		shown[user] = u
	}
	raw, err := json.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("encode profiles: %w", err)
	}
	return append(append([]byte(`"org.matrix.msc4262.profiles":{"users":`), raw...), '}'), nil
}

// meet adds the members of a room whom the client knows: all, or with lazily loaded members those it was sent.
func (l *slidingLook) meet(ctx context.Context, c *slidingRoom) error {
	room, err := l.api.rooms.RoomByNID(ctx, c.nid)
	if err != nil {
		return err
	}
	if c.config.state.lazy() {
		for member := range l.turn.members {
			if member.room != c.nid || member.user == "" {
				continue
			}
			e, err := l.api.rooms.StateEvent(ctx, room, room.Head().State, memberType, member.user)
			if err != nil {
				return err
			}
			if e != nil {
				l.people.note(l.api, e)
			}
		}
		return nil
	}
	members, err := l.api.rooms.JoinedMembers(ctx, room, "", maxNewPeople)
	if err != nil {
		return err
	}
	nids := make([]int64, len(members))
	for i, m := range members {
		nids[i] = m.EventNID
	}
	events, err := l.api.rooms.EventsByNID(ctx, room, nids)
	for _, e := range events {
		l.people.note(l.api, e)
	}
	return err
}
