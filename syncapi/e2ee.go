package syncapi

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"github.com/myelin-im/myelin/e2ee"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// inbox reads what the device is owed of its inbox. The next token acknowledges it.
func (l *look) inbox(ctx context.Context) (messages []e2ee.Message, next int64, err error) {
	since := l.since.ToDevice
	if since > l.upTo { // no token says so that this server made
		since = 0
	}
	return l.api.e2ee.ToDevice(ctx, l.user, l.device, since, l.upTo, e2ee.MaxBatch)
}

// appendMessages appends the messages to a device as an array.
func appendMessages(b []byte, messages []e2ee.Message) []byte {
	b = append(b, '[')
	for i := range messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, messages[i].Event...)
	}
	return append(b, ']')
}

// deviceLists appends whose devices changed, if any did.
func (l *look) deviceLists(ctx context.Context, out []byte) ([]byte, error) {
	if l.initial() {
		return out, nil
	}
	rooms := l.changed
	if l.fullState {
		var err error
		if rooms, err = l.api.rooms.UserRooms(ctx, l.user); err != nil {
			return nil, err
		}
	}
	changed, left, err := l.api.e2ee.DeviceLists(ctx, l.user, l.since.Pos, l.upTo, rooms)
	if err != nil || len(changed) == 0 && len(left) == 0 {
		return out, err
	}
	return appendDeviceLists(append(out, `,"device_lists":`...), changed, left), nil
}

func appendDeviceLists(b []byte, changed, left []string) []byte {
	b = appendStrings(append(b, `{"changed":`...), changed)
	return append(appendStrings(append(b, `,"left":`...), left), '}')
}

func appendStrings(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = canonicaljson.AppendString(b, s)
	}
	return append(b, ']')
}

// keyCounts appends how many keys others may claim of the device. Every answer has them.
func (l *look) keyCounts(ctx context.Context, out []byte) ([]byte, error) {
	c, err := l.api.e2ee.KeyCounts(ctx, l.user, l.device)
	if err != nil {
		return nil, err
	}
	out = append(append(out, `,"device_one_time_keys_count":`...), c.OneTime...)
	return append(append(out, `,"device_unused_fallback_key_types":`...), c.UnusedFallback...), nil
}

// toDevicePrefix begins the tokens of the to-device extension. They are apart from pos, because a device has several
// connections and acknowledges messages on one of them (MSC3885).
const toDevicePrefix = "d"

// toDevice is the extension to_device (MSC3885): it says up to where the device has been sent its messages. Those beyond
// the limit come with the next request.
func (l *slidingLook) toDevice(ctx context.Context, x *toDeviceExtension) (told bool, err error) {
	since := int64(0)
	if x.Since != "" {
		digits, ok := strings.CutPrefix(x.Since, toDevicePrefix)
		if since, err = strconv.ParseInt(digits, 10, 64); !ok || err != nil || since < 0 {
			return false, mxerr.InvalidParam("That is not a to-device token of this server")
		}
	}
	if since > l.upTo { // of another log than the one of this restored backup
		since = 0
	}
	limit := e2ee.MaxBatch
	if x.Limit != nil {
		if limit = *x.Limit; limit < 1 {
			return false, mxerr.InvalidParam("limit must be positive")
		}
	}
	messages, next, err := l.api.e2ee.ToDevice(ctx, l.user, l.device, since, l.upTo, limit)
	if err != nil {
		return false, err
	}
	b := append([]byte(`{"next_batch":"`), toDevicePrefix...)
	b = append(strconv.AppendInt(b, next, 10), `","events":`...)
	l.extension("to_device", append(appendMessages(b, messages), '}'))
	return len(messages) > 0, nil
}

// encryption is the extension e2ee (MSC3884).
func (l *slidingLook) encryption(ctx context.Context) (told bool, err error) {
	var changed, left []string
	if !l.initial() {
		rooms, err := l.api.rooms.UserRooms(ctx, l.user)
		if err != nil {
			return false, err
		}
		rooms = l.api.tracker.roomsWithNews(rooms, l.token.pos)
		if changed, left, err = l.api.e2ee.DeviceLists(ctx, l.user, l.token.pos, l.upTo, rooms); err != nil {
			return false, err
		}
	}
	c, err := l.api.e2ee.KeyCounts(ctx, l.user, l.device)
	if err != nil {
		return false, err
	}
	b := appendDeviceLists([]byte(`{"device_lists":`), changed, left)
	b = append(append(b, `,"device_one_time_keys_count":`...), c.OneTime...)
	b = append(append(b, `,"device_unused_fallback_key_types":`...), c.UnusedFallback...)
	l.extension("e2ee", append(b, '}'))
	return len(changed)+len(left) > 0, nil
}

