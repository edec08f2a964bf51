package unread

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/memo"
	"github.com/myelin-im/myelin/storage"
)

const (
	// savePause is how often checkpoints are written.
	savePause = 5 * time.Second
	// maxUnsaved bounds the checkpoints that wait for it, saveAtOnce those of one unit.
	maxUnsaved = 5000
	saveAtOnce = 200
	// maxSavedUsers bounds the users whose checkpoints are in memory as stored.
	maxSavedUsers = 100
)

var checkpointTable = storage.DeclareTable("unread_checkpoints", storage.Put,
	storage.Key("user_id", storage.Bytes), storage.Key("room", storage.Int), storage.Col("checkpoint", storage.Bytes))

// saver keeps checkpoints in the database. It implements counts.Store.
type saver struct {
	db   *storage.DB
	log  *logrus.Entry
	kick chan struct{}

	// saved are the checkpoints in the database, by user and room: whoever asks for one room after a restart will ask
	// for the others.
	saved *memo.Memo[string, map[int64][]byte]

	mu      sync.Mutex
	unsaved map[place][]byte // guarded by mu
}

type place struct {
	room int64
	user string
}

func newSaver(db *storage.DB, log *logrus.Entry) *saver {
	s := &saver{db: db, log: log, kick: make(chan struct{}, 1), unsaved: map[place][]byte{}}
	s.saved = memo.New(maxSavedUsers, s.read)
	return s
}

// Load implements counts.Store.
func (s *saver) Load(ctx context.Context, room int64, user string) (checkpoint []byte, err error) {
	s.mu.Lock()
	checkpoint, ok := s.unsaved[place{room, user}]
	s.mu.Unlock()
	if ok {
		return checkpoint, nil
	}
	saved, err := s.saved.Get(ctx, user)
	return saved[room], err
}

// read reads the checkpoints of a user.
func (s *saver) read(ctx context.Context, user string) (map[int64][]byte, error) {
	var saved map[int64][]byte
	err := s.db.Read(ctx, func(tx *storage.Tx) error {
		saved = map[int64][]byte{}
		rows := tx.Query(`SELECT room, checkpoint FROM unread_checkpoints WHERE user_id = $1`, user)
		for rows.Next() {
			var room int64
			var checkpoint []byte
			rows.Scan(&room, &checkpoint)
			saved[room] = checkpoint
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints of %s: %w", user, err)
	}
	return saved, nil
}

// Save implements counts.Store.
func (s *saver) Save(room int64, user string, checkpoint []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unsaved) >= maxUnsaved {
		return // it will be counted again
	}
	s.unsaved[place{room, user}] = checkpoint
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// run writes what was saved until ctx ends.
func (s *saver) run(ctx context.Context) {
	for {
		select {
		case <-s.kick:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 1500*time.Millisecond)
			s.write(last)
			cancel()
			return
		}
		s.write(ctx)
		select {
		case <-time.After(savePause):
		case <-ctx.Done():
		}
	}
}

// write writes all that there is, in portions that do not hold up others for long.
func (s *saver) write(ctx context.Context) {
	for {
		batch := map[place][]byte{}
		s.mu.Lock()
		for p, checkpoint := range s.unsaved {
			if len(batch) == saveAtOnce {
				break
			}
			batch[p] = checkpoint
		}
		s.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if err := s.put(ctx, batch); err != nil {
			s.log.WithError(err).Warn("cannot write checkpoints of unread counts")
			return
		}
		for p := range batch {
			s.saved.Changed(p.user)
		}
		s.mu.Lock()
		for p, checkpoint := range batch {
			if now := s.unsaved[p]; len(now) > 0 && &now[0] == &checkpoint[0] {
				delete(s.unsaved, p)
			}
		}
		s.mu.Unlock()
	}
}

// put writes checkpoints and waits until they are on disk.
func (s *saver) put(ctx context.Context, batch map[place][]byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unit := &storage.Unit{}
	for p, checkpoint := range batch {
		unit.Add(checkpointTable, p.user, p.room, checkpoint)
	}
	done := make(chan error, 1)
	unit.Done = func(_ int64, err error) { done <- err }
	s.db.Append(unit)
	return <-done
}
