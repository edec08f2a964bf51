package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation/queue"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
)

const (
	// remoteTyping is for how long another server's user types who does not stop. Servers repeat it in time.
	remoteTyping = time.Minute
	// repeatTyping is how often we do.
	repeatTyping = 25 * time.Second
	// maxReceipts and maxPresences bound what is taken of one EDU.
	maxReceipts  = 1000
	maxPresences = 500
	// parallelReceipts is how many of them are written at the same time.
	parallelReceipts = 16
	// maxPresenceServers bounds the servers that are told of one user's presence.
	maxPresenceServers = 1000
	// maxEphemeralNews bounds the rooms and users of which others are to be told.
	maxEphemeralNews = 10_000
)

// ephemeralHandlers are the handlers of what is shown beside the timeline.
func (a *API) ephemeralHandlers() map[string]EDUHandler {
	return map[string]EDUHandler{"m.typing": a.receiveTyping, "m.receipt": a.receiveReceipts, "m.presence": a.receivePresence}
}

// speaks tells whether a server may speak for a user in a room, which it returns; nil if it is none of ours.
//
// spec: server-server-api v1.19 "Server Access Control Lists (ACLs)"
func (a *API) speaks(ctx context.Context, origin, user, roomID string) (*roomserver.Room, error) {
	if !pdu.ValidUserID(user) || pdu.ServerOf(user) != origin {
		return nil, fmt.Errorf("it is about %.100q", user)
	}
	room, err := a.rooms.Room(ctx, roomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if ok, err := a.allowed(ctx, room, origin); err != nil || !ok {
		return nil, err
	}
	return room, nil
}

// receiveTyping: server-server API v1.19, m.typing.
func (a *API) receiveTyping(ctx context.Context, origin string, content json.RawMessage) error {
	c := gjson.ParseBytes(content)
	user := c.Get("user_id").Str
	room, err := a.speaks(ctx, origin, user, c.Get("room_id").Str)
	if err != nil || room == nil {
		return err
	}
	if in, err := a.rooms.MayBeIn(ctx, room, user); err != nil || !in {
		return err
	}
	duration := time.Duration(0)
	if c.Get("typing").Bool() {
		duration = remoteTyping
	}
	a.ephemeral.SetTyping(room.NID, strings.Clone(user), duration)
	return nil
}

// receipt is one receipt of an EDU.
type receipt struct {
	room, user, thread, event string
	ts                        int64
}

// receiveReceipts: server-server API v1.19, m.receipt.
func (a *API) receiveReceipts(ctx context.Context, origin string, content json.RawMessage) error {
	var list []receipt
	var errs []error
	gjson.ParseBytes(content).ForEach(func(roomID, room gjson.Result) bool {
		room.Get("m\\.read").ForEach(func(user, said gjson.Result) bool {
			known, err := a.speaks(ctx, origin, user.Str, roomID.Str)
			if err != nil || known == nil {
				errs = append(errs, err)
				return len(errs) < maxReceipts
			}
			events := said.Get("event_ids").Array()
			if len(events) == 0 || events[0].Type != gjson.String {
				return true
			}
			// There is one receipt of a user; the last of several events is how far they have read.
			list = append(list, receipt{
				strings.Clone(roomID.Str), strings.Clone(user.Str), strings.Clone(said.Get("data.thread_id").Str), strings.Clone(events[len(events)-1].Str), said.Get("data.ts").Int(),
			})
			return len(list) < maxReceipts
		})
		return len(list) < maxReceipts && len(errs) < maxReceipts
	})
	var group sync.WaitGroup
	var mu sync.Mutex // guards errs
	slots := make(chan struct{}, parallelReceipts)
	for _, r := range list {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := a.ephemeral.Receive(ctx, r.room, r.user, r.thread, r.event, r.ts); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// receivePresence: server-server API v1.19, m.presence.
func (a *API) receivePresence(ctx context.Context, origin string, content json.RawMessage) error {
	var errs []error
	now := time.Now()
	n := 0
	gjson.GetBytes(content, "push").ForEach(func(_, said gjson.Result) bool {
		n++
		user := said.Get("user_id").Str
		state, ok := ephemeral.ParseState(said.Get("presence").Str)
		if !ok || !pdu.ValidUserID(user) || pdu.ServerOf(user) != origin {
			errs = append(errs, fmt.Errorf("presence %.50q of %.100q", said.Get("presence").Str, user))
			return n < maxPresences
		}
		ago := min(max(said.Get("last_active_ago").Int(), 0), (1000 * 24 * time.Hour).Milliseconds())
		errs = append(errs, a.ephemeral.ReceivePresence(ctx, ephemeral.Presence{
			User: strings.Clone(user), State: state, LastActive: now.Add(-time.Duration(ago) * time.Millisecond),
			CurrentlyActive: said.Get("currently_active").Bool(), Status: strings.Clone(said.Get("status_msg").Str),
		}))
		return n < maxPresences
	})
	return errors.Join(errs...)
}

// ephemeralNews is what other servers are still to be told of typing, receipts and presence.
type ephemeralNews struct {
	wake    chan struct{}
	mu      sync.Mutex
	changes // guarded by mu
}

// changes are what happened since others were told.
type changes struct {
	typing   map[int64]struct{} // rooms
	receipts map[int64][2]int64 // rooms, with the positions of the first and the last
	presence map[string]struct{}
	arrivals map[arrival]struct{}
}

// arrival is a change of another server's user's membership, who may have come into a room.
type arrival struct {
	room int64
	user string
	pos  int64
}

func newEphemeralNews() *ephemeralNews {
	return &ephemeralNews{wake: make(chan struct{}, 1), changes: noChanges()}
}

func noChanges() changes {
	return changes{map[int64]struct{}{}, map[int64][2]int64{}, map[string]struct{}{}, map[arrival]struct{}{}}
}

func (n *ephemeralNews) notify() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// listen makes us hear of what happens here.
func (n *ephemeralNews) listen(a *API) {
	a.ephemeral.Listen(ephemeral.Listener{
		Typing: func(room int64) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if len(n.typing) < maxEphemeralNews {
				n.typing[room] = struct{}{}
			}
			n.notify()
		},
		Presence: func(users []string, _ []int64) {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, user := range users {
				if a.rooms.IsLocal(user) && len(n.presence) < maxEphemeralNews {
					n.presence[user] = struct{}{}
				}
			}
			n.notify()
		},
	})
	a.db.Watch(func(batch []storage.Notice, _ int64) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for i := range batch {
			switch one := &batch[i]; one.Kind {
			case storage.Receipt:
				if a.rooms.IsLocal(one.User) {
					n.receipt(one.Room, one.Pos)
				}
			case storage.Event:
				if room := a.rooms.ActiveRoom(one.Room); room != nil {
					n.event(a, room, room.Latest(one.Pos))
				}
			}
		}
	})
}

// event notes a join of another server's user. n.mu is held.
func (n *ephemeralNews) event(a *API, room *roomserver.Room, e *roomserver.Event) {
	if e == nil || e.Type != pdu.TypeMember || e.Membership() != roomserver.Join || a.rooms.IsLocal(*e.StateKey) || len(n.arrivals) >= maxEphemeralNews {
		return
	}
	n.arrivals[arrival{room.NID, *e.StateKey, e.Anchor}] = struct{}{}
	n.notify()
}

// receipt notes the place of a receipt. n.mu is held.
func (n *ephemeralNews) receipt(room, pos int64) {
	span, ok := n.receipts[room]
	if !ok {
		if len(n.receipts) >= maxEphemeralNews {
			return
		}
		span = [2]int64{pos, pos}
	}
	n.receipts[room] = [2]int64{min(span[0], pos), max(span[1], pos)}
	n.notify()
}

// take takes what there is.
func (n *ephemeralNews) take() changes {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.changes
	n.changes = noChanges()
	return taken
}

// tellEphemeral tells other servers of typing, receipts and presence until ctx ends.
func (a *API) tellEphemeral(ctx context.Context) {
	shown := map[int64][]string{} // local users of whom others were told that they type
	repeat := time.NewTicker(repeatTyping)
	defer repeat.Stop()
	arrivals := map[arrival]struct{}{}
	arrived := time.NewTimer(time.Hour)
	defer arrived.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-repeat.C:
			for nid := range shown {
				a.tellTyping(ctx, nid, shown, true)
			}
		case <-a.news.wake:
			news := a.news.take()
			a.tellNews(ctx, news, shown)
			if len(news.arrivals) > 0 && len(arrivals) == 0 {
				arrived.Reset(greetAfter)
			}
			if len(arrivals) < maxEphemeralNews {
				maps.Copy(arrivals, news.arrivals)
			}
		case <-arrived.C:
			for one := range arrivals {
				if err := a.greet(ctx, one); err != nil && ctx.Err() == nil {
					a.log.WithError(err).Warn("a server whose user came into a room cannot be told of presence and of sticky events")
				}
			}
			clear(arrivals)
		}
	}
}

