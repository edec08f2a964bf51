package ephemeral

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxStatus bounds the bytes of a status message.
	maxStatus = 1024
	// maxAudience is how many members a room may have for a change of presence to wake them.
	maxAudience = 200
	// tellPause is how often those who wait are told of changes of presence.
	tellPause = time.Second
	// savePause is how long a status message may stay unwritten.
	savePause = 5 * time.Second
	// tellAtOnce and saveAtOnce bound the users of one such round.
	tellAtOnce = 1000
	saveAtOnce = 1000
)

// Syncing notes that a device makes a request that says what its user's presence is, until the returned function is
// called. Offline says nothing, and a device that said to be busy remains so, whatever it says by the way.
func (a *API) Syncing(ctx context.Context, user, deviceID string, s State) (done func()) {
	if a.presence == nil || s == Offline {
		return func() {}
	}
	status := a.lastStatus(ctx, user)
	p := a.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.entry(user, status)
	now := a.now()
	if d := who.devices[deviceID]; d != nil && d.state == Busy && d.alive(now) {
		s = Busy
	}
	d := who.say(deviceID, s, now)
	d.polls++
	a.settle(who)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		d.polls--
		d.lastSay = a.now()
	}
}

// settle updates a person, whose lock is held, and has others told if there is something to tell.
func (a *API) settle(who *person) {
	before := a.presence.stamp
	a.presence.update(who, a.now())
	if a.presence.stamp != before {
		a.wake()
	}
}

// active notes that a user does something.
func (a *API) active(user string) {
	if a.presence != nil && a.presence.bump(user, a.now()) {
		a.wake()
	}
}

// sent notes that the sender of an event does something.
func (a *API) sent(n *storage.Notice) {
	if room := a.rooms.ActiveRoom(n.Room); room != nil {
		if e := room.Latest(n.Pos); e != nil {
			a.active(e.Sender)
		}
	}
}

// lastStatus returns the status message that a user without an entry in memory set last.
func (a *API) lastStatus(ctx context.Context, user string) (status string) {
	p := a.presence
	p.mu.Lock()
	_, known := p.people[user]
	status, unsaved := p.unsaved[user]
	p.mu.Unlock()
	if known || unsaved {
		return status
	}
	if _, err := a.db.Get(ctx, `SELECT status_msg FROM presence_status WHERE user_id = $1`, []any{user}, &status); err != nil {
		a.log.WithError(err).Warn("cannot read a status message")
	}
	return status
}

// PresenceSince returns up to limit users of whom others see something else than at a stamp, in the order of
// change, and the stamp up to which these are all. With a negative stamp it returns those who are not offline. To
// whom they may be shown, the caller has to find out (Visible).
func (a *API) PresenceSince(stamp int64, limit int) ([]Presence, int64) {
	if a.presence == nil {
		return nil, 0
	}
	return a.presence.since(stamp, limit)
}

// PresenceKnown tells whether all changes since a stamp of this boot are remembered.
func (a *API) PresenceKnown(stamp int64) bool {
	if a.presence == nil {
		return true
	}
	a.presence.mu.Lock()
	defer a.presence.mu.Unlock()
	return stamp >= a.presence.floor && stamp <= a.presence.stamp
}

// PresenceIn returns the local members of a room who are not offline, for somebody who has just come in.
func (a *API) PresenceIn(room *roomserver.Room) []Presence {
	if a.presence == nil {
		return nil
	}
	members := room.LocalMembers(nil)
	a.presence.mu.Lock()
	defer a.presence.mu.Unlock()
	var list []Presence
	for _, user := range members {
		if who := a.presence.people[user]; who != nil && who.state != Offline {
			list = append(list, who.presence())
		}
	}
	return list
}

// Visible tells whether a user may see the presence of another: of themselves, and of those with whom they share a
// room. rooms are those of the user (roomserver.UserRooms).
func (a *API) Visible(ctx context.Context, user string, rooms []roomserver.UserRoom, other string) (bool, error) {
	if user == other {
		return true, nil
	}
	if !a.rooms.IsLocal(other) {
		for i := range rooms {
			if rooms[i].Membership != roomserver.Join {
				continue
			}
			room, err := a.rooms.Room(ctx, rooms[i].RoomID)
			if err != nil {
				return false, err
			}
			if m, err := a.rooms.MembershipAt(ctx, room, room.Head().State, other); err != nil || m == roomserver.Join {
				return err == nil, err
			}
		}
		return false, nil
	}
	others, err := a.rooms.UserRooms(ctx, other)
	if err != nil {
		return false, err
	}
	return share(rooms, others), nil
}

