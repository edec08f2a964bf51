package federation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// backfillTimeout bounds how long a reader waits for older events.
	backfillTimeout = 30 * time.Second
	// backfillServers is how many servers are asked for them.
	backfillServers = 3
	// backfillRounds bounds how often one reader's wish makes this server ask.
	backfillRounds = 5
	// gapRest is how long a gap is left alone that nobody could fill.
	gapRest  = 10 * time.Minute
	maxRests = 10_000
	// maxEdges is for how many events of one answer the state before them is asked for.
	maxEdges = 10
)

// gapKey names a gap.
type gapKey struct {
	room  int64
	place roomserver.HistoryToken
}

// Fill gets what is missing of a room's history among the last limit events before a place, as far as other servers
// have it. That they do not is no error.
func (a *API) Fill(ctx context.Context, room *roomserver.Room, before roomserver.HistoryToken, limit int) error {
	return a.fillNext(ctx, room, max(limit, 20), func() (roomserver.Gap, bool, error) {
		gap, ok := room.GapBefore(before)
		if !ok {
			return gap, false, nil
		}
		have, err := a.rooms.HistoryBefore(ctx, room, before, limit)
		within := len(have) < limit || !gap.Place.Before(have[limit-1].Token())
		return gap, err == nil && within, err
	})
}

// FillAfter is Fill for the first limit events after a place. A gap is filled from its newer end, so all of it has to be
// before a reader who comes from the older end reads on in order. A large one may not be filled at once; then the
// reader goes on behind it.
func (a *API) FillAfter(ctx context.Context, room *roomserver.Room, after roomserver.HistoryToken, limit int) error {
	return a.fillNext(ctx, room, maxBackfill, func() (roomserver.Gap, bool, error) {
		gap, ok := room.GapAfter(after)
		if !ok {
			return gap, false, nil
		}
		have, err := a.rooms.HistoryAfter(ctx, room, after, room.Head().Pos, limit)
		within := len(have) < limit || !have[limit-1].Token().Before(gap.Place)
		return gap, err == nil && within, err
	})
}

// fillNext fills gaps, a number of events at a time, as long as next finds one that is in the way.
func (a *API) fillNext(ctx context.Context, room *roomserver.Room, events int, next func() (roomserver.Gap, bool, error)) error {
	if !room.Resident() {
		return nil
	}
	for range backfillRounds {
		gap, ok, err := next()
		if err != nil || !ok {
			return err
		}
		if purged, err := a.rooms.Purged(ctx, room); err != nil || !purged.Floor.Before(gap.Place) {
			return err // what was there was deleted on purpose
		}
		key := gapKey{room.NID, gap.Place}
		if since, resting := a.rests.Get(key); resting && time.Since(since) < gapRest {
			return nil
		}
		if !a.awaitWhole(ctx, room, backfillTimeout) {
			return nil
		}
		n, err := a.fill(ctx, room, gap, events)
		if err != nil || n == 0 {
			if ctx.Err() == nil {
				a.rests.Put(key, time.Now(), 1)
				a.log.WithError(err).WithField("room_id", room.ID).Info("a gap in a room's history could not be filled")
			}
			return nil
		}
	}
	return nil
}

// errExpired says that what is missing would have been purged.
var errExpired = errors.New("messages of that time have expired")

// timestampRounds bounds how far back this server goes to an event that another one found by its time.
const timestampRounds = 10

