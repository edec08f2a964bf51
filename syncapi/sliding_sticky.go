package syncapi

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
)

// stickyExtension is the request of the extension sticky_events (MSC4480).
type stickyExtension struct {
	Enabled bool   `json:"enabled"`
	Limit   *int   `json:"limit"`
	Since   string `json:"since"`
}

const (
	// stickyPrefix begins the extension's tokens, which are apart from pos.
	stickyPrefix       = "k"
	defaultSlidingKeep = 100
)

// stickyPlace is a sticky event that is to be sent.
type stickyPlace struct {
	pos  int64
	room int // index in slidingLook.rooms
}

// sticky is the extension sticky_events: of all rooms that a list or subscription matches, in a window or not, the oldest
// sticky events that the client does not have. Rooms that are new to it have all of theirs.
func (l *slidingLook) sticky(ctx context.Context) (b []byte, err error) {
	x := &l.req.extensions.Sticky
	if !x.Enabled {
		return nil, nil
	}
	since, err := parseStickyToken(x.Since)
	if err != nil {
		return nil, err
	}
	limit := defaultSlidingKeep
	if x.Limit != nil {
		if limit = min(*x.Limit, maxSticky); limit < 1 {
			return nil, mxerr.InvalidParam("limit must be positive")
		}
	}
	next := stickyToken{l.upTo, l.upTo}
	after, waiting := l.stickyRooms(since)
	if len(waiting) > limit {
		slices.SortFunc(waiting, func(a, b stickyPlace) int { return cmp.Compare(a.pos, b.pos) })
		next.pos = waiting[limit-1].pos
	}
	for i := range l.rooms {
		from, ok := after[i]
		if !ok {
			continue
		}
		to := next.pos
		if from < since.pos { // new to the client: all at once
			to = l.upTo
		}
		if b, err = l.appendStickyRoom(ctx, b, &l.rooms[i], from, to); err != nil {
			return nil, err
		}
	}
	if len(b) == 0 {
		return nil, nil
	}
	b = append(append(b, `},"next_batch":"`...), next.String()...)
	return append(b, `"}`...), nil
}

// stickyToken says which sticky events a client has: those up to pos, in the rooms that it had joined at position rooms.
type stickyToken struct{ pos, rooms int64 }

// String is the token's wire form.
func (t stickyToken) String() string {
	s := stickyPrefix + strconv.FormatInt(t.pos, 10)
	if t.rooms != t.pos {
		s += "_" + strconv.FormatInt(t.rooms, 10)
	}
	return s
}

// parseStickyToken reads a token; an empty one is that of a client which has nothing.
func parseStickyToken(s string) (t stickyToken, err error) {
	if s == "" {
		return t, nil
	}
	digits, ok := strings.CutPrefix(s, stickyPrefix)
	pos, rooms, two := strings.Cut(digits, "_")
	if !two {
		rooms = pos
	}
	var err1, err2 error
	t.pos, err1 = strconv.ParseInt(pos, 10, 64)
	t.rooms, err2 = strconv.ParseInt(rooms, 10, 64)
	if !ok || err1 != nil || err2 != nil || t.pos < 0 || t.rooms < t.pos {
		return t, mxerr.InvalidParam("That is not a token of sticky events of this server")
	}
	return t, nil
}

// stickyRooms finds from where on each room, by its index, has sticky events for the client, and lists them, except those
// of rooms that are new to it.
func (l *slidingLook) stickyRooms(since stickyToken) (after map[int]int64, waiting []stickyPlace) {
	var positions []int64
	for i := range l.rooms {
		c := &l.rooms[i]
		if !c.matched || c.nid < 0 || c.membership != roomserver.Join {
			continue
		}
		_, fresh := l.shown[c.nid]
		from := since.pos
		if fresh || c.since > since.rooms && since.pos > 0 {
			from = 0
		}
		if positions = l.api.rooms.StickyPositions(positions[:0], c.nid, from, l.upTo, l.now); len(positions) == 0 {
			continue
		}
		if after == nil {
			after = map[int]int64{}
		}
		if after[i] = from; from == since.pos {
			for _, pos := range positions {
				waiting = append(waiting, stickyPlace{pos, i})
			}
		}
	}
	return after, waiting
}

func (l *slidingLook) appendStickyRoom(ctx context.Context, b []byte, c *slidingRoom, after, upTo int64) ([]byte, error) {
	room, err := l.api.rooms.RoomByNID(ctx, c.nid)
	if err != nil {
		return nil, err
	}
	events, err := l.api.stickyEvents(ctx, l.user, room, after, upTo, l.now, l.timelines[c.nid])
	if err != nil || len(events) == 0 {
		return b, err
	}
	if len(b) == 0 {
		b = append(b, `"org.matrix.msc4354.sticky_events":{"rooms":{`...)
	} else {
		b = append(b, ',')
	}
	b = append(canonicaljson.AppendString(b, c.id), `:{"events":`...)
	reader := &roomserver.Reader{User: l.user, Device: l.device, Now: l.now, Erased: l.api.accounts.Erased}
	if b, err = l.api.rooms.AppendClientEvents(ctx, b, room, events, reader); err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}
