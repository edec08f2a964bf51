package e2ee

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/storage"
)

const (
	// MaxBatch bounds the messages of one answer, and maxBatchBytes their size: one message more may go beyond it.
	MaxBatch      = 100
	maxBatchBytes = 1 << 20
	// maxInboxes bounds the devices whose inbox is known to be empty.
	maxInboxes = 50_000
)

// inboxes knows which inboxes have nothing in them, so that most syncs need not look.
type inboxes struct {
	start int64 // the log's head when this began

	mu   sync.RWMutex
	last map[string]int64 // by user, the last message that came since
	// acknowledged is up to where the deletion of messages that devices have is on its way to the disk.
	acknowledged map[inboxKey]int64

	// empty is up to which position the inbox of a device is known to hold nothing.
	empty *cache.Cache[inboxKey, int64]
}

type inboxKey struct{ user, device string }

func newInboxes(head int64) *inboxes {
	return &inboxes{start: head, last: map[string]int64{}, acknowledged: map[inboxKey]int64{}, empty: cache.New[inboxKey, int64](maxInboxes)}
}

func (i *inboxes) arrived(user string, pos int64) {
	i.mu.Lock()
	i.last[user] = pos
	i.mu.Unlock()
}

// acknowledge notes that a device has its messages up to a position; done says that they are deleted.
func (i *inboxes) acknowledge(key inboxKey, pos int64) (done func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.acknowledged[key] = max(pos, i.acknowledged[key])
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.acknowledged[key] <= pos {
			delete(i.acknowledged, key)
		}
	}
}

// from is after which position a device that knows since is to be told of messages.
func (i *inboxes) from(key inboxKey, since int64) int64 {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return max(since, i.acknowledged[key])
}

// isEmpty tells whether an inbox is known to hold nothing up to a position.
func (i *inboxes) isEmpty(key inboxKey, upTo int64) bool {
	empty, known := i.empty.Get(key)
	if !known {
		return false
	}
	i.mu.RLock()
	last := i.last[key.user]
	i.mu.RUnlock()
	return last <= empty || empty >= upTo
}

// ToDevice returns what a device is owed of its inbox after a position, up to another one, as JSON events in order, at
// most limit of them, which is above 0, and how far that goes: upTo unless there is more. The device has what is at or
// before since; that is deleted, and nothing else is.
func (a *API) ToDevice(ctx context.Context, user, device string, since, upTo int64, limit int) (events []Message, next int64, err error) {
	key := inboxKey{user, device}
	if device == "" || a.inboxes.isEmpty(key, upTo) {
		return nil, max(since, upTo), nil
	}
	acknowledged, from := false, a.inboxes.from(key, since) // before the snapshot
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if since > 0 {
			acknowledged, err = tx.Get(`SELECT pos FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos <= $3 LIMIT 1`,
				[]any{user, device, since}, new(int64))
			if err != nil {
				return err
			}
		}
		events, next, err = readInbox(tx, key, from, upTo, limit)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("messages to a device of %s: %w", user, err)
	}
	if acknowledged {
		done := a.inboxes.acknowledge(key, since)
		u := &storage.Unit{Done: func(_ int64, err error) {
			done()
			if err != nil {
				a.log.WithError(err).WithField("user_id", user).Warn("messages that a device has could not be deleted")
			}
		}}
		u.Exec(`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos <= $3`, user, device, since)
		a.db.Append(u)
	} else if len(events) == 0 {
		a.inboxes.empty.Put(key, upTo, 1)
	}
	return events, next, nil
}

// Message is an event in an inbox.
type Message struct {
	// Pos is its place.
	Pos int64
	// Event is JSON as clients are shown it.
	Event []byte
}

// readInbox reads one batch of an inbox, at most limit messages.
func readInbox(tx *storage.Tx, key inboxKey, since, upTo int64, limit int) (events []Message, next int64, err error) {
	limit = min(limit, MaxBatch)
	next = upTo
	size := 0
	rows := tx.Query(`SELECT pos, event FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos > $3 AND pos <= $4 ORDER BY pos LIMIT $5`,
		key.user, key.device, since, upTo, int64(limit+1))
	for rows.Next() {
		var m Message
		rows.Scan(&m.Pos, &m.Event)
		if len(events) == limit || size > maxBatchBytes {
			next = events[len(events)-1].Pos
			break
		}
		size += len(m.Event)
		events = append(events, m)
	}
	return events, max(next, since), rows.Close()
}

const (
	// txnLifetime is for how long a transaction of a client is remembered; arrivedLifetime the same for a message of
	// another server, which may come back after days.
	txnLifetime     = 24 * time.Hour
	arrivedLifetime = 7 * 24 * time.Hour
	// pruneEvery is how often a part of those that are too old is deleted; there are pruneParts.
	pruneEvery = 5 * time.Minute
	pruneParts = 256
)

// pruner tells when old rows are due to be deleted, and which. Parts of the keys take turns, since an index by age would
// cost every message a page.
type pruner struct{ next, part atomic.Int64 }

func (p *pruner) due(now int64) (part byte, due bool) {
	next := p.next.Load()
	if now < next || !p.next.CompareAndSwap(next, now+pruneEvery.Milliseconds()) {
		return 0, false
	}
	return byte(p.part.Add(1) % pruneParts), true
}

// forgetTxns lets a unit delete some old transactions now and then.
func (a *API) forgetTxns(u *storage.Unit, now int64) {
	part, due := a.prune.due(now)
	if !due {
		return
	}
	from, to := make([]byte, 1), bytes.Repeat([]byte{0xff}, sha256.Size+1)
	from[0], to[0] = part, part
	u.Exec(`DELETE FROM to_device_txns WHERE key >= $1 AND key <= $2 AND expires_ts < $3`, from, to, now)
}
