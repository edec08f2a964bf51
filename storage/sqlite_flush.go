package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/ncruces/go-sqlite3"
)

// flush commits a batch in one transaction. It first runs the units without fences, because nearly
// all succeed and a savepoint costs as much as a row; if a unit of rows fails, everything is rolled
// back and run again with a savepoint around each unit. Units with statements or functions fail as a
// matter of course, so they are always fenced when they are not alone.
func (s *lite) flush(batch []*Unit) {
	if len(batch) == 0 {
		return
	}
	if s.broken == nil && s.attempt(batch, len(batch) == 1) {
		return
	}
	if s.broken == nil && s.attempt(batch, true) {
		return
	}
	for _, u := range batch {
		u.err = s.broken
	}
}

// attempt runs the batch once and reports whether that settled it: committed, each unit with its
// own outcome.
func (s *lite) attempt(batch []*Unit, fenced bool) bool {
	c := s.writer
	head := s.head
	if err := c.control("BEGIN IMMEDIATE"); err != nil {
		return s.stop(fmt.Errorf("begin: %w", err))
	}
	for _, u := range batch {
		u.err = nil
		u.base = head
		err := s.runUnit(u, fenced || u.statements || u.fn != nil)
		if err != nil && s.fatal(err) {
			s.rollback()
			return s.stop(err)
		}
		if err != nil && !(fenced || u.statements || u.fn != nil) {
			s.rollback()
			return false
		}
		if u.err = err; err == nil {
			head += int64(u.Positions)
		}
	}
	if head != s.head {
		if _, err := c.exec(`UPDATE log_head SET head = $1 WHERE id = 1`, []any{head}); err != nil {
			s.rollback()
			return s.stop(err)
		}
	}
	if err := c.control("COMMIT"); err != nil {
		s.rollback()
		return s.stop(fmt.Errorf("commit: %w", err))
	}
	s.head = head
	return true
}

// runUnit runs one unit, within a savepoint if fenced; an error leaves nothing of it behind.
func (s *lite) runUnit(u *Unit, fenced bool) error {
	if u.orphaned() {
		return ErrAfter
	}
	c := s.writer
	c.watch.arm(context.Background())
	defer c.watch.disarm()
	if !fenced {
		return s.runSteps(u)
	}
	if err := c.control("SAVEPOINT unit"); err != nil {
		return err
	}
	err := s.runSteps(u)
	c.resetAll()
	c.watch.disarm() // an exceeded time limit must not stop the cleaning up
	if err != nil {
		if err := c.control("ROLLBACK TO unit"); err != nil {
			return errors.Join(errFatal, err)
		}
	}
	if err := c.control("RELEASE unit"); err != nil {
		return errors.Join(errFatal, err)
	}
	return err
}

func (s *lite) runSteps(u *Unit) error {
	if u.fn != nil {
		tx := &Tx{ctx: context.Background(), lite: s.writer, write: true, base: u.base}
		if err := tx.finish(tx.call(u.fn)); err != nil {
			return err
		}
		u.adopt(tx)
		return nil
	}
	for i := range u.steps {
		if err := s.runStep(&u.steps[i], u.base); err != nil {
			return err
		}
	}
	return nil
}

func (s *lite) runStep(st *step, base int64) error {
	stmt, err := s.stepStmt(st)
	if err != nil {
		return err
	}
	if len(st.values) != stmt.params {
		return fmt.Errorf("storage: statement has %d parameters, got %d arguments (in: %.120s)", stmt.params, len(st.values), st.sql)
	}
	for i, v := range st.values {
		if err := stmt.bindOne(i+1, v, base); err != nil {
			return err
		}
	}
	if st.want < 0 {
		return s.writer.wrap(stmt.s.Exec())
	}
	affected, err := stmt.run()
	if err == nil && affected != st.want {
		err = st.unless
	}
	return err
}

func (s *lite) stepStmt(st *step) (*liteStmt, error) {
	if st.table == nil {
		return s.writer.prepare(st.sql)
	}
	if st.delete {
		return s.writer.prepare(st.table.deleteSQL)
	}
	return s.writer.prepare(st.table.insertSQL)
}

func (s *lite) rollback() {
	if !s.writer.c.GetAutocommit() {
		s.writer.control("ROLLBACK")
	}
}

// errFatal marks failures after which the state of the connection is unknown.
var errFatal = errors.New("storage: transaction lost")

// fatal tells an error of the database from an error of a unit.
func (s *lite) fatal(err error) bool {
	if errors.Is(err, errFatal) {
		return true
	}
	for _, code := range []sqlite3.ErrorCode{sqlite3.IOERR, sqlite3.FULL, sqlite3.CORRUPT, sqlite3.NOTADB, sqlite3.CANTOPEN, sqlite3.READONLY, sqlite3.PROTOCOL} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// stop ends all writing: after a failed write or fsync nothing is known about what is on the disk.
// It returns false for attempt.
func (s *lite) stop(err error) bool {
	s.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	return false
}

const (
	checkpointIdle = 256  // WAL pages worth copying back when nothing else is to do
	checkpointBusy = 2000 // and under load
)

// idle copies the WAL back into the database. The committer does it itself because a second
// connection loses the race against a busy writer, and the WAL grows without bound.
func (s *lite) idle(busy bool) {
	if s.broken != nil || s.walPages < checkpointIdle || busy && s.walPages < checkpointBusy {
		return
	}
	if _, _, err := s.writer.c.WALCheckpoint("", sqlite3.CHECKPOINT_PASSIVE); err != nil {
		if s.fatal(err) {
			s.stop(fmt.Errorf("checkpoint: %w", err))
		}
		return
	}
	s.walPages = 0
}
