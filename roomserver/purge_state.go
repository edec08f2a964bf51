package roomserver

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// maxMarked bounds the nodes of a room's states that SweepState remembers: about 80 MB.
const maxMarked = 2_000_000

// sweepBatch is how many rows of state one unit deletes.
const sweepBatch = 250

// SweepState deletes the state of a room that only purged events had, once after each purge, and returns how many
// rows that were. Who asks for the room's state as it was before is told from then on that it was empty. pause, if
// not nil, is called between two units.
func (s *Server) SweepState(ctx context.Context, room *Room, pause func(context.Context) error) (rows int, err error) {
	var mark PurgeMark
	swept := true
	found, err := s.db.Get(ctx, `SELECT before, swept FROM room_purges WHERE room = $1`, []any{room.NID}, &mark.Before, &swept)
	if err != nil || !found || swept {
		return 0, err
	}
	if mark.Floor, err = s.floor(ctx, room, mark.Before); err != nil {
		return 0, fmt.Errorf("sweep state of %s: %w", room.ID, err)
	}
	if err := s.trimStateLog(ctx, room, mark.Floor.Anchor); err != nil {
		return 0, fmt.Errorf("sweep state of %s: %w", room.ID, err)
	}
	unused, err := s.unusedPacks(ctx, room)
	if err != nil {
		return 0, fmt.Errorf("sweep state of %s: %w", room.ID, err)
	}
	for len(unused) > 0 {
		if pause != nil {
			if err := pause(ctx); err != nil {
				return rows, err
			}
		}
		batch := unused[:min(sweepBatch, len(unused))]
		unused = unused[len(batch):]
		if err := s.deletePacks(ctx, room, batch); err != nil {
			return rows, fmt.Errorf("sweep state of %s: %w", room.ID, err)
		}
		rows += len(batch)
	}
	err = s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE room_purges SET anchor = $1, sub = $2, swept = $3 WHERE room = $4 AND before = $5`,
			mark.Floor.Anchor, mark.Floor.Sub, true, room.NID, mark.Before)
		return err
	})
	return rows, err
}

// floor is the place of the oldest event that a purge left in the timeline, not counting single ones that it passed over.
func (s *Server) floor(ctx context.Context, room *Room, before int64) (HistoryToken, error) {
	var t HistoryToken
	found, err := s.db.Get(ctx, `SELECT anchor, sub FROM events WHERE room = $1 AND anchor IS NOT NULL AND ts >= $2 ORDER BY anchor, sub LIMIT 1`,
		[]any{room.NID, before}, &t.Anchor, &t.Sub)
	if err != nil || found {
		return t, err
	}
	head := room.Head()
	t = HistoryToken{Anchor: head.Pos}
	for _, e := range head.Extremities {
		if e.Token().Before(t) {
			t = e.Token()
		}
	}
	return t, nil
}

// trimStateLog forgets the changes of the current state before a position, but for the last one, which then is the
// first state that is known.
func (s *Server) trimStateLog(ctx context.Context, room *Room, pos int64) error {
	var first int64
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		first = 0
		found, err := tx.Get(`SELECT pos FROM state_log WHERE room = $1 AND pos <= $2 ORDER BY pos DESC LIMIT 1`, []any{room.NID, pos}, &first)
		if err != nil || !found {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM state_log WHERE room = $1 AND pos < $2`, room.NID, first); err != nil {
			return err
		}
		_, err = tx.Exec(`UPDATE state_log SET old_root = 0 WHERE room = $1 AND pos = $2`, room.NID, first)
		return err
	})
	if err != nil || first == 0 {
		return err
	}
	room.changes.trim(first)
	return nil
}

// trim forgets changes before a position, as the database has done.
func (t *stateRing) trim(first int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.changes, func(c stateChange) bool { return c.pos >= first })
	if i < 0 {
		i = len(t.changes)
	}
	t.changes = slices.Clone(t.changes[i:])
	if t.from = max(t.from, first); len(t.changes) > 0 && t.changes[0].pos == first {
		t.changes[0].old = 0
	}
}

