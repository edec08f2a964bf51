// Package inbox keeps the transactions of other servers from their answer until they are worked through, and
// remembers them for as long as a server may send them again.
package inbox

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to this package.
var Schema = storage.Schema{Feature: "federation_inbox", FS: migrations}

// Transaction is one transaction of another server.
type Transaction struct {
	// Origin sent it, TxnID is its id there.
	Origin, TxnID string
	// Answer is what this server answered, Body what it has to work through.
	Answer, Body []byte
}

// Inbox is the table of transactions.
type Inbox struct {
	db  *storage.DB
	now func() time.Time
}

// New makes an Inbox on a database that was opened with Schema; a nil clock means time.Now.
func New(db *storage.DB, now func() time.Time) *Inbox {
	if now == nil {
		now = time.Now
	}
	return &Inbox{db, now}
}

// Answer returns the answer to a transaction that came before.
func (i *Inbox) Answer(ctx context.Context, origin, txnID string) (answer []byte, found bool, err error) {
	err = i.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = tx.Get(`SELECT answer FROM inbox_transactions WHERE origin = $1 AND txn_id = $2`, []any{origin, txnID}, &answer)
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("look up a transaction of %s: %w", origin, err)
	}
	return answer, found, nil
}

// Put keeps a transaction on disk. fresh is false where it was there already; then nothing changes.
func (i *Inbox) Put(ctx context.Context, t Transaction) (fresh bool, err error) {
	var body any
	if len(t.Body) > 0 {
		body = t.Body
	}
	err = i.db.Write(ctx, func(tx *storage.Tx) error {
		n, err := tx.Exec(`INSERT INTO inbox_transactions (origin, txn_id, received, answer, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
			t.Origin, t.TxnID, i.now().UnixMilli(), t.Answer, body)
		fresh = n == 1
		return err
	})
	if err != nil {
		return false, fmt.Errorf("keep a transaction of %s: %w", t.Origin, err)
	}
	return fresh, nil
}

// Done notes that a transaction has been worked through.
func (i *Inbox) Done(ctx context.Context, origin, txnID string) error {
	err := i.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE inbox_transactions SET body = NULL WHERE origin = $1 AND txn_id = $2`, origin, txnID)
		return err
	})
	if err != nil {
		return fmt.Errorf("finish a transaction of %s: %w", origin, err)
	}
	return nil
}

// openPage is how many transactions Open reads at a time.
const openPage = 20

// Open calls fn with every transaction that has not been worked through, those that came first first.
func (i *Inbox) Open(ctx context.Context, fn func(Transaction)) error {
	var received int64
	var origin, id string
	for {
		var page []Transaction
		err := i.db.Read(ctx, func(tx *storage.Tx) error {
			page = nil
			rows := tx.Query(`SELECT origin, txn_id, received, answer, body FROM inbox_transactions
				WHERE body IS NOT NULL AND (received, origin, txn_id) > ($1, $2, $3) ORDER BY received, origin, txn_id LIMIT $4`,
				received, origin, id, int64(openPage))
			for rows.Next() {
				var t Transaction
				rows.Scan(&t.Origin, &t.TxnID, &received, &t.Answer, &t.Body)
				page = append(page, t)
			}
			return rows.Close()
		})
		if err != nil {
			return fmt.Errorf("read open transactions: %w", err)
		}
		for _, t := range page {
			origin, id = t.Origin, t.TxnID
			fn(t)
		}
		if len(page) < openPage {
			return nil
		}
	}
}

// Forget deletes what was worked through longer ago than a server goes on to try.
func (i *Inbox) Forget(ctx context.Context, after time.Duration) error {
	err := i.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM inbox_transactions WHERE received < $1 AND body IS NULL`, i.now().Add(-after).UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("forget old transactions: %w", err)
	}
	return nil
}
