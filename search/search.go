package search

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/search/words"
	"github.com/myelin-im/myelin/syncapi/filter"
)

type searchResponse struct {
	Categories categories `json:"search_categories"`
}

type categories struct {
	RoomEvents *roomEvents `json:"room_events,omitempty"`
}

type roomEvents struct {
	Count      int                          `json:"count"`
	Highlights []string                     `json:"highlights"`
	Results    []*result                    `json:"results"`
	Groups     map[string]map[string]*group `json:"groups,omitempty"`
	State      map[string]json.RawMessage   `json:"state,omitempty"`
	NextBatch  string                       `json:"next_batch,omitempty"`
}

type result struct {
	Rank    float64         `json:"rank"`
	Event   json.RawMessage `json:"result"`
	Context *eventContext   `json:"context,omitempty"`

	event *roomserver.Event
	match *match
	view  *view
}

type group struct {
	Results   []string `json:"results"`
	Order     int      `json:"order"`
	NextBatch string   `json:"next_batch,omitempty"`
}

// search: client-server API v1.19, POST /search.
func (a *API) search(ctx context.Context, by *httpapi.Caller, in *searchRequest) (*searchResponse, error) {
	out := &searchResponse{}
	if in.Categories == nil || in.Categories.RoomEvents == nil {
		return out, nil
	}
	q, err := in.Categories.RoomEvents.check(in.NextBatch)
	if err != nil {
		return nil, err
	}
	a.index.await(ctx)
	f, err := a.newFinder(ctx, by.UserID, q)
	if err != nil {
		return nil, err
	}
	found, more, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	results, taken, err := f.page(ctx, found)
	if err != nil {
		return nil, err
	}
	answer := &roomEvents{Count: f.query.from.Seen + len(found), Results: results, Highlights: f.highlights(results)}
	f.paginate(answer, found, taken, more)
	if err := f.render(ctx, by, answer); err != nil {
		return nil, err
	}
	out.Categories.RoomEvents = answer
	return out, nil
}

// page takes the results of this page from the matches, and returns how many of them it looked at.
func (f *finder) page(ctx context.Context, found []*match) (results []*result, taken int, err error) {
	results = []*result{}
	taken = min(f.query.from.Skip, len(found))
	for taken < len(found) && len(results) < f.query.limit {
		some := found[taken:min(len(found), taken+f.query.limit-len(results))]
		taken += len(some)
		shown, err := f.show(ctx, some)
		if err != nil {
			return nil, 0, err
		}
		results = append(results, shown...)
	}
	return results, taken, nil
}

// show loads the events of matches and drops those that turn out to be no results.
func (f *finder) show(ctx context.Context, some []*match) ([]*result, error) {
	byRoom := map[int64][]*match{}
	for _, m := range some {
		byRoom[m.room] = append(byRoom[m.room], m)
	}
	events := map[int64]*roomserver.Event{}
	for nid, list := range byRoom {
		nids := make([]int64, len(list))
		for i, m := range list {
			nids[i] = m.event
		}
		loaded, err := f.load(ctx, f.views[nid], nids)
		if err != nil {
			return nil, err
		}
		for _, e := range loaded {
			events[e.NID] = e
		}
	}
	var results []*result
	for _, m := range some {
		if e := events[m.event]; e != nil {
			results = append(results, &result{Rank: m.rank, event: e, match: m, view: f.views[m.room]})
		}
	}
	return results, nil
}