// sweepPage is how many rows one query of the search for unused state brings.
const sweepPage = 1000

// unusedPacks lists the rows of state that no event, nor the room's head or log, needs. The rows of a turn that is in
// flight are newer than all that it looks at, and what they refer to is in use by the events on which they build.
func (s *Server) unusedPacks(ctx context.Context, room *Room) (packs []int64, err error) {
	for after := int64(-1); ; after = packs[len(packs)-1] {
		page, err := storage.ReadList[int64](ctx, s.db, `SELECT pack FROM state_packs WHERE room = $1 AND pack > $2 ORDER BY pack LIMIT $3`, room.NID, after, int64(sweepPage))
		if err != nil {
			return nil, fmt.Errorf("list rows of state: %w", err)
		}
		packs = append(packs, page...)
		if len(page) < sweepPage {
			break
		}
	}
	marker := s.states.Mark(room.NID, maxMarked)
	for _, query := range []string{
		`SELECT anchor, sub, state_before, state_after FROM events WHERE room = $1 AND anchor IS NOT NULL AND (anchor, sub) > ($2, $3) ORDER BY anchor, sub LIMIT $4`,
		`SELECT chain_order, nid, state_before, state_after FROM events WHERE room = $1 AND chain_order IS NOT NULL AND (chain_order, nid) > ($2, $3) ORDER BY chain_order, nid LIMIT $4`,
		`SELECT ts, nid, state_before, state_after FROM events WHERE room = $1 AND anchor IS NULL AND chain_order IS NULL AND (ts, nid) > ($2, $3) ORDER BY ts, nid LIMIT $4`,
		`SELECT pos, pos, old_root, new_root FROM state_log WHERE room = $1 AND (pos, pos) > ($2, $3) ORDER BY pos LIMIT $4`,
		`SELECT event, n, root, root FROM partial_given WHERE room = $1 AND (event, n) > ($2, $3) ORDER BY event, n LIMIT $4`,
		`SELECT pos, pos, state, state FROM room_heads WHERE room = $1 AND (pos, pos) > ($2, $3) LIMIT $4`,
	} {
		if err := s.markRoots(ctx, room, query, marker); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(packs, marker.Needs), nil
}

// markRoots marks the states that a query names, page by page.
func (s *Server) markRoots(ctx context.Context, room *Room, query string, marker *snapshot.Marker) error {
	at, sub := int64(-1)<<63, int64(-1)<<63
	for {
		var roots []snapshot.Ref
		n := 0
		err := s.db.Read(ctx, func(tx *storage.Tx) error {
			roots, n = nil, 0
			rows := tx.Query(query, room.NID, at, sub, int64(sweepPage))
			var before, after sql.NullInt64
			for rows.Next() {
				n++
				rows.Scan(&at, &sub, &before, &after)
				for _, root := range []snapshot.Ref{snapshot.Ref(before.Int64), snapshot.Ref(after.Int64)} {
					if root != 0 && (len(roots) == 0 || roots[len(roots)-1] != root) {
						roots = append(roots, root)
					}
				}
			}
			return rows.Close()
		})
		if err != nil {
			return err
		}
		for _, root := range roots {
			if err := marker.Add(ctx, root); err != nil {
				return err
			}
		}
		if n < sweepPage {
			return nil
		}
	}
}

// deletePacks deletes rows of state, at most sweepBatch.
func (s *Server) deletePacks(ctx context.Context, room *Room, ids []int64) error {
	args := make([]any, 1, sweepBatch+1)
	args[0] = room.NID
	// Always the same number of parameters, so that one prepared statement serves all.
	for i := range sweepBatch {
		args = append(args, ids[min(i, len(ids)-1)])
	}
	return s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM state_packs WHERE room = $1 AND pack IN `+storage.In(sweepBatch, 2), args...)
		return err
	})
}
