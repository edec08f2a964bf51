package syncapi

import (
	"context"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
)

type threadsRequest struct {
	RoomID  string `path:"roomId"`
	Include string `query:"include" enum:"all|participated" default:"all"`
	Limit   int    `query:"limit" default:"20" min:"1"`
	From    string `query:"from"`
}

const (
	// maxThreads bounds the threads of one page of /threads.
	maxThreads = 100
	// threadScan is how many replies are read at once while looking for threads, maxThreadScan how many for
	// one answer: one that finds few threads among many replies ends early and says where to go on.
	threadScan, maxThreadScan = 250, 10_000
)

// threads: client-server API v1.19, GET /rooms/{roomId}/threads.
func (a *API) threads(ctx context.Context, by *httpapi.Caller, in *threadsRequest) (*rawJSON, error) {
	acc, err := a.enter(ctx, by, in.RoomID)
	if err != nil {
		return nil, err
	}
	from := roomserver.AfterPosition(acc.upTo)
	if in.From != "" {
		if from, err = parsePlace(in.From); err != nil {
			return nil, err
		}
	}
	viewer, err := a.rooms.Viewer(ctx, acc.room, by.UserID, acc.room.Head().Pos)
	if err != nil {
		return nil, err
	}
	w := threadWalk{
		view: a.view(by.UserID, acc.room, viewer), participated: in.Include == "participated", known: map[string]*thread{},
	}
	next, more, err := w.walk(ctx, from, min(in.Limit, maxThreads))
	if err != nil {
		return nil, err
	}
	ignored, err := a.ignoredUsers(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	for i, root := range w.roots {
		if root.Sender != by.UserID && ignored[root.Sender] {
			w.roots[i] = root.AsRedacted()
		}
	}
	r, err := a.bundling(ctx, by, acc.room, viewer, w.roots)
	if err != nil {
		return nil, err
	}
	b, err := a.rooms.AppendClientEvents(ctx, []byte(`{"chunk":`), acc.room, w.roots, r)
	if err != nil {
		return nil, err
	}
	if more {
		b = append(append(append(b, `,"next_batch":"`...), historyToken(next)...), '"')
	}
	out := rawJSON(append(b, '}'))
	return &out, nil
}

// threadWalk finds the threads of a room by their latest activity. It goes back through the replies, and a thread is
// in its place where the walk meets the latest reply that the user sees of it.
type threadWalk struct {
	view         *relations.View
	participated bool
	known        map[string]*thread // by root; nil for those that the user is not shown
	roots        []*roomserver.Event
}

type thread struct {
	root   *roomserver.Event
	latest roomserver.HistoryToken
}

// walk finds up to limit threads with their latest reply before a place. next is the place before which the rest is.
func (w *threadWalk) walk(ctx context.Context, from roomserver.HistoryToken, limit int) (next roomserver.HistoryToken, more bool, err error) {
	place := from
	for scanned := 0; scanned < maxThreadScan; scanned += threadScan {
		replies, err := w.view.Rooms.ThreadReplies(ctx, w.view.Room, place, threadScan)
		if err != nil {
			return next, false, err
		}
		if err := w.learn(ctx, replies); err != nil {
			return next, false, err
		}
		for _, r := range replies {
			t := w.known[r.Root]
			if t == nil || t.latest != r.Token {
				continue
			}
			if len(w.roots) == limit {
				return next, true, nil
			}
			w.roots = append(w.roots, t.root)
			next = r.Token
		}
		if len(replies) < threadScan {
			return next, false, nil
		}
		place = replies[len(replies)-1].Token
	}
	return place, true, nil
}

// learn finds out about the threads of replies that were not met before.
func (w *threadWalk) learn(ctx context.Context, replies []roomserver.ThreadReplyAt) error {
	var ids []string
	for _, r := range replies {
		if _, known := w.known[r.Root]; !known {
			w.known[r.Root] = nil
			ids = append(ids, r.Root)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	events, err := w.view.Rooms.EventsByID(ctx, w.view.Room, ids)
	if err != nil {
		return err
	}
	var roots []*roomserver.Event
	for _, e := range events {
		ok, err := w.view.Viewer.Sees(ctx, e)
		if err != nil {
			return err
		}
		if ok {
			roots = append(roots, e)
		}
	}
	sums, err := w.view.Summaries(ctx, roots)
	if err != nil {
		return err
	}
	for i, e := range roots {
		if sums[i].Replies > 0 && (!w.participated || sums[i].Participated) {
			w.known[e.ID] = &thread{e, sums[i].LatestAt}
		}
	}
	return nil
}