// tellNews tells of what there is.
func (a *API) tellNews(ctx context.Context, news changes, shown map[int64][]string) {
	warn := func(err error, what string) {
		if err != nil && ctx.Err() == nil {
			a.log.WithError(err).Warn("other servers cannot be told of " + what)
		}
	}
	for nid := range news.typing {
		a.tellTyping(ctx, nid, shown, false)
	}
	for nid, span := range news.receipts {
		warn(a.tellReceipts(ctx, nid, span), "receipts")
	}
	for user := range news.presence {
		warn(a.tellPresence(ctx, user), "presence")
	}
}

const (
	// maxGreeting bounds the users of whose presence a server is told when one of its users comes into a room.
	maxGreeting = 100
	// greetAfter is how long after that: the server believes us only once it knows the room.
	greetAfter = 2 * time.Second
)

// greet tells the server of a user who has come into a room of the presence of those who are there, and of what is sticky
// there.
func (a *API) greet(ctx context.Context, who arrival) error {
	room, err := a.rooms.RoomByNID(ctx, who.room)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil
	}
	if err != nil {
		return err
	}
	membership, err := a.rooms.MembershipAt(ctx, room, room.Head().State, who.user)
	if err != nil || membership != roomserver.Join {
		return err
	}
	here := a.ephemeral.PresenceIn(room)
	for i := range here[:min(len(here), maxGreeting)] {
		content := append(here[i].AppendUpdate([]byte(`{"push":[`), time.Now()), "]}"...)
		a.queue.Volatile([]string{pdu.ServerOf(who.user)}, "presence "+here[i].User, queue.EDU{Type: "m.presence", Content: content}, true)
	}
	return a.pushSticky(ctx, room, who)
}

