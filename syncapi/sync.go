package syncapi

import (
	"context"
	"slices"
	"time"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/syncapi/filter"
)

type syncRequest struct {
	Filter      string `query:"filter"`
	Since       string `query:"since"`
	FullState   bool   `query:"full_state"`
	SetPresence string `query:"set_presence" enum:"online|offline|unavailable|org.matrix.msc3026.busy" default:"online"`
	Timeout     int64  `query:"timeout" min:"0"`
	StateAfter  bool   `query:"use_state_after"`
	// UnstableStateAfter is the name that clients used before MSC4222 was accepted.
	UnstableStateAfter bool `query:"org.matrix.msc4222.use_state_after"`
}

// maxTimeout bounds how long a request waits, whatever it asks for.
const maxTimeout = 10 * time.Minute

// sync: client-server API v1.19, GET /sync.
func (a *API) sync(ctx context.Context, by *httpapi.Caller, in *syncRequest) (*rawJSON, error) {
	l := &look{
		api: a, user: by.UserID, device: by.DeviceID,
		stateAfter: in.StateAfter || in.UnstableStateAfter, unstableName: !in.StateAfter, fullState: in.FullState,
	}
	var err error
	if l.filter, err = a.filter(ctx, by, in.Filter); err != nil {
		return nil, err
	}
	if in.Since != "" {
		if l.since, err = parseToken(in.Since); err != nil {
			return nil, err
		}
		// A token of another log, or of a future that a restored backup does not have, gives a
		// fresh sync and never a silent gap.
		if l.since.Generation != a.db.Generation() || l.since.Pos > a.db.Head() {
			l.since = Token{}
		}
	}
	state, _ := ephemeral.ParseState(in.SetPresence)
	defer a.ephemeral.Syncing(ctx, by.UserID, by.DeviceID, state)()
	timeout := min(time.Duration(in.Timeout)*time.Millisecond, maxTimeout)
	if l.initial() || in.FullState {
		timeout = 0
	}
	return a.poll(ctx, l, timeout)
}

// poll looks until there is something to tell or the time is over.
func (a *API) poll(ctx context.Context, l *look, timeout time.Duration) (*rawJSON, error) {
	if timeout <= 0 {
		out, _, err := l.take(ctx)
		return out, err
	}
	w, done := a.tracker.wait(l.user, l.interests())
	defer done()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		out, found, err := l.take(ctx)
		if err != nil || found {
			return out, err
		}
		l.since.Volatile = l.volatile.next // there was nothing in it for this user
		select {
		case <-w.wake:
		case <-deadline.C:
			return out, nil
		case <-a.released:
			return out, nil
		case <-ctx.Done():
			return out, nil
		}
	}
}

// look is one request's view of the log: what (since, upTo] holds for one device.
type look struct {
	api          *API
	user, device string
	filter       *filter.Filter
	since        Token
	stateAfter   bool
	unstableName bool // of state_after, for clients that ask for it by that
	fullState    bool

	upTo    int64
	now     int64
	changed []roomserver.UserRoom // reused between looks
	// data is the account data of rooms that changed, by room id.
	data map[string][]accounts.Datum
	// volatile is what is told of typing and presence.
	volatile volatile
	// people are those of whose profiles the client may want to hear.
	people people
	// stickyTo is the position up to which sticky events are told.
	stickyTo int64
	// outdated are the rooms whose timelines end with state that is not current.
	outdated []int64
}

// initial tells that the client knows nothing yet. A client may know position 0: that nothing has happened.
func (l *look) initial() bool { return l.since.Generation == 0 }

// take builds the answer up to the present head, and tells whether there is anything in it.
func (l *look) take(ctx context.Context) (*rawJSON, bool, error) {
	l.upTo = l.api.db.Head()
	l.now = l.api.now().UnixMilli()
	l.people, l.outdated = people{}, nil
	next := Token{Generation: l.api.db.Generation(), Pos: l.upTo}
	var err error
	if err = l.beginVolatile(ctx); err != nil {
		return nil, false, err
	}
	next.Volatile = l.volatile.next
	l.boundSticky(l.volatile.rooms, &next)
	messages, cursor, err := l.inbox(ctx)
	if err != nil {
		return nil, false, err
	}
	next.ToDevice = cursor
	out := make([]byte, 0, 128) // of members with a leading comma each, of which the first becomes the brace
	if out, err = l.accountData(ctx, out); err != nil {
		return nil, false, err
	}
	if out, err = l.rooms(ctx, out); err != nil {
		return nil, false, err
	}
	if out, err = l.presence(ctx, out); err != nil {
		return nil, false, err
	}
	if out, err = l.users(ctx, out); err != nil {
		return nil, false, err
	}
	if len(messages) > 0 {
		out = append(appendMessages(append(out, `,"to_device":{"events":`...), messages), '}')
	}
	if out, err = l.deviceLists(ctx, out); err != nil {
		return nil, false, err
	}
	found := len(out) > 0
	if out, err = l.keyCounts(ctx, out); err != nil {
		return nil, false, err
	}
	next.Outdated = l.outdated
	out = append(append(append(out, `,"next_batch":"`...), next.String()...), `"}`...)
	out[0] = '{'
	raw := rawJSON(out)
	return &raw, found, nil
}

