package directory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// maxListed bounds the rooms in all lists together; the oldest ones stay.
const maxListed = 20_000

// network is one list of an application service.
type network struct{ appservice, id string }

// named tells whether a client means this network by a third_party_instance_id: the network's name alone or, because two
// application services may have the same, that behind the application service's.
func (n network) named(instance string) bool {
	return instance == n.id || instance == n.appservice+"|"+n.id
}

// listing is one room that is in a list. It is immutable.
type listing struct {
	published
	nid      int64
	own      bool // in the server's own list
	networks []network
	search   string // what search terms are looked for in
}

// compare gives the order of the lists: the largest rooms first.
func (l *listing) compare(joined int, roomID string) int {
	if l.Joined != joined {
		return cmp.Compare(joined, l.Joined)
	}
	return strings.Compare(l.RoomID, roomID)
}

// index is all lists as one, sorted. It follows the log: notices mark what has changed, and the next request looks at
// that again.
type index struct {
	api *API

	mu     sync.Mutex
	listed map[int64]bool // guarded by mu: the rooms in the lists
	relist bool           // guarded by mu: a list has gained or lost a room
	stale  map[int64]bool // guarded by mu: rooms of the lists that have changed

	updating sync.Mutex         // held while the fields below are brought up to date
	byNID    map[int64]*listing // guarded by updating
	sorted   []*listing         // guarded by updating; the slice is replaced and never changed
}

func newIndex(a *API) *index {
	return &index{api: a, relist: true, stale: map[int64]bool{}}
}

// committed notes what a batch of the log changes.
func (x *index) committed(batch []storage.Notice, _ int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range batch {
		switch n := &batch[i]; n.Kind {
		case storage.Directory:
			x.relist = true
		case storage.Event, storage.State:
			if x.listed[n.Room] {
				x.stale[n.Room] = true
			}
		}
	}
}

// current returns all listed rooms in order.
func (x *index) current(ctx context.Context) ([]*listing, error) {
	x.updating.Lock()
	defer x.updating.Unlock()
	x.mu.Lock()
	relist, stale := x.relist, x.stale
	if !relist && len(stale) == 0 {
		x.mu.Unlock()
		return x.sorted, nil
	}
	x.relist, x.stale = false, map[int64]bool{}
	x.mu.Unlock()
	if err := x.update(ctx, relist, stale); err != nil {
		x.byNID = nil // nothing is known for sure
		x.mu.Lock()
		x.relist = true
		x.mu.Unlock()
		return nil, fmt.Errorf("update the directory: %w", err)
	}
	return x.sorted, nil
}

// update looks at the rooms that have changed.
func (x *index) update(ctx context.Context, relist bool, stale map[int64]bool) error {
	old, next := x.byNID, x.byNID
	if relist {
		var err error
		if next, err = x.read(ctx); err != nil {
			return err
		}
		listed := make(map[int64]bool, len(next))
		for nid := range next {
			listed[nid] = true
		}
		x.mu.Lock()
		x.listed = listed // before the rooms are looked at, so that what changes meanwhile is noted
		x.mu.Unlock()
	}
	for nid, l := range next {
		if l.RoomID != "" && !stale[nid] {
			continue
		}
		if before := old[nid]; before != nil && !stale[nid] {
			next[nid] = before.in(l.own, l.networks)
			continue
		}
		made, err := x.make(ctx, nid, l.own, l.networks)
		if err != nil {
			return err
		}
		next[nid] = made
	}
	x.byNID = next
	x.sorted = make([]*listing, 0, len(next))
	for _, l := range next {
		if l != nil && l.RoomID != "" {
			x.sorted = append(x.sorted, l)
		}
	}
	slices.SortFunc(x.sorted, func(a, b *listing) int { return a.compare(b.Joined, b.RoomID) })
	return nil
}

// read returns the rooms of all lists, without what is shown of them.
func (x *index) read(ctx context.Context) (map[int64]*listing, error) {
	own, err := x.api.rooms.PublicRooms(ctx, maxListed)
	if err != nil {
		return nil, err
	}
	next := make(map[int64]*listing, len(own))
	for _, nid := range own {
		next[nid] = &listing{nid: nid, own: true}
	}
	err = x.api.db.Read(ctx, func(tx *storage.Tx) error {
		for _, l := range next {
			l.networks = nil // of an earlier run
		}
		rows := tx.Query(`SELECT appservice, network, room FROM appservice_rooms ORDER BY room LIMIT $1`, int64(maxListed))
		for rows.Next() {
			var n network
			var nid int64
			rows.Scan(&n.appservice, &n.id, &nid)
			l := next[nid]
			if l == nil {
				if len(next) >= maxListed {
					continue
				}
				l = &listing{nid: nid}
				next[nid] = l
			}
			l.networks = append(l.networks, n)
		}
		return rows.Close()
	})
	return next, err
}

// in is the same room in other lists.
func (l *listing) in(own bool, networks []network) *listing {
	c := *l
	c.own, c.networks = own, networks
	return &c
}

// make looks at a room. One that is gone is not shown.
func (x *index) make(ctx context.Context, nid int64, own bool, networks []network) (*listing, error) {
	l := &listing{nid: nid, own: own, networks: networks}
	room, err := x.api.rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := x.api.summary(ctx, room)
	if err != nil {
		return nil, err
	}
	l.published = s.published
	l.Joined, _ = room.MemberCounts()
	l.search = strings.ToLower(l.Name + "\x00" + l.Topic + "\x00" + l.Alias)
	return l, nil
}
