package roomserver

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// packLoader reads trie nodes for the snapshot store.
//
// A state refers to nodes of its own pack and of older ones, and who looks at one state mostly looks at those before it as
// well: each state event in a timeline is shown together with what it replaced. So a row that is asked for alone is read
// together with the small ones just before it, which wait here until they are asked for.
type packLoader struct {
	db    *storage.DB
	ahead *cache.Cache[packKey, []byte]
}

// packKey names a row of state_packs.
type packKey struct{ room, id int64 }

const (
	// packBatch is how many rows of state_packs one query asks for.
	packBatch = 16
	// packsAhead is how many rows are read instead of one. Those with more than smallPack bytes, of joins and resolutions,
	// are left out.
	packsAhead = 64
	smallPack  = 1 << 10
	// aheadBytes bounds the rows that wait.
	aheadBytes = 4 << 20
)

func newPackLoader(db *storage.DB) packLoader {
	return packLoader{db, cache.New[packKey, []byte](aheadBytes)}
}

// LoadPacks implements snapshot.Loader.
func (l packLoader) LoadPacks(ctx context.Context, room int64, ids []int64, put func(id int64, data []byte)) error {
	var missing []int64
	for _, id := range ids {
		k := packKey{room, id}
		if data, ok := l.ahead.Get(k); ok {
			l.ahead.Delete(k) // the store keeps it from now on
			put(id, data)
		} else {
			missing = append(missing, id)
		}
	}
	if len(missing) == 1 {
		return l.readAhead(ctx, room, missing[0], put)
	}
	args := make([]any, 1+packBatch)
	args[0] = room
	for len(missing) > 0 {
		// Always the same number of parameters, so that one prepared statement serves all.
		for i := range packBatch {
			args[1+i] = missing[min(i, len(missing)-1)]
		}
		missing = missing[min(packBatch, len(missing)):]
		rows, err := l.read(ctx, `SELECT pack, data FROM state_packs WHERE room = $1 AND pack IN `+storage.In(packBatch, 2), args...)
		if err != nil {
			return err
		}
		for _, row := range rows {
			put(row.ID, row.Data)
		}
	}
	return nil
}

// readAhead reads one row, and some before it that are kept.
func (l packLoader) readAhead(ctx context.Context, room, id int64, put func(id int64, data []byte)) error {
	rows, err := l.read(ctx, `SELECT pack, data FROM
			(SELECT pack, data FROM state_packs WHERE room = $1 AND pack <= $2 ORDER BY pack DESC LIMIT $3) AS near
		WHERE pack = $2 OR length(data) <= $4`, room, id, int64(packsAhead), int64(smallPack))
	for _, row := range rows {
		if row.ID == id {
			put(id, row.Data)
		} else {
			l.keep(packKey{room, row.ID}, row.Data)
		}
	}
	return err
}

// keep lets a row wait until it is asked for.
func (l packLoader) keep(k packKey, data []byte) {
	l.ahead.Put(k, data, len(data)+2*cache.Overhead)
}

func (l packLoader) read(ctx context.Context, query string, args ...any) (list []snapshot.Row, err error) {
	err = l.db.ReadOne(ctx, func(tx *storage.Tx) error {
		list = list[:0]
		rows := tx.Query(query, args...)
		for rows.Next() {
			var row snapshot.Row
			rows.Scan(&row.ID, &row.Data)
			list = append(list, row)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("load room state: %w", err)
	}
	return list, nil
}
