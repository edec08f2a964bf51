package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// maxCandidates bounds how many servers are asked to let a user into a room.
	maxCandidates = 10
	// templateTimeout and handshakeTimeout bound the wait for make_* and for send_*.
	templateTimeout  = 30 * time.Second
	handshakeTimeout = 3 * time.Minute
	// maxStateBytes bounds an answer that is the state of a room, in bytes.
	maxStateBytes = 256 << 20
)

// wish is that of a local user to enter or leave a room of other servers.
type wish struct {
	user, roomID string
	via          []string // servers that the client or an alias named
	content      map[string]any
	refused      []string // servers that refused the join when it was last tried
	waited       bool     // one that refused it had not taken the user's join of another room yet
}

// entries keeps account of rooms that this server is just entering, so that events of them wait.
type entries struct {
	mu   sync.Mutex
	open map[string]*entering
}

type entering struct {
	users int
	done  chan struct{}
}

// begin notes that a room is being entered; the function that it returns notes the end.
func (e *entries) begin(roomID string) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		e.open = map[string]*entering{}
	}
	x := e.open[roomID]
	if x == nil {
		x = &entering{done: make(chan struct{})}
		e.open[roomID] = x
	}
	x.users++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if x.users--; x.users == 0 {
			delete(e.open, roomID)
			close(x.done)
		}
	}
}

// wait waits while a room is being entered.
func (e *entries) wait(ctx context.Context, roomID string) {
	e.mu.Lock()
	x := e.open[roomID]
	e.mu.Unlock()
	if x == nil {
		return
	}
	select {
	case <-x.done:
	case <-ctx.Done():
	}
}

// Join brings a local user into a room with the help of a server that is in it: one of those in via, which the client or
// an alias named, or another. Content are further members of the event's content: displayname, avatar_url, reason, … The
// error is a *mxerr.Error: what the servers said, if one of them did, else 404 M_NOT_FOUND or 502 M_UNKNOWN.
func (a *API) Join(ctx context.Context, user, roomID string, via []string, content map[string]any) error {
	in := &wish{user: user, roomID: roomID, via: via, content: content}
	err := a.join(ctx, in)
	for _, pause := range joinPauses {
		if !unauthorised(err) || !a.undecided(ctx, in) {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		if a.letIn(ctx, in) {
			return nil
		}
		err = a.join(ctx, in)
	}
	return err
}

// join is one attempt of Join.
func (a *API) join(ctx context.Context, in *wish) error {
	defer a.entering.begin(in.roomID)()
	in.refused = nil
	return a.through(ctx, in, func(server string) error {
		err := a.joinThrough(ctx, server, in)
		if unauthorised(err) {
			in.refused = append(in.refused, server)
		}
		return err
	})
}

// letIn joins a user whom other servers refused, if a local user may let them in by now.
func (a *API) letIn(ctx context.Context, in *wish) bool {
	room, err := a.rooms.Room(ctx, in.roomID)
	if err != nil || !room.Resident() || room.Partial() != nil {
		return false
	}
	_, err = a.rooms.SetMembership(ctx, roomserver.MembershipChange{
		RoomID: in.roomID, Sender: in.user, Target: in.user, Membership: roomserver.Join, Content: in.content,
	})
	return err == nil
}

// joinPauses are those before a join is tried again that was refused to a user who has just joined another room: if it is the
// members of that one who may join, the servers that can let them in may not have heard of it yet.
var joinPauses = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1500 * time.Millisecond}

// unauthorised tells that other servers say of a user that they may not join a room, or that they cannot tell.
func unauthorised(err error) bool {
	var said *client.Error
	return errors.As(err, &said) && (said.Status == http.StatusForbidden && said.Code == "M_FORBIDDEN" || said.Code == "M_UNABLE_TO_AUTHORISE_JOIN")
}