// share tells whether two users, whose rooms these are in the order of their numbers, are joined to the same one.
func share(a, b []roomserver.UserRoom) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	for i := range a {
		if a[i].Membership != roomserver.Join {
			continue
		}
		at, found := slices.BinarySearchFunc(b, a[i].NID, func(r roomserver.UserRoom, nid int64) int { return int(min(1, max(-1, r.NID-nid))) })
		if found && b[at].Membership == roomserver.Join {
			return true
		}
		b = b[at:]
	}
	return false
}

// appendMembers appends the members of the content of m.presence, without braces.
func (p *Presence) appendMembers(dst []byte, now time.Time) []byte {
	dst = append(dst, `"presence":"`...)
	dst = append(append(dst, p.State.String()...), '"')
	if !p.LastActive.IsZero() {
		dst = append(dst, `,"last_active_ago":`...)
		dst = strconv.AppendInt(dst, max(0, now.Sub(p.LastActive).Milliseconds()), 10)
	}
	if p.State == Online {
		dst = append(dst, `,"currently_active":`...)
		dst = strconv.AppendBool(dst, p.CurrentlyActive)
	}
	if p.Status != "" {
		dst = canonicaljson.AppendString(append(dst, `,"status_msg":`...), p.Status)
	}
	return dst
}

// AppendEvent appends the m.presence event that tells of it.
func (p *Presence) AppendEvent(dst []byte, now time.Time) []byte {
	dst = p.appendMembers(append(dst, `{"content":{`...), now)
	dst = canonicaljson.AppendString(append(dst, `},"sender":`...), p.User)
	return append(dst, `,"type":"m.presence"}`...)
}

type presenceRequest struct {
	UserID string `path:"userId"`
}

// presenceResponse is what a user may know of another.
type presenceResponse struct {
	Presence
	now time.Time
}

// AppendJSON appends the answer.
func (r *presenceResponse) AppendJSON(dst []byte) ([]byte, error) {
	return append(r.appendMembers(append(dst, '{'), r.now), '}'), nil
}

