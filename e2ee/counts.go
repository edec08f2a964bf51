package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/storage"
)

// KeyCounts is what a device is told in every sync of the keys that others may claim from it.
type KeyCounts struct {
	// OneTime is device_one_time_keys_count: an object from algorithm to number.
	OneTime json.RawMessage
	// UnusedFallback is device_unused_fallback_key_types: an array of algorithms.
	UnusedFallback json.RawMessage
}

// noKeys counts signedCurve25519 as well, because clients take its absence for an old server.
var noKeys = KeyCounts{OneTime: json.RawMessage(`{"` + signedCurve25519 + `":0}`), UnusedFallback: json.RawMessage(`[]`)}

// KeyCounts counts the keys of a local device.
func (a *API) KeyCounts(ctx context.Context, user, device string) (KeyCounts, error) {
	all, err := a.counts.Get(ctx, user)
	if err != nil {
		return KeyCounts{}, err
	}
	return countsOf(all, device), nil
}

func countsOf(all map[string]KeyCounts, device string) KeyCounts {
	c, ok := all[device]
	if !ok {
		return noKeys
	}
	return c
}

func (a *API) readCounts(ctx context.Context, user string) (all map[string]KeyCounts, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		all, err = countKeys(tx, user)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count keys of %s: %w", user, err)
	}
	return all, nil
}

// countKeys counts the keys of all devices of a user that have any.
func countKeys(tx *storage.Tx, user string) (map[string]KeyCounts, error) {
	oneTime, fallback := map[string][]byte{}, map[string][]byte{}
	usual := map[string]bool{}
	rows := tx.Query(`SELECT device_id, algorithm, count(*) FROM one_time_keys WHERE user_id = $1 AND claimed_ts IS NULL
		GROUP BY device_id, algorithm ORDER BY device_id, algorithm`, user)
	var device, algorithm string
	var n int64
	for rows.Next() {
		rows.Scan(&device, &algorithm, &n)
		usual[device] = usual[device] || algorithm == signedCurve25519
		oneTime[device] = appendCount(oneTime[device], algorithm, n)
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	rows = tx.Query(`SELECT device_id, algorithm FROM fallback_keys WHERE user_id = $1 AND NOT used ORDER BY device_id, algorithm`, user)
	for rows.Next() {
		rows.Scan(&device, &algorithm)
		fallback[device] = canonicaljson.AppendString(separate(fallback[device], '['), algorithm)
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	all := make(map[string]KeyCounts, len(oneTime)+len(fallback))
	for device, b := range oneTime {
		all[device] = KeyCounts{closeCounts(b, usual[device]), noKeys.UnusedFallback}
	}
	for device, b := range fallback {
		c := countsOf(all, device)
		b = append(b, ']')
		c.UnusedFallback = b
		all[device] = c
	}
	return all, nil
}

// countDevice counts the one-time keys of one device: by algorithm, as its owner is told, and all of them.
func countDevice(tx *storage.Tx, user, device string) (counts json.RawMessage, total int64, err error) {
	rows := tx.Query(`SELECT algorithm, count(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed_ts IS NULL
		GROUP BY algorithm ORDER BY algorithm`, user, device)
	var algorithm string
	var n int64
	usual := false
	for rows.Next() {
		rows.Scan(&algorithm, &n)
		usual = usual || algorithm == signedCurve25519
		counts = appendCount(counts, algorithm, n)
		total += n
	}
	return closeCounts(counts, usual), total, rows.Close()
}

// appendCount adds an algorithm to an object that counts.
func appendCount(b []byte, algorithm string, n int64) []byte {
	b = canonicaljson.AppendString(separate(b, '{'), algorithm)
	return strconv.AppendInt(append(b, ':'), n, 10)
}

// closeCounts ends an object that counts; usual tells whether signedCurve25519 is in it.
func closeCounts(b []byte, usual bool) []byte {
	if !usual {
		b = append(separate(b, '{'), `"`+signedCurve25519+`":0`...)
	}
	return append(b, '}')
}

// separate begins a container, or goes on in it.
func separate(b []byte, open byte) []byte {
	if b == nil {
		return []byte{open}
	}
	return append(b, ',')
}
