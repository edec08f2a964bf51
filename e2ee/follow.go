package e2ee

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

const (
	// followPause is how long the follower rests after a round, retryPause how long after a failure.
	followPause = 20 * time.Millisecond
	retryPause  = 5 * time.Second
	// savePlaceEvery is how often it writes down how far it has come. After a crash, what came after is looked at again.
	savePlaceEvery = 10 * time.Second
	// catchUpRooms bounds the rooms of one page when it was away.
	catchUpRooms = 500
)

// follower follows the members of rooms: it tells new servers of local users' devices, and finds remote users of whose
// changes nobody tells any more.
type follower struct {
	wake chan struct{}

	mu    sync.Mutex
	head  int64          // published
	rooms map[int64]bool // with events since the last round
	keys  bool           // there may be changes of local users' devices to tell of

	// place is up to which position rooms were followed; only the follower itself uses it.
	place int64
	saved time.Time
}

func (f *follower) init(head int64) {
	f.wake, f.head, f.rooms, f.place = make(chan struct{}, 1), head, map[int64]bool{}, head
}

// published takes note of rooms with events. It is called in commit order.
func (f *follower) published(batch []storage.Notice, head int64) {
	news := false
	f.mu.Lock()
	f.head = head
	for i := range batch {
		switch n := &batch[i]; n.Kind {
		case storage.Event, storage.State:
			f.rooms[n.Room] = true
			news = true
		case storage.DeviceKeys:
			f.keys = true
			news = true
		}
	}
	f.mu.Unlock()
	if news {
		f.kick()
	}
}

func (f *follower) kick() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take returns the rooms to look at, up to which position, and whether there may be changes to tell of.
func (f *follower) take() (rooms map[int64]bool, head int64, keys bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rooms, f.rooms = f.rooms, map[int64]bool{}
	keys, f.keys = f.keys, false
	return rooms, f.head, keys
}

// giveBack returns what a round that failed was about.
func (f *follower) giveBack(rooms map[int64]bool, keys bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = f.keys || keys
	for nid := range rooms {
		f.rooms[nid] = true
	}
}

// follow runs the follower until ctx ends.
func (a *API) follow(ctx context.Context) {
	if a.remote == nil { // nobody to tell, nobody to hear from
		<-ctx.Done()
		return
	}
	begun := false
	for {
		var err error
		if !begun {
			err = a.catchUp(ctx)
			begun = err == nil
		} else {
			err = a.followRound(ctx)
		}
		pause := followPause
		if err != nil && ctx.Err() == nil {
			a.log.WithError(err).Warn("following who shares rooms with whom failed and will be tried again")
			pause = retryPause
			a.follower.kick()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 1500*time.Millisecond)
			a.savePlace(last)
			cancel()
			return
		case <-a.follower.wake:
		}
	}
}

// catchUp looks at the rooms where something happened since the place that was written down, or since the start if there is none:
// then nothing was known of remote users before.
func (a *API) catchUp(ctx context.Context) error {
	f := &a.follower
	_, head, _ := f.take()
	if _, err := a.db.Get(ctx, `SELECT pos FROM e2ee_follower WHERE one = 1`, nil, &f.place); err != nil {
		return fmt.Errorf("read the place of the follower: %w", err)
	}
	for after := int64(0); ; {
		nids, err := a.rooms.RoomsSince(ctx, f.place, after, catchUpRooms)
		if err != nil {
			return err
		}
		for _, nid := range nids {
			if err := a.followRoom(ctx, nid, f.place, head); err != nil {
				return err
			}
			after = nid
		}
		if len(nids) < catchUpRooms {
			break
		}
	}
	f.place = head
	a.savePlace(ctx)
	return a.tellNews(ctx)
}

// followRound looks at what happened since the last round.
func (a *API) followRound(ctx context.Context) error {
	f := &a.follower
	rooms, head, keys := f.take()
	for nid := range rooms {
		if err := a.followRoom(ctx, nid, f.place, head); err != nil {
			f.giveBack(rooms, keys)
			return err
		}
	}
	f.place = head
	if time.Since(f.saved) > savePlaceEvery {
		a.savePlace(ctx)
	}
	if !keys { // a message is no reason to ask the database
		return nil
	}
	if err := a.tellNews(ctx); err != nil {
		f.giveBack(nil, true)
		return err
	}
	return nil
}

// savePlace writes down how far the follower has come.
func (a *API) savePlace(ctx context.Context) {
	a.follower.saved = time.Now()
	place := a.follower.place
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`INSERT INTO e2ee_follower (one, pos) VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET pos = excluded.pos`, place)
		return err
	})
	if err != nil && ctx.Err() == nil {
		a.log.WithError(err).Warn("the place of the follower of rooms could not be stored")
	}
}

