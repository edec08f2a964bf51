package roomserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/storage"
)

const (
	// preloadFrom is from how many rooms on that are not in memory it pays to read them together, preloadBatch how many are
	// read at once, preloaders how many such batches at a time for one visit.
	preloadFrom  = 4
	preloadBatch = 16
	preloaders   = 2
	// maxPreloadedState bounds the state events of one room that are read together with those of others,
	// maxPreloadedParents the events for which it is read what relates to them: as many as clients show at first.
	maxPreloadedState   = 4 * eventBatch
	maxPreloadedParents = 20
)

// Visit calls fn with each of a user's rooms in turn, up to its first error. Those that are not in memory are read ahead of
// it, many at once: after a start, what a user's client asks for first is all of their rooms. fn shows about so many of the
// newest events of each, together with what relates to them.
func (s *Server) Visit(ctx context.Context, rooms []UserRoom, newest int, fn func(UserRoom) error) error {
	wait, stop := func(int) {}, func() {}
	if cold := s.cold(rooms); cold >= preloadFrom {
		wait, stop = s.readAhead(ctx, rooms, newest)
	}
	defer stop()
	for i, r := range rooms {
		wait(i)
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// cold counts the rooms that are not in memory.
func (s *Server) cold(rooms []UserRoom) (n int) {
	s.rooms.mu.RLock()
	defer s.rooms.mu.RUnlock()
	for i := range rooms {
		if s.rooms.byID[rooms[i].RoomID] == nil {
			n++
		}
	}
	return n
}

// readAhead preloads rooms in the background, at most preloaders batches ahead of what is waited for: wait returns when a room,
// by its index, has been read. stop ends it.
func (s *Server) readAhead(ctx context.Context, rooms []UserRoom, newest int) (wait func(i int), stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var read [preloaders]chan struct{} // one after the other tells of a batch
	for n := range read {
		read[n] = make(chan struct{})
		go func() {
			defer close(read[n])
			for i := n * preloadBatch; i < len(rooms); i += preloaders * preloadBatch {
				// What fails here fails again when the room is asked for, and is told then.
				_ = s.preload(ctx, rooms[i:min(i+preloadBatch, len(rooms))], newest)
				select {
				case read[n] <- struct{}{}:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	batches := 0
	wait = func(i int) {
		for ; batches*preloadBatch <= i; batches++ {
			<-read[batches%preloaders]
		}
	}
	return wait, func() {
		cancel()
		for _, r := range read {
			for range r { // until it has ended
			}
		}
	}
}

// preload brings those of at most preloadBatch rooms that are not in memory there: with their recent timelines, with what
// relates to the newest events of these, and with the events of their current state but for the memberships of others.
func (s *Server) preload(ctx context.Context, rooms []UserRoom, newest int) error {
	ids, members, release := s.claim(rooms)
	defer release()
	if len(members) == 0 {
		return nil
	}
	epoch := s.redactionEpoch.Load()
	var list []*loading
	err := s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if list, err = s.readRooms(tx, ids); err != nil {
			return err
		}
		if err = s.readRecent(tx, list); err != nil {
			return err
		}
		return s.packs.readHeads(tx, list)
	})
	if err != nil {
		return fmt.Errorf("read rooms ahead: %w", err)
	}
	for _, r := range list {
		if err := s.settle(ctx, r.Room, r.recent, epoch); err != nil {
			return err
		}
	}
	if err := s.readCurrent(ctx, list, members); err != nil {
		return err
	}
	if err := s.readRelations(ctx, list, newest); err != nil {
		return err
	}
	defer s.rooms.shed()
	for _, r := range list {
		if err := r.Room.recent.load(func() ([]*Event, error) { return r.recent, nil }); err != nil {
			return err
		}
		if err := s.enter(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// claim keeps others from loading those of at most preloadBatch rooms that are not in memory, until release. It returns their
// IDs, each in its room's place with nil in all others, and the user's memberships by the numbers of the rooms.
func (s *Server) claim(rooms []UserRoom) (ids []any, members map[int64]int64, release func()) {
	ids = make([]any, preloadBatch)
	members = make(map[int64]int64, len(rooms))
	held := make([]func(), 0, len(rooms))
	for i, r := range rooms {
		// A room that somebody is loading is left to them. Waiting with the locks of others in hand might never end.
		unlock := s.rooms.load.tryLock(r.RoomID)
		if unlock == nil {
			continue
		}
		held = append(held, unlock)
		if s.rooms.get(r.RoomID) == nil {
			ids[i] = r.RoomID
			members[r.NID] = r.EventNID
		}
	}
	return ids, members, func() {
		for _, unlock := range held {
			unlock()
		}
	}
}

var placeholder = regexp.MustCompile(`\$\d+`)

// eachRoom makes a query of preloadBatch others for one room each, whose rows it returns together. Each has n arguments, all
// those of the first room coming first.
func eachRoom(query string, n int) string {
	queries := make([]string, preloadBatch)
	for i := range queries {
		own := placeholder.ReplaceAllStringFunc(query, func(p string) string {
			k, _ := strconv.Atoi(p[1:]) // digits are all there is
			return fmt.Sprint("$", n*i+k)
		})
		queries[i] = fmt.Sprintf("SELECT * FROM (%s) AS r%d", own, i)
	}
	return strings.Join(queries, " UNION ALL ")
}

var recentOfRooms = eachRoom(`SELECT room, `+eventColumns+` FROM events WHERE room = $1 AND anchor IS NOT NULL
	ORDER BY anchor DESC, sub DESC LIMIT `+fmt.Sprint(ringSize), 1)

// readRecent reads the newest events of rooms.
func (s *Server) readRecent(tx *storage.Tx, list []*loading) error {
	rooms, args := byNumber(list, preloadBatch)
	var nid int64
	var row eventRow
	dest := append([]any{&nid}, row.dest()...)
	rows := tx.Query(recentOfRooms, args...)
	for rows.Next() {
		rows.Scan(dest...)
		r := rooms[nid]
		e, err := s.eventOf(&row, r.Room)
		if err != nil {
			return errors.Join(err, rows.Close())
		}
		r.recent = append(r.recent, e)
	}
	for _, r := range list {
		slices.SortFunc(r.recent, func(a, b *Event) int {
			return cmp.Or(cmp.Compare(a.Anchor, b.Anchor), cmp.Compare(a.Sub, b.Sub))
		})
	}
	return rows.Close()
}

// eventOf returns the event of a row, from the cache if it is there.
func (s *Server) eventOf(row *eventRow, room *Room) (*Event, error) {
	if e, ok := s.events.Get(row.nid); ok {
		return e, nil
	}
	return row.event(room)
}

var packsOfHeads = eachRoom(`SELECT * FROM (SELECT room, pack, data FROM state_packs WHERE room = $1 AND pack <= $2
		ORDER BY pack DESC LIMIT `+fmt.Sprint(packsAhead)+`) AS near
	WHERE pack = $2 OR length(data) <= `+fmt.Sprint(smallPack), 2)

// readHeads reads the rows with the current states of rooms, as readAhead does for one, so that they wait.
func (l packLoader) readHeads(tx *storage.Tx, list []*loading) error {
	args := make([]any, 2*preloadBatch)
	for i := range args {
		args[i] = int64(0) // no room has it
	}
	for i, r := range list {
		args[2*i], args[2*i+1] = r.NID, r.head.State.Row()
	}
	rows := tx.Query(packsOfHeads, args...)
	for rows.Next() {
		var k packKey
		var data []byte
		rows.Scan(&k.room, &k.id, &data)
		l.keep(k, data)
	}
	return rows.Close()
}

var childrenInRooms = eachRoom(childrenOf(maxPreloadedParents), 1+maxPreloadedParents) + newestFirst

// readRelations reads into the cache what it lacks of the relations to the newest events of rooms.
func (s *Server) readRelations(ctx context.Context, list []*loading, newest int) error {
	newest = min(newest, maxPreloadedParents)
	var all []asked
	args := make([]any, 0, preloadBatch*(1+maxPreloadedParents))
	for _, r := range list {
		first := len(all)
		for _, e := range r.recent[max(0, len(r.recent)-newest):] {
			if _, known, epoch := s.relations.get(r.NID, e); !known && !e.IsState() {
				all = append(all, asked{r.Room, e, eventKey(e.ID), epoch})
			}
		}
		args = appendAsked(args, all[first:], maxPreloadedParents)
	}
	if len(all) == 0 {
		return nil
	}
	for range preloadBatch - len(list) {
		args = appendAsked(args, nil, maxPreloadedParents)
	}
	if _, err := s.readChildren(ctx, childrenInRooms, args, all); err != nil {
		return fmt.Errorf("read relations of rooms: %w", err)
	}
	return nil
}

// readCurrent reads into the cache what it lacks of the forward extremities of rooms and of their current states: all but
// memberships, of which only some are wanted, by room.
func (s *Server) readCurrent(ctx context.Context, list []*loading, members map[int64]int64) error {
	rooms, _ := byNumber(list, preloadBatch)
	var missing []any
	for _, r := range list {
		nids := append(slices.Clone(r.extremities), members[r.NID])
		err := s.tree(r.Room, r.head.State).WalkOthers(ctx, "m.room.member", func(nid int64) error {
			if len(nids) < maxPreloadedState {
				nids = append(nids, nid)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("state of %s: %w", r.ID, err)
		}
		for _, nid := range nids {
			if _, ok := s.events.Get(nid); !ok {
				missing = append(missing, nid)
			}
		}
	}
	for batch := range slices.Chunk(missing, eventBatch) {
		for len(batch) < eventBatch { // always the same number of parameters, so that one prepared statement serves all
			batch = append(slices.Clip(batch), batch[0])
		}
		if err := s.readEvents(ctx, rooms, batch); err != nil {
			return err
		}
	}
	return nil
}

// readEvents reads eventBatch events of rooms into the cache.
func (s *Server) readEvents(ctx context.Context, rooms map[int64]*loading, nids []any) error {
	epoch := s.redactionEpoch.Load()
	found := map[int64][]*Event{}
	err := s.db.ReadOne(ctx, func(tx *storage.Tx) error {
		clear(found)
		var nid int64
		var row eventRow
		dest := append([]any{&nid}, row.dest()...)
		rows := tx.Query(`SELECT room, `+eventColumns+` FROM events WHERE nid IN `+storage.In(eventBatch, 1), nids...)
		for rows.Next() {
			rows.Scan(dest...)
			r := rooms[nid]
			if r == nil {
				continue
			}
			e, err := s.eventOf(&row, r.Room)
			if err != nil {
				return errors.Join(err, rows.Close())
			}
			found[nid] = append(found[nid], e)
		}
		return rows.Close()
	})
	if err != nil {
		return fmt.Errorf("read events of rooms: %w", err)
	}
	for nid, events := range found {
		if err := s.settle(ctx, rooms[nid].Room, events, epoch); err != nil {
			return err
		}
	}
	return nil
}
