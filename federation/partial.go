package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	// partialServers bounds the servers that are asked for the members of a room before there is a pause.
	partialServers = 20
	// partialParallel bounds the rooms whose members are asked for at the same time: a state can be large.
	partialParallel = 4
	// partialPause is how long there is a pause at first when no server tells the members; each is twice as long as the one
	// before, up to maxPartialPause.
	partialPause    = 5 * time.Second
	maxPartialPause = 10 * time.Minute
	// joinPatience is how long a join waits for the members: in most rooms they are there at once, and clients then never
	// meet a room that is not whole.
	joinPatience = 400 * time.Millisecond
	// toldFailures is how many of their failures the log tells.
	toldFailures = 4
)

// completions keeps account of the rooms that are being completed: those that were entered without most members.
type completions struct {
	mu    sync.Mutex
	rooms map[string]bool
	group sync.WaitGroup
	slots chan struct{}
}

// completeLater asks for the members of a room in the background, unless that is done already, until they are known or nobody is
// in the room any more.
func (a *API) completeLater(roomID string) {
	c := &a.completions
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rooms == nil {
		c.rooms, c.slots = map[string]bool{}, make(chan struct{}, partialParallel)
	}
	if c.rooms[roomID] || a.background.Err() != nil {
		return
	}
	c.rooms[roomID] = true
	c.group.Go(func() {
		a.completeRoom(a.background, roomID)
		c.mu.Lock()
		delete(c.rooms, roomID)
		c.mu.Unlock()
		if a.isPartial(a.background, roomID) { // it was entered anew meanwhile
			a.completeLater(roomID)
		}
	})
}

// isPartial tells whether the members of a room are still to be asked for.
func (a *API) isPartial(ctx context.Context, roomID string) bool {
	room, err := a.rooms.Room(ctx, roomID)
	return err == nil && room.Partial() != nil
}

// completeRoom tries until it succeeds, the room is gone, or ctx ends.
func (a *API) completeRoom(ctx context.Context, roomID string) {
	log := a.log.WithField("room_id", roomID)
	pause := partialPause
	for round := 0; ctx.Err() == nil; round++ {
		err := a.tryComplete(ctx, roomID, round > 0)
		if err == nil || errors.Is(err, roomserver.ErrUnknownRoom) {
			a.tellWhole(ctx)
			return
		}
		if ctx.Err() != nil {
			return
		}
		log.WithError(err).Info("the members of a room that was entered without them could not be had yet")
		if room, err := a.rooms.Room(ctx, roomID); err == nil && !room.Resident() {
			if err := a.rooms.Abandon(ctx, roomID); err == nil && !a.isPartial(ctx, roomID) {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, maxPartialPause)
		}
	}
}

// tryComplete asks the servers of a room in turn. With lenient, a state counts of which not everything can be had.
func (a *API) tryComplete(ctx context.Context, roomID string, lenient bool) error {
	c := &a.completions
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		room, err := a.rooms.Room(ctx, roomID)
		if err != nil {
			return err
		}
		missing, err := a.rooms.Unfetched(ctx, room)
		if err != nil {
			return err
		}
		for i := range missing {
			if err := a.fetchEntry(ctx, room, &missing[i], lenient); err != nil {
				return err
			}
		}
		if err = a.rooms.MakeWhole(ctx, roomID); !errors.Is(err, roomserver.ErrUnfetched) {
			return err
		}
	}
}

// fetchEntry gets the state at an event with which a room was entered, from the first server that gives a sound answer.
func (a *API) fetchEntry(ctx context.Context, room *roomserver.Room, u *roomserver.Unfetched, lenient bool) error {
	if len(u.Parents) == 0 { // they came otherwise
		return a.rooms.PutFetched(ctx, room.ID, u.Event, &roomserver.Given{}, lenient)
	}
	failures := []error{errNobody}
	for _, server := range a.witnesses(room) {
		given, err := a.fetchStates(ctx, server, room, u.Parents, stateTimeout)
		if err == nil {
			err = a.rooms.PutFetched(ctx, room.ID, u.Event, given, lenient)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		failures = append(failures, fmt.Errorf("%s: %w", server, err))
	}
	return errors.Join(failures[:min(len(failures), toldFailures)]...)
}

// witnesses lists servers to ask for the members of a room: the one that let us in first.
func (a *API) witnesses(room *roomserver.Room) (list []string) {
	add := func(server string) {
		if server != a.name && len(list) < partialServers && !slices.Contains(list, server) && pdu.ValidServerName(server) {
			list = append(list, server)
		}
	}
	if p := room.Partial(); p != nil {
		add(p.Via)
	}
	for _, server := range room.Servers() {
		add(server)
	}
	return list
}

// awaitWhole waits a while until the members of a room are known, and tells whether they are.
func (a *API) awaitWhole(ctx context.Context, room *roomserver.Room, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return a.rooms.AwaitWhole(ctx, room) == nil
}

// runCompletions goes on with what was not finished at the last stop, and returns when nothing is done any more.
func (a *API) runCompletions(ctx context.Context) {
	a.tellWhole(ctx)
	for _, p := range a.rooms.PartialRooms() {
		a.completeLater(p.RoomID)
	}
	<-ctx.Done()
	a.completions.mu.Lock()
	a.stop() // nothing is begun any more
	a.completions.mu.Unlock()
	a.completions.group.Wait()
}

// tellWhole tells others of the rooms whose members have become known.
func (a *API) tellWhole(ctx context.Context) {
	list, err := a.rooms.Completions(ctx)
	for _, c := range list {
		if err = a.makeUp(ctx, &c); err != nil {
			break
		}
		if a.whole != nil {
			if err = a.whole(ctx, c); err != nil {
				break
			}
		}
		if err = a.rooms.CompletionTold(ctx, c.RoomID); err != nil {
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		a.log.WithError(err).Error("not everybody could be told that the members of a room are known; it will be tried again after a restart")
	}
}

// makeUp sends servers that turned out to be in a room what they were not sent of it.
func (a *API) makeUp(ctx context.Context, c *roomserver.Completion) error {
	room, err := a.rooms.Room(ctx, c.RoomID)
	if errors.Is(err, roomserver.ErrUnknownRoom) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.queue.MakeUp(ctx, room, c.Found, c.Since, c.Until)
}
