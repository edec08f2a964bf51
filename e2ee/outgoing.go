package e2ee

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/myelin-im/myelin/storage"
)

// EDU is something that another server is owed.
type EDU struct {
	Type    string
	Content json.RawMessage
}

// Destinations returns the servers that are owed something written at positions in (after, upTo], sorted.
func (a *API) Destinations(ctx context.Context, after, upTo int64) (servers []string, err error) {
	var sizes []int64
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		servers, sizes = nil, nil
		rows := tx.Query(`SELECT destination, count(*) FROM outgoing_edus WHERE pos > $1 AND pos <= $2 GROUP BY destination ORDER BY destination`, after, upTo)
		var server string
		var n int64
		for rows.Next() {
			rows.Scan(&server, &n)
			servers, sizes = append(servers, server), append(sizes, n)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("servers that are owed EDUs: %w", err)
	}
	for i, server := range servers {
		a.backlogs.grew(server, sizes[i])
	}
	return servers, nil
}

// Pending returns what a server is owed of (after, upTo], in order, and how far that goes: upTo unless there is more
// than limit. What was written at one position is never divided, so that it may be a little more than limit.
func (a *API) Pending(ctx context.Context, destination string, after, upTo int64, limit int) (edus []EDU, next int64, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		edus, next = nil, upTo
		var pos, last int64
		rows := tx.Query(`SELECT pos, type, content FROM outgoing_edus WHERE destination = $1 AND pos > $2 AND pos <= $3 ORDER BY pos, n LIMIT $4`,
			destination, after, upTo, int64(limit+maxPerPosition))
		for rows.Next() {
			var e EDU
			var content []byte
			rows.Scan(&pos, &e.Type, &content)
			if len(edus) >= limit && pos != last {
				next = last
				break
			}
			last, e.Content = pos, content
			edus = append(edus, e)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, 0, fmt.Errorf("EDUs for %s: %w", destination, err)
	}
	return edus, next, nil
}

// maxPerPosition bounds the EDUs for one server that are written at one position: a request of a client, 16 MiB in parts
// of some 60 KiB, or the devices of a user.
const maxPerPosition = 1100

// Delivered deletes what a server has acknowledged: all up to a position.
func (a *API) Delivered(ctx context.Context, destination string, upTo int64) error {
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM outgoing_edus WHERE destination = $1 AND pos <= $2`, destination, upTo)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget delivered EDUs: %w", err)
	}
	return nil
}
