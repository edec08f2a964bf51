package syncapi

import (
	"context"
	"embed"
	"encoding/json"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/memo"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to this package: the connections of sliding sync.
var Schema = storage.Schema{Feature: "syncapi", FS: migrations}

// sliding is what sliding sync keeps in memory.
type sliding struct {
	connections *connections
	users       *memo.Memo[string, *slidingUser]
	outsideOf   *memo.Memo[string, []roomserver.Outside]
	stays       *cache.Cache[int64, stayKind]
	bumps       *cache.Cache[int64, bumpMark]
}

func (a *API) setUpSliding(log *logrus.Entry) (err error) {
	s := &a.sliding
	s.connections = newConnections(a.db, log, a.now)
	s.users = memo.New(maxSlidingUsers, a.readSlidingUser)
	s.outsideOf = memo.New(maxSlidingUsers, a.rooms.OutsideOf)
	s.stays = cache.New[int64, stayKind](maxStays)
	s.bumps = cache.New[int64, bumpMark](maxBumps)
	a.db.Subscribe(func(batch []storage.Notice, _ int64) {
		for i := range batch {
			switch n := &batch[i]; {
			case n.Kind == storage.AccountData:
				s.users.Changed(n.User)
			case n.Kind == storage.Membership && n.Room == 0:
				s.outsideOf.Changed(n.User)
			}
		}
	})
	return nil
}

type slidingV4Request struct {
	Body json.RawMessage `body:"raw"`
}

type slidingDraftRequest struct {
	Body        json.RawMessage `body:"raw"`
	Pos         string          `query:"pos"`
	Timeout     int64           `query:"timeout" min:"0"`
	SetPresence string          `query:"set_presence" enum:"online|offline|unavailable|org.matrix.msc3026.busy" default:"online"`
}

// slidingV4: MSC4186, POST /_matrix/client/v4/sync.
func (a *API) slidingV4(ctx context.Context, by *httpapi.Caller, in *slidingV4Request) (*rawJSON, error) {
	req, err := parseSliding(slidingV4, by.UserID, in.Body)
	if err != nil {
		return nil, err
	}
	return a.slide(ctx, by, req)
}

// slidingDraft: the same as clients spoke it before, POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync.
func (a *API) slidingDraft(ctx context.Context, by *httpapi.Caller, in *slidingDraftRequest) (*rawJSON, error) {
	req, err := parseSliding(slidingDraft, by.UserID, in.Body)
	if err != nil {
		return nil, err
	}
	req.pos, req.timeout, req.presence = in.Pos, in.Timeout, in.SetPresence
	return a.slide(ctx, by, req)
}

// slide answers a request: it looks until there is something to tell or the time is over.
func (a *API) slide(ctx context.Context, by *httpapi.Caller, req *slidingRequest) (*rawJSON, error) {
	l := &slidingLook{api: a, user: by.UserID, device: by.DeviceID, req: req}
	state, _ := ephemeral.ParseState(req.presence)
	defer a.ephemeral.Syncing(ctx, by.UserID, by.DeviceID, state)()
	key := connectionKey{by.UserID, by.DeviceID, req.name}
	timeout := min(time.Duration(req.timeout)*time.Millisecond, maxTimeout)
	var err error
	if req.pos == "" {
		timeout = 0
		l.turn, err = a.sliding.connections.begin(ctx, key)
	} else {
		t, ok := parseSlidingToken(req.pos)
		if !ok || t.generation != a.db.Generation() || t.pos > a.db.Head() {
			return nil, errUnknownPos
		}
		l.token = t
		l.turn, err = a.sliding.connections.resume(ctx, key, t)
	}
	if err != nil {
		return nil, err
	}
	if timeout <= 0 {
		if _, err := l.take(ctx); err != nil {
			return nil, err
		}
		return l.answer()
	}
	w, done := a.tracker.wait(l.user, l.interests())
	defer done()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		found, err := l.take(ctx)
		if err != nil {
			return nil, err
		}
		if found {
			return l.answer()
		}
		select {
		case <-w.wake:
		case <-deadline.C:
			return l.answer()
		case <-a.released:
			return l.answer()
		case <-l.turn.over:
			return l.unchanged(), nil
		case <-ctx.Done():
			return l.unchanged(), nil
		}
	}
}