const (
	// justJoinedFor is how long a user counts as one who has just joined a room: until every server of it should have heard of
	// it. One that has taken the event by then may need judgedWithin for it.
	justJoinedFor = 10 * time.Second
	judgedWithin  = time.Second
	// maxEntrances bounds the users of whom it is known which server let them into their last room.
	maxEntrances = 10_000
)

// entrance is a room that a user has entered with the help of a server.
type entrance struct{ roomID, server string }

// undecided tells whether a server that refused a user may not have heard yet that they have just joined another room, and so
// may change its mind.
func (a *API) undecided(ctx context.Context, in *wish) bool {
	room, last, at := a.lastJoin(ctx, in.user)
	since := time.Since(at)
	if room == nil || since > justJoinedFor {
		return false
	}
	servers := room.Servers()
	entered, _ := a.entrances.Get(in.user)
	return slices.ContainsFunc(in.refused, func(server string) bool {
		switch {
		case !slices.Contains(servers, server):
			return false // it will not hear of it
		case entered.roomID == room.ID:
			return server != entered.server
		default: // one that takes the event between two tries needs time to judge it, too
			in.waited = in.waited || a.queue.Waiting(server, room.NID, last.Pos)
			return in.waited || since < judgedWithin
		}
	})
}

// lastJoin finds the room that a local user joined last and when that was; nil if there is none.
func (a *API) lastJoin(ctx context.Context, user string) (room *roomserver.Room, last roomserver.UserRoom, at time.Time) {
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return nil, last, at
	}
	for _, r := range rooms {
		if r.Membership == roomserver.Join && r.Pos > last.Pos {
			last = r
		}
	}
	if room, err = a.rooms.Room(ctx, last.RoomID); err != nil {
		return nil, last, at
	}
	e, err := a.rooms.StateEvent(ctx, room, room.Head().State, pdu.TypeMember, user)
	if err != nil || e == nil {
		return nil, last, at
	}
	return room, last, time.UnixMilli(e.OriginServerTS)
}

// Knock is Join for a knock on a room that this server is not in.
func (a *API) Knock(ctx context.Context, user, roomID string, via []string, content map[string]any) error {
	in := &wish{user: user, roomID: roomID, via: via, content: content}
	return a.through(ctx, in, func(server string) error { return a.knockThrough(ctx, server, in) })
}

// leaveTimeout bounds how long a rejection may take to be delivered before the user has left without.
const leaveTimeout = 20 * time.Second

// Leave rejects an invite or withdraws a knock of a local user in a room that this server is not in. That the room's
// servers cannot be told is no error. ok is false where there is nothing to leave.
func (a *API) Leave(ctx context.Context, user, roomID string, content map[string]any) (ok bool, err error) {
	in := &wish{user: user, roomID: roomID, content: content}
	o, err := a.outside(ctx, user, roomID)
	if err != nil || o == nil || o.Membership != roomserver.Invite && o.Membership != roomserver.Knock {
		return false, err
	}
	asking, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	var event *pdu.Event
	err = a.through(asking, in, func(server string) (err error) {
		if event, _, err = a.fromTemplate(asking, server, "leave", roomserver.Leave, in); err == nil {
			_, err = a.client.Do(asking, client.Request{
				Server: server, Method: http.MethodPut, Path: client.Path(v2+"/send_leave/%s/%s", in.roomID, event.ID), Body: event.JSON(),
			})
		}
		return err
	})
	if err != nil {
		a.log.WithError(err).WithField("room_id", in.roomID).Info("a room's servers could not be told that a user rejected an invite or withdrew a knock")
	}
	if event == nil { // the user leaves all the same
		if event, err = a.leaveAlone(o, in); err != nil {
			return false, err
		}
	}
	return a.rooms.LeaveOutside(ctx, user, roomID, event)
}

