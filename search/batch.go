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

// The tables of the index, as units of rows write them.
var (
	cursorTable = storage.DeclareTable("search_cursor", storage.Put,
		storage.Key("one", storage.Int), storage.Col("pos", storage.Int))
	progressTable = storage.DeclareTable("search_progress", storage.Put,
		storage.Key("room", storage.Int), storage.Col("pos", storage.Int))
	// What the index does not have yet costs half as much to write as what it may have.
	newEntries, anyEntries = declareEntries(storage.Insert), declareEntries(storage.Put)
)

// entryTables are where an entry is: what it is about, and its terms.
type entryTables struct{ events, terms *storage.Table }

func declareEntries(mode storage.Mode) entryTables {
	return entryTables{
		events: storage.DeclareTable("search_events", mode,
			storage.Key("id", storage.Int), storage.Col("room", storage.Int), storage.Col("event", storage.Int),
			storage.Col("part", storage.Int), storage.Col("sender", storage.Bytes),
			storage.Col("state_before", storage.Int), storage.Col("words", storage.Bytes)),
		terms: storage.DeclareTerms("search_terms", mode),
	}
}

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
	purges  int64           // how many had ended when the first of what is in it was read
	doubt   bool            // the index may have entries already that are read as news
}

// entry is an event as it is in the index; without words it is to be taken out.
type entry struct {
	id, room, event int64
	part            part
	sender          string
	before          int64
	words           []string
	known           bool // the index may have it
}

func (b *batch) add(ctx context.Context, e *entry) error {
	if b.entries == nil {
		b.entries = map[int64]*entry{}
	}
	if old := b.entries[e.id]; old != nil {
		e.known = old.known
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
	unit := &storage.Unit{}
	for room, pos := range b.places {
		unit.Add(progressTable, room, pos)
		b.x.progress[room] = pos
	}
	return b.flush(ctx, unit)
}

// finish writes what is left and moves the cursor.
func (b *batch) finish(ctx context.Context, cursor int64) error {
	unit := &storage.Unit{}
	unit.Add(cursorTable, 1, cursor)
	for room := range b.x.progress {
		unit.Delete(progressTable, room)
	}
	clear(b.x.progress)
	return b.flush(ctx, unit)
}

// flush adds the batch to a unit that says how far that is, and writes it. After an error the progress in memory is
// no longer that of the database.
func (b *batch) flush(ctx context.Context, unit *storage.Unit) error {
	err := b.addUsers(ctx, unit)
	if err == nil {
		// In order: an index of SQLite writes out what it has gathered whenever a number goes back.
		for _, id := range slices.Sorted(maps.Keys(b.entries)) {
			b.entries[id].add(unit)
		}
		err = write(ctx, b.x.db, unit)
	}
	if err == nil && b.x.purges.begun.Load() != b.purges {
		err = b.dropGone(ctx)
	}
	if err != nil {
		b.failed = fmt.Errorf("write the search index: %w", err)
		return b.failed
	}
	b.entries, b.users, b.open, b.places = nil, nil, nil, nil
	return nil
}

// write appends a unit and waits until it is on disk.
func write(ctx context.Context, db *storage.DB, unit *storage.Unit) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	unit.Done = func(_ int64, err error) { done <- err }
	db.Append(unit)
	return <-done
}

// roomTerm is the term of what belongs to a room.
func roomTerm(room int64) string { return "_r" + strconv.FormatInt(room, 10) }

func (e *entry) add(unit *storage.Unit) {
	if len(e.words) == 0 {
		unit.Delete(anyEntries.events, e.id)
		unit.Delete(anyEntries.terms, e.id)
		return
	}
	to := newEntries
	if e.known {
		to = anyEntries
	}
	words := strings.Join(e.words, " ")
	unit.Add(to.events, e.id, e.room, e.event, int64(e.part), e.sender, e.before, " "+words+" ")
	unit.Add(to.terms, e.id, storage.Text(roomTerm(e.room)+" "+e.part.term()+" "+words))
}
