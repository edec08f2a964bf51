package syncapi

import (
	"context"
	"errors"
	"strconv"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/syncapi/filter"
)

// view is how the user of a request sees what relates to events of a room.
func (a *API) view(user string, room *roomserver.Room, v *roomserver.Viewer) *relations.View {
	return &relations.View{
		Rooms: a.rooms, Room: room, User: user, Viewer: v,
		Ignored: func(ctx context.Context) (map[string]bool, error) { return a.ignoredUsers(ctx, user) },
	}
}

// bundling is reader for an answer that shows these events together with what relates to them.
func (a *API) bundling(ctx context.Context, by *httpapi.Caller, room *roomserver.Room, v *roomserver.Viewer, events ...[]*roomserver.Event) (*roomserver.Reader, error) {
	r := a.reader(by, v)
	return r, a.view(by.UserID, room, v).Bundle(ctx, r, events...)
}

// related applies the part of a filter that needs to know what relates to events.
func (a *API) related(ctx context.Context, room *roomserver.Room, f *filter.RoomEventFilter, events []*roomserver.Event) ([]*roomserver.Event, error) {
	if f.RelatedBySenders == nil && f.RelatedByRelTypes == nil || len(events) == 0 {
		return events, nil
	}
	ids, err := a.rooms.RelatedBy(ctx, room, events, f.RelatedBySenders, f.RelatedByRelTypes)
	if err != nil {
		return nil, err
	}
	return keep(events, func(e *roomserver.Event) bool { return ids[e.ID] }), nil
}

type relationsRequest struct {
	RoomID  string `path:"roomId"`
	EventID string `path:"eventId"`
	From    string `query:"from"`
	To      string `query:"to"`
	Limit   int    `query:"limit" default:"20" min:"0"`
	Dir     string `query:"dir" enum:"b|f" default:"b"`
	Recurse *bool  `query:"recurse"`
}

type relationsOfType struct {
	relationsRequest
	RelType string `path:"relType"`
}

type relationsOfTypes struct {
	relationsOfType
	EventType string `path:"eventType"`
}

const (
	// maxRelations bounds the events of one page of /relations.
	maxRelations = 500
	// recursionDepth is how many levels below the direct relations /relations follows if it is asked to recurse.
	recursionDepth = 3
)

// relations: client-server API v1.19, GET /rooms/{roomId}/relations/{eventId}.
func (a *API) relations(ctx context.Context, by *httpapi.Caller, in *relationsRequest) (*rawJSON, error) {
	return a.relating(ctx, by, in, "", "")
}

// relationsOfType: client-server API v1.19, GET /rooms/{roomId}/relations/{eventId}/{relType}.
func (a *API) relationsOfType(ctx context.Context, by *httpapi.Caller, in *relationsOfType) (*rawJSON, error) {
	return a.relating(ctx, by, &in.relationsRequest, in.RelType, "")
}

// relationsOfTypes: client-server API v1.19, GET /rooms/{roomId}/relations/{eventId}/{relType}/{eventType}.
func (a *API) relationsOfTypes(ctx context.Context, by *httpapi.Caller, in *relationsOfTypes) (*rawJSON, error) {
	return a.relating(ctx, by, &in.relationsRequest, in.RelType, in.EventType)
}

// relating answers all three.
func (a *API) relating(ctx context.Context, by *httpapi.Caller, in *relationsRequest, relType, eventType string) (*rawJSON, error) {
	acc, parent, viewer, err := a.visibleEvent(ctx, by, in.RoomID, in.EventID)
	if errors.Is(err, errNoAccess) {
		err = mxerr.NotFound("Event not found")
	}
	if err != nil {
		return nil, err
	}
	q := roomserver.RelationQuery{
		Target: parent.ID, RelType: relType, EventType: eventType, Forward: in.Dir == "f", Depth: 1,
	}
	if in.Recurse != nil && *in.Recurse {
		q.Depth += recursionDepth
	}
	if q.Low, q.High, err = in.places(); err != nil {
		return nil, err
	}
	p := &page{acc: acc, viewer: viewer}
	if err := a.fillRelated(ctx, p, q, by.UserID, min(in.Limit, maxRelations)); err != nil {
		return nil, err
	}
	r, err := a.bundling(ctx, by, acc.room, viewer, p.events)
	if err != nil {
		return nil, err
	}
	b, err := a.rooms.AppendClientEvents(ctx, []byte(`{"chunk":`), acc.room, p.events, r)
	if err != nil {
		return nil, err
	}
	if p.more {
		b = append(append(append(b, `,"next_batch":"`...), historyToken(p.end)...), '"')
	}
	if in.From != "" {
		// The token was read, and is given back in a form that this server made.
		from := q.High
		if q.Forward {
			from = q.Low
		}
		b = append(append(append(b, `,"prev_batch":"`...), historyToken(from)...), '"')
	}
	if in.Recurse != nil {
		b = strconv.AppendInt(append(b, `,"recursion_depth":`...), int64(q.Depth-1), 10)
	}
	out := rawJSON(append(b, '}'))
	return &out, nil
}

// places reads the ends of the page.
func (in *relationsRequest) places() (low, high roomserver.HistoryToken, err error) {
	high = roomserver.EndOfHistory
	first, last := &high, &low
	if in.Dir == "f" {
		first, last = last, first
	}
	if in.From != "" {
		if *first, err = parsePlace(in.From); err != nil {
			return low, high, err
		}
	}
	if in.To != "" {
		*last, err = parsePlace(in.To)
	}
	return low, high, err
}

// fillRelated reads related events until the page is full or there are no more, and finds out whether there are more.
func (a *API) fillRelated(ctx context.Context, p *page, q roomserver.RelationQuery, user string, limit int) error {
	ignored, err := a.ignoredUsers(ctx, user)
	if err != nil {
		return err
	}
	if p.end = q.High; q.Forward {
		p.end = q.Low
	}
	for scanned := 0; ; {
		q.Limit = limit + 1 - len(p.events)
		events, err := a.rooms.RelatedEvents(ctx, p.acc.room, q)
		if err != nil {
			return err
		}
		scanned += len(events)
		p.more = len(events) == q.Limit
		var reached roomserver.HistoryToken
		if len(events) > 0 {
			reached = after(events[len(events)-1], q.Forward)
		}
		if events, err = p.viewer.Filter(ctx, events); err != nil {
			return err
		}
		p.events = append(p.events, keep(events, func(e *roomserver.Event) bool { return e.Sender == user || !ignored[e.Sender] })...)
		switch {
		case len(p.events) > limit:
			p.events, p.more = p.events[:limit], true
			if limit > 0 {
				p.end = after(p.events[limit-1], q.Forward)
			}
			return nil
		case !p.more:
			return nil
		case scanned >= maxScan:
			p.end = reached
			return nil
		}
		if q.Forward {
			q.Low = reached
		} else {
			q.High = reached
		}
	}
}

// after is where a page that ends with e goes on.
func after(e *roomserver.Event, forward bool) roomserver.HistoryToken {
	if forward {
		return e.After()
	}
	return e.Token()
}
