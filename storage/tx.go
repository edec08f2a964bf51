package storage

import (
	"context"
	"errors"
	"fmt"
)

// Tx is one snapshot (Read) or one unit (Write). It belongs to the function it was given to and to
// one goroutine, and is useless after the function returns.
//
// A statement that fails dooms a Write: later statements return the same error and nothing of the
// unit is kept, whatever the function returns. So what is a normal case must not be an error of SQL:
// use ON CONFLICT DO NOTHING and the number of affected rows.
type Tx struct {
	ctx  context.Context
	lite *liteConn // SQLite
	pg   *pgConn   // or PostgreSQL

	write  bool
	failed error
	over   bool // the function has returned

	// Write only.
	base     int64 // head before the unit
	position int64 // 0 until allocated
	notices  []Notice
}

var (
	errReadOnly  = errors.New("storage: write in a Read")
	errOver      = errors.New("storage: transaction used after its function returned")
	errNoticePos = errors.New("storage: Notice without Position")
)

// begin checks that another statement may run.
func (tx *Tx) usable() error {
	switch {
	case tx.over:
		return errOver
	case tx.failed != nil:
		return tx.failed
	case tx.write:
		return nil // once started, a unit completes
	}
	return tx.ctx.Err()
}

// fail records the error that dooms a Write.
func (tx *Tx) fail(sql string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%w (in: %.120s)", err, sql)
	if tx.write && tx.failed == nil {
		tx.failed = err
	}
	return err
}

// Query runs a query. Its error, if any, is returned by Rows.Close (and makes Rows.Next false).
// Strings and byte slices bind to BYTEA, int64 and int to BIGINT, bool to BOOLEAN, Text to TEXT;
// nil and a nil []byte are NULL, as is a nil *string or *int64.
func (tx *Tx) Query(sql string, args ...any) *Rows {
	if err := tx.usable(); err != nil {
		return &Rows{err: err}
	}
	rows := &Rows{tx: tx, sql: sql}
	if tx.lite != nil {
		rows.open(tx.lite.query(rows, args))
	} else {
		rows.open(tx.pg.query(rows, args))
	}
	return rows
}

// Get scans the first row of a query into dest and reports whether there was one.
func (tx *Tx) Get(sql string, args []any, dest ...any) (found bool, err error) {
	rows := tx.Query(sql, args...)
	if rows.Next() {
		found = true
		rows.Scan(dest...)
	}
	if err := rows.Close(); err != nil {
		return false, err
	}
	return found, nil
}

// Exec runs a statement and returns the number of rows it inserted, changed or deleted. An error
// wraps ErrConflict if a unique constraint refused a row.
func (tx *Tx) Exec(sql string, args ...any) (affected int64, err error) {
	if err := tx.usable(); err != nil {
		return 0, err
	}
	if !tx.write {
		return 0, errReadOnly
	}
	if tx.lite != nil {
		affected, err = tx.lite.exec(sql, args)
	} else {
		affected, err = tx.pg.exec(sql, args)
	}
	return affected, tx.fail(sql, err)
}

// Position allocates the unit's log position, once: further calls return the same number. On
// PostgreSQL it takes the lock that orders commits across nodes, so call it as late as possible.
func (tx *Tx) Position() (int64, error) {
	if err := tx.usable(); err != nil {
		return 0, err
	}
	if !tx.write {
		return 0, errReadOnly
	}
	if tx.position != 0 {
		return tx.position, nil
	}
	if tx.pg != nil {
		base, err := tx.pg.allocate(1)
		if err != nil {
			return 0, tx.fail("allocate position", err)
		}
		tx.base = base
	}
	tx.position = tx.base + 1
	return tx.position, nil
}

// Notice queues n for the subscribers, to be published after the commit. Its Pos is set to the unit's
// position; a unit with notices must call Position.
func (tx *Tx) Notice(n Notice) { tx.notices = append(tx.notices, n) }

// Lock serialises the rest of this unit with every other unit, of any node, that locks the same name.
// Units of one node run one at a time anyway; two nodes on PostgreSQL do not, so a unit that first
// looks and then writes what it looked for, without a unique constraint behind it, must lock before
// it looks.
func (tx *Tx) Lock(name string) error {
	if err := tx.usable(); err != nil {
		return err
	}
	if !tx.write {
		return errReadOnly
	}
	if tx.pg == nil {
		return nil
	}
	return tx.fail("lock", tx.pg.lock(name))
}

// finish is called after a Write's function returned err.
func (tx *Tx) finish(err error) error {
	tx.over = true
	if err == nil {
		err = tx.failed
	}
	if err != nil {
		return err
	}
	for i := range tx.notices {
		if tx.position == 0 {
			return errNoticePos
		}
		tx.notices[i].Pos = tx.position
	}
	return nil
}

// call runs fn and turns a panic into an error, because the committer serves everybody.
func (tx *Tx) call(fn func(tx *Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("storage: panic in a Write: %v", p)
		}
	}()
	return fn(tx)
}
