package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ncruces/go-sqlite3"
)

// flush commits a batch in one transaction. Units of rows run without fences at first, because nearly
// all succeed and a savepoint costs as much as a row; if one fails, everything is rolled back and
// run again with a savepoint around each unit. Units with statements or functions fail as a matter
// of course, so they are always fenced, unless they are alone.
func (s *lite) flush(batch []*Unit) {
	fenceRows := false
	refusal := s.full.waiting()
	for s.broken == nil && refusal == nil && len(batch) > 0 {
		if fenceRows {
			keepAll(batch)
		} else {
			supersede(batch, &s.puts)
		}
		switch result, i := s.attempt(batch, fenceRows); result {
		case settled:
			return
		case unfenced:
			fenceRows = true
		case vanished:
			batch = slices.Delete(slices.Clone(batch), i, i+1)
		case noRoom:
			refusal = s.full.cause
		}
	}
	for _, u := range batch {
		u.err = cmp.Or(s.broken, refusal)
	}
}

// outcome is how an attempt to commit a batch ended.
type outcome uint8

const (
	settled  outcome = iota // committed, each unit with its own outcome
	stopped                 // writing has stopped
	noRoom                  // rolled back: the disk is full
	unfenced                // rolled back: a unit without a fence failed
	vanished                // rolled back by SQLite, because a unit was interrupted while writing; it has its error
)

// attempt runs the batch once. With vanished, it returns the index of the unit.
func (s *lite) attempt(batch []*Unit, fenceRows bool) (outcome, int) {
	s.walFile.forget()
	switch err := s.writer.control("BEGIN IMMEDIATE"); {
	case errors.Is(err, sqlite3.BUSY):
		// Some tool of the operator's holds the file; that passes.
		for _, u := range batch {
			u.err = fmt.Errorf("database in use by another program: %w", err)
		}
		return settled, 0
	case err != nil:
		return s.fail(fmt.Errorf("begin: %w", err)), 0
	}
	head := s.head
	for i, u := range batch {
		u.base = 0
		if u.Positions > 0 || u.fn != nil {
			u.base = head
		}
		fence := len(batch) > 1 && (fenceRows || !u.rowsOnly())
		if u.err = s.runUnit(u, fence); u.err == nil {
			head += int64(u.Positions)
			continue
		}
		switch {
		case fatal(u.err):
			return s.fail(u.err), 0
		case s.writer.c.GetAutocommit():
			return vanished, i
		case !fence && len(batch) == 1:
			s.rollback()
			return settled, 0
		case !fence:
			s.rollback()
			return unfenced, 0
		}
	}
	return s.commit(head), 0
}

// commit ends the transaction.
func (s *lite) commit(head int64) outcome {
	if head != s.head {
		if _, err := s.writer.exec(`UPDATE log_head SET head = $1 WHERE id = 1`, []any{head}); err != nil {
			return s.fail(err)
		}
	}
	if err := s.writer.control("COMMIT"); err != nil {
		return s.fail(fmt.Errorf("commit: %w", err))
	}
	s.head = head
	s.full.accepted()
	return settled
}

// runUnit runs one unit; with a fence, an error leaves nothing of it behind.
func (s *lite) runUnit(u *Unit, fence bool) error {
	if u.orphaned() {
		return ErrAfter
	}
	c := s.writer
	if fence {
		if err := c.control("SAVEPOINT unit"); err != nil {
			return err
		}
	}
	err := s.runSteps(u)
	if !fence || err != nil && c.c.GetAutocommit() {
		return err
	}
	if err != nil {
		if undo := c.control("ROLLBACK TO unit"); undo != nil {
			return errors.Join(errFatal, undo, err)
		}
	}
	if undo := c.control("RELEASE unit"); undo != nil {
		return errors.Join(errFatal, undo)
	}
	return err
}

func (s *lite) runSteps(u *Unit) error {
	if !u.rowsOnly() {
		s.writer.watch.arm(context.Background())
		defer s.writer.watch.disarm() // cleaning up must not be interrupted
	}
	if u.fn != nil {
		tx := &Tx{ctx: context.Background(), lite: s.writer, write: true, base: u.base}
		err := tx.finish(tx.call(u.fn))
		s.writer.resetAll()
		if err == nil {
			u.adopt(tx)
		}
		return err
	}
	for i := range u.steps {
		if st := &u.steps[i]; !st.superseded {
			if err := s.runStep(st, u.base); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *lite) runStep(st *step, base int64) error {
	sql := st.sql
	if st.table != nil {
		switch sql = st.table.insertSQL; {
		case st.delete:
			sql = st.table.deleteSQL
		case st.table.liteSQL != "":
			sql = st.table.liteSQL
		}
	}
	stmt, err := s.writer.prepare(sql)
	if err == nil {
		err = stmt.bind(st.values, base)
	}
	if err == nil && st.want < 0 {
		err = s.writer.wrap(stmt.s.Exec())
	} else if err == nil {
		var affected int64
		affected, err = stmt.run()
		if err == nil && affected != st.want {
			return st.unless
		}
	}
	if err != nil {
		return fmt.Errorf("%w (in: %.120s)", err, sql)
	}
	return nil
}

func (s *lite) rollback() {
	if !s.writer.c.GetAutocommit() {
		_ = s.writer.control("ROLLBACK") // after a failure, the next BEGIN fails too
	}
}

// errFatal marks failures after which the state of the transaction is unknown.
var errFatal = errors.New("storage: transaction lost")

// fatal tells an error of the database from an error of a unit.
func fatal(err error) bool {
	var code sqlite3.ErrorCode
	if errors.Is(err, errFatal) {
		return true
	}
	if !errors.As(err, &code) {
		return false
	}
	switch code {
	case sqlite3.IOERR, sqlite3.FULL, sqlite3.CORRUPT, sqlite3.NOTADB, sqlite3.CANTOPEN, sqlite3.READONLY, sqlite3.PROTOCOL, sqlite3.PERM:
		return true
	}
	return false
}

// stop ends all writing: after a failed fsync, and most other failures, nothing is known about what is on the disk.
// It returns stopped.
func (s *lite) stop(err error) outcome {
	s.rollback()
	s.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	s.opt.Log.WithError(err).WithField("path", s.path).Error("storage: writing stopped; look after the disk, then restart")
	return stopped
}