// FillNear gets the event that is closest to a time, in milliseconds and in one direction, if another server has one that
// is closer than have, the one that this server found (or nil), and what lies between. That none has is no error.
//
// spec: server-server-api v1.19 "GET /timestamp_to_event"
func (a *API) FillNear(ctx context.Context, room *roomserver.Room, ts int64, forward bool, have *roomserver.Event) error {
	newest := roomserver.AfterPosition(room.Head().Pos)
	gap, ok := room.GapBefore(newest)
	if !ok || !room.Resident() {
		return nil
	}
	e, _, err := a.rooms.GapParents(ctx, room, gap)
	if err != nil {
		return err
	}
	for _, server := range a.historians(room, e.Sender) {
		id, at, err := a.fetchNear(ctx, server, room, ts, forward)
		if err != nil {
			a.log.WithError(err).WithField("server", server).Debug("a server has no event near a time")
			continue
		}
		if have != nil && max(at-ts, ts-at) >= max(have.OriginServerTS-ts, ts-have.OriginServerTS) {
			continue
		}
		for range timestampRounds {
			if found, err := a.rooms.Event(ctx, room, id); err == nil && found.Anchor > 0 {
				return nil
			}
			if gap, ok = room.GapBefore(newest); !ok {
				return nil
			}
			if n, err := a.fill(ctx, room, gap, maxBackfill); err != nil || n == 0 {
				return ctx.Err()
			}
		}
	}
	return ctx.Err()
}

// fetchNear asks a server for the event that is closest to a time.
func (a *API) fetchNear(ctx context.Context, server string, room *roomserver.Room, ts int64, forward bool) (id string, at int64, err error) {
	q := url.Values{"ts": {strconv.FormatInt(ts, 10)}, "dir": {"b"}}
	if forward {
		q.Set("dir", "f")
	}
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: client.Path(v1+"/timestamp_to_event/%s", room.ID) + "?" + q.Encode(),
		Timeout: fetchTimeout, MaxBytes: 64 << 10,
	})
	if err != nil {
		return "", 0, err
	}
	found := gjson.ParseBytes(answer)
	id, at = found.Get("event_id").Str, found.Get("origin_server_ts").Int()
	if id == "" || forward && at < ts || !forward && at > ts {
		return "", 0, fmt.Errorf("%w: %.100q at %d", errUnsound, id, at)
	}
	return id, at, nil
}

