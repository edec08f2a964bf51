// Package retention deletes what nobody is to see any more, in the background: messages that have outlived the policy of
// their room or of the server (MSC1763), and rooms that all local users have left and forgotten.
//
// Expired messages are hidden from everyone the moment they expire (roomserver.Viewer); this package frees the disk. It
// works in small units with pauses between them, since every other write waits for them, and each unit is complete in
// itself: what was interrupted goes on after a restart, from what the tables say. It keeps no tables of its own.
package retention

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// Config says what is deleted when.
type Config struct {
	// Policy is how long messages live, the same as roomserver.Options.Retention, for clients that ask.
	Policy roomserver.Retention
	// Interval is how often to look for what has expired.
	Interval time.Duration
	// Abandoned is how long after the last local user has forgotten a room it is removed; 0 is never.
	Abandoned time.Duration
}

// Hooks are how a feature deletes what it keeps of events and rooms. Events and Room run within units of the database, so
// they must be quick and touch nothing but the transaction.
type Hooks struct {
	// Begin, if set, hears that a room's history is going to be purged or a room removed, and end that it is gone, from
	// memory as well.
	Begin func() (end func())
	// Events, if set, deletes what is kept of events that leave the timeline, at most a hundred.
	Events func(tx *storage.Tx, room int64, purged []*roomserver.Event) error
	// Room, if set, deletes up to limit rows about a room that is gone.
	Room roomserver.RoomRows
}

// Deps are the other parts of the server.
type Deps struct {
	// DB is the database that Rooms is on.
	DB *storage.DB
	// Rooms has the rooms and their policies.
	Rooms *roomserver.Server
	// Hooks are those of all features that keep something about events or rooms.
	Hooks []Hooks
	// Log gets what operators should know.
	Log *logrus.Entry
}

// Cleaner deletes what has expired.
type Cleaner struct {
	cfg   Config
	db    *storage.DB
	rooms *roomserver.Server
	log   *logrus.Entry
	now   func() time.Time

	begin   []func() (end func())
	events  func(tx *storage.Tx, room int64, purged []*roomserver.Event) error
	removed []roomserver.RoomRows
}

// New makes a Cleaner, which does nothing before Run.
func New(cfg Config, d Deps) *Cleaner {
	c := &Cleaner{cfg: cfg, db: d.DB, rooms: d.Rooms, log: d.Log, now: time.Now}
	for _, h := range d.Hooks {
		if h.Begin != nil {
			c.begin = append(c.begin, h.Begin)
		}
		if h.Room != nil {
			c.removed = append(c.removed, h.Room)
		}
	}
	c.events = func(tx *storage.Tx, room int64, purged []*roomserver.Event) error {
		for _, h := range d.Hooks {
			if h.Events == nil {
				continue
			}
			if err := h.Events(tx, room, purged); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

const (
	// firstPass is when the first pass begins after the start, so that a restart is not slowed down by it.
	firstPass = time.Minute
	// breath is the pause after each unit.
	breath = 20 * time.Millisecond
	// roomPage is how many rooms are looked up at once.
	roomPage = 500
	// shrinkPages is how many pages one unit gives back to the file system.
	shrinkPages = 256
)

// Run deletes what expires until ctx ends.
func (c *Cleaner) Run(ctx context.Context) {
	timer := time.NewTimer(min(firstPass, c.cfg.Interval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := c.Pass(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrClosed) {
			c.log.WithError(err).Error("Deleting what has expired failed and will be tried again")
		}
		timer.Reset(c.cfg.Interval)
	}
}

// Pass deletes everything that has expired by now.
func (c *Cleaner) Pass(ctx context.Context) error {
	return errors.Join(c.purgeMessages(ctx), c.removeRooms(ctx), c.shrink(ctx))
}

// pause lets other writes go first.
func (c *Cleaner) pause(ctx context.Context) error {
	select {
	case <-time.After(breath):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// purgeMessages goes through the rooms in which messages expire.
func (c *Cleaner) purgeMessages(ctx context.Context) error {
	var errs []error
	for after := int64(0); ; {
		rooms, last, err := c.rooms.Retained(ctx, after, roomPage)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, r := range rooms {
			if err := c.purge(ctx, r); err != nil && !errors.Is(err, roomserver.ErrUnknownRoom) {
				errs = append(errs, err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if last == 0 {
			return errors.Join(errs...)
		}
		after = last
	}
}

// purge deletes what has expired in one room.
func (c *Cleaner) purge(ctx context.Context, nid int64) error {
	room, err := c.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return err
	}
	horizon, err := c.rooms.Horizon(ctx, room)
	if err != nil {
		return err
	}
	deleted := 0
	if horizon > 0 {
		if deleted, err = c.purgeHistory(ctx, room, horizon); err != nil {
			return err
		}
	}
	rows, err := c.rooms.SweepState(ctx, room, c.pause)
	if deleted+rows > 0 {
		c.log.WithFields(logrus.Fields{"room_id": room.ID, "messages": deleted, "state_rows": rows}).Info("Purged expired history")
	}
	return err
}

// purgeHistory deletes what is older than horizon, while the features know that it goes on.
func (c *Cleaner) purgeHistory(ctx context.Context, room *roomserver.Room, horizon int64) (deleted int, err error) {
	defer c.announce()()
	return c.rooms.PurgeHistory(ctx, room, roomserver.Purge{Before: horizon, Also: c.events, Pause: c.pause})
}

// announce tells the features that something is going to be deleted, and end that it is gone.
func (c *Cleaner) announce() (end func()) {
	ends := make([]func(), 0, len(c.begin))
	for _, begin := range c.begin {
		ends = append(ends, begin())
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// removeRooms removes the rooms that nobody wants any more, and goes on with removals that were interrupted.
func (c *Cleaner) removeRooms(ctx context.Context) error {
	var before int64
	if c.cfg.Abandoned > 0 {
		before = c.now().Add(-c.cfg.Abandoned).UnixMilli() + 1
	}
	for after := int64(0); ; {
		list, err := c.rooms.Removals(ctx, before, after, roomPage)
		if err != nil || len(list) == 0 {
			return err
		}
		for _, r := range list {
			after = r.NID
			if err := c.removeRoom(ctx, r); err != nil {
				return err
			}
		}
	}
}

// removeRoom removes a room if nobody wants it, while the features know that it goes on.
func (c *Cleaner) removeRoom(ctx context.Context, r roomserver.Removal) error {
	defer c.announce()()
	if !r.Begun {
		if begun, err := c.rooms.BeginRemoval(ctx, r); err != nil || !begun {
			return err
		}
	}
	if err := c.rooms.Remove(ctx, r, c.removed, c.pause); err != nil {
		return err
	}
	c.log.WithField("room_id", r.RoomID).Info("Removed a room that nobody here is in")
	return nil
}

// shrink gives the pages that are free back to the file system.
func (c *Cleaner) shrink(ctx context.Context) error {
	for {
		more, err := c.db.Shrink(ctx, shrinkPages)
		if err != nil {
			return fmt.Errorf("shrink the database: %w", err)
		}
		if !more {
			return nil
		}
		if err := c.pause(ctx); err != nil {
			return err
		}
	}
}
