package syncapi

import (
	"context"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/syncapi/filter"
)

// roomPart is what one look finds in one room: timeline and state in (from, to].
type roomPart struct {
	look *look
	room *roomserver.Room
	from int64
	to   int64
	// fresh tells that the client does not know the room: everything up to the end is news.
	fresh bool
	// again tells of a fresh room that the client knows it as it was at the beginning: the user left and came back.
	again bool
	// summarised tells that the room comes with a summary, if there is news in it.
	summarised bool

	viewer   *roomserver.Viewer
	timeline []*roomserver.Event
	limited  bool
	prev     roomserver.HistoryToken
	state    []*roomserver.Event
	members  bool // memberships changed
	renamed  bool // what names the room changed
	gone     bool // state resolution has removed state without a replacement
	counted  bool // fewer messages may be unread, as the user has read something or an event that is not shown has made it so
	outdated bool // the timeline ends with state that is not current
	repair   bool // the one before did, in the answer that the client has
	summary  *summary
	resized  bool // the number of members in the summary is another one
}

const (
	defaultTimeline = 10
	maxTimeline     = 1000
	// maxFilterPages bounds how far a timeline is searched for events that pass a filter.
	maxFilterPages = 5
)

// read finds timeline and state.
func (p *roomPart) read(ctx context.Context) error {
	rooms := p.look.api.rooms
	end, err := rooms.StateAt(ctx, p.room, p.to)
	if err != nil {
		return err
	}
	var begin snapshot.Ref
	if !p.fresh {
		if begin, err = rooms.StateAt(ctx, p.room, p.from); err != nil {
			return err
		}
	}
	if p.viewer, err = rooms.Viewer(ctx, p.room, p.look.user, p.to); err != nil {
		return err
	}
	if err := p.readTimeline(ctx); err != nil {
		return err
	}
	if p.look.fullState {
		begin = 0
	}
	return p.readState(ctx, begin, end)
}

// readTimeline finds the newest events that the user may see and wants.
func (p *roomPart) readTimeline(ctx context.Context) error {
	f := &p.look.filter.Room.Timeline
	limit := f.Limit(defaultTimeline, maxTimeline)
	from := p.from
	if p.fresh {
		from = 0
	}
	if !f.Allows(p.room.ID) {
		limit = 0
	}
	events, more, err := p.look.api.rooms.Timeline(ctx, p.room, from, p.to, max(limit, 1))
	if err != nil {
		return err
	}
	p.prev = roomserver.AfterPosition(p.to)
	if limit == 0 {
		p.limited = len(events) > 0
		return nil
	}
	p.limited = more
	if len(events) > 0 {
		p.prev = events[0].Token()
	}
	p.timeline, err = p.pass(ctx, events, f)
	if err != nil {
		return err
	}
	for page := 0; p.limited && len(p.timeline) < limit && page < maxFilterPages; page++ {
		if err := p.extendTimeline(ctx, f, from, limit); err != nil {
			return err
		}
	}
	return nil
}

// extendTimeline goes one page further back, for filters that let few events pass.
func (p *roomPart) extendTimeline(ctx context.Context, f *filter.RoomEventFilter, from int64, limit int) error {
	const page = 100
	if g, ok := p.room.GapBefore(roomserver.HistoryToken{Anchor: p.prev.Anchor, Sub: p.prev.Sub + 1}); ok && g.Place == p.prev {
		return nil // what is before it comes with /messages
	}
	older, err := p.look.api.rooms.HistoryBefore(ctx, p.room, p.prev, page)
	if err != nil {
		return err
	}
	p.limited = len(older) == page
	slices.Reverse(older)
	whole, gap := p.room.Contiguous(older)
	slices.Reverse(older)
	if gap {
		older, p.limited = older[:len(whole)], true
	}
	for i, e := range older {
		if from > 0 && (e.Anchor <= from || e.Sub != 0) {
			older, p.limited = older[:i], false
			break
		}
	}
	if len(older) == 0 {
		return nil
	}
	last := older[len(older)-1]
	slices.Reverse(older)
	passed, err := p.pass(ctx, older, f)
	if err != nil {
		return err
	}
	p.prev = last.Token()
	if space := limit - len(p.timeline); len(passed) > space {
		passed = passed[len(passed)-space:]
		p.prev, p.limited = passed[0].Token(), true
	}
	p.timeline = append(passed, p.timeline...)
	return nil
}