// rooms appends the rooms section, if there is anything in it.
func (l *look) rooms(ctx context.Context, out []byte) ([]byte, error) {
	rooms, err := l.api.rooms.UserRooms(ctx, l.user)
	if err != nil {
		return nil, err
	}
	all := rooms
	if !l.initial() && !l.fullState {
		l.changed = l.api.tracker.changedRooms(rooms, l, l.changed[:0])
		rooms = l.changed
	}
	var s sections
	if err := l.outside(ctx, &s, all); err != nil {
		return nil, err
	}
	if err := l.api.ephemeral.Prefetch(ctx, rooms); err != nil {
		return nil, err
	}
	rooms = keep(rooms, func(r roomserver.UserRoom) bool { return l.filter.Room.Allows(r.RoomID) && !l.past(r) })
	newest := l.filter.Room.Timeline.Limit(defaultTimeline, maxTimeline)
	if err := l.api.rooms.Visit(ctx, rooms, newest, func(r roomserver.UserRoom) error { return l.room(ctx, &s, r) }); err != nil {
		return nil, err
	}
	return s.append(out), nil
}

// past tells of a room that the user has left, in which a client that knows nothing yet is not interested.
func (l *look) past(r roomserver.UserRoom) bool {
	return l.initial() && r.Pos <= l.upTo && (r.Membership == roomserver.Leave || r.Membership == roomserver.Ban) &&
		(!l.filter.Room.IncludeLeave || r.Forgotten)
}

// The sections of rooms in an answer.
const (
	sectionJoin = iota
	sectionInvite
	sectionKnock
	sectionLeave
	sectionCount
)

var sectionNames = [sectionCount]string{"join", "invite", "knock", "leave"}

// sections collects rooms by what the user is in them.
type sections [sectionCount][]byte

// begin starts a room in a section: appends its key.
func (s *sections) begin(section int, roomID string) []byte {
	b := s[section]
	if len(b) > 0 {
		if cap(b)-len(b) < len(b)/4 { // a large answer that grows by quarters is copied many times
			b = slices.Grow(b, len(b))
		}
		b = append(b, ',')
	}
	return append(canonicaljson.AppendString(b, roomID), ':')
}

// append appends the non-empty sections as the member "rooms".
func (s *sections) append(out []byte) []byte {
	first := true
	for i, b := range s {
		if len(b) == 0 {
			continue
		}
		if first {
			out = append(out, `,"rooms":{"`...)
		} else {
			out = append(out, `,"`...)
		}
		first = false
		out = append(out, sectionNames[i]...)
		out = append(append(append(out, `":{`...), b...), '}')
	}
	if !first {
		out = append(out, '}')
	}
	return out
}

// membership is what the user is and was in a room at both ends of a look.
type membership struct {
	now, before string
	// event is the membership event at the end; nil if the user never had one.
	event *roomserver.Event
	// changed tells that it is news: another membership event than at the beginning. Its place in the timeline does not
	// tell, since state resolution may bring an old event to power, and a room that was just entered has them without place.
	changed bool
	// again tells that they left and joined again meanwhile, so that the client knows the room as it was.
	again bool
}

// membershipIn finds the user's memberships. What memory knows may be newer than the end of the look;
// then the state at the end decides.
func (l *look) membershipIn(ctx context.Context, room *roomserver.Room, r roomserver.UserRoom) (m membership, err error) {
	m.now, m.before = r.Membership, r.Membership
	if r.Pos <= l.since.Pos && !l.initial() {
		return m, nil
	}
	at := func(pos int64) (*roomserver.Event, error) {
		root, err := l.api.rooms.StateAt(ctx, room, pos)
		if err != nil {
			return nil, err
		}
		return l.api.rooms.StateEvent(ctx, room, root, "m.room.member", l.user)
	}
	if m.event, err = at(l.upTo); err != nil {
		return m, err
	}
	m.now, m.before = roomserver.Leave, roomserver.Leave
	if m.event != nil {
		m.now, m.changed = m.event.Membership(), true
	}
	if l.initial() {
		return m, nil
	}
	old, err := at(l.since.Pos)
	if err != nil {
		return m, err
	}
	if old != nil {
		m.before = old.Membership()
		m.changed = m.event == nil || m.event.NID != old.NID
	}
	// Left and joined again within the look: for the client it is a new join.
	if m.now == roomserver.Join && m.before == roomserver.Join && m.changed {
		prev, err := l.api.rooms.MembershipAt(ctx, room, m.event.StateBefore, l.user)
		if err != nil {
			return m, err
		}
		m.before, m.again = prev, prev != roomserver.Join
	}
	return m, nil
}