// load returns those of the events of a room that are results. The index is behind: it may have what was redacted.
func (f *finder) load(ctx context.Context, v *view, nids []int64) ([]*roomserver.Event, error) {
	events, err := f.API.rooms.EventsByNID(ctx, v.room, nids)
	if errors.Is(err, roomserver.ErrUnknownEvent) && len(nids) > 1 { // some were purged
		for _, nid := range nids {
			one, err := f.load(ctx, v, []int64{nid})
			if err != nil {
				return nil, err
			}
			events = append(events, one...)
		}
		return events, nil
	}
	if errors.Is(err, roomserver.ErrUnknownEvent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if events, err = v.viewer.Filter(ctx, events); err != nil {
		return nil, err
	}
	wanted := f.query.filter
	events = slices.DeleteFunc(slices.Clone(events), func(e *roomserver.Event) bool {
		if e.Redacted {
			return true
		}
		if !wanted.LooksAtContent() {
			return false
		}
		return !wanted.Match(&filter.Event{
			Type: e.Type, Sender: e.Sender, RoomID: v.room.ID,
			HasURL: len(e.ContentField("url")) > 0, RelType: e.Relation().Type,
		})
	})
	if wanted.RelatedBySenders == nil && wanted.RelatedByRelTypes == nil {
		return events, nil
	}
	related, err := f.API.rooms.RelatedBy(ctx, v.room, events, wanted.RelatedBySenders, wanted.RelatedByRelTypes)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(events, func(e *roomserver.Event) bool { return !related[e.ID] }), nil
}

// highlights are the words that were found, as the results write them.
func (f *finder) highlights(results []*result) []string {
	out := []string{}
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	terms := map[string]bool{}
	for _, w := range f.words {
		add(w.Surface)
		terms[w.Terms[0]] = true
	}
	const most = 100
	for _, r := range results {
		words.Surfaces(textOf(r.event, r.match.part, nil), func(term, surface string) {
			if terms[term] && len(out) < most {
				add(surface)
			}
		})
	}
	return out
}

// paginate adds groups and tokens.
func (f *finder) paginate(answer *roomEvents, found []*match, taken int, more bool) {
	for _, by := range f.query.groups {
		if answer.Groups == nil {
			answer.Groups = map[string]map[string]*group{}
		}
		groups := map[string]*group{}
		answer.Groups[by] = groups
		for _, r := range answer.Results {
			value := f.value(by, r.match)
			g := groups[value]
			if g == nil {
				g = &group{Order: len(groups) + 1}
				groups[value] = g
			}
			g.Results = append(g.Results, r.event.ID)
		}
		if f.query.from.Group != "" {
			continue // the page is of one group already
		}
		for value, g := range groups {
			g.NextBatch = f.next(found, taken, more, false, by, value)
		}
	}
	// Clients take a page that is not full for the last one, and ask on after a full one.
	full := len(answer.Results) == f.query.limit
	answer.NextBatch = f.next(found, taken, more, full, f.query.from.Group, f.query.from.In)
}

// value is the group of a match.
func (f *finder) value(by string, m *match) string {
	if by == bySender {
		return m.sender
	}
	return f.rooms[m.room].RoomID
}

// next is the token of the page after this one, of all matches or of a group, or empty if there is none. After a full page
// there is one in any case.
func (f *finder) next(found []*match, taken int, more, full bool, by, value string) string {
	if taken == 0 {
		return ""
	}
	p := place{Group: by, In: value}
	inGroup := func(m *match) bool { return by == "" || f.value(by, m) == value }
	if f.query.recent {
		if !more && !full && !slices.ContainsFunc(found[taken:], inGroup) {
			return ""
		}
		p.Below = found[taken-1].id
		p.Seen = f.query.from.Seen + taken
		return p.String()
	}
	if !full && !slices.ContainsFunc(found[taken:], inGroup) {
		return ""
	}
	for _, m := range found {
		p.Below = max(p.Below, m.id+1)
	}
	if f.query.from.Below < p.Below || f.query.from.Skip > 0 {
		p.Below = f.query.from.Below
	}
	for _, m := range found[:taken] {
		if inGroup(m) {
			p.Skip++
		}
	}
	return p.String()
}

// render makes the events of an answer and what was asked for beside them.
func (f *finder) render(ctx context.Context, by *httpapi.Caller, answer *roomEvents) error {
	for _, r := range answer.Results {
		if err := f.renderResult(ctx, by, r); err != nil {
			return fmt.Errorf("render %s: %w", r.event.ID, err)
		}
	}
	if !f.query.state {
		return nil
	}
	answer.State = map[string]json.RawMessage{}
	for _, r := range answer.Results {
		room := r.view.room
		if answer.State[room.ID] != nil {
			continue
		}
		state, err := f.API.rooms.StateEvents(ctx, room, r.view.root)
		if err != nil {
			return err
		}
		reader := f.reader(by, r.view)
		if answer.State[room.ID], err = f.API.rooms.AppendClientEvents(ctx, nil, room, state, reader); err != nil {
			return err
		}
	}
	return nil
}

func (f *finder) reader(by *httpapi.Caller, v *view) *roomserver.Reader {
	return &roomserver.Reader{User: by.UserID, Device: by.DeviceID, RoomID: true, Now: f.now().UnixMilli(), Membership: v.viewer}
}

type eventContext struct {
	Start    string             `json:"start"`
	End      string             `json:"end"`
	Before   json.RawMessage    `json:"events_before"`
	After    json.RawMessage    `json:"events_after"`
	Profiles map[string]profile `json:"profile_info,omitempty"`
}

type profile struct {
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

func (f *finder) renderResult(ctx context.Context, by *httpapi.Caller, r *result) error {
	room, rooms := r.view.room, f.API.rooms
	var before, after []*roomserver.Event
	if f.query.context {
		r.Context = &eventContext{}
		var err error
		if before, after, err = f.around(ctx, r); err != nil {
			return err
		}
	}
	reader := f.reader(by, r.view)
	view := &relations.View{
		Rooms: rooms, Room: room, User: f.user, Viewer: r.view.viewer,
		Ignored: func(context.Context) (map[string]bool, error) { return f.ignored, nil },
	}
	err := view.Bundle(ctx, reader, []*roomserver.Event{r.event}, before, after)
	if err != nil {
		return err
	}
	if r.Event, err = rooms.AppendClientEvent(ctx, nil, room, r.event, reader); err != nil || !f.query.context {
		return err
	}
	if r.Context.Before, err = rooms.AppendClientEvents(ctx, nil, room, before, reader); err != nil {
		return err
	}
	if r.Context.After, err = rooms.AppendClientEvents(ctx, nil, room, after, reader); err != nil || !f.query.profile {
		return err
	}
	return f.profiles(ctx, r, append(append([]*roomserver.Event{r.event}, before...), after...))
}

// around returns the events before a result, newest first, and those after it.
func (f *finder) around(ctx context.Context, r *result) (before, after []*roomserver.Event, err error) {
	room, rooms := r.view.room, f.API.rooms
	start, end := r.event.Token(), r.event.After()
	if f.query.before > 0 {
		if before, err = rooms.HistoryBefore(ctx, room, start, f.query.before); err != nil {
			return nil, nil, err
		}
		if n := len(before); n > 0 {
			start = before[n-1].Token()
		}
	}
	if f.query.after > 0 {
		if after, err = rooms.HistoryAfter(ctx, room, end, min(r.view.until, room.Head().Pos), f.query.after); err != nil {
			return nil, nil, err
		}
		if n := len(after); n > 0 {
			end = after[n-1].After()
		}
	}
	r.Context.Start, r.Context.End = start.String(), end.String()
	if before, err = r.view.viewer.Filter(ctx, before); err != nil {
		return nil, nil, err
	}
	after, err = r.view.viewer.Filter(ctx, after)
	return f.withoutIgnored(before), f.withoutIgnored(after), err
}

func (f *finder) withoutIgnored(events []*roomserver.Event) []*roomserver.Event {
	if len(f.ignored) == 0 {
		return events
	}
	return slices.DeleteFunc(slices.Clone(events), func(e *roomserver.Event) bool { return !e.IsState() && f.ignored[e.Sender] })
}

// profiles adds who the senders of events were at the time of the result.
func (f *finder) profiles(ctx context.Context, r *result, events []*roomserver.Event) error {
	r.Context.Profiles = map[string]profile{}
	for _, e := range events {
		if _, ok := r.Context.Profiles[e.Sender]; ok {
			continue
		}
		member, err := f.API.rooms.StateEvent(ctx, r.view.room, e.StateBefore, "m.room.member", e.Sender)
		if err != nil {
			return err
		}
		var p profile
		if member != nil {
			p.DisplayName, _ = member.ContentString("displayname")
			if avatar, _ := member.ContentString("avatar_url"); strings.HasPrefix(avatar, "mxc://") {
				p.AvatarURL = avatar
			}
		}
		r.Context.Profiles[e.Sender] = p
	}
	return nil
}
