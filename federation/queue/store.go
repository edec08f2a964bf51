package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/myelin-im/myelin/storage"
)

// unreached is a row of federation_unreached without its transaction.
type unreached struct {
	failures int
	retry    int64 // in milliseconds
}

// load reads where the queues stand, and begins to send.
func (q *Queue) load(ctx context.Context) error {
	head := q.cfg.DB.Head()
	rows := map[string]unreached{}
	kept, owed := []string{}, []string{}
	pos := int64(-1)
	err := q.cfg.DB.Read(ctx, func(tx *storage.Tx) error {
		clear(rows)
		kept, owed = nil, nil
		if _, err := tx.Get(`SELECT pos FROM federation_cursor WHERE id = 1`, nil, &pos); err != nil {
			return err
		}
		list := tx.Query(`SELECT server, failures, retry_at, txn_id FROM federation_unreached`)
		for list.Next() {
			var server, txn string
			var failures, retry int64
			list.Scan(&server, &failures, &retry, &txn)
			rows[server] = unreached{int(failures), retry}
			if txn != "" {
				kept = append(kept, server)
			}
		}
		if err := list.Close(); err != nil {
			return err
		}
		list = tx.Query(`SELECT DISTINCT server FROM federation_owed`)
		for list.Next() {
			var server string
			list.Scan(&server)
			owed = append(owed, server)
		}
		return list.Close()
	})
	if err != nil {
		return fmt.Errorf("read the queues: %w", err)
	}
	if pos < 0 { // there never was a queue: what is older than this one concerned nobody
		pos = q.began
	}
	q.news.Lock()
	q.news.all = true
	q.news.head = max(q.news.head, head)
	q.news.Unlock()

	q.mu.Lock()
	defer q.mu.Unlock()
	q.ctx, q.pos, q.saved = ctx, pos, -1
	for _, server := range kept {
		if d := q.destination(server); d != nil {
			d.kept, d.failures, d.retry = true, rows[server].failures, time.UnixMilli(rows[server].retry)
		}
	}
	for _, server := range owed {
		if d := q.destination(server); d != nil {
			d.lossy, d.rows, d.failures, d.retry = true, true, rows[server].failures, time.UnixMilli(rows[server].retry)
		}
	}
	for _, d := range q.servers {
		q.kick(d)
	}
	return nil
}

// keep writes down a transaction that was not answered.
func (q *Queue) keep(ctx context.Context, server string, row unreached, t *transaction) error {
	return q.cfg.DB.Write(ctx, func(tx *storage.Tx) error { return putKept(tx, server, row, t) })
}

func putKept(tx *storage.Tx, server string, row unreached, t *transaction) error {
	covers, err := json.Marshal(t.covers)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO federation_unreached (server, failures, retry_at, txn_id, txn, covers) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (server) DO UPDATE SET failures = excluded.failures, retry_at = excluded.retry_at, txn_id = excluded.txn_id,
			txn = excluded.txn, covers = excluded.covers`,
		server, int64(row.failures), row.retry, t.id, t.body, covers)
	return err
}

// readKept reads the transaction that a server did not answer, nil if there is none.
func (q *Queue) readKept(ctx context.Context, server string) (*transaction, error) {
	t := &transaction{saved: true}
	var raw []byte
	found, err := q.cfg.DB.Get(ctx, `SELECT txn_id, txn, covers FROM federation_unreached WHERE server = $1 AND txn_id <> $2`,
		[]any{server, ""}, &t.id, &t.body, &raw)
	if err != nil || !found {
		return nil, err
	}
	if err := json.Unmarshal(raw, &t.covers); err != nil {
		return nil, fmt.Errorf("unanswered transaction for %s: %w", server, err)
	}
	return t, nil
}

// clean forgets what a server has taken: the transaction, and what it is owed of rooms up to some events. It tells
// whether the server is owed more.
func (q *Queue) clean(ctx context.Context, server string, rooms map[int64]int64) (left bool, err error) {
	err = q.cfg.DB.Write(ctx, func(tx *storage.Tx) (err error) {
		if _, err := tx.Exec(`DELETE FROM federation_unreached WHERE server = $1`, server); err != nil {
			return err
		}
		for room, pos := range rooms {
			if _, err := tx.Exec(`DELETE FROM federation_owed WHERE server = $1 AND room = $2 AND pos <= $3`, server, room, pos); err != nil {
				return err
			}
		}
		var one int64
		left, err = tx.Get(`SELECT 1 FROM federation_owed WHERE server = $1 LIMIT 1`, []any{server}, &one)
		return err
	})
	return left, err
}

// RoomRemoved deletes up to limit rows that say what servers are owed of a room that is gone.
func RoomRemoved(tx *storage.Tx, room int64, _ string, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM federation_owed WHERE room = $1 AND server IN (
		SELECT server FROM federation_owed WHERE room = $1 ORDER BY server LIMIT $2)`, room, int64(limit))
}

