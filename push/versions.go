package push

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/storage"
)

const (
	// keepVersions and keepBytes bound what is kept of a user's rules. Clients change rules in
	// bursts at first login and rarely afterwards.
	keepVersions = 64
	keepBytes    = 1 << 20
	// rulesCacheBytes bounds the compiled rules in memory. A user without own rules takes about 400
	// bytes, one with fifty some 20 KiB.
	rulesCacheBytes = 32 << 20
)

// now is a position beyond all others.
const now = math.MaxInt64

// predefined as a version's position means that the user changed nothing yet.
const predefined = -1

// version is one version of a user's rules.
type version struct {
	overlay  *rules.Overlay
	compiled *rules.Compiled
	size     int
}

// history tells which versions of a user's rules there are.
type history struct {
	// upTo is the position up to which the history is complete.
	upTo   int64
	from   []int64 // where each version starts, ascending
	latest *version
}

// at returns where the version at a position starts.
func (h *history) at(pos int64) int64 {
	i, found := slices.BinarySearch(h.from, pos)
	switch {
	case found:
		return pos
	case i == 0:
		return predefined
	}
	return h.from[i-1]
}

// until returns up to which position the version at pos is known to be valid, if the history is
// complete up to upTo.
func (h *history) until(pos, upTo int64) int64 {
	i, found := slices.BinarySearch(h.from, pos)
	if found {
		i++
	}
	if i < len(h.from) {
		return h.from[i] - 1
	}
	return upTo
}

// last returns where the latest version starts.
func (h *history) last() int64 { return h.at(now) }

type versionKey struct {
	user string
	from int64
}

// versionStore reads versions of rules through a cache.
//
// What it caches of a user is dropped by the notice of a change (forget), which storage delivers
// before the position of the change becomes the head. So at any head H a cached history is complete
// up to H at least. A history is only cached if no change was announced since its snapshot
// (changed), as its own user's change may have been the one that was missed.
type versionStore struct {
	db        *storage.DB
	histories *cache.Cache[string, *history]
	older     *cache.Cache[versionKey, *version] // that are not the latest
	changed   announced
}

func newVersionStore(db *storage.DB) *versionStore {
	s := &versionStore{
		db:        db,
		histories: cache.New[string, *history](rulesCacheBytes * 3 / 4),
		older:     cache.New[versionKey, *version](rulesCacheBytes / 4),
	}
	db.Subscribe(s.forget)
	return s
}

// forget drops the cached histories of users whose rules changed.
func (s *versionStore) forget(batch []storage.Notice, _ int64) {
	for i := range batch {
		if n := &batch[i]; n.Kind == storage.PushRules {
			s.changed.announce(n.Pos, func() {
				s.histories.Delete(n.User)
				s.older.Delete(versionKey{n.User, 0}) // pruning may have put another one there
			})
		}
	}
}

// cached returns the user's history from the cache, if it is there and complete up to pos, and the
// position up to which it is complete.
func (s *versionStore) cached(user string, pos int64) (h *history, upTo int64, ok bool) {
	upTo = s.db.Head() // before the look into the cache, see versionStore
	if h, ok = s.histories.Get(user); !ok {
		return nil, 0, false
	}
	upTo = max(upTo, h.upTo)
	return h, upTo, pos <= upTo
}

// history returns the user's history, complete at least up to pos or to the transaction's snapshot.
func (s *versionStore) history(tx *storage.Tx, user string, pos int64) (*history, error) {
	if h, _, ok := s.cached(user, pos); ok {
		return h, nil
	}
	h := &history{}
	if _, err := tx.Get(`SELECT head FROM log_head`, nil, &h.upTo); err != nil {
		return nil, fmt.Errorf("read head of the log: %w", err)
	}
	rows := tx.Query(`SELECT pos FROM push_rules WHERE user_id = $1 ORDER BY pos`, user)
	for rows.Next() {
		var from int64
		_ = rows.Scan(&from) // Close has the error
		h.from = append(h.from, from)
	}
	if err := rows.Close(); err != nil {
		return nil, fmt.Errorf("read versions of push rules: %w", err)
	}
	var err error
	if h.latest, err = loadVersion(tx, user, h.last()); err != nil {
		return nil, err
	}
	s.changed.unlessSince(h.upTo, func() {
		s.histories.Put(user, h, 128+8*len(h.from)+h.latest.size+cache.Overhead)
	})
	return h, nil
}

