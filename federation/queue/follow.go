package queue

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/myelin-im/myelin/roomserver"
)

// page is how many events of a room, and how many rooms, are read at once.
const page = 500

// follow puts what is written to the log on the servers' lists.
func (q *Queue) follow(ctx context.Context) {
	outgoing := int64(-1) // what the Source has up to here is in the servers' records
	for {
		rooms, all, source, head := q.takeNews()
		err := q.dispatch(ctx, rooms, all, head)
		if err == nil && (source || outgoing < 0) {
			if err = q.askSource(ctx, outgoing, head); err == nil {
				outgoing = head
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			q.cfg.Log.WithError(err).Error("what other servers have to hear of cannot be read")
			q.giveBack(rooms, all, source)
			select {
			case <-time.After(time.Second):
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-q.news.wake:
		case <-ctx.Done():
			return
		}
	}
}

// takeNews takes what was noticed since the last time.
func (q *Queue) takeNews() (rooms map[int64]struct{}, all, source bool, head int64) {
	n := &q.news
	n.Lock()
	defer n.Unlock()
	rooms, all, source, head = n.rooms, n.all, n.outgoing, n.head
	n.taken, n.takenAll = rooms, all
	n.rooms, n.all, n.outgoing = map[int64]struct{}{}, false, false
	return rooms, all, source, head
}

// giveBack makes what could not be dispatched news again.
func (q *Queue) giveBack(rooms map[int64]struct{}, all, source bool) {
	n := &q.news
	n.Lock()
	defer n.Unlock()
	n.all, n.outgoing = n.all || all, n.outgoing || source
	maps.Copy(n.rooms, rooms)
}

// dispatch puts the new events of rooms on the lists.
func (q *Queue) dispatch(ctx context.Context, rooms map[int64]struct{}, all bool, head int64) error {
	q.mu.Lock()
	from := q.pos
	q.mu.Unlock()
	if head <= from {
		q.news.listed()
		return nil
	}
	nids := slices.Sorted(maps.Keys(rooms))
	if all {
		nids = nil
		for after := int64(0); ; {
			some, err := q.cfg.Rooms.RoomsSince(ctx, from, after, page)
			if err != nil {
				return err
			}
			if nids = append(nids, some...); len(some) < page {
				break
			}
			after = some[len(some)-1]
		}
	}
	for _, nid := range nids {
		if err := q.dispatchRoom(ctx, nid, from, head); err != nil {
			return err
		}
	}
	q.mu.Lock()
	q.pos = head
	q.mu.Unlock()
	q.news.listed()
	return nil
}

// dispatchRoom puts the new events of one room on the lists.
func (q *Queue) dispatchRoom(ctx context.Context, nid, from, head int64) error {
	room, err := q.cfg.Rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) { // purged
		return nil
	}
	if err != nil {
		return err
	}
	return q.eachOurs(ctx, room, from, head, func(pos int64, servers []string) {
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, name := range servers {
			q.add(name, ref{nid, pos})
		}
	})
}

// eachOurs visits the events of a room at positions in (from, head] that this server sends to others, with the servers
// that get them.
func (q *Queue) eachOurs(ctx context.Context, room *roomserver.Room, from, head int64, visit func(pos int64, servers []string)) error {
	audience := q.cfg.Rooms.Audience(room)
	for {
		events, err := q.cfg.Rooms.Arrived(ctx, room, from, head, page)
		if err != nil {
			return err
		}
		for _, e := range events {
			if !e.Relayed() && (!q.cfg.Rooms.IsLocal(e.Sender) || e.Brought()) {
				continue
			}
			servers, err := audience.Of(ctx, e)
			if err != nil {
				return err
			}
			sender := e.SenderServer() // of a relayed event: it has it
			visit(e.Anchor, slices.DeleteFunc(servers, func(name string) bool { return name == sender }))
		}
		if len(events) < page {
			return nil
		}
		from = events[len(events)-1].Anchor
	}
}

// askSource finds the servers for which the Source has something new.
func (q *Queue) askSource(ctx context.Context, after, upTo int64) error {
	if q.cfg.Source == nil {
		return nil
	}
	servers, err := q.cfg.Source.Destinations(ctx, after, upTo)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, name := range servers {
		if d := q.destination(name); d != nil {
			d.due = upTo
			q.kick(d)
		}
	}
	return nil
}