// slidingLook is one request's view of the log for one connection.
type slidingLook struct {
	api          *API
	user, device string
	req          *slidingRequest
	token        slidingToken // zero at the beginning of a connection
	turn         *slidingTurn

	upTo     int64
	now      int64
	data     *slidingUser
	rooms    []slidingRoom // all of the user's, reused between looks
	order    []placed      // of rooms, the most active first; reused like them
	activity []int64       // scratch
	counts   []int         // rooms of each list

	change  slidingChange
	dirty   bool // there is something in change
	configs map[*roomConfig]int64
	members map[lazyMember]int64
	shown   map[int64][]*roomserver.Event // timelines of rooms that are new to the client, for receipts
	// timelines are those of all rooms in the answer.
	timelines map[int64][]*roomserver.Event
	// people are those of whose profiles the client may want to hear.
	people people

	roomsOut, extensionsOut []byte
	volatile                Volatile
}

// initial tells that the connection begins.
func (l *slidingLook) initial() bool { return l.turn.fresh }

// take looks up to the present head, and tells whether there is anything that must not wait.
func (l *slidingLook) take(ctx context.Context) (found bool, err error) {
	l.upTo = l.api.db.Head()
	l.now = l.api.now().UnixMilli()
	if l.data, err = l.api.sliding.users.Get(ctx, l.user); err != nil {
		return false, err
	}
	l.change = slidingChange{flags: l.turn.base.flags}
	l.dirty, l.configs, l.members, l.shown, l.timelines = l.initial(), map[*roomConfig]int64{}, nil, nil, nil
	l.roomsOut, l.extensionsOut, l.people = l.roomsOut[:0], l.extensionsOut[:0], people{}
	if err := l.collect(ctx); err != nil {
		return false, err
	}
	if err := l.choose(ctx); err != nil {
		return false, err
	}
	if err := l.chosen(ctx); err != nil {
		return false, err
	}
	if len(l.turn.base.rooms)+len(l.change.rooms) > maxSentRooms || len(l.turn.base.configs)+len(l.change.configs) > maxSentConfigs {
		if !l.initial() {
			return false, errUnknownPos
		}
		return false, mxerr.InvalidParam("There are too many different required states")
	}
	told, err := l.extensions(ctx)
	return len(l.roomsOut) > 0 || told, err
}

// configOf numbers the required state of a config within the connection.
func (l *slidingLook) configOf(c *roomConfig) int64 {
	if i, ok := l.configs[c]; ok {
		return i
	}
	text := c.state.key()
	i := int64(-1)
	for j, known := range l.turn.base.configs {
		if known.text == text {
			i = int64(j)
		}
	}
	for j, known := range l.change.configs {
		if known.text == text {
			i = int64(len(l.turn.base.configs) + j)
		}
	}
	if i < 0 {
		i = int64(len(l.turn.base.configs) + len(l.change.configs))
		l.change.configs = append(l.change.configs, sentConfig{text, c.state})
	}
	l.configs[c] = i
	return i
}

// unchanged is the answer to a request that nobody waits for any more.
func (l *slidingLook) unchanged() *rawJSON {
	raw := rawJSON(append(canonicaljson.AppendString([]byte(`{"pos":`), l.req.pos), '}'))
	return &raw
}

// answer remembers what the client will know and makes the answer.
func (l *slidingLook) answer() (*rawJSON, error) {
	next := slidingToken{generation: l.api.db.Generation(), conn: l.turn.id, seq: l.turn.base.seq, pos: l.upTo, volatile: l.volatile, fields: l.req.extensions.Profiles.mark()}
	if l.dirty {
		seq, ok := l.api.sliding.connections.commit(l.turn, &l.change, l.members)
		if !ok {
			return l.unchanged(), nil
		}
		next.seq = seq
	}
	b := make([]byte, 0, 256+len(l.roomsOut)+len(l.extensionsOut))
	b = append(append(b, `{"pos":"`...), next.String()...)
	b = append(b, `","lists":{`...)
	for i := range l.req.lists {
		if i > 0 {
			b = append(b, ',')
		}
		b = canonicaljson.AppendString(b, l.req.lists[i].name)
		b = append(strconv.AppendInt(append(b, `:{"count":`...), int64(l.counts[i]), 10), '}')
	}
	b = append(append(b, `},"rooms":{`...), l.roomsOut...)
	b = append(append(b, `},"extensions":{`...), l.extensionsOut...)
	raw := rawJSON(append(b, "}}"...))
	return &raw, nil
}
