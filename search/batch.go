package search

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/storage"
)

// maxBatch is how many messages or users one write changes: it goes through the same queue as everybody's writes.
const maxBatch = 512

// batch collects changes of the index until they are worth a write.
type batch struct {
	x       *index
	entries map[int64]*entry
	users   map[string]*user
	open    map[int64]bool  // rooms that have become open to everybody or have ceased to be
	places  map[int64]int64 // how far rooms are
	failed  error           // of the database
}

// entry is an event as it is in the index; without words it is to be taken out.
type entry struct {
	id, room, event int64
	part            part
	sender          string
	before          int64
	words           []string
}

func (b *batch) add(ctx context.Context, e *entry) error {
	if b.entries == nil {
		b.entries = map[int64]*entry{}
	}
	b.entries[e.id] = e
	return b.flushIfFull(ctx)
}

// reached notes that a room is in the index up to a position, once what was added so far is.
func (b *batch) reached(room, pos int64) {
	if b.places == nil {
		b.places = map[int64]int64{}
	}
	b.places[room] = pos
}

func (b *batch) flushIfFull(ctx context.Context) error {
	if len(b.entries) < maxBatch && len(b.users) < maxBatch {
		return nil
	}
	return b.flush(ctx, func(tx *storage.Tx) error {
		for room, pos := range b.places {
			_, err := tx.Exec(`INSERT INTO search_progress (room, pos) VALUES ($1, $2) ON CONFLICT (room) DO UPDATE SET pos = excluded.pos`, room, pos)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// finish writes what is left and moves the cursor.
func (b *batch) finish(ctx context.Context, cursor int64) error {
	err := b.flush(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Exec(`INSERT INTO search_cursor (one, pos) VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET pos = excluded.pos`, cursor); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM search_progress`)
		return err
	})
	if err == nil {
		b.x.progress = nil
	}
	return err
}

// flush writes the batch, and with it how far that is.
func (b *batch) flush(ctx context.Context, mark func(tx *storage.Tx) error) error {
	err := b.number(ctx)
	if err == nil {
		err = b.x.db.Write(ctx, func(tx *storage.Tx) error {
			// In order: an index of SQLite writes out what it has gathered whenever a number goes back.
			for _, id := range slices.Sorted(maps.Keys(b.entries)) {
				if err := b.entries[id].write(tx); err != nil {
					return err
				}
			}
			if err := b.writeUsers(tx); err != nil {
				return err
			}
			return mark(tx)
		})
	}
	if err != nil {
		b.failed = fmt.Errorf("write the search index: %w", err)
		return b.failed
	}
	b.entries, b.users, b.open, b.places = nil, nil, nil, nil
	return nil
}

const (
	termsOfEvents = "search_terms"
	termsOfUsers  = "directory_terms"
)

// roomTerm is the term of what belongs to a room.
func roomTerm(room int64) string { return "_r" + strconv.FormatInt(room, 10) }

func (e *entry) write(tx *storage.Tx) error {
	if len(e.words) == 0 {
		if _, err := tx.Exec(`DELETE FROM search_events WHERE id = $1`, e.id); err != nil {
			return err
		}
		return tx.DropTerms(termsOfEvents, e.id)
	}
	words := strings.Join(e.words, " ")
	_, err := tx.Exec(`INSERT INTO search_events (id, room, event, part, sender, state_before, words) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (id) DO UPDATE SET room = excluded.room, event = excluded.event, part = excluded.part,
			sender = excluded.sender, state_before = excluded.state_before, words = excluded.words`,
		e.id, e.room, e.event, int64(e.part), e.sender, e.before, " "+words+" ")
	if err != nil {
		return err
	}
	return tx.SetTerms(termsOfEvents, e.id, roomTerm(e.room)+" "+e.part.term()+" "+words)
}
