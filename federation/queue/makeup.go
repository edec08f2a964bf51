package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// madeUpAtOnce bounds the servers for which one unit writes down what they are owed.
const madeUpAtOnce = 100

// MakeUp sends servers what they were not sent of a room because nobody knew that they are in it. Of the events at
// positions in (after, upTo] that concern a server it is the last one, from which it asks for the others, and those that
// are sticky. What they are owed is written down when MakeUp returns.
func (q *Queue) MakeUp(ctx context.Context, room *roomserver.Room, servers []string, after, upTo int64) error {
	if len(servers) == 0 {
		return nil
	}
	last := make(map[string]int64, len(servers))
	for _, name := range servers {
		last[name] = 0
	}
	err := q.eachOurs(ctx, room, after, upTo, func(pos int64, servers []string) {
		for _, name := range servers {
			if _, ok := last[name]; ok {
				last[name] = pos
			}
		}
	})
	if err != nil {
		return fmt.Errorf("what servers were not sent of %s: %w", room.ID, err)
	}
	maps.DeleteFunc(last, func(name string, pos int64) bool {
		return pos == 0 || name == q.cfg.Name || q.cfg.Allowed != nil && !q.cfg.Allowed(name)
	})
	for names := range slices.Chunk(slices.Sorted(maps.Keys(last)), madeUpAtOnce) {
		if err := q.makeUp(ctx, room, names, last); err != nil {
			return fmt.Errorf("what servers were not sent of %s: %w", room.ID, err)
		}
	}
	return nil
}

// makeUp writes down the last events that some servers are owed of a room, and puts them on their lists.
func (q *Queue) makeUp(ctx context.Context, room *roomserver.Room, names []string, last map[string]int64) error {
	err := q.cfg.DB.Write(ctx, func(tx *storage.Tx) error {
		for _, name := range names {
			if err := putOwed(tx, name, map[int64]int64{room.NID: last[name]}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := q.PushSticky(ctx, name, room, last[name]-1); err != nil {
			return err
		}
		q.mu.Lock()
		q.add(name, ref{room.NID, last[name]})
		if d := q.servers[name]; d != nil {
			d.rows = true
		}
		q.mu.Unlock()
	}
	return nil
}
