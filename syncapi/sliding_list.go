package syncapi

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// slidingRoom is a room that may be in the answer.
type slidingRoom struct {
	nid        int64
	id         string
	membership string
	event      int64 // number of the membership event
	// since is the position of the user's membership, activity that of what happened last.
	since, activity int64
	// listed rooms may be in lists; others only in subscriptions.
	listed bool
	// outside is set for a room that this server is not in.
	outside *roomserver.Outside

	sent  sentRoom
	known bool
	// noted is the index, plus one, of the room in what the answer changes.
	noted int

	lists      []string
	subscribed bool
	// matched rooms pass the filters of a list, in its windows or not, or are subscribed to.
	matched bool
	config  *roomConfig // nil: no rule matches
}

// untold tells that the client knows the room as one that the user has not left yet. It is told of that also if another
// device has forgotten the room meanwhile.
func (c *slidingRoom) untold() bool { return c.known && c.sent.at < c.since }

// slidingUser is what filters and rooms ask of a user's account data.
type slidingUser struct {
	direct  map[string]bool
	tags    map[string][]string
	ignored map[string]bool
	invites accounts.InvitePermission
}

// maxSlidingUsers bounds the users whose account data is at hand, maxStays the memberships that were looked through.
const (
	maxSlidingUsers = 20_000
	maxStays        = 100_000
)