// pass keeps the events that the user may see and the filter lets through.
func (p *roomPart) pass(ctx context.Context, events []*roomserver.Event, f *filter.RoomEventFilter) ([]*roomserver.Event, error) {
	all := events
	events, err := p.viewer.Filter(ctx, events)
	if err != nil {
		return nil, err
	}
	ignored, err := p.look.ignored(ctx)
	if err != nil {
		return nil, err
	}
	events = keep(events, func(e *roomserver.Event) bool {
		return (len(ignored) == 0 || e.IsState() || !ignored[e.Sender]) && matches(f, e)
	})
	if events, err = p.look.api.related(ctx, p.room, f, events); err != nil {
		return nil, err
	}
	p.noteHidden(all, events)
	return events, nil
}

// noteHidden looks at the events that are not shown, of all those that there are. The user's own ones and redactions may
// lower what is unread.
func (p *roomPart) noteHidden(all, shown []*roomserver.Event) {
	for _, e := range all {
		if len(shown) > 0 && shown[0] == e {
			shown = shown[1:]
			continue
		}
		p.counted = p.counted || e.Type == "m.room.redaction" || e.Sender == p.look.user && e.Type != memberType
	}
}

// keep returns the events, or what else it is, for which ok holds, without copying when all do.
func keep[T any](list []T, ok func(T) bool) []T {
	for i, e := range list {
		if ok(e) {
			continue
		}
		kept := append(make([]T, 0, len(list)), list[:i]...)
		for _, e := range list[i+1:] {
			if ok(e) {
				kept = append(kept, e)
			}
		}
		return kept
	}
	return list
}

// matches applies a filter to an event. The room itself was judged before.
func matches(f *filter.RoomEventFilter, e *roomserver.Event) bool {
	if f.MatchesAll() {
		return true
	}
	fe := filter.Event{Type: e.Type, Sender: e.Sender, RoomID: e.RoomID}
	if f.LooksAtContent() {
		fe.HasURL = gjson.GetBytes(e.Content(), "url").Type == gjson.String
		fe.RelType = gjson.GetBytes(e.Content(), `m\.relates_to.rel_type`).Str
	}
	return f.Match(&fe)
}

// readState finds the state events that, followed by the timeline (or instead of it, with state_after),
// take the client from one state to the other.
func (p *roomPart) readState(ctx context.Context, begin, end snapshot.Ref) error {
	f := &p.look.filter.Room.State
	deltas, err := p.deltas(ctx, begin, end)
	if err != nil {
		return err
	}
	inTimeline, err := p.endTimeline(ctx, end)
	if err != nil {
		return err
	}
	start := end
	if len(p.timeline) > 0 && !p.look.stateAfter {
		start = p.timeline[0].StateBefore
	}
	for _, d := range deltas {
		p.noteDelta(d)
		if e := d.New; e != nil && inTimeline[stateKey{e.Type, *e.StateKey}] == nil {
			p.state = append(p.state, e)
		}
	}
	if p.repair {
		if err := p.repairState(ctx, end, deltas, inTimeline); err != nil {
			return err
		}
	}
	if start != begin {
		if err := p.readStart(ctx, start, begin, inTimeline); err != nil {
			return err
		}
	}
	if err := p.summarise(ctx, end); err != nil {
		return err
	}
	if f.LazyLoadMembers {
		if err := p.lazyLoad(ctx, start, end, inTimeline); err != nil {
			return err
		}
	}
	if !f.Allows(p.room.ID) {
		p.state = nil
	}
	p.state = keep(p.state, func(e *roomserver.Event) bool { return matches(f, e) })
	slices.SortFunc(p.state, func(a, b *roomserver.Event) int { return int(min(1, max(-1, a.NID-b.NID))) })
	return p.compareSizes(ctx, begin)
}

// noteDelta notes what a change of the state is about.
func (p *roomPart) noteDelta(d roomserver.StateDelta) {
	e := d.New
	if e == nil {
		p.gone, e = true, d.Old
	}
	switch e.Type {
	case memberType:
		p.members = true
	case nameType, canonicalAliasType:
		p.renamed = true
	}
}

// readStart adds what the timeline changes as it was at its start, as far as the client does not know it from the state at
// the beginning of the look.
func (p *roomPart) readStart(ctx context.Context, start, begin snapshot.Ref, inTimeline map[stateKey]*roomserver.Event) error {
	for k := range inTimeline {
		e, err := p.look.api.rooms.StateEvent(ctx, p.room, start, k.typ, k.key)
		if err != nil {
			return err
		}
		if e != nil && (begin == 0 || e.Anchor > p.from || e.Anchor == 0) {
			p.state = append(p.state, e)
		}
	}
	return nil
}

