package ephemeral

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

const (
	// prefetchFrom is from how many rooms on it pays to ask for all of them together, prefetchBatch how many one query asks for.
	prefetchFrom  = 4
	prefetchBatch = 32
)

// Prefetch reads the receipts of rooms into memory, before a user looks at many rooms. It asks for what memory lacks only.
func (a *API) Prefetch(ctx context.Context, rooms []roomserver.UserRoom) error {
	if len(rooms) < prefetchFrom {
		return nil
	}
	s := a.receipts
	var missing []int64
	for i := range rooms {
		if rooms[i].Membership != roomserver.Join {
			continue
		}
		if _, ok := s.logs.Get(rooms[i].NID); !ok {
			missing = append(missing, rooms[i].NID)
		}
	}
	for len(missing) >= prefetchFrom {
		batch := missing[:min(prefetchBatch, len(missing))]
		missing = missing[len(batch):]
		if err := s.prefetch(ctx, batch); err != nil {
			return fmt.Errorf("receipts of %d rooms: %w", len(batch), err)
		}
	}
	return nil
}

// prefetch loads the logs of some rooms.
func (s *receiptStore) prefetch(ctx context.Context, rooms []int64) error {
	upTo := s.db.Head()
	args := []any{upTo, int64(keepReceipts + 1)}
	for i := range prefetchBatch { // always the same number of parameters, so that one prepared statement serves all
		args = append(args, rooms[min(i, len(rooms)-1)])
	}
	var found map[int64][]Receipt
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		found = map[int64][]Receipt{}
		rows := tx.Query(`SELECT room, `+receiptColumns+` FROM (
			SELECT room, `+receiptColumns+`, row_number() OVER (PARTITION BY room ORDER BY pos DESC) AS n
			FROM receipts WHERE pos <= $1 AND room IN `+storage.In(prefetchBatch, 3)+`) AS newest
			WHERE n <= $2 ORDER BY room, pos, kind`, args...)
		var r Receipt
		var room, kind int64
		for rows.Next() {
			rows.Scan(&room, &r.User, &kind, &r.Thread, &r.EventID, &r.At.Anchor, &r.At.Sub, &r.TS, &r.Pos)
			r.Kind = Kind(kind)
			found[room] = append(found[room], r)
		}
		return rows.Close()
	})
	if err != nil {
		return err
	}
	for _, room := range rooms {
		log := s.log(room)
		log.mu.Lock()
		if !log.loaded {
			log.extended(found[room], upTo)
		}
		log.mu.Unlock()
	}
	return nil
}