// leaveAlone makes the event with which a user rejects an invite or withdraws a knock that no server could be told of.
// It is for the user's own devices.
func (a *API) leaveAlone(o *roomserver.Outside, in *wish) (*pdu.Event, error) {
	content := maps.Clone(in.content)
	if content == nil {
		content = map[string]any{}
	}
	content["membership"] = roomserver.Leave
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("membership content: %w", err)
	}
	return a.rooms.Complete(o.Version, &pdu.Proto{
		RoomID: in.roomID, Sender: in.user, Type: "m.room.member", StateKey: &in.user, Content: raw,
		PrevEvents: []pdu.Ref{o.Event.Ref()}, AuthEvents: []pdu.Ref{o.Event.Ref()}, Depth: min(o.Event.Depth, pdu.MaxDepth-1) + 1,
		OriginServerTS: time.Now().UnixMilli(),
	})
}

// outside returns the user's record of a room that this server is not in, or nil.
func (a *API) outside(ctx context.Context, user, roomID string) (*roomserver.Outside, error) {
	all, err := a.rooms.OutsideOf(ctx, user)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].RoomID == roomID {
			return &all[i], nil
		}
	}
	return nil, nil
}

// through tries one server after the other until one does what is asked.
func (a *API) through(ctx context.Context, in *wish, try func(server string) error) error {
	servers, err := a.candidates(ctx, in)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return mxerr.NotFound("No server that is in this room is known")
	}
	var failures []error
	for _, server := range servers {
		if err = try(server); err == nil {
			return nil
		}
		a.log.WithError(err).WithFields(map[string]any{"server": server, "room_id": in.roomID}).Debug("a server did not help to enter or leave a room")
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return worst(failures)
}

// candidates lists the servers that may be in a room: those that were named and that of who invited; if none was named,
// also those of the state that came with the invite, that of the room's id, and those that were in the room.
func (a *API) candidates(ctx context.Context, in *wish) ([]string, error) {
	var list []string
	add := func(server string) {
		if server != "" && server != a.name && len(list) < maxCandidates && !slices.Contains(list, server) && pdu.ValidServerName(server) {
			list = append(list, server)
		}
	}
	for _, server := range in.via {
		add(server)
	}
	o, err := a.outside(ctx, in.user, in.roomID)
	if err != nil {
		return nil, err
	}
	if o != nil {
		add(pdu.ServerOf(o.Event.Sender))
	}
	if len(in.via) > 0 { // who names servers means these
		return list, nil
	}
	if o != nil {
		for _, s := range gjson.ParseBytes(o.Stripped).Array() {
			add(pdu.ServerOf(s.Get("sender").Str))
		}
	}
	add(serverOfRoom(in.roomID))
	room, err := a.rooms.Room(ctx, in.roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	for _, server := range room.Servers() {
		add(server)
	}
	return list, nil
}

// worst turns failures into the answer for a client: what a server said about the request comes before what kept it from
// being asked.
func worst(failures []error) error {
	var said *client.Error
	for _, err := range failures {
		var e *client.Error
		if own := mxerr.As(err); own != nil {
			return own
		}
		if errors.As(err, &e) && e.Status >= 400 && e.Status < 500 && e.Code != "" && (said == nil || said.Status == http.StatusNotFound) {
			said = e
		}
	}
	if said != nil {
		return passOn(said)
	}
	return mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "No server of the room could be reached or gave a sound answer").With(errors.Join(failures...))
}

// passOn is another server's error as a client gets it. What was wrong with our own request is no fault of the client.
func passOn(e *client.Error) *mxerr.Error {
	switch e.Code {
	case "M_MISSING_PARAM", "M_INVALID_PARAM", "M_BAD_JSON", "M_NOT_JSON", "M_UNAUTHORIZED", "M_UNRECOGNIZED":
		return mxerr.New(http.StatusBadGateway, "M_UNKNOWN", "The other server refused the request: "+e.Text).With(e)
	}
	out := mxerr.New(e.Status, e.Code, e.Text).With(e)
	if version := gjson.GetBytes(e.Body, "room_version"); version.Type == gjson.String {
		out = out.WithField("room_version", version.Str)
	}
	return out
}

// errUnsound is wrapped by errors about answers that break the specification.
var errUnsound = errors.New("the answer is not what it should be")