// followRoom looks at what became of a room's members between two positions.
func (a *API) followRoom(ctx context.Context, nid, from, to int64) error {
	room, err := a.rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil
	}
	if err != nil {
		return err
	}
	v := views{rooms: a.rooms, room: room}
	if v.before, err = a.rooms.StateAt(ctx, room, from); err != nil {
		return err
	}
	if v.after, err = a.rooms.StateAt(ctx, room, to); err != nil || v.before == v.after {
		return err
	}
	var came, gone []string // local users who are new, remote users who left or were away
	localLeft := false
	err = v.diff(ctx, func(user string, s stay) {
		local := a.isLocal(user)
		switch {
		case local && (s == arrived || s == returned):
			came = append(came, user)
			localLeft = localLeft || s == returned
		case local && s == departed:
			localLeft = true
		case !local && (s == departed || s == returned):
			gone = append(gone, user)
		}
	})
	if err != nil {
		return err
	}
	if localLeft && (len(room.LocalMembers(nil)) == 0 || len(came) > 0) {
		// All remote members are concerned, who were not told of while nobody of here was in the room.
		if err := v.joined(ctx, v.before, func(user string) {
			if !a.isLocal(user) {
				gone = append(gone, user)
			}
		}); err != nil {
			return err
		}
	}
	for _, user := range gone {
		if err := a.checkFollowed(ctx, user, nid); err != nil {
			return err
		}
	}
	for _, user := range came {
		keyless, err := a.keyless(ctx, user)
		if err != nil {
			return err
		}
		if keyless && room.Partial() != nil {
			continue // nobody can encrypt for them; all who share a room then are told of their first keys
		}
		servers, err := a.serversBefore(ctx, room, v.after, user)
		if err != nil {
			return err
		}
		if err := a.introduce(ctx, user, servers); err != nil {
			return err
		}
	}
	return nil
}

// serversBefore lists the servers that were in a room before a user came, by the membership in a state: those that came later
// ask for the devices of whom they find.
func (a *API) serversBefore(ctx context.Context, room *roomserver.Room, state snapshot.Ref, user string) ([]string, error) {
	e, err := a.rooms.StateEvent(ctx, room, state, memberType, user)
	if err != nil {
		return nil, err
	}
	if e == nil || e.Outlier() { // another server told of them
		return room.Servers(), nil
	}
	return a.rooms.Recipients(ctx, room, e)
}

// checkFollowed finds out whether a room other than the one that they left is shared with a remote user. If not, what is
// stored of their keys may be out of date from now on.
func (a *API) checkFollowed(ctx context.Context, user string, left int64) error {
	fresh := false
	if _, err := a.db.Get(ctx, `SELECT fresh FROM remote_device_lists WHERE user_id = $1`, []any{user}, &fresh); err != nil {
		return fmt.Errorf("look up devices of %s: %w", user, err)
	}
	if !fresh {
		return nil
	}
	shared, err := a.sharedWithAny(ctx, user, left)
	if err != nil || shared {
		return err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error { return markStale(tx, user) })
	if err != nil {
		return fmt.Errorf("forget devices of %s: %w", user, err)
	}
	return nil
}

// introduce tells servers of a local user's devices who have not heard of them.
func (a *API) introduce(ctx context.Context, user string, servers []string) error {
	var strangers []string
	for _, server := range servers {
		if server == a.rooms.Name() {
			continue
		}
		known, err := a.db.Get(ctx, `SELECT stream_id FROM device_lists_sent WHERE user_id = $1 AND destination = $2`, []any{user, server}, new(int64))
		if err != nil {
			return fmt.Errorf("look up what %s knows: %w", server, err)
		}
		if !known {
			strangers = append(strangers, server)
		}
	}
	for len(strangers) > 0 {
		n := min(len(strangers), destinationsPerWrite)
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			pos, err := tx.Position()
			if err != nil {
				return err
			}
			news, err := everything(tx, user, pos)
			if err != nil || len(news.devices) == 0 {
				return err
			}
			return writeUpdates(tx, news, strangers[:n], true)
		})
		if err != nil {
			return fmt.Errorf("tell of devices of %s: %w", user, err)
		}
		strangers = strangers[n:]
	}
	return nil
}

// keyless tells whether nothing can be encrypted for a local user yet.
func (a *API) keyless(ctx context.Context, user string) (bool, error) {
	keyless := false
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		identity, err := localIdentity(tx, user)
		if err == nil {
			keyless = identity.keyless()
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look up devices of %s: %w", user, err)
	}
	return keyless, nil
}

// everything is all that there is to tell of a user to those who have not heard of them, devices without keys included.
func everything(tx *storage.Tx, user string, pos int64) (*news, error) {
	identity, err := localIdentity(tx, user)
	if err != nil {
		return nil, err
	}
	return &news{pos: pos, user: user, devices: namesOf(identity)}, nil
}

// namesOf are the devices of a user and, if there are any, the empty one that stands for the cross-signing keys.
func namesOf(i *identity) []string {
	var names []string
	for _, d := range i.devices {
		names = append(names, d.id)
	}
	if i.master != nil {
		names = append(names, "")
	}
	return names
}
