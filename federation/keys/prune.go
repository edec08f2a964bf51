package keys

import (
	"context"
	"fmt"
	"time"

	"github.com/myelin-im/myelin/storage"
)

const (
	// maxStored is how many keys of one server are kept: more than any rotates through.
	maxStored = 100
	// idleFor is how long nobody has needed a current key of a server whose keys may be forgotten.
	idleFor = 90 * 24 * time.Hour
	// prunePage is how many servers one write forgets, maxIdle how many are looked at in one go.
	prunePage = 100
	maxIdle   = 10_000
)

// Prune forgets the keys of servers with which this one has had nothing to do for idleFor, and returns of how many. Old
// keys are needed as long as events that they signed may come, and a server that is gone cannot be asked for them:
// keep takes those out of the set that still matter.
func (r *Ring) Prune(ctx context.Context, keep func(ctx context.Context, servers map[string]struct{}) error) (n int, err error) {
	before := r.now() - idleFor.Milliseconds()
	idle, err := r.idle(ctx, before)
	if err != nil || len(idle) == 0 {
		return 0, err
	}
	if err := keep(ctx, idle); err != nil {
		return 0, fmt.Errorf("find servers whose keys matter: %w", err)
	}
	page := make([]string, 0, prunePage)
	for server := range idle {
		page = append(page, server)
		n++
		if len(page) == prunePage || n == len(idle) {
			if err := r.forget(ctx, page, before); err != nil {
				return n, err
			}
			page = page[:0]
		}
	}
	return n, nil
}

// idle lists servers of which no key document was read since a time.
func (r *Ring) idle(ctx context.Context, before int64) (servers map[string]struct{}, err error) {
	err = r.cfg.DB.Read(ctx, func(tx *storage.Tx) error {
		servers = map[string]struct{}{}
		rows := tx.Query(`SELECT server FROM federation_keys GROUP BY server HAVING max(fetched) < $1 LIMIT $2`, before, int64(maxIdle))
		var server string
		for rows.Next() {
			rows.Scan(&server)
			servers[server] = struct{}{}
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("find keys that nobody needs: %w", err)
	}
	return servers, nil
}

// forget deletes the keys of servers, unless they were read again meanwhile.
func (r *Ring) forget(ctx context.Context, servers []string, before int64) error {
	err := r.cfg.DB.Write(ctx, func(tx *storage.Tx) error {
		for _, server := range servers {
			if _, err := tx.Exec(`DELETE FROM federation_keys WHERE server = $1
				AND NOT EXISTS (SELECT 1 FROM federation_keys k WHERE k.server = $1 AND k.fetched >= $2)`, server, before); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget keys that nobody needs: %w", err)
	}
	for _, server := range servers {
		r.known.Delete(server)
	}
	return nil
}

// limit deletes the oldest keys of a server that has published too many.
func limit(tx *storage.Tx, server string) error {
	_, err := tx.Exec(`DELETE FROM federation_keys WHERE server = $1 AND key_id IN (
		SELECT key_id FROM federation_keys WHERE server = $1 ORDER BY fetched DESC, valid_until DESC, key_id LIMIT $2 OFFSET $3)`,
		server, int64(maxStored+maxKeys), int64(maxStored))
	return err
}