// deltas is how two states differ. Of a room that is new to a client which loads members lazily, that is all but them.
func (p *roomPart) deltas(ctx context.Context, begin, end snapshot.Ref) ([]roomserver.StateDelta, error) {
	rooms := p.look.api.rooms
	if !p.fresh || p.again || !p.look.filter.Room.State.LazyLoadMembers {
		return rooms.StateDiff(ctx, p.room, begin, end)
	}
	events, err := rooms.StateEventsBut(ctx, p.room, end, memberType)
	if err != nil {
		return nil, err
	}
	deltas := make([]roomserver.StateDelta, len(events))
	for i, e := range events {
		deltas[i].New = e
	}
	return deltas, nil
}

// empty tells that neither timeline nor state nor summary has anything new.
func (p *roomPart) empty() bool {
	return len(p.timeline) == 0 && len(p.state) == 0 && !p.gone && !p.limited && !p.fresh && !p.resized
}

// appendTimelineAndState appends the members timeline and state (or state_after).
func (p *roomPart) appendTimelineAndState(ctx context.Context, b []byte) ([]byte, error) {
	reader := &roomserver.Reader{User: p.look.user, Device: p.look.device, Now: p.look.now, Membership: p.viewer, Erased: p.look.api.accounts.Erased}
	if err := p.bundle(ctx, reader); err != nil {
		return nil, err
	}
	b = append(b, `"timeline":{"events":`...)
	b, err := p.appendEvents(ctx, b, p.timeline, reader)
	if err != nil {
		return nil, err
	}
	b = append(b, `,"limited":`...)
	// Of a room that is new to a client which knows others, it may have kept an older part: that is a gap, too.
	if p.limited || p.fresh && !p.look.initial() {
		b = append(b, "true"...)
	} else {
		b = append(b, "false"...)
	}
	b = append(append(append(b, `,"prev_batch":"`...), historyTokenAt(p.prev, p.to)...), '"', '}')
	b = append(append(append(b, `,"`...), p.look.stateName()...), `":{"events":`...)
	if b, err = p.appendEvents(ctx, b, p.state, reader); err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// bundle adds what relates to the events of a timeline with a gap before it. Without a gap the client is sent whatever
// relates to a new event as a new event of its own.
func (p *roomPart) bundle(ctx context.Context, r *roomserver.Reader) error {
	if !p.limited {
		return nil
	}
	v := p.look.api.view(p.look.user, p.room, p.viewer)
	v.UpTo, v.Ignored = p.to, p.look.ignored
	return v.Bundle(ctx, r, p.timeline)
}

// appendEvents appends an array of events in the form that the filter asks for.
func (p *roomPart) appendEvents(ctx context.Context, b []byte, events []*roomserver.Event, r *roomserver.Reader) ([]byte, error) {
	return p.look.api.appendEvents(ctx, b, p.room, events, r, p.look.filter)
}

// appendEvents appends an array of events in the form that a filter asks for: client or federation format, all
// fields or some.
func (a *API) appendEvents(ctx context.Context, b []byte, room *roomserver.Room, events []*roomserver.Event, r *roomserver.Reader, f *filter.Filter) ([]byte, error) {
	if f == nil || f.Fields == nil && !f.Federation {
		return a.rooms.AppendClientEvents(ctx, b, room, events, r)
	}
	var scratch []byte
	b = append(b, '[')
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if f.Federation {
			scratch = append(scratch[:0], e.JSON()...)
		} else if scratch, err = a.rooms.AppendClientEvent(ctx, scratch[:0], room, e, r); err != nil {
			return nil, err
		}
		if f.Fields != nil {
			b = f.Fields.Project(b, scratch)
		} else {
			b = append(b, scratch...)
		}
	}
	return append(b, ']'), nil
}

// rest gives the members of a joined room beside timeline, state and summary, each with a leading comma: none
// where nothing changed.
func (p *roomPart) rest(ctx context.Context) ([]byte, error) {
	b, err := p.roomData(ctx, nil)
	if err != nil {
		return nil, err
	}
	if b, err = p.appendEphemeral(ctx, b); err != nil {
		return nil, err
	}
	return p.appendSticky(ctx, b)
}