// at returns the version of the user's rules at a position.
func (s *versionStore) at(tx *storage.Tx, user string, pos int64) (*version, error) {
	h, err := s.history(tx, user, pos)
	if err != nil {
		return nil, err
	}
	from := h.at(pos)
	if from == h.last() {
		return h.latest, nil
	}
	key := versionKey{user, from}
	if v, ok := s.older.Get(key); ok {
		return v, nil
	}
	v, err := loadVersion(tx, user, from)
	if err != nil {
		return nil, err
	}
	s.older.Put(key, v, v.size+cache.Overhead)
	return v, nil
}

// noChanges is shared by all users who changed nothing, as nobody writes to it.
var noChanges = &rules.Overlay{}

// loadVersion reads and compiles the version that starts at from. If it was pruned since, the one
// that took its place is as good.
func loadVersion(tx *storage.Tx, user string, from int64) (*version, error) {
	overlay, size, err := loadOverlay(tx, user, from)
	if err != nil {
		return nil, err
	}
	// A compiled rule takes several times its text.
	return &version{overlay: overlay, compiled: rules.Compile(overlay, user), size: 300 + 2*len(user) + 8*size}, nil
}

// loadOverlay reads the overlay that is valid at a position, and its size as stored.
func loadOverlay(tx *storage.Tx, user string, pos int64) (*rules.Overlay, int, error) {
	if pos == predefined {
		return noChanges, 0, nil
	}
	var stored []byte
	found, err := tx.Get(`SELECT overlay FROM push_rules WHERE user_id = $1 AND pos <= $2 ORDER BY pos DESC LIMIT 1`, []any{user, pos}, &stored)
	if err != nil {
		return nil, 0, fmt.Errorf("read push rules: %w", err)
	}
	if !found {
		return noChanges, 0, nil
	}
	overlay, err := rules.DecodeOverlay(stored)
	return overlay, len(stored), err
}

// change stores a new version of a user's rules, made by fn from the latest one, and announces it.
// Errors of fn leave everything as it was and are returned in the first result, so that the unit
// does not fail and disturb others of its batch.
func change(tx *storage.Tx, user string, fn func(*rules.Overlay) error) (refused, err error) {
	if err := tx.Lock("push_rules " + user); err != nil {
		return nil, err
	}
	overlay, size, err := loadOverlay(tx, user, now)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		overlay = &rules.Overlay{} // noChanges is shared
	}
	if err := fn(overlay); err != nil {
		return err, nil
	}
	stored, err := overlay.Encode()
	if errors.Is(err, rules.ErrOverlayTooLarge) {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	pos, err := tx.Position()
	if err != nil {
		return nil, fmt.Errorf("take a position: %w", err)
	}
	if _, err := tx.Exec(`INSERT INTO push_rules (user_id, pos, overlay) VALUES ($1, $2, $3)`, user, pos, stored); err != nil {
		return nil, fmt.Errorf("store push rules: %w", err)
	}
	tx.Notice(storage.Notice{Kind: storage.PushRules, User: user})
	return nil, prune(tx, user)
}

// prune deletes old versions. The oldest one kept becomes valid from the beginning.
func prune(tx *storage.Tx, user string) error {
	rows := tx.Query(`SELECT pos, length(overlay) FROM push_rules WHERE user_id = $1 ORDER BY pos DESC`, user)
	var oldest int64
	kept, bytes, beyond := 0, 0, false
	for rows.Next() {
		var pos int64
		var size int
		_ = rows.Scan(&pos, &size) // Close has the error
		if bytes += size; kept > 0 && (kept == keepVersions || bytes > keepBytes) {
			beyond = true
			break
		}
		kept++
		oldest = pos
	}
	if err := rows.Close(); err != nil {
		return fmt.Errorf("read versions of push rules: %w", err)
	}
	if !beyond {
		return nil
	}
	if _, err := tx.Exec(`DELETE FROM push_rules WHERE user_id = $1 AND pos < $2`, user, oldest); err != nil {
		return fmt.Errorf("prune push rules: %w", err)
	}
	if _, err := tx.Exec(`UPDATE push_rules SET pos = 0 WHERE user_id = $1 AND pos = $2`, user, oldest); err != nil {
		return fmt.Errorf("prune push rules: %w", err)
	}
	return nil
}
