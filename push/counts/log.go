package counts

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/myelin-im/myelin/push/rules"
)

// Event is what counting needs of a timeline event. Except for Redacted and Redacts it is the same
// for all users, so that one value serves all of them.
type Event struct {
	// Pos is the event's position in the log, its own.
	Pos int64
	// Type and Sender are those of the event; State is whether it is a state event.
	Type, Sender string
	State        bool
	// TS is its origin_server_ts, in milliseconds.
	TS int64
	// Thread is the event ID of the root of the thread it belongs to, empty for the main timeline.
	Thread string
	// Redacted is whether the event is redacted by now.
	Redacted bool
	// Redacts is the position of the event that this one, a redaction that took effect, redacts;
	// 0 for any other event and for a target without a position.
	Redacts int64
	// Facts are what push rules look at.
	Facts *Facts
}

// Facts are an event as push rules look at it and the room's facts at its position. They are worked out when somebody
// asks for the first time: many events are read before their readers are counted. Safe for concurrent use.
type Facts struct {
	done     atomic.Bool
	prepared *rules.Prepared // these two are set before done
	room     *rules.Room

	mu   sync.Mutex
	work func(ctx context.Context) (*rules.Prepared, *rules.Room, error) // guarded by mu; nil once it succeeded
}

// NewFacts makes Facts that work works out. It may be called again after an error.
func NewFacts(work func(ctx context.Context) (*rules.Prepared, *rules.Room, error)) *Facts {
	return &Facts{work: work}
}

// get returns the facts.
func (f *Facts) get(ctx context.Context) (*rules.Prepared, *rules.Room, error) {
	if f.done.Load() {
		return f.prepared, f.room, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done.Load() {
		var err error
		if f.prepared, f.room, err = f.work(ctx); err != nil {
			return nil, nil, err
		}
		f.work = nil
		f.done.Store(true)
	}
	return f.prepared, f.room, nil
}

// Unthreaded and Main name the receipts that belong to no single thread root.
const (
	Unthreaded = ""
	Main       = "main"
)

// Log is what a Counter reads. Rooms are given by their number. All answers must cover the positions
// asked about.
type Log interface {
	// Events returns up to limit timeline events that arrived in the room at positions in
	// (after, upTo], oldest first; fewer than limit only if there are no more. Outliers, rejected
	// and soft-failed events and what was backfilled are not among them. With skipMain, events of the
	// main timeline that redact nothing may be left out: they are read.
	Events(ctx context.Context, room, after, upTo int64, skipMain bool, limit int) ([]*Event, error)
	// JoinedSince returns the position of the join by which the user is a member of the room at a
	// position (not of a later change of profile), and whether the user is one.
	JoinedSince(ctx context.Context, room int64, user string, at int64) (since int64, joined bool, err error)
	// ReadUpTo returns the position up to which the user has read, by the later of the public and
	// the private receipt for a thread: Unthreaded, Main, or the ID of its root. It is 0 without a
	// receipt and for one whose event is unknown yet. The position of a backfilled event is that
	// before which it stands in the room's history, less one.
	ReadUpTo(ctx context.Context, room int64, user, thread string) (int64, error)
	// RulesSpan returns the user's push rules at a position and up to which later one they are known
	// not to change.
	RulesSpan(ctx context.Context, user string, pos int64) (compiled *rules.Compiled, until int64, err error)
	// DisplayName returns the user's name in the room at a position. It is asked only if a rule asks.
	DisplayName(ctx context.Context, room int64, user string, pos int64) (string, error)
	// Horizon returns the origin_server_ts, in milliseconds, before which messages of the room have expired; 0 if they
	// never do. It is asked only where something is unread.
	Horizon(ctx context.Context, room int64) (int64, error)
	// Ignored returns whom the user ignores (not to be changed), and a number that differs when they
	// do.
	Ignored(ctx context.Context, user string) (senders map[string]bool, version int64, err error)
}

// Store keeps checkpoints over restarts, if the owner of a Counter wants that.
type Store interface {
	// Load returns what was last saved for the user and room, nil if nothing was.
	Load(ctx context.Context, room int64, user string) ([]byte, error)
	// Save keeps a checkpoint. It must not wait for the disk. A checkpoint that gets lost costs time, never truth.
	Save(room int64, user string, checkpoint []byte)
}
