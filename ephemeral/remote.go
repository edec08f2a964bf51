package ephemeral

import (
	"context"
	"slices"
	"time"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
)

// toldFor is for how long the word of another server counts.
const toldFor = time.Hour

// told is the presence of another server's user, as that server says.
type told struct {
	state  State
	active bool
	at     time.Time
}

// judge works out what to show now.
func (t *told) judge(now time.Time) (s State, active bool) {
	if now.Sub(t.at) >= toldFor {
		return Offline, false
	}
	return t.state, t.state == Online && t.active
}

// ReceivePresence takes what another server says of one of its users (server-server API v1.19, "Presence"). It is
// dropped where the user shares no room with a local one. That the server may speak for the user, the caller has
// checked.
func (a *API) ReceivePresence(ctx context.Context, said Presence) error {
	if a.presence == nil {
		return nil
	}
	known := false
	err := a.rooms.MembershipsOf(ctx, []string{said.User}, func(m roomserver.RoomMembership) {
		known = known || m.Membership == roomserver.Join
	})
	if err != nil || !known {
		return err
	}
	p, now := a.presence, a.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.entry(said.User, "")
	who.told = &told{said.State, said.CurrentlyActive, now}
	who.lastActive = said.LastActive
	before := p.stamp
	p.update(who, now)
	if len(said.Status) > maxStatus {
		said.Status = ""
	}
	if said.Status != who.status {
		who.status = said.Status
		p.touch(who)
	}
	if who.changed == 0 {
		delete(p.people, who.user) // offline as before
	}
	if p.stamp != before {
		a.wake()
	}
	return nil
}

// roomsOfRemote returns the rooms in which people are told at once of a change of the presence of another server's user,
// without those that were seen, to which it adds them.
func (a *API) roomsOfRemote(ctx context.Context, user string, seen map[int64]struct{}) (nids []int64) {
	var rooms []int64
	err := a.rooms.MembershipsOf(ctx, []string{user}, func(m roomserver.RoomMembership) {
		if _, ok := seen[m.Room]; !ok && m.Membership == roomserver.Join {
			seen[m.Room] = struct{}{}
			rooms = append(rooms, m.Room)
		}
	})
	if err != nil { // they hear of it when they look next
		a.log.WithError(err).WithField("user_id", user).Warn("cannot tell at once of somebody's presence")
	}
	for _, nid := range rooms {
		room := a.rooms.ActiveRoom(nid) // one that is not in memory has nobody waiting
		if room == nil {
			continue
		}
		if joined, _ := room.MemberCounts(); joined <= maxAudience {
			nids = append(nids, nid)
		}
	}
	return nids
}

// PresenceOf returns what others see of a user; ok is false if nothing is known, which is to say that they are offline.
func (a *API) PresenceOf(user string) (seen Presence, ok bool) {
	if a.presence == nil {
		return Presence{}, false
	}
	a.presence.mu.Lock()
	defer a.presence.mu.Unlock()
	who := a.presence.people[user]
	if who == nil {
		return Presence{}, false
	}
	return who.presence(), true
}

// AppendUpdate appends the presence as servers tell each other (server-server API v1.19, m.presence).
func (p *Presence) AppendUpdate(dst []byte, now time.Time) []byte {
	q := *p
	if q.LastActive.IsZero() {
		q.LastActive = now // servers demand the member
	}
	dst = q.appendMembers(append(dst, '{'), now)
	return append(canonicaljson.AppendString(append(dst, `,"user_id":`...), q.User), '}')
}

// Typists returns who types in a room.
func (a *API) Typists(room int64) []string {
	a.typing.mu.RLock()
	defer a.typing.mu.RUnlock()
	r := a.typing.rooms[room]
	if r == nil {
		return nil
	}
	users := make([]string, 0, len(r.list))
	for i := range r.list {
		users = append(users, r.list[i].user)
	}
	slices.Sort(users)
	return users
}
