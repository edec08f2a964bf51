package storage

import (
	"context"
	"fmt"
	"sync"
)

const (
	// Blocks grow from idBlockMin to idBlockMax as they are used up, so that an idle server does not
	// burn numbers at each start (small numbers are small on disk) and a busy one rarely waits.
	idBlockMin = 32
	idBlockMax = 1024
)

// IDs hands out numeric ids that are unique across restarts and nodes, increasing on one node, with
// gaps. They start at 1.
type IDs struct {
	db   *DB
	name string

	mu    sync.Mutex
	next  int64 // next free id
	end   int64 // first id beyond the block
	block int64 // size of the next block
}

// IDs returns the allocator of the named sequence. Make one per name and node and share it.
func (db *DB) IDs(name string) *IDs {
	return &IDs{db: db, name: name, block: idBlockMin}
}

// Next returns the next id. It waits for the disk once per block, and therefore must not be called
// within a Write or a Read.
func (ids *IDs) Next(ctx context.Context) (int64, error) {
	ids.mu.Lock()
	defer ids.mu.Unlock()
	if ids.next == ids.end {
		if err := ids.reserve(ctx); err != nil {
			return 0, fmt.Errorf("reserve ids of %s: %w", ids.name, err)
		}
	}
	id := ids.next
	ids.next++
	return id, nil
}

func (ids *IDs) reserve(ctx context.Context) error {
	var end int64
	err := ids.db.Write(ctx, func(tx *Tx) error {
		_, err := tx.Get(`INSERT INTO id_blocks (name, next) VALUES ($1, 1 + $2)
			ON CONFLICT (name) DO UPDATE SET next = id_blocks.next + $2 RETURNING next`,
			[]any{ids.name, ids.block}, &end)
		return err
	})
	if err != nil {
		return err
	}
	ids.next, ids.end = end-ids.block, end
	ids.block = min(2*ids.block, idBlockMax)
	return nil
}
