package syncapi

import (
	"context"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/syncapi/filter"
)

type messagesRequest struct {
	RoomID string `path:"roomId"`
	From   string `query:"from"`
	To     string `query:"to"`
	Dir    string `query:"dir" enum:"b|f" default:"f"`
	Limit  int    `query:"limit" default:"10" min:"0"`
	Filter string `query:"filter"`
}

// maxPage bounds the events of one page of /messages.
const maxPage = 1000

// page is one page of a room's history.
type page struct {
	acc    *access
	viewer *roomserver.Viewer
	filter *filter.RoomEventFilter
	// ignored are the users whose messages the reader does not want to see.
	ignored map[string]bool
	events  []*roomserver.Event
	// end is where the next page begins; more tells whether there may be one.
	end  roomserver.HistoryToken
	more bool
}

// messages: client-server API v1.19, GET /rooms/{roomId}/messages.
func (a *API) messages(ctx context.Context, by *httpapi.Caller, in *messagesRequest) (*rawJSON, error) {
	acc, err := a.enter(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	p := &page{acc: acc}
	if p.ignored, err = a.ignoredUsers(ctx, by.UserID); err != nil {
		return nil, err
	}
	if p.filter, err = parseRoomFilter(in.Filter); err != nil {
		return nil, err
	}
	from, to, err := in.places(acc)
	if err != nil {
		return nil, err
	}
	if p.viewer, err = a.rooms.Viewer(ctx, acc.room, by.UserID, acc.room.Head().Pos); err != nil {
		return nil, err
	}
	limit := p.filter.Limit(in.Limit, maxPage)
	if err := a.fill(ctx, p, from, to, min(limit, max(in.Limit, 1), maxPage), in.Dir == "f"); err != nil {
		return nil, err
	}
	return a.appendPage(ctx, by, p, from)
}

// parseRoomFilter reads the filter parameter of /messages and /context.
func parseRoomFilter(f string) (*filter.RoomEventFilter, error) {
	if f == "" {
		return &noFilter.Room.Timeline, nil
	}
	return filter.ParseRoomEvents([]byte(f))
}

// places reads the ends of the page; without from, it is the end of the room that dir leads away from.
func (in *messagesRequest) places(acc *access) (from, to roomserver.HistoryToken, err error) {
	newest := roomserver.AfterPosition(acc.upTo)
	if in.From != "" {
		if from, err = parsePlace(in.From); err != nil {
			return from, to, err
		}
	} else if in.Dir == "b" {
		from = newest
	}
	if in.To != "" {
		to, err = parsePlace(in.To)
		return from, to, err
	}
	if in.Dir == "f" {
		to = newest
	}
	return from, to, nil
}

// maxScan bounds how many events one request looks at while few pass filter and visibility.
const maxScan = 2000

// fill reads events from one place towards another until the page is full or there are no more.
func (a *API) fill(ctx context.Context, p *page, from, to roomserver.HistoryToken, limit int, forward bool) error {
	p.end, p.more = from, limit == 0
	for scanned := 0; scanned < maxScan && len(p.events) < limit; {
		want := limit - len(p.events)
		var events []*roomserver.Event
		var err error
		if err = a.complete(ctx, p, want, forward); err != nil {
			return err
		}
		if forward {
			events, err = a.rooms.HistoryAfter(ctx, p.acc.room, p.end, to.Anchor, want)
		} else {
			events, err = a.rooms.HistoryBefore(ctx, p.acc.room, p.end, want)
		}
		if err != nil {
			return err
		}
		p.more = len(events) == want
		scanned += len(events)
		for i, e := range events {
			if !forward && e.Token().Before(to) || forward && !e.Token().Before(to) {
				events, p.more = events[:i], false
				break
			}
		}
		if len(events) > 0 {
			last := events[len(events)-1]
			if p.end = last.Token(); forward {
				p.end = last.After()
			}
		}
		if events, err = p.viewer.Filter(ctx, events); err != nil {
			return err
		}
		events = keep(events, func(e *roomserver.Event) bool {
			return (len(p.ignored) == 0 || e.IsState() || !p.ignored[e.Sender]) && matches(p.filter, e)
		})
		if events, err = a.related(ctx, p.acc.room, p.filter, events); err != nil {
			return err
		}
		p.events = append(p.events, events...)
		if !p.more {
			break
		}
	}
	return nil
}

// complete gets what is missing of the history where the page goes on, if other servers have it.
func (a *API) complete(ctx context.Context, p *page, want int, forward bool) error {
	switch {
	case a.history == nil:
		return nil
	case forward:
		return a.history.FillAfter(ctx, p.acc.room, p.end, want)
	default:
		return a.history.Fill(ctx, p.acc.room, p.end, want)
	}
}

// appendPage renders a page.
func (a *API) appendPage(ctx context.Context, by *httpapi.Caller, p *page, from roomserver.HistoryToken) (*rawJSON, error) {
	r, err := a.bundling(ctx, by, p.acc.room, p.viewer, p.events)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 512*len(p.events)+128), `{"chunk":`...)
	if b, err = a.rooms.AppendClientEvents(ctx, b, p.acc.room, p.events, r); err != nil {
		return nil, err
	}
	b = append(append(append(b, `,"start":"`...), historyToken(from)...), '"')
	// Where a filter leaves things out, clients ask on from what they got, until they get nothing.
	if p.more || len(p.events) > 0 && !p.filter.MatchesAll() {
		b = append(append(append(b, `,"end":"`...), historyToken(p.end)...), '"')
	}
	if p.filter.LazyLoadMembers {
		b = append(b, `,"state":`...)
		if b, err = a.appendSenders(ctx, b, p.acc.room, p.events, p.acc.root, r); err != nil {
			return nil, err
		}
	}
	out := rawJSON(append(b, '}'))
	return &out, nil
}

