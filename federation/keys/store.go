package keys

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/myelin-im/myelin/storage"
)

// keysOf returns what is known of a server's keys, from memory or the table. Nobody may change it.
func (r *Ring) keysOf(ctx context.Context, server string) (map[string]publicKey, error) {
	if known, ok := r.known.Get(server); ok {
		return known, nil
	}
	var known map[string]publicKey
	err := r.cfg.DB.Read(ctx, func(tx *storage.Tx) (err error) {
		known, err = readKeys(tx, server)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the keys of %s: %w", server, err)
	}
	if len(known) > 0 { // names that somebody made up take no place in memory
		// A fetch may have put newer ones there meanwhile.
		known = r.known.GetOrPut(strings.Clone(server), known, 1)
	}
	return known, nil
}

func readKeys(tx *storage.Tx, server string) (map[string]publicKey, error) {
	known := make(map[string]publicKey)
	rows := tx.Query(`SELECT key_id, public_key, valid_until, expired, fetched, document FROM federation_keys
		WHERE server = $1`, server)
	for rows.Next() {
		var id string
		var key []byte
		var k publicKey
		rows.Scan(&id, &key, &k.validUntil, &k.expired, &k.fetched, &k.raw)
		k.key = key
		known[id] = k
	}
	return known, rows.Close()
}

// store keeps a document. A key of which a newer document is known stays as it is, so that a notary cannot turn back
// the time.
func (r *Ring) store(ctx context.Context, server string, d *document) error {
	var known map[string]publicKey
	err := r.cfg.DB.Write(ctx, func(tx *storage.Tx) (err error) {
		for id, k := range d.keys {
			if _, err := tx.Exec(`INSERT INTO federation_keys (server, key_id, public_key, valid_until, expired, fetched, document)
				VALUES ($1, $2, $3, $4, $5, $6, $7)
				ON CONFLICT (server, key_id) DO UPDATE SET public_key = excluded.public_key, valid_until = excluded.valid_until,
					expired = excluded.expired, fetched = excluded.fetched, document = excluded.document
				WHERE excluded.valid_until >= federation_keys.valid_until`,
				server, id, []byte(k.key), k.validUntil, k.expired, k.fetched, d.raw); err != nil {
				return err
			}
		}
		if known, err = readKeys(tx, server); err == nil && len(known) > maxStored {
			if err = limit(tx, server); err == nil {
				known, err = readKeys(tx, server)
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keep the keys of %s: %w", server, err)
	}
	r.known.Put(strings.Clone(server), maps.Clone(known), 1)
	return nil
}