// readOwed reads what a server is owed, the oldest first, as much as fits into a transaction.
func (q *Queue) readOwed(ctx context.Context, server string) (refs []ref, err error) {
	err = q.cfg.DB.Read(ctx, func(tx *storage.Tx) error {
		refs = nil
		rows := tx.Query(`SELECT room, pos FROM federation_owed WHERE server = $1 ORDER BY pos LIMIT $2`, server, int64(maxPDUs))
		for rows.Next() {
			var r ref
			rows.Scan(&r.room, &r.pos)
			refs = append(refs, r)
		}
		return rows.Close()
	})
	return refs, err
}

// saveOwed writes down what one server is owed.
func (q *Queue) saveOwed(ctx context.Context, d *destination) error {
	// Else what is delivered meanwhile could be deleted first and written then.
	d.writing.Lock()
	defer d.writing.Unlock()
	q.mu.Lock()
	owed := d.owed
	d.owed = nil
	d.rows = d.rows || len(owed) > 0
	q.mu.Unlock()
	if len(owed) == 0 {
		return nil
	}
	err := q.cfg.DB.Write(ctx, func(tx *storage.Tx) error { return putOwed(tx, d.name, owed) })
	if err != nil {
		q.mu.Lock()
		for room, pos := range owed {
			d.owe(ref{room, pos})
		}
		q.mu.Unlock()
	}
	return err
}

func putOwed(tx *storage.Tx, server string, owed map[int64]int64) error {
	for room, pos := range owed {
		if _, err := tx.Exec(`INSERT INTO federation_owed (server, room, pos) VALUES ($1, $2, $3)
			ON CONFLICT (server, room) DO UPDATE SET pos = excluded.pos WHERE excluded.pos > federation_owed.pos`, server, room, pos); err != nil {
			return err
		}
	}
	return nil
}

// saveOften writes down, once in a while, how far the queues are.
func (q *Queue) saveOften(ctx context.Context) {
	ticker := time.NewTicker(saveEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			q.wake() // what no other server is sent moves the position, and wakes nobody
			if err := q.save(ctx); err != nil && ctx.Err() == nil {
				q.cfg.Log.WithError(err).Warn("the position of the queues to other servers could not be written")
			}
		}
	}
}

// save writes down what unreached servers are owed, and the cursor: before everything that is on its way to others.
func (q *Queue) save(ctx context.Context) error {
	q.mu.Lock()
	cursor := q.pos
	var owing []*destination
	for _, d := range q.servers {
		if len(d.owed) > 0 {
			owing = append(owing, d)
		}
		if d.failures == 0 && !d.lossy {
			for _, r := range d.pending {
				cursor = min(cursor, r.pos-1)
			}
		}
	}
	same := cursor == q.saved
	q.mu.Unlock()
	for _, d := range owing {
		if err := q.saveOwed(ctx, d); err != nil {
			return err
		}
	}
	if same {
		return nil
	}
	err := q.cfg.DB.Write(ctx, func(tx *storage.Tx) error { return putCursor(tx, cursor) })
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.saved = cursor
	return nil
}

func putCursor(tx *storage.Tx, pos int64) error {
	_, err := tx.Exec(`INSERT INTO federation_cursor (id, pos) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET pos = excluded.pos`, pos)
	return err
}

// saveAll writes everything down at the end, when nobody sends any more: transactions under way, and what has not been
// sent at all.
func (q *Queue) saveAll(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.cfg.DB.Write(ctx, func(tx *storage.Tx) error {
		for _, d := range q.servers {
			if t := d.flight; t != nil && t.lasting() && !d.kept {
				if err := putKept(tx, d.name, unreached{failures: d.failures, retry: d.retry.UnixMilli()}, t); err != nil {
					return err
				}
			}
			for _, r := range d.pending {
				d.owe(r)
			}
			if err := putOwed(tx, d.name, d.owed); err != nil {
				return err
			}
		}
		return putCursor(tx, q.pos)
	})
}
