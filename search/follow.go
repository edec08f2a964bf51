package search

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// gather is how long the reader waits for more after news, so that a busy log makes larger batches.
	// Nobody waits for that: a search hurries it.
	gather = time.Second
	// patience is how long a request waits for the reader.
	patience = 500 * time.Millisecond
	// retry is how long the reader waits after an error of the database.
	retry = 5 * time.Second
	// maxNews bounds the rooms with news that are remembered; beyond it the reader looks for them.
	maxNews = 10_000
	// roomPage is how many rooms with news are looked for at once.
	roomPage = 500
)

// index follows the log and keeps the tables of this package. One goroutine, in run, writes them.
type index struct {
	db    *storage.DB
	rooms *roomserver.Server
	log   *logrus.Entry
	ids   *storage.IDs

	wake  chan struct{} // the head has advanced
	hurry chan struct{} // somebody waits

	mu       sync.Mutex
	news     map[int64]bool // rooms with entries in the log since the last pass; nil: any room may have some
	head     int64          // the position up to which news is complete
	cursor   int64          // everything up to here is in the index
	past     int64          // how often something took a place in the past of a room or a removal ended, from 1 on: there may be some from before
	pastDone int64          // and up to which of these times it is in the index
	advanced chan struct{}  // closed when cursor advances

	purges   struct{ begun, ended atomic.Int64 } // of history and of rooms, by others
	progress map[int64]int64                     // rooms that are further than the cursor; of the goroutine
	sure     bool                                // the last pass has succeeded: what is after the cursor is not in the index; of the goroutine
}

func newIndex(db *storage.DB, rooms *roomserver.Server, log *logrus.Entry) *index {
	x := &index{
		db: db, rooms: rooms, log: log, ids: db.IDs("search"), head: db.Head(), past: 1,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), advanced: make(chan struct{}),
	}
	rooms.SetBackfilled(x.note)
	db.Subscribe(x.committed)
	db.Watch(func([]storage.Notice, int64) { signal(x.wake) })
	return x
}

// signal wakes whoever receives from c, now or when they get to it.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// committed notes which rooms a batch of the log is about.
func (x *index) committed(batch []storage.Notice, head int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.head = head
	if x.news == nil {
		return
	}
	for i := range batch {
		if n := &batch[i]; n.Kind == storage.Event || n.Kind == storage.State {
			x.news[n.Room] = true
		}
	}
	if len(x.news) > maxNews {
		x.news = nil
	}
}

// take returns up to where there is news, and in which rooms; nil means that any room may have some.
func (x *index) take() (head int64, news map[int64]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	head, news = x.head, x.news
	x.news = map[int64]bool{}
	return head, news
}

// forget makes the next pass look for news in all rooms.
func (x *index) forget() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.news = nil
}

// advance tells that everything up to pos is in the index.
func (x *index) advance(pos int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cursor = pos
	close(x.advanced)
	x.advanced = make(chan struct{})
}

// await waits until the index has what is in the log by now, but not for long.
func (x *index) await(ctx context.Context) {
	head := x.db.Head()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		x.mu.Lock()
		cursor, advanced, past := x.cursor, x.advanced, x.past > x.pastDone
		x.mu.Unlock()
		if cursor >= head && !past {
			return
		}
		signal(x.hurry)
		select {
		case <-advanced:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// run follows the log until ctx ends.
func (x *index) run(ctx context.Context) {
	for {
		err := x.load(ctx)
		for err == nil {
			if err = x.pass(ctx); err == nil {
				err = x.rest(ctx)
			}
		}
		if ctx.Err() != nil || errors.Is(err, storage.ErrClosed) {
			return
		}
		x.log.WithError(err).Error("The search index could not be brought up to date; trying again soon")
		x.forget()
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return
		}
	}
}

// rest waits for news, and then for a little more of it.
func (x *index) rest(ctx context.Context) error {
	select {
	case <-x.wake:
	case <-ctx.Done():
		return ctx.Err()
	}
	timer := time.NewTimer(gather)
	defer timer.Stop()
	select {
	case <-x.hurry:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// load reads how far the index is.
func (x *index) load(ctx context.Context) error {
	var pos int64
	err := x.db.Read(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Get(`SELECT pos FROM search_cursor WHERE one = 1`, nil, &pos); err != nil {
			return err
		}
		x.progress = map[int64]int64{}
		rows := tx.Query(`SELECT room, pos FROM search_progress`)
		var room, at int64
		for rows.Next() {
			rows.Scan(&room, &at)
			x.progress[room] = at
		}
		return rows.Close()
	})
	if err != nil {
		return fmt.Errorf("read the cursor of the search index: %w", err)
	}
	x.advance(pos)
	return nil
}

// pass brings everything in the log into the index, and what the log does not tell of.
func (x *index) pass(ctx context.Context) (err error) {
	sure := x.sure
	x.sure = false
	defer func() { x.sure = err == nil }()
	past, err := x.visitPast(ctx)
	if err != nil {
		return err
	}
	head, news := x.take()
	from := x.cursor // only this goroutine changes it
	if head <= from {
		x.advance(from)
		return nil
	}
	// What came into the past of a room may concern what came at its end, and history that is read from its beginning has
	// both.
	b := &batch{x: x, purges: x.purges.ended.Load(), doubt: past || from == 0 || !sure}
	if news == nil {
		if err := x.visitAll(ctx, b, from, head); err != nil {
			return err
		}
	} else if err := x.visit(ctx, b, slices.Sorted(maps.Keys(news)), from, head); err != nil {
		return err
	}
	// News of other things than rooms does not have to be written down.
	if news == nil || len(news) > 0 {
		if err := b.finish(ctx, head); err != nil {
			return err
		}
	}
	x.advance(head)
	return nil
}

// visitAll visits the rooms that have entries in the log after from.
func (x *index) visitAll(ctx context.Context, b *batch, from, head int64) error {
	for after := int64(0); ; {
		page, err := x.rooms.RoomsSince(ctx, from, after, roomPage)
		if err != nil {
			return err
		}
		if err := x.visit(ctx, b, page, from, head); err != nil || len(page) < roomPage {
			return err
		}
		after = page[len(page)-1]
	}
}

// visit brings the news of rooms into the index. A room that cannot be read is left out, and nothing else.
func (x *index) visit(ctx context.Context, b *batch, rooms []int64, from, head int64) error {
	for _, nid := range rooms {
		start := max(from, x.progress[nid])
		if start >= head {
			continue
		}
		err := x.visitRoom(ctx, b, nid, start, head)
		if errors.Is(err, roomserver.ErrUnknownEvent) { // it was purged between two reads, and is not mentioned any more
			b.doubt = true // a part of it may be written already
			err = x.visitRoom(ctx, b, nid, start, head)
		}
		switch {
		case err == nil:
			b.reached(nid, head)
		case ctx.Err() != nil || b.failed != nil:
			return errors.Join(ctx.Err(), b.failed)
		case !errors.Is(err, roomserver.ErrUnknownRoom):
			x.log.WithError(err).WithField("room", nid).Error("A room could not be brought into the search index")
		}
	}
	return nil
}

// visitRoom brings the news of one room into the batch.
func (x *index) visitRoom(ctx context.Context, b *batch, nid, start, head int64) error {
	room, err := x.rooms.RoomByNID(ctx, nid)
	if err == nil {
		err = x.visitMembers(ctx, b, room, start, head)
	}
	if err == nil {
		err = x.visitEvents(ctx, b, room, start, head)
	}
	return err
}