// room adds one room to the section where it belongs.
func (l *look) room(ctx context.Context, s *sections, r roomserver.UserRoom) error {
	room, err := l.api.rooms.Room(ctx, r.RoomID)
	if err != nil {
		return err
	}
	m, err := l.membershipIn(ctx, room, r)
	if err != nil {
		return err
	}
	switch m.now {
	case roomserver.Join:
		if l.withheld(room, l.upTo) {
			return nil
		}
		return l.joined(ctx, s, room, m)
	case roomserver.Invite, roomserver.Knock:
		if m.changed {
			return l.stripped(ctx, s, room, m)
		}
	case roomserver.Leave, roomserver.Ban:
		return l.left(ctx, s, room, r, m)
	}
	return nil
}

// stripped adds an invite or a knock with the state that the user is shown.
func (l *look) stripped(ctx context.Context, s *sections, room *roomserver.Room, m membership) error {
	section, member := sectionInvite, `{"invite_state":{"events":[`
	if m.now == roomserver.Knock {
		section, member = sectionKnock, `{"knock_state":{"events":[`
	}
	if m.now == roomserver.Invite {
		if hidden, err := l.hidesInvite(ctx, m.event.Sender); err != nil || hidden {
			return err
		}
	}
	events, err := l.api.rooms.Stripped(ctx, room, m.event)
	if err != nil {
		return err
	}
	b := append(s.begin(section, room.ID), member...)
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = e.AppendStripped(b)
	}
	s[section] = append(b, "]}}"...)
	return nil
}

// left adds a room that the user has left since, with the timeline up to the leave. Of what happened after their stay
// in the room, only their own membership is theirs to see.
func (l *look) left(ctx context.Context, s *sections, room *roomserver.Room, r roomserver.UserRoom, m membership) error {
	if m.event == nil && m.changed {
		l.lost(s, room)
		return nil
	}
	// A client that knows the room is told of the leave also after another device has forgotten it.
	if m.event == nil || l.initial() && r.Forgotten || !m.changed {
		return nil
	}
	end, err := l.api.endOfStay(ctx, room, m.event)
	if err != nil {
		return err
	}
	part := roomPart{look: l, room: room, from: l.since.Pos}
	if end != nil && end.Anchor > l.since.Pos {
		// A client that does not know the room may see what the user saw last.
		part.to, part.fresh = end.Anchor, l.initial() || m.before != roomserver.Join
		if err := part.read(ctx); err != nil {
			return err
		}
		if end != m.event {
			part.timeline = append(slices.Clip(part.timeline), m.event)
		}
	} else {
		part.timeline, part.prev = []*roomserver.Event{m.event}, m.event.Token()
		if part.viewer, err = l.api.rooms.Viewer(ctx, room, l.user, l.upTo); err != nil {
			return err
		}
	}
	part.timeline = keep(part.timeline, func(e *roomserver.Event) bool { return matches(&l.filter.Room.Timeline, e) })
	b := append(s.begin(sectionLeave, room.ID), '{')
	b, err = part.appendTimelineAndState(ctx, b)
	if err != nil {
		return err
	}
	s[sectionLeave] = append(b, '}')
	return nil
}

// lost adds a room in which state resolution has left the user without a membership. No event says so, and the room's
// state, in which they have never been, is not theirs to see.
func (l *look) lost(s *sections, room *roomserver.Room) {
	b := append(s.begin(sectionLeave, room.ID), `{"timeline":{"events":[],"limited":false,"prev_batch":"`...)
	b = append(b, historyToken(roomserver.AfterPosition(l.since.Pos))...)
	b = append(append(append(b, `"},"`...), l.stateName()...), `":{"events":[]}}`...)
	s[sectionLeave] = b
}

// joined adds a room that the user is in, if anything in it changed.
func (l *look) joined(ctx context.Context, s *sections, room *roomserver.Room, m membership) error {
	part := roomPart{
		look: l, room: room, from: l.since.Pos, to: l.upTo,
		fresh: l.initial() || m.before != roomserver.Join, again: m.again, summarised: true,
	}
	part.fresh = part.fresh || l.withheld(room, l.since.Pos)
	part.repair = !part.fresh && slices.Contains(l.since.Outdated, room.NID)
	if err := part.read(ctx); err != nil {
		return err
	}
	if part.outdated && len(l.outdated) < maxOutdated {
		l.outdated = append(l.outdated, room.NID)
	}
	rest, err := part.rest(ctx)
	if err != nil {
		return err
	}
	if part.empty() && len(rest) == 0 && !part.counted {
		return nil
	}
	if len(l.filter.ProfileFields) > 0 {
		for _, events := range [][]*roomserver.Event{part.state, part.timeline} {
			for _, e := range events {
				l.people.note(l.api, e)
			}
		}
	}
	b := append(s.begin(sectionJoin, room.ID), '{')
	if b, err = part.appendTimelineAndState(ctx, b); err != nil {
		return err
	}
	b = append(b, rest...)
	if b, err = part.appendSummary(b); err != nil {
		return err
	}
	if b, err = part.appendUnread(ctx, b); err != nil {
		return err
	}
	s[sectionJoin] = append(b, '}')
	return nil
}

// stateName is the name of the member with a room's state.
func (l *look) stateName() string {
	switch {
	case !l.stateAfter:
		return "state"
	case l.unstableName:
		return "org.matrix.msc4222.state_after"
	}
	return "state_after"
}