// tellTyping tells the servers of a room of who began to type there, or does so still, and of who stopped.
func (a *API) tellTyping(ctx context.Context, nid int64, shown map[int64][]string, again bool) {
	room, err := a.rooms.RoomByNID(ctx, nid)
	if err != nil {
		delete(shown, nid)
		return
	}
	now := slices.DeleteFunc(a.ephemeral.Typists(nid), func(user string) bool { return !a.rooms.IsLocal(user) })
	before := shown[nid]
	if shown[nid] = now; len(now) == 0 {
		delete(shown, nid)
	}
	servers := room.Servers()
	if len(servers) < 2 {
		return
	}
	tell := func(user string, types bool) {
		content := canonicaljson.AppendString([]byte(`{"room_id":`), room.ID)
		content = fmt.Appendf(content, `,"typing":%t,"user_id":`, types)
		content = append(canonicaljson.AppendString(content, user), '}')
		a.queue.Volatile(servers, "typing "+room.ID+" "+user, queue.EDU{Type: "m.typing", Content: content}, true)
	}
	for _, user := range now {
		if again || !slices.Contains(before, user) {
			tell(user, true)
		}
	}
	for _, user := range before {
		if !slices.Contains(now, user) {
			tell(user, false)
		}
	}
}

// tellReceipts tells the servers of a room how far local users have read.
func (a *API) tellReceipts(ctx context.Context, nid int64, span [2]int64) error {
	room, err := a.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return err
	}
	servers := room.Servers()
	if len(servers) < 2 {
		return nil
	}
	list, err := a.ephemeral.Receipts(ctx, nid, "", span[0]-1, span[1])
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.Kind != ephemeral.Read || !a.rooms.IsLocal(r.User) {
			continue
		}
		data := map[string]any{"ts": r.TS}
		if r.Thread != ephemeral.Unthreaded {
			data["thread_id"] = r.Thread
		}
		content, err := json.Marshal(map[string]any{room.ID: map[string]any{"m.read": map[string]any{
			r.User: map[string]any{"event_ids": []string{r.EventID}, "data": data},
		}}})
		if err != nil {
			return err
		}
		a.queue.Volatile(servers, "receipt "+room.ID+" "+r.User+" "+r.Thread, queue.EDU{Type: "m.receipt", Content: content}, false)
	}
	return nil
}

// tellPresence tells the servers that share a room with a local user of the user's presence.
func (a *API) tellPresence(ctx context.Context, user string) error {
	seen, ok := a.ephemeral.PresenceOf(user)
	if !ok {
		return nil
	}
	rooms, err := a.rooms.UserRooms(ctx, user)
	if err != nil {
		return err
	}
	servers := map[string]struct{}{}
	for i := range rooms {
		if rooms[i].Membership != roomserver.Join || len(servers) >= maxPresenceServers {
			continue
		}
		room, err := a.rooms.RoomByNID(ctx, rooms[i].NID)
		if err != nil {
			return err
		}
		for _, name := range room.Servers() {
			servers[name] = struct{}{}
		}
	}
	delete(servers, a.name)
	if len(servers) == 0 {
		return nil
	}
	content := append(seen.AppendUpdate([]byte(`{"push":[`), time.Now()), "]}"...)
	a.queue.Volatile(slices.Collect(maps.Keys(servers)), "presence "+user, queue.EDU{Type: "m.presence", Content: content}, true)
	return nil
}