// readSlidingUser reads a user's direct chats, tags and ignored users.
func (a *API) readSlidingUser(ctx context.Context, user string) (*slidingUser, error) {
	u := &slidingUser{direct: map[string]bool{}, tags: map[string][]string{}}
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if u.invites, err = accounts.InvitePermissionOf(tx, user); err != nil {
			return err
		}
		data, err := accounts.AccountData(tx, user)
		for _, d := range data {
			switch {
			case d.Type == "m.tag" && d.Room != "":
				gjson.GetBytes(d.Content, "tags").ForEach(func(tag, _ gjson.Result) bool {
					u.tags[d.Room] = append(u.tags[d.Room], tag.Str)
					return true
				})
			case d.Type == "m.direct" && d.Room == "":
				gjson.ParseBytes(d.Content).ForEach(func(_, rooms gjson.Result) bool {
					for _, r := range rooms.Array() {
						u.direct[r.Str] = true
					}
					return true
				})
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("account data of %s: %w", user, err)
	}
	u.ignored, err = a.ignoredUsers(ctx, user)
	return u, err
}

// outsideNID numbers a room that this server is not in.
func outsideNID(roomID string) int64 {
	h := fnv.New64a()
	h.Write([]byte(roomID)) // never fails
	return -int64(h.Sum64()>>1) - 1
}

// collect finds the user's rooms and their order, the most active first.
func (l *slidingLook) collect(ctx context.Context) error {
	a := l.api
	rooms, err := a.rooms.UserRooms(ctx, l.user)
	if err != nil {
		return err
	}
	if l.activity, err = a.rooms.Activity(ctx, l.user, rooms, l.activity[:0]); err != nil {
		return err
	}
	l.rooms = slices.Grow(l.rooms[:0], len(rooms))
	for i, r := range rooms {
		c := slidingRoom{nid: r.NID, id: r.RoomID, membership: r.Membership, event: r.EventNID, since: r.Pos, activity: r.Pos, listed: true}
		c.sent, c.known = l.turn.base.room(r.NID)
		if r.Forgotten && !c.untold() {
			continue
		}
		switch r.Membership {
		case roomserver.Join:
			c.activity = l.activity[i]
		case roomserver.Invite:
			if len(l.data.ignored) > 0 || l.data.invites.Any() {
				hidden, err := l.hidesInvite(ctx, r)
				if err != nil {
					return err
				}
				if hidden {
					continue
				}
			}
		case roomserver.Leave, roomserver.Ban:
			stay, err := l.stay(ctx, r)
			if err != nil {
				return err
			}
			c.listed = c.known || stay == expelled
			if !c.known && stay == neverIn {
				continue
			}
		}
		l.rooms = append(l.rooms, c)
	}
	if err := l.collectOutside(ctx); err != nil {
		return err
	}
	l.order = slices.Grow(l.order[:0], len(l.rooms))
	for i := range l.rooms {
		l.order = append(l.order, placed{l.rooms[i].activity, i})
	}
	slices.SortFunc(l.order, func(a, b placed) int {
		if a.activity != b.activity {
			return cmp.Compare(b.activity, a.activity)
		}
		return b.index - a.index
	})
	return nil
}

// placed is a room's place in the order of lists: small, because it is sorted.
type placed struct {
	activity int64
	index    int // in slidingLook.rooms
}

// collectOutside adds invites to and knocks on rooms that this server is not in, and how they ended.
func (l *slidingLook) collectOutside(ctx context.Context) error {
	records, err := l.api.sliding.outsideOf.Get(ctx, l.user)
	if err != nil {
		return err
	}
	for i := range records {
		o := &records[i]
		if slices.ContainsFunc(l.rooms, func(c slidingRoom) bool { return c.id == o.RoomID }) {
			continue
		}
		nid := o.NID
		if nid == 0 {
			nid = outsideNID(o.RoomID)
		}
		c := slidingRoom{nid: nid, id: o.RoomID, membership: o.Membership, since: o.Pos, activity: o.Pos, listed: true, outside: o}
		c.sent, c.known = l.turn.base.room(c.nid)
		if o.Forgotten && !c.untold() {
			continue
		}
		if o.Membership == roomserver.Invite && (l.data.ignored[o.Event.Sender] || l.data.invites.Of(o.Event.Sender) != accounts.InviteAllowed) {
			continue
		}
		if (o.Membership == roomserver.Leave || o.Membership == roomserver.Ban) && !c.known {
			continue
		}
		l.rooms = append(l.rooms, c)
	}
	return nil
}

func (l *slidingLook) hidesInvite(ctx context.Context, r roomserver.UserRoom) (bool, error) {
	room, err := l.api.rooms.RoomByNID(ctx, r.NID)
	if err != nil {
		return false, err
	}
	events, err := l.api.rooms.EventsByNID(ctx, room, []int64{r.EventNID})
	if err != nil {
		return false, err
	}
	sender := events[0].Sender
	return l.data.ignored[sender] || l.data.invites.Of(sender) != accounts.InviteAllowed, nil
}

// stayKind is what somebody who is not in a room has been there.
type stayKind int

const (
	// neverIn is for those who were only invited, or knocked, or were banned from outside.
	neverIn stayKind = iota
	// wentAway is for those who left, expelled for those who were kicked or banned.
	wentAway
	expelled
)

// stay tells how somebody's time in a room ended, by their membership.
func (l *slidingLook) stay(ctx context.Context, r roomserver.UserRoom) (stayKind, error) {
	if k, ok := l.api.sliding.stays.Get(r.EventNID); ok {
		return k, nil
	}
	room, err := l.api.rooms.RoomByNID(ctx, r.NID)
	if err != nil {
		return neverIn, err
	}
	events, err := l.api.rooms.EventsByNID(ctx, room, []int64{r.EventNID})
	if err != nil {
		return neverIn, err
	}
	end, err := l.api.endOfStay(ctx, room, events[0])
	if err != nil {
		return neverIn, err
	}
	k := neverIn
	if end != nil {
		if k = wentAway; events[0].Sender != l.user {
			k = expelled
		}
	}
	l.api.sliding.stays.Put(r.EventNID, k, 1)
	return k, nil
}

// choose applies lists and subscriptions to the rooms and counts the lists.
func (l *slidingLook) choose(ctx context.Context) error {
	l.counts = l.counts[:0]
	for i := range l.req.lists {
		list := &l.req.lists[i]
		f, err := l.compile(ctx, list.filters)
		if err != nil {
			return err
		}
		n := 0
		for _, place := range l.order {
			c := &l.rooms[place.index]
			if !c.listed {
				continue
			}
			ok, err := f.passes(ctx, l, c)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			c.matched = true
			if list.covers(n) {
				c.config = c.config.with(list.config)
				c.lists = append(c.lists, list.name)
			}
			n++
		}
		l.counts = append(l.counts, n)
	}
	if len(l.req.subscriptions) == 0 {
		return nil
	}
	for j := range l.rooms {
		c := &l.rooms[j]
		if config := l.req.subscriptions[c.id]; config != nil {
			c.config, c.subscribed, c.matched = c.config.with(config), true, true
		}
	}
	return nil
}

// covers tells whether a place in the list is in a window.
func (s *slidingList) covers(n int) bool {
	if s.ranges == nil {
		return true
	}
	for _, r := range s.ranges {
		if r[0] <= n && n <= r[1] {
			return true
		}
	}
	return false
}

// compiledFilters are the filters of a list with what they need; the zero value lets all pass.
type compiledFilters struct {
	*slidingFilters
	children map[string]bool // rooms in the spaces
}

func (l *slidingLook) compile(ctx context.Context, f *slidingFilters) (compiledFilters, error) {
	out := compiledFilters{slidingFilters: f}
	if f == nil || f.Spaces == nil {
		return out, nil
	}
	out.children = map[string]bool{}
	for _, c := range l.rooms {
		if c.membership != roomserver.Join || !slices.Contains(f.Spaces, c.id) {
			continue
		}
		room, err := l.api.rooms.RoomByNID(ctx, c.nid)
		if err != nil {
			return out, err
		}
		events, err := l.api.rooms.StateEventsOfType(ctx, room, room.Head().State, "m.space.child")
		if err != nil {
			return out, err
		}
		for _, e := range events {
			if gjson.GetBytes(e.Content(), "via").IsArray() {
				out.children[*e.StateKey] = true
			}
		}
	}
	return out, nil
}

// passes applies the filters to a room.
func (f compiledFilters) passes(ctx context.Context, l *slidingLook, c *slidingRoom) (bool, error) {
	if f.slidingFilters == nil {
		return true, nil
	}
	if f.IsDM != nil && *f.IsDM != l.data.direct[c.id] ||
		f.IsInvited != nil && *f.IsInvited != (c.membership == roomserver.Invite) ||
		f.children != nil && !f.children[c.id] {
		return false, nil
	}
	if f.Tags != nil || f.NotTags != nil {
		has := func(tags []string) bool {
			return slices.ContainsFunc(l.data.tags[c.id], func(tag string) bool { return slices.Contains(tags, tag) })
		}
		if f.Tags != nil && !has(f.Tags) || has(f.NotTags) {
			return false, nil
		}
	}
	if f.IsEncrypted == nil && f.RoomTypes == nil && f.NotRoomTypes == nil {
		return true, nil
	}
	encrypted, roomType, err := l.facts(ctx, c)
	if err != nil {
		return false, err
	}
	is := func(t *string) bool {
		return t == nil && roomType == "" || t != nil && *t == roomType && roomType != ""
	}
	return (f.IsEncrypted == nil || *f.IsEncrypted == encrypted) &&
		(f.RoomTypes == nil || slices.ContainsFunc(f.RoomTypes, is)) && !slices.ContainsFunc(f.NotRoomTypes, is), nil
}

// facts tells whether a room is encrypted and of which type it is.
func (l *slidingLook) facts(ctx context.Context, c *slidingRoom) (encrypted bool, roomType string, err error) {
	if c.outside != nil {
		for _, e := range gjson.ParseBytes(c.outside.Stripped).Array() {
			switch e.Get("type").Str {
			case "m.room.encryption":
				encrypted = true
			case "m.room.create":
				roomType = e.Get("content.type").Str
			}
		}
		return encrypted, roomType, nil
	}
	room, err := l.api.rooms.RoomByNID(ctx, c.nid)
	if err != nil {
		return false, "", err
	}
	root := room.Head().State
	encryption, err := l.api.rooms.StateEvent(ctx, room, root, "m.room.encryption", "")
	if err != nil {
		return false, "", err
	}
	create, err := l.api.rooms.StateEvent(ctx, room, root, "m.room.create", "")
	if err != nil {
		return false, "", err
	}
	if create != nil {
		roomType, _ = create.ContentString("type")
	}
	return encryption != nil, roomType, nil
}