// fill backfills one gap and returns how many events it brought. Readers who come to the same gap wait for one.
func (a *API) fill(ctx context.Context, room *roomserver.Room, gap roomserver.Gap, limit int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, backfillTimeout)
	defer cancel()
	filling := &a.filling[room.NID%int64(len(a.filling))]
	filling.Lock()
	defer filling.Unlock()
	e, missing, err := a.rooms.GapParents(ctx, room, gap)
	if err != nil {
		return 0, err
	}
	if g, ok := room.GapBefore(roomserver.HistoryToken{Anchor: gap.Place.Anchor, Sub: gap.Place.Sub + 1}); !ok || g != gap {
		return 1, nil // filled meanwhile
	}
	// What is older than messages may be is not fetched to be purged again.
	if expired, err := a.rooms.Expired(ctx, room, e.OriginServerTS); err != nil {
		return 0, err
	} else if expired {
		return 0, errExpired
	}
	if len(missing) == 0 { // they came otherwise; say so
		placed, err := a.rooms.Backfill(ctx, room.ID, gap, nil)
		return 1 + len(placed), err
	}
	err = errNobody
	for _, server := range a.historians(room, e.Sender) {
		var placed []*roomserver.Event
		if placed, err = a.fillFrom(ctx, server, room, gap, missing, limit); err == nil && len(placed) > 0 {
			return len(placed), nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return 0, err
}

// historians lists the servers to ask for what is missing of a room's history: the one that the room is of, the one of who
// sent an event near it, then others.
func (a *API) historians(room *roomserver.Room, sender string) []string {
	list := []string{}
	servers := room.Servers()
	add := func(server string) {
		if server != a.name && server != "" && len(list) < backfillServers && !slices.Contains(list, server) {
			list = append(list, server)
		}
	}
	if own := serverOfRoom(room.ID); slices.Contains(servers, own) {
		add(own)
	}
	if own := pdu.ServerOf(sender); slices.Contains(servers, own) {
		add(own)
	}
	for _, server := range servers {
		add(server)
	}
	return list
}

// fillFrom backfills a gap from one server.
func (a *API) fillFrom(ctx context.Context, server string, room *roomserver.Room, gap roomserver.Gap, from []string, limit int) ([]*roomserver.Event, error) {
	q := url.Values{"v": from, "limit": {strconv.Itoa(min(limit, maxBackfill))}}
	answer, err := a.client.Do(ctx, client.Request{
		Server: server, Method: http.MethodGet, Path: client.Path(v1+"/backfill/%s", room.ID) + "?" + q.Encode(), MaxBytes: maxTransaction,
	})
	if err != nil {
		return nil, err
	}
	list := gjson.GetBytes(answer, "pdus")
	if n := len(list.Array()); n > 2*maxBackfill {
		return nil, fmt.Errorf("%w: %d events", errUnsound, n)
	}
	found, err := a.wanted(ctx, room, parentsFirst(a.sound(ctx, room.Version, room.ID, list, nil)))
	if err != nil {
		return nil, err
	}
	in, err := a.withStates(ctx, server, room, found)
	if err != nil {
		return nil, err
	}
	return a.rooms.Backfill(ctx, room.ID, gap, in)
}

// wanted leaves out messages that were purged here, or would be.
func (a *API) wanted(ctx context.Context, room *roomserver.Room, found []*pdu.Event) ([]*pdu.Event, error) {
	purged, err := a.rooms.Purged(ctx, room)
	if err != nil {
		return nil, err
	}
	out := found[:0]
	for _, p := range found {
		if !p.IsState() {
			expired, err := a.rooms.Expired(ctx, room, p.OriginServerTS)
			if err != nil {
				return nil, err
			}
			if expired || p.OriginServerTS < purged.Before {
				continue
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// withStates prepares events for backfill: those with unknown parents get the states after these, those with unknown auth
// events get them.
func (a *API) withStates(ctx context.Context, server string, room *roomserver.Room, found []*pdu.Event) ([]roomserver.Incoming, error) {
	coming := make(map[string]bool, len(found))
	lost := make(map[string]bool) // what is left out, whose children are, too
	in := make([]roomserver.Incoming, 0, len(found))
	edges := 0
	for _, p := range found {
		if slices.ContainsFunc(p.PrevEventIDs(), func(id string) bool { return lost[id] }) {
			lost[p.ID] = true
			continue
		}
		parents, err := a.stateless(ctx, room, p.PrevEventIDs(), coming)
		if err != nil {
			return nil, err
		}
		i := roomserver.Incoming{Event: p}
		if len(parents) > 0 {
			if edges++; edges > maxEdges {
				lost[p.ID] = true
				continue
			}
			if i.Before, err = a.fetchStatesOf(ctx, server, room, parents); err != nil {
				a.log.WithError(err).WithField("event_id", p.ID).Debug("an older event is left out")
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				lost[p.ID] = true
				continue
			}
		}
		auth, err := a.rooms.Unknown(ctx, room, p.AuthEventIDs())
		if err != nil {
			return nil, err
		}
		auth = slices.DeleteFunc(auth, func(id string) bool {
			return coming[id] || i.Before != nil && slices.ContainsFunc(i.Before.Events, func(e *pdu.Event) bool { return e.ID == id })
		})
		if len(auth) > 0 {
			if i.Before == nil {
				i.Before = &roomserver.Given{}
			}
			i.Before.Events = append(i.Before.Events, a.fetchAuth(ctx, server, room, p, auth)...)
		}
		coming[p.ID] = true
		in = append(in, i)
	}
	return in, nil
}

// stateless returns those of the ids whose events have no state here and are not among those coming.
func (a *API) stateless(ctx context.Context, room *roomserver.Room, ids []string, coming map[string]bool) (out []string, err error) {
	for _, id := range ids {
		if coming[id] {
			continue
		}
		e, err := a.rooms.Event(ctx, room, id)
		if err != nil && !errors.Is(err, roomserver.ErrUnknownEvent) {
			return nil, err
		}
		if err != nil || e.Outlier() {
			out = append(out, id)
		}
	}
	return out, nil
}