// roomsWithNews returns those rooms that something may have happened in after a position.
func (t *tracker) roomsWithNews(rooms []roomserver.UserRoom, since int64) (news []roomserver.UserRoom) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, r := range rooms {
		if r.Pos > since || since < t.start || t.roomPos[r.NID] > since {
			news = append(news, r)
		}
	}
	return news
}

type keyChangesRequest struct {
	From string `query:"from" required:"true"`
	To   string `query:"to" required:"true"`
}

// keyChanges: client-server API v1.19, GET /keys/changes. Tokens of /sync and of sliding sync will do.
func (a *API) keyChanges(ctx context.Context, by *httpapi.Caller, in *keyChangesRequest) (*rawJSON, error) {
	head := a.db.Head()
	var at [2]int64
	for i, s := range []string{in.From, in.To} {
		generation, pos, err := tokenPosition(s)
		if err != nil {
			return nil, err
		}
		if at[i] = min(pos, head); generation != a.db.Generation() {
			at[i] = int64(i) * head // of another log: everything may have changed
		}
	}
	nids, err := a.rooms.RoomsOfUserSince(ctx, by.UserID, at[0])
	if err != nil {
		return nil, err
	}
	all, err := a.rooms.UserRooms(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	rooms := make([]roomserver.UserRoom, 0, len(nids))
	for _, r := range all {
		if nids[r.NID] || r.Pos > at[0] {
			rooms = append(rooms, r)
		}
	}
	changed, left, err := a.e2ee.DeviceLists(ctx, by.UserID, at[0], at[1], rooms)
	if err != nil {
		return nil, err
	}
	raw := rawJSON(appendDeviceLists(nil, changed, left))
	return &raw, nil
}

// tokenPosition is the place in the log of a token of either kind of sync.
func tokenPosition(s string) (generation, pos int64, err error) {
	if strings.HasPrefix(s, slidingTokenPrefix) {
		t, ok := parseSlidingToken(s)
		if !ok {
			return 0, 0, mxerr.InvalidParam("That is not a sync token of this server")
		}
		return t.generation, t.pos, nil
	}
	t, err := parseToken(s)
	return t.Generation, t.Pos, err
}

// keyWaker wakes those who share a room with users whose devices changed. Finding them may take the database, so that it
// is not done where batches are published.
type keyWaker struct {
	mu      sync.Mutex
	users   map[string]bool
	running bool
}

// deviceKeysPublished notes whose devices changed.
func (a *API) deviceKeysPublished(batch []storage.Notice, _ int64) {
	w := &a.keyWaker
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range batch {
		if batch[i].Kind != storage.DeviceKeys {
			continue
		}
		if w.users == nil {
			w.users = map[string]bool{}
		}
		w.users[batch[i].User] = true
	}
	if len(w.users) > 0 && !w.running {
		w.running = true
		go a.wakeForKeys()
	}
}

// wakeForKeys wakes until there is nobody left to wake for.
func (a *API) wakeForKeys() {
	w := &a.keyWaker
	for {
		w.mu.Lock()
		users := w.users
		w.users = nil
		w.running = len(users) > 0
		w.mu.Unlock()
		if len(users) == 0 {
			return
		}
		a.wakeSharing(context.Background(), users)
	}
}

// wakeSharing wakes who shares a room with one of the users. A failure costs them time: they look at the end of their
// poll.
func (a *API) wakeSharing(ctx context.Context, users map[string]bool) {
	names := make([]string, 0, len(users))
	for user := range users {
		names = append(names, user)
	}
	rooms := map[int64]bool{}
	err := a.rooms.MembershipsOf(ctx, names, func(m roomserver.RoomMembership) {
		if m.Membership == roomserver.Join {
			rooms[m.Room] = true
		}
	})
	if err != nil {
		return
	}
	for nid := range rooms {
		if !a.tracker.somebodyWaits() {
			return
		}
		room, err := a.rooms.RoomByNID(ctx, nid)
		if err != nil {
			continue
		}
		local := room.LocalMembers(nil)
		a.tracker.mu.Lock()
		for _, user := range local {
			a.tracker.wakeLocked(user, everything)
		}
		a.tracker.mu.Unlock()
	}
}

func (t *tracker) somebodyWaits() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.waiters) > 0
}
