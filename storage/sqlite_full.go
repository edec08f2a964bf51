package storage

import (
	"errors"
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/sirupsen/logrus"
)

const (
	// fullPause is how long after a refused commit the next one is tried.
	fullPause = time.Second
	// fullSilence is the least time between two complaints about a full disk.
	fullSilence = time.Minute
)

// fullDisk is what the committer knows about a disk that has no space left.
type fullDisk struct {
	path  string
	log   logrus.FieldLogger
	pause time.Duration // fullPause

	cause      error     // why the last commit was refused; nil: it was not
	since      time.Time // when it was refused
	checkpoint bool      // the last checkpoint was refused
	told       bool      // the log says that the disk is full
	toldAt     time.Time // when it last said so
}

// waiting is why nothing is to be written now.
func (f *fullDisk) waiting() error {
	if f.cause == nil || time.Since(f.since) >= f.pause {
		return nil
	}
	return f.cause
}

// refuse notes a refused commit.
func (f *fullDisk) refuse(err error) {
	f.cause, f.since = fmt.Errorf("%w: %w", ErrFull, err), time.Now()
	f.tell(err)
}

// tell complains, once.
func (f *fullDisk) tell(err error) {
	if !f.told && (f.toldAt.IsZero() || time.Since(f.toldAt) > fullSilence) {
		f.told, f.toldAt = true, time.Now()
		f.log.WithError(err).WithField("path", f.path).Error("storage: the disk is full; writes are refused until there is space")
	}
}

// accepted notes that a commit went well.
func (f *fullDisk) accepted() {
	f.cause = nil
	if f.told && !f.checkpoint {
		f.told = false
		f.log.WithField("path", f.path).Warn("storage: there is space on the disk again; writing goes on")
	}
}

// refused tells an error of a write that was not taken for lack of space, and that therefore rolling back undoes, from one
// after which nothing is known about the file, such as that of a sync. The shared index of the WAL grows only when the
// frames for which it has no room are written.
func refused(err error) bool {
	return errors.Is(err, sqlite3.FULL) || errors.Is(err, sqlite3.IOERR_SHMSIZE)
}

// fail ends an attempt after an error of the database.
func (s *lite) fail(err error) outcome {
	if !refused(err) {
		return s.stop(err)
	}
	s.rollback()
	if !s.writer.c.GetAutocommit() {
		return s.stop(errors.Join(errFatal, err))
	}
	if errors.Is(err, sqlite3.IOERR_SHMSIZE) {
		if undo := s.walFile.undo(); undo != nil {
			return s.stop(errors.Join(err, undo))
		}
	}
	s.walFile.forget()
	s.full.refuse(err)
	return noRoom
}

// openWAL finds the writing connection's WAL, which a first transaction has opened.
func (s *lite) openWAL() error {
	f, err := s.writer.c.FileControl("", sqlite3.FCNTL_JOURNAL_POINTER)
	if err != nil {
		return err
	}
	wal, ok := f.(*walFile)
	if !ok {
		return fmt.Errorf("the database has no WAL (%T)", f)
	}
	s.walFile = wal
	return nil
}
