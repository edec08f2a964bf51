package roomserver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/storage"
)

// Txn names a client's transaction: sending it again has no further effect
// (client-server API v1.19, "Transaction identifiers").
type Txn struct {
	// User and Device are who sent it; transaction ids are scoped to the device, not the token.
	User, Device string
	// Path is the endpoint with its parameters but the id.
	Path string
	// ID is what the client chose.
	ID string
}

// key is the transaction's primary key in send_txns.
func (t *Txn) key() []byte {
	sum := sha256.Sum256([]byte(t.User + "\x00" + t.Device + "\x00" + t.Path + "\x00" + t.ID))
	return sum[:16]
}

// txnTable holds the transactions that are being written, so that a retry in flight waits for the
// same flush.
type txnTable struct {
	mu   sync.Mutex
	open map[[16]byte]*openTxn
	// recent are some of those that were written, so that a repeated one rarely gets as far as the database: there it
	// fails its unit, and what others built on that has to be done again.
	recent *cache.Cache[[16]byte, doneTxn]
	// known are those of send_txns, and those begun since.
	known keyFilter
}

// maxRecentTxns bounds the transactions that are remembered in memory, about 200 bytes each.
const maxRecentTxns = 20_000

// doneTxn is a transaction that was written: the event that it made, and when.
type doneTxn struct {
	id string
	at time.Time
}

// openTxn is one transaction in flight.
type openTxn struct {
	done chan struct{}
	id   string
	err  error
	// abandoned tells that it came to no result that others may share.
	abandoned bool
}

func (t *txnTable) init() {
	t.open = map[[16]byte]*openTxn{}
	t.recent = cache.New[[16]byte, doneTxn](maxRecentTxns)
}

// txnLifetime is how long a transaction is remembered at least. Clients retry within minutes.
const txnLifetime = 24 * time.Hour

// learnPage is how many transactions are read at once.
const learnPage = 2000

// learnTxns makes all transactions known that the table has. Until they are, each new one is looked for there.
func (s *Server) learnTxns(ctx context.Context) {
	for last := ""; ; {
		keys, err := storage.ReadList[string](ctx, s.db, `SELECT key FROM send_txns WHERE key > $1 ORDER BY key LIMIT $2`, last, learnPage)
		if err != nil {
			if ctx.Err() == nil {
				s.log.WithError(err).Warn("the transactions could not be read; messages are sent a little slower until the next start")
			}
			return
		}
		s.txns.known.learn(keys, s.now(), len(keys) < learnPage)
		if len(keys) < learnPage {
			return
		}
		last = keys[len(keys)-1]
	}
}

// writeTxn adds the row of the turn's transaction, whose event is the last one. A row that is there already, and not too old,
// fails the unit, so that nothing is sent twice. Of one that is certainly new nothing can fail, which storage makes use of.
func (t *Turn) writeTxn() {
	key, table := t.txn.key(), txnsTable
	if !t.s.txns.known.enter([16]byte(key), t.s.now()) {
		table = newTxnsTable
	}
	t.unit.Add(table, key, t.events[len(t.events)-1].NID, t.s.now().UnixMilli())
}

// txnChunks is in how many steps the table is swept: an index by age would cost every message a page.
const txnChunks = 256

// forgetTxns deletes old transactions of one chunk of the keys.
func (s *Server) forgetTxns(ctx context.Context, chunk int) error {
	from, to := []byte{byte(chunk)}, []byte{byte(chunk), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	err := s.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM send_txns WHERE key >= $1 AND key <= $2 AND ts < $3`, from, to, s.now().Add(-txnLifetime).UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("forget old transactions: %w", err)
	}
	return nil
}

// Run does what goes on in the background until ctx ends: it learns which transactions there are, forgets old transactions and stickiness, lets sticky
// events in that were refused, and indexes the relationships of older events.
func (s *Server) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { s.indexRelationships(ctx) })
	group.Go(func() { s.learnTxns(ctx) })
	defer group.Wait()
	tick := time.NewTicker(txnLifetime / txnChunks)
	defer tick.Stop()
	for chunk := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.sticky.held.wake:
			s.releaseSticky(ctx)
			continue
		case <-tick.C:
		}
		if err := errors.Join(s.forgetTxns(ctx, chunk), s.forgetSticky(ctx)); err != nil && ctx.Err() == nil {
			s.log.WithError(err).Warn("the background work on rooms failed and will be tried again")
		}
		chunk = (chunk + 1) % txnChunks
	}
}

// once runs send unless the transaction was sent before, and returns the id of the event that it made.
func (s *Server) once(ctx context.Context, txn *Txn, roomID string, send func() (string, error)) (string, error) {
	if txn == nil {
		return send()
	}
	key := [16]byte(txn.key())
	for {
		o, first := s.txns.enter(key)
		if first {
			return s.onceOpen(ctx, key, o, roomID, send)
		}
		select {
		case <-o.done:
			if !o.abandoned {
				return o.id, o.err
			}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// enter returns the transaction in flight, or begins it.
func (t *txnTable) enter(key [16]byte) (o *openTxn, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o = t.open[key]; o == nil {
		o, first = &openTxn{done: make(chan struct{}), abandoned: true}, true
		t.open[key] = o
	}
	return o, first
}

// onceOpen runs a transaction that nobody else runs.
func (s *Server) onceOpen(ctx context.Context, key [16]byte, o *openTxn, roomID string, send func() (string, error)) (string, error) {
	defer func() {
		s.txns.mu.Lock()
		delete(s.txns.open, key)
		s.txns.mu.Unlock()
		close(o.done)
	}()
	if d, ok := s.txns.recent.Get(key); ok && s.now().Sub(d.at) < txnLifetime {
		o.id, o.abandoned = d.id, false
		return o.id, nil
	}
	o.id, o.err = s.onceStored(ctx, key[:], roomID, send)
	// The failure of a client that hung up is not that of the one that tries again.
	o.abandoned = o.err != nil && ctx.Err() != nil
	if o.err == nil {
		s.txns.recent.Put(key, doneTxn{o.id, s.now()}, 1)
	}
	return o.id, o.err
}

// onceStored sends, and where that fails looks whether it was done before. Nearly all transactions
// are new, so the look-up comes second: the unique key of send_txns refuses a repeated one.
func (s *Server) onceStored(ctx context.Context, key []byte, roomID string, send func() (string, error)) (string, error) {
	id, sendErr := send()
	if sendErr == nil {
		return id, nil
	}
	var nid int64
	var found bool
	err := s.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = tx.Get(`SELECT event FROM send_txns WHERE key = $1`, []any{key}, &nid)
		return err
	})
	if err != nil {
		return "", errors.Join(sendErr, fmt.Errorf("look up transaction: %w", err))
	}
	if !found {
		return "", sendErr
	}
	room, err := s.Room(ctx, roomID)
	if err != nil {
		return "", err
	}
	e, err := s.eventByNID(ctx, room, nid)
	if err != nil {
		return "", err
	}
	return e.ID, nil
}
