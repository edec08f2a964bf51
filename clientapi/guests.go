package clientapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// guestRemover makes guests leave rooms that no longer let guests in. It looks at rooms in which something happens, and at
// its start at those that guests are in, so that nothing that happened while the server was down is missed.
//
// Spec: client-server API v1.19, "Guest Access", server behaviour.
type guestRemover struct {
	api *API
	// poke tells run that there is something to look at.
	poke chan struct{}

	mu      sync.Mutex
	changed map[int64]bool // rooms, by number; guarded by mu
	lost    bool           // there were too many: all guests have to be looked at; guarded by mu

	// decided has, by room, what the room was when it was last looked at. It belongs to run.
	decided map[int64]decision
}

// decision is what a room says of guests.
type decision struct {
	root  snapshot.Ref // of the room's state
	event int64        // which decides; 0: there is none
}

const (
	// maxGuestRooms bounds the rooms that are remembered, changed or decided on.
	maxGuestRooms = 50_000
	// guestPage is how many users are looked up at once.
	guestPage = 500
	// guestRetry is how long the remover waits after a failure.
	guestRetry = 5 * time.Second
	// guestPause gathers what happens in busy rooms, so that they are looked at a few times a second and not for each event.
	guestPause = 100 * time.Millisecond
)

func newGuestRemover(a *API) *guestRemover {
	g := &guestRemover{api: a, poke: make(chan struct{}, 1), changed: map[int64]bool{}, lost: true, decided: map[int64]decision{}}
	a.db.Watch(g.published)
	return g
}

// published notes the rooms with new events.
func (g *guestRemover) published(batch []storage.Notice, _ int64) {
	first := slices.IndexFunc(batch, func(n storage.Notice) bool { return n.Kind == storage.Event })
	if first < 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range batch[first:] {
		n := &batch[first+i]
		if n.Kind != storage.Event {
			continue
		}
		if len(g.changed) < maxGuestRooms {
			g.changed[n.Room] = true
		} else {
			g.lost = true
		}
	}
	g.wake()
}

func (g *guestRemover) wake() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// take returns what is to be looked at.
func (g *guestRemover) take() (rooms []int64, all bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rooms, all = slices.Sorted(maps.Keys(g.changed)), g.lost
	clear(g.changed)
	g.lost = false
	return rooms, all
}

// run works until ctx ends.
func (g *guestRemover) run(ctx context.Context) {
	for ctx.Err() == nil {
		rooms, all := g.take()
		if err := g.work(ctx, rooms, all); err != nil && ctx.Err() == nil {
			g.api.log.WithError(err).Warn("cannot remove guests from rooms; trying again later")
			g.mu.Lock()
			g.lost = true
			g.mu.Unlock()
			pause(ctx, guestRetry)
			continue
		}
		select {
		case <-ctx.Done():
		case <-g.poke:
			pause(ctx, guestPause)
		}
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (g *guestRemover) work(ctx context.Context, rooms []int64, all bool) error {
	if all {
		clear(g.decided)
		if err := g.allGuests(ctx); err != nil {
			return err
		}
	}
	for _, nid := range rooms {
		if err := g.room(ctx, nid); err != nil {
			return err
		}
	}
	return nil
}

// allGuests looks at every room that a guest is in.
func (g *guestRemover) allGuests(ctx context.Context) error {
	for after := ""; ; {
		var guests []string
		err := g.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
			guests, err = accounts.Guests(tx, after, guestPage)
			return err
		})
		if err != nil || len(guests) == 0 {
			return err
		}
		for _, guest := range guests {
			rooms, err := g.api.rooms.UserRooms(ctx, guest)
			if err != nil {
				return fmt.Errorf("rooms of %s: %w", guest, err)
			}
			for _, r := range rooms {
				if r.Membership != roomserver.Join {
					continue
				}
				if err := g.room(ctx, r.NID); err != nil {
					return err
				}
			}
		}
		after = guests[len(guests)-1]
	}
}

// room makes the guests in a room leave if it does not let guests in.
func (g *guestRemover) room(ctx context.Context, nid int64) error {
	room, err := g.api.rooms.RoomByNID(ctx, nid)
	if errors.Is(err, roomserver.ErrUnknownRoom) { // purged meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	now, last := decision{root: room.Head().State}, g.decided[nid]
	if now.root == last.root { // most events are messages
		return nil
	}
	var open bool
	if open, now.event, err = g.api.guestAccess(ctx, room); err != nil {
		return err
	}
	if !open && (last.root == 0 || last.event != now.event) {
		if err := g.empty(ctx, room); err != nil {
			return err
		}
	}
	if len(g.decided) >= maxGuestRooms {
		clear(g.decided)
	}
	g.decided[nid] = now
	return nil
}

// empty makes the guests in a room leave.
func (g *guestRemover) empty(ctx context.Context, room *roomserver.Room) error {
	for members := range slices.Chunk(room.LocalMembers(nil), guestPage) {
		var guests []string
		err := g.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
			guests, err = accounts.GuestsAmong(tx, members)
			return err
		})
		if err != nil {
			return fmt.Errorf("find guests: %w", err)
		}
		for _, guest := range guests {
			if err := g.api.removeGuest(ctx, room.ID, guest); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeGuest makes a guest leave a room.
func (a *API) removeGuest(ctx context.Context, roomID, guest string) error {
	_, err := a.rooms.SetMembership(ctx, roomserver.MembershipChange{
		RoomID: roomID, Sender: guest, Target: guest, Membership: roomserver.Leave, Content: withReason("Guests may not be in this room"),
	})
	if err != nil {
		return fmt.Errorf("remove %s from %s: %w", guest, roomID, err)
	}
	return nil
}