// appendSenders appends the membership events of the senders of events, as an array.
func (a *API) appendSenders(ctx context.Context, b []byte, room *roomserver.Room, events []*roomserver.Event, root snapshot.Ref, r *roomserver.Reader) ([]byte, error) {
	var out []*roomserver.Event
	seen := map[string]bool{}
	for _, e := range events {
		if seen[e.Sender] {
			continue
		}
		seen[e.Sender] = true
		m, err := a.rooms.StateEvent(ctx, room, root, "m.room.member", e.Sender)
		if err != nil {
			return nil, err
		}
		if m != nil {
			out = append(out, m)
		}
	}
	return a.rooms.AppendClientEvents(ctx, b, room, out, r)
}

type contextRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `path:"eventId"`
	Limit   int    `query:"limit" default:"10" min:"0"`
	Filter  string `query:"filter"`
}

// context: client-server API v1.19, GET /rooms/{roomId}/context/{eventId}.
func (a *API) context(ctx context.Context, by *httpapi.Caller, in *contextRequest) (*rawJSON, error) {
	f, err := parseRoomFilter(in.Filter)
	if err != nil {
		return nil, err
	}
	acc, e, viewer, err := a.visibleEvent(ctx, by, in.RoomID, in.EventID)
	if err != nil {
		return nil, err
	}
	limit := min(f.Limit(in.Limit, maxPage), in.Limit, maxPage)
	ignored, err := a.ignoredUsers(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	before := &page{acc: acc, viewer: viewer, filter: f, ignored: ignored}
	if err := a.fill(ctx, before, e.Token(), roomserver.HistoryToken{}, limit/2, false); err != nil {
		return nil, err
	}
	after := &page{acc: acc, viewer: viewer, filter: f, ignored: ignored}
	if err := a.fill(ctx, after, e.After(), roomserver.AfterPosition(acc.upTo), limit-limit/2, true); err != nil {
		return nil, err
	}
	return a.appendContext(ctx, by, e, before, after)
}

// appendContext renders an event with its neighbours and the state at the last of them.
func (a *API) appendContext(ctx context.Context, by *httpapi.Caller, e *roomserver.Event, before, after *page) (*rawJSON, error) {
	room := before.acc.room
	r, err := a.bundling(ctx, by, room, before.viewer, []*roomserver.Event{e}, before.events, after.events)
	if err != nil {
		return nil, err
	}
	b, err := a.rooms.AppendClientEvent(ctx, []byte(`{"event":`), room, e, r)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"events_before":`...)
	if b, err = a.rooms.AppendClientEvents(ctx, b, room, before.events, r); err != nil {
		return nil, err
	}
	b = append(b, `,"events_after":`...)
	if b, err = a.rooms.AppendClientEvents(ctx, b, room, after.events, r); err != nil {
		return nil, err
	}
	b = append(append(append(b, `,"start":"`...), historyToken(before.end)...), '"')
	b = append(append(append(b, `,"end":"`...), historyToken(after.end)...), '"')
	last := e
	if n := len(after.events); n > 0 {
		last = after.events[n-1]
	}
	shown := append(append([]*roomserver.Event{e}, before.events...), after.events...)
	state, err := a.contextState(ctx, room, last.StateAfter, before.filter, shown)
	if err != nil {
		return nil, err
	}
	if b, err = a.rooms.AppendClientEvents(ctx, append(b, `,"state":`...), room, state, r); err != nil {
		return nil, err
	}
	out := rawJSON(append(b, '}'))
	return &out, nil
}

// contextState is the state at a root as far as it passes a filter: with lazily loaded members, memberships only of the
// senders of the shown events.
func (a *API) contextState(ctx context.Context, room *roomserver.Room, root snapshot.Ref, f *filter.RoomEventFilter, shown []*roomserver.Event) ([]*roomserver.Event, error) {
	state, err := a.rooms.StateEvents(ctx, room, root)
	if err != nil {
		return nil, err
	}
	senders := map[string]bool{}
	for _, e := range shown {
		senders[e.Sender] = true
	}
	return keep(state, func(e *roomserver.Event) bool {
		return matches(f, e) && (!f.LazyLoadMembers || e.Type != memberType || senders[*e.StateKey])
	}), nil
}

// visibleEvent finds an event that the caller may see; anything else is 404 M_NOT_FOUND, so that nobody learns
// what exists.
func (a *API) visibleEvent(ctx context.Context, by *httpapi.Caller, roomID, eventID string) (*access, *roomserver.Event, *roomserver.Viewer, error) {
	missing := mxerr.NotFound("Event not found")
	acc, err := a.enter(ctx, by, roomID)
	if err != nil {
		return nil, nil, nil, err
	}
	e, err := a.rooms.Event(ctx, acc.room, eventID)
	if isUnknownEvent(err) {
		return nil, nil, nil, missing
	}
	if err != nil {
		return nil, nil, nil, err
	}
	v, err := a.rooms.Viewer(ctx, acc.room, by.UserID, acc.room.Head().Pos)
	if err != nil {
		return nil, nil, nil, err
	}
	ok, err := v.Sees(ctx, e)
	if err != nil {
		return nil, nil, nil, err
	}
	if !ok {
		return nil, nil, nil, missing
	}
	return acc, e, v, nil
}