// fromTemplate asks a server for a template of a user's own membership event, and completes it.
func (a *API) fromTemplate(ctx context.Context, server, what, membership string, in *wish) (*pdu.Event, *pdu.Version, error) {
	path := client.Path(v1+"/make_"+what+"/%s/%s", in.roomID, in.user)
	if membership != roomserver.Leave {
		q := url.Values{}
		for _, v := range pdu.Supported() {
			q.Add("ver", v.ID)
		}
		path += "?" + q.Encode()
	}
	body, err := a.client.Do(ctx, client.Request{Server: server, Method: http.MethodGet, Path: path, Timeout: templateTimeout})
	if err != nil {
		return nil, nil, err
	}
	var answer makeAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errUnsound, err)
	}
	if answer.RoomVersion == "" {
		answer.RoomVersion = "1"
	}
	v, ok := pdu.Lookup(answer.RoomVersion)
	if !ok {
		return nil, nil, incompatible(answer.RoomVersion)
	}
	proto, err := pdu.ParseTemplate(v, answer.Event)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errUnsound, err)
	}
	given := gjson.ParseBytes(proto.Content)
	if proto.Type != "m.room.member" || proto.RoomID != in.roomID || proto.Sender != in.user || proto.StateKey == nil || *proto.StateKey != in.user ||
		given.Get("membership").Str != membership {
		return nil, nil, fmt.Errorf("%w: the template is of another event", errUnsound)
	}
	content := maps.Clone(in.content)
	if content == nil {
		content = map[string]any{}
	}
	content["membership"] = membership
	if via := given.Get("join_authorised_via_users_server"); via.Type == gjson.String {
		content["join_authorised_via_users_server"] = via.Str
	}
	if proto.Content, err = json.Marshal(content); err != nil {
		return nil, nil, fmt.Errorf("membership content: %w", err)
	}
	proto.OriginServerTS = time.Now().UnixMilli()
	event, err := a.rooms.Complete(v, proto)
	return event, v, err
}

// joinThrough joins through one server.
func (a *API) joinThrough(ctx context.Context, server string, in *wish) error {
	event, v, err := a.fromTemplate(ctx, server, "join", roomserver.Join, in)
	if err != nil {
		return err
	}
	path := client.Path(v2+"/send_join/%s/%s", in.roomID, event.ID)
	switch whole, err := a.knownWhole(ctx, in.roomID); {
	case err != nil:
		return err
	case !whole:
		path += "?omit_members=true"
	}
	body, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodPut, Path: path, Body: event.JSON(), Timeout: handshakeTimeout, MaxBytes: maxStateBytes,
	})
	if err != nil {
		return err
	}
	entry, err := a.entryOf(ctx, v, event, body)
	if err != nil {
		return err
	}
	entry.Via = server
	if _, err := a.rooms.Enter(ctx, entry); err != nil {
		return fmt.Errorf("%w: %w", errUnsound, err)
	}
	a.entrances.Put(in.user, entrance{in.roomID, server}, 1)
	room, err := a.rooms.Room(ctx, in.roomID)
	if err != nil || room.Partial() == nil {
		return nil //nolint:nilerr // the user is in the room, whatever became of it since
	}
	a.completeLater(in.roomID)
	a.awaitWhole(ctx, room, joinPatience)
	return nil
}

// knownWhole tells whether this server is in a room and knows all members, which it then does not want to give up.
func (a *API) knownWhole(ctx context.Context, roomID string) (bool, error) {
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return false, nil
	}
	return err == nil && room.Resident() && room.Partial() == nil, err
}

