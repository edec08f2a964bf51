package storage

import (
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// The WAL is copied back into the database by the committer, between flushes, because a second
// connection loses the race against a busy writer and the WAL grows without bound.
const (
	// walPassive is the size, in pages, at which the committer copies back what it can. A page that changed many
	// times since is copied once, but writers wait for as long as it takes.
	walPassive = 2000
	// walGate is the size at which it also keeps new readers out for a moment: as long as snapshots
	// overlap, SQLite can never begin the WAL anew.
	walGate = 4 * walPassive
	// walInterrupt is the size at which readers that do not end are interrupted.
	walInterrupt = 16 * walGate

	gatePatience = 20 * time.Millisecond
	gatePause    = 500 * time.Millisecond // between two attempts
	walQuiet     = time.Second            // without writes before the rest is copied back
)

// walState is what the committer knows about the WAL.
type walState struct {
	pages int       // its length
	tried int       // its length when it was last copied back, or 0 if it began anew since
	dirty bool      // not all of it has been copied back
	gated time.Time // when readers were last kept out for it
}

// grown is called by SQLite after each commit.
func (w *walState) grown(pages int) {
	if pages < w.pages {
		w.tried = 0
	}
	w.pages, w.dirty = pages, true
}

// quietDelay is how long to wait for another write before maintain(true); 0 means forever.
func (s *lite) quietDelay() time.Duration {
	if s.broken != nil || !s.wal.dirty {
		return 0
	}
	return walQuiet
}

// led is false: the committer's goroutine copies the WAL back, and a flush on another's gains nothing.
func (s *lite) led() bool { return false }

// maintain keeps the WAL short. quiet says that nothing was written for a while.
func (s *lite) maintain(quiet bool) {
	if quiet {
		s.trim()
	}
	if s.broken != nil || s.wal.pages-s.wal.tried < walPassive && !quiet {
		return
	}
	s.checkpoint()
	if s.wal.pages < walGate || time.Since(s.wal.gated) < gatePause {
		return
	}
	patience := gatePatience
	if s.wal.pages >= walInterrupt {
		s.interrupt.Store(true)
		patience = time.Second
	}
	// The bulk of the work was done with readers about; what is left is short.
	s.gate.close(patience)
	s.checkpoint()
	s.gate.open()
	s.interrupt.Store(false)
	s.wal.gated = time.Now()
}

// checkpoint copies back as much of the WAL as readers allow.
func (s *lite) checkpoint() {
	inLog, copied, err := s.writer.c.WALCheckpoint("", sqlite3.CHECKPOINT_PASSIVE)
	s.full.checkpoint = err != nil && refused(err)
	switch {
	case s.full.checkpoint:
		s.full.tell(fmt.Errorf("checkpoint: %w", err)) // the WAL has it all, and there may be room for more in it
	case err != nil && fatal(err):
		s.stop(fmt.Errorf("checkpoint: %w", err))
	case s.full.cause == nil && err == nil:
		s.full.accepted()
	}
	s.wal.tried = s.wal.pages
	s.wal.dirty = err != nil || inLog != copied
}