// getPresence: client-server API v1.19, GET /presence/{userId}/status.
func (a *API) getPresence(ctx context.Context, by *httpapi.Caller, in *presenceRequest) (*presenceResponse, error) {
	rooms, err := a.rooms.UserRooms(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	visible, err := a.Visible(ctx, by.UserID, rooms, in.UserID)
	if err != nil {
		return nil, err
	}
	if !visible {
		return nil, mxerr.Forbidden("You are not allowed to see their presence")
	}
	out := &presenceResponse{Presence: Presence{User: in.UserID}, now: a.now()}
	if a.presence == nil {
		return out, nil
	}
	out.Status = a.lastStatus(ctx, in.UserID)
	a.presence.mu.Lock()
	defer a.presence.mu.Unlock()
	if who := a.presence.people[in.UserID]; who != nil {
		a.settle(who)
		out.Presence = who.presence()
	}
	return out, nil
}

type putPresenceRequest struct {
	UserID   string  `path:"userId"`
	Presence string  `json:"presence" required:"true"`
	Status   *string `json:"status_msg"`
}

// putPresence: client-server API v1.19, PUT /presence/{userId}/status.
func (a *API) putPresence(ctx context.Context, by *httpapi.Caller, in *putPresenceRequest) (*httpapi.Empty, error) {
	if in.UserID != by.UserID {
		return nil, mxerr.Forbidden("You cannot set the presence of somebody else")
	}
	s, ok := ParseState(in.Presence)
	if !ok {
		return nil, mxerr.InvalidParam("presence must be online, unavailable or offline")
	}
	status := ""
	if in.Status != nil {
		status = *in.Status
	}
	if len(status) > maxStatus {
		return nil, mxerr.New(http.StatusBadRequest, "M_TOO_LARGE", "status_msg is too long")
	}
	if a.presence == nil {
		return nil, nil
	}
	last := a.lastStatus(ctx, by.UserID)
	now, p := a.now(), a.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.entry(by.UserID, last)
	who.say(by.DeviceID, s, now)
	if s >= Online {
		who.lastActive = now
	}
	before := p.stamp
	p.update(who, now)
	if status != who.status {
		who.status, p.unsaved[who.user] = status, status
		p.touch(who)
	}
	if who.changed == 0 {
		delete(p.people, who.user) // offline as before
	}
	if p.stamp != before {
		a.wake()
	}
	return nil, nil
}

// stepPresence does what is due and returns for how long nothing else will be.
func (a *API) stepPresence(ctx context.Context) time.Duration {
	p, now, pause := a.presence, a.now(), maxPause
	if !now.Before(p.nextTick) {
		p.age(now)
		p.nextTick = now.Add(tick)
	}
	p.mu.Lock()
	ticking, dirty, unsaved := p.present > 0, len(p.dirty) > 0, len(p.unsaved) > 0
	p.mu.Unlock()
	if ticking {
		pause = min(pause, p.nextTick.Sub(now))
	}
	if dirty {
		if !now.Before(p.nextTell) {
			a.tell(ctx)
			p.nextTell = now.Add(tellPause)
		}
		pause = min(pause, p.nextTell.Sub(now))
	}
	if unsaved {
		if p.nextSave.IsZero() {
			p.nextSave = now.Add(savePause)
		}
		if !now.Before(p.nextSave) {
			a.writeStatuses(ctx)
			p.nextSave = time.Time{}
			return min(pause, savePause)
		}
		pause = min(pause, p.nextSave.Sub(now))
	}
	return pause
}

// tell tells those who wait whose presence has changed, in rooms that are not too large.
func (a *API) tell(ctx context.Context) {
	p := a.presence
	var users []string
	p.mu.Lock()
	for user := range p.dirty {
		if len(users) == tellAtOnce {
			break
		}
		delete(p.dirty, user)
		users = append(users, user)
	}
	p.mu.Unlock()
	seen := map[int64]struct{}{}
	var nids []int64
	for _, user := range users {
		if !a.rooms.IsLocal(user) {
			nids = append(nids, a.roomsOfRemote(ctx, user, seen)...)
			continue
		}
		rooms, err := a.rooms.UserRooms(ctx, user)
		if err != nil {
			continue // they hear of it with the next look
		}
		for i := range rooms {
			if _, ok := seen[rooms[i].NID]; ok || rooms[i].Membership != roomserver.Join {
				continue
			}
			seen[rooms[i].NID] = struct{}{}
			if a.audible(rooms[i].NID) {
				nids = append(nids, rooms[i].NID)
			}
		}
	}
	a.listener.Presence(users, nids)
}

// audible tells whether a room is small enough for its members to be told of each other's presence. One that is not in memory
// passes for small, since loading it takes more than telling few who wait: right after a start, that would be all rooms of all
// who are back, beside their first syncs.
func (a *API) audible(nid int64) bool {
	room := a.rooms.ActiveRoom(nid)
	if room == nil {
		return true
	}
	joined, _ := room.MemberCounts()
	return joined <= maxAudience
}

// writeStatuses writes down the status messages that are not in the database yet.
func (a *API) writeStatuses(ctx context.Context) {
	if a.presence == nil {
		return
	}
	p, batch := a.presence, map[string]string{}
	p.mu.Lock()
	for user, status := range p.unsaved {
		if len(batch) == saveAtOnce {
			break
		}
		batch[user] = status
	}
	p.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error { return putStatuses(tx, batch) })
	if err != nil {
		a.log.WithError(err).Warn("cannot write status messages")
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for user, status := range batch {
		if p.unsaved[user] == status {
			delete(p.unsaved, user)
		}
	}
}

func putStatuses(tx *storage.Tx, batch map[string]string) error {
	for user, status := range batch {
		var err error
		if status == "" {
			_, err = tx.Exec(`DELETE FROM presence_status WHERE user_id = $1`, user)
		} else {
			_, err = tx.Exec(`INSERT INTO presence_status (user_id, status_msg) VALUES ($1, $2)
				ON CONFLICT (user_id) DO UPDATE SET status_msg = excluded.status_msg`, user, status)
		}
		if err != nil {
			return fmt.Errorf("store status message: %w", err)
		}
	}
	return nil
}