// entryOf reads the answer to a join: what is sound of it.
func (a *API) entryOf(ctx context.Context, v *pdu.Version, event *pdu.Event, body []byte) (entry roomserver.Entry, err error) {
	answer := gjson.ParseBytes(body)
	if raw := answer.Get("event"); raw.IsObject() {
		if signed, err := pdu.Parse(v, []byte(raw.Raw)); err == nil && signed.ID == event.ID && !signed.Redacted {
			event = signed
		}
	}
	entry = roomserver.Entry{RoomID: event.RoomID, Version: v, Event: event}
	entry.State = a.sound(ctx, v, event.RoomID, answer.Get("state"), nil)
	entry.Auth = a.sound(ctx, v, event.RoomID, answer.Get("auth_chain"), entry.State)
	if err := checkCreate(&entry); err != nil {
		return entry, err
	}
	if entry.Partial = answer.Get("members_omitted").Bool(); entry.Partial {
		if entry.Servers = serverNames(answer.Get("servers_in_room")); len(entry.Servers) == 0 {
			return entry, fmt.Errorf("%w: members are omitted, and the servers in the room as well", errUnsound)
		}
	}
	if err := a.verify(ctx, event); err != nil {
		return entry, fmt.Errorf("%w: the join: %w", errUnsound, err)
	}
	return entry, nil
}

// maxServersInRoom bounds the servers that an answer to a join may name.
const maxServersInRoom = 50_000

// serverNames reads an array of server names; what is none is left out.
func serverNames(list gjson.Result) (out []string) {
	list.ForEach(func(_, name gjson.Result) bool {
		if name.Type == gjson.String && pdu.ValidServerName(name.Str) {
			out = append(out, name.Str)
		}
		return len(out) < maxServersInRoom
	})
	return out
}

// checkCreate checks that a state begins with the creation of the room in question.
func checkCreate(entry *roomserver.Entry) error {
	for _, p := range entry.State {
		if !p.Is("m.room.create", "") {
			continue
		}
		version, ok := p.ContentString("room_version")
		if !ok {
			version = "1"
		}
		if version != entry.Version.ID {
			return fmt.Errorf("%w: the room is of version %s and not %s", errUnsound, version, entry.Version.ID)
		}
		return nil
	}
	return fmt.Errorf("%w: the state has no m.room.create", errUnsound)
}

// sound parses a list of events of a room and checks their signatures. What fails is left out, and so is what is among
// known already.
func (a *API) sound(ctx context.Context, v *pdu.Version, roomID string, list gjson.Result, known []*pdu.Event) []*pdu.Event {
	seen := make(map[string]bool, len(known))
	for _, p := range known {
		seen[p.ID] = true
	}
	var parsed []*pdu.Event
	list.ForEach(func(_, raw gjson.Result) bool {
		p, err := pdu.Parse(v, []byte(raw.Raw))
		if err == nil && p.RoomID == roomID && !seen[p.ID] {
			seen[p.ID] = true
			parsed = append(parsed, p)
		}
		return true
	})
	good := parsed[:0]
	for i, err := range a.keys.VerifyEvents(ctx, parsed) {
		if err == nil {
			good = append(good, parsed[i])
		} else {
			a.log.WithError(err).WithField("event_id", parsed[i].ID).Debug("dropped an event with a wrong signature")
		}
	}
	return good
}

// knockThrough knocks through one server.
func (a *API) knockThrough(ctx context.Context, server string, in *wish) error {
	event, v, err := a.fromTemplate(ctx, server, "knock", roomserver.Knock, in)
	if err != nil {
		return err
	}
	body, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodPut, Path: client.Path(v1+"/send_knock/%s/%s", in.roomID, event.ID), Body: event.JSON(),
		Timeout: templateTimeout,
	})
	if err != nil {
		return err
	}
	out := []byte{'['}
	for _, p := range a.sound(ctx, v, in.roomID, gjson.GetBytes(body, "knock_room_state"), nil) {
		if p.IsState() && len(out) < maxInviteBody {
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(out, p.AppendStripped(nil)...)
		}
	}
	return a.rooms.PutOutside(ctx, roomserver.Outside{
		User: in.user, RoomID: in.roomID, Version: v, Membership: roomserver.Knock, Event: event, Stripped: append(out, ']'),
	})
}
