package roomserver

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/roomserver/snapshot"
	"github.com/myelin-im/myelin/storage"
)

// Options are what a Server needs to know of the world.
type Options struct {
	// ServerName is the domain of local users and rooms.
	ServerName string
	// KeyID and Key sign events of local users.
	KeyID string
	Key   ed25519.PrivateKey
	// OldKeys are those that signed events of local users before, by key id.
	OldKeys map[string]ed25519.PublicKey
	// Log receives structured entries with room_id and event_id.
	Log *logrus.Entry
	// EventCacheBytes and StateCacheBytes bound the two large caches; 0 takes the default.
	EventCacheBytes, StateCacheBytes int64
	// Retention is how long messages are kept.
	Retention Retention
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Server is the roomserver of one process. It is safe for concurrent use.
type Server struct {
	name  string
	keyID string
	old   map[string]ed25519.PublicKey // old keys by id
	key   ed25519.PrivateKey
	db    *storage.DB
	log   *logrus.Entry
	now   func() time.Time

	retention Retention

	nids   *storage.IDs
	packs  packLoader
	states *snapshot.Store
	events *cache.Cache[int64, *Event]
	rooms  roomTable
	users  userTable
	txns   txnTable

	upgrades  keyedMutex[string] // one upgrade of a room at a time
	backfills keyedMutex[string] // and one backfill

	relations relationCache
	detached  *cache.Cache[string, int64] // number of the room, by event id

	recommend  Recommend  // nil: nobody is asked
	backfilled Backfilled // nil: nobody hears

	partials partialTable

	sticky       stickyIndex
	lastCreation atomic.Int64 // origin_server_ts of the newest room

	// redactionEpoch grows with every redaction, under redactionLock, so that a reader that raced
	// with one does not cache what it read.
	redactionLock  sync.RWMutex
	redactionEpoch atomic.Uint64
}

const (
	defaultEventCache = 64 << 20
	defaultStateCache = 32 << 20
)

// New makes the roomserver on an open database whose schemas include Schema.
func New(db *storage.DB, opts Options) (*Server, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.EventCacheBytes == 0 {
		opts.EventCacheBytes = defaultEventCache
	}
	if opts.StateCacheBytes == 0 {
		opts.StateCacheBytes = defaultStateCache
	}
	s := &Server{
		name: opts.ServerName, keyID: opts.KeyID, key: opts.Key, old: opts.OldKeys,
		db: db, log: opts.Log, now: opts.Now, nids: db.IDs("roomserver"), retention: opts.Retention,
	}
	s.events = cache.New[int64, *Event](int(opts.EventCacheBytes))
	s.detached = cache.New[string, int64](maxDetached)
	s.packs = newPackLoader(db)
	s.states = snapshot.NewStore(s.packs, opts.StateCacheBytes)
	s.rooms.init()
	s.users.init()
	s.txns.init()
	s.relations.init(db.Head())
	if err := s.loadPartials(context.Background()); err != nil {
		return nil, err
	}
	if err := s.sticky.load(context.Background(), db, s.now().UnixMilli()); err != nil {
		return nil, err
	}
	return s, nil
}

// Name is the server name of local users.
func (s *Server) Name() string { return s.name }

// IsLocal tells whether a user, room or alias id belongs to this server.
func (s *Server) IsLocal(id string) bool {
	_, domain, ok := strings.Cut(id, ":")
	return ok && domain == s.name
}

// chainLoader reads the index of auth chains for package authchain.
type chainLoader struct{ db *storage.DB }

// LoadRows implements authchain.Loader.
func (l chainLoader) LoadRows(ctx context.Context, room int64, nids []int64, put func(nid int64, row []byte)) error {
	return l.db.Read(ctx, func(tx *storage.Tx) error {
		for len(nids) > 0 {
			args := make([]any, eventBatch)
			for i := range args {
				args[i] = nids[min(i, len(nids)-1)]
			}
			nids = nids[min(eventBatch, len(nids)):]
			if err := putRows(tx.Query(`SELECT nid, chain FROM events WHERE chain IS NOT NULL AND nid IN `+storage.In(eventBatch, 1), args...), put); err != nil {
				return fmt.Errorf("load auth chains of room %d: %w", room, err)
			}
		}
		return nil
	})
}

// RowsAfter implements authchain.Loader.
func (l chainLoader) RowsAfter(ctx context.Context, room, after int64, limit int, put func(nid int64, row []byte)) error {
	return l.db.Read(ctx, func(tx *storage.Tx) error {
		err := putRows(tx.Query(`SELECT nid, chain FROM events WHERE room = $1 AND chain_order > $2 ORDER BY chain_order LIMIT $3`, room, after, int64(limit)), put)
		if err != nil {
			return fmt.Errorf("load auth chains of room %d: %w", room, err)
		}
		return nil
	})
}

// LastOrder implements authchain.Loader.
func (l chainLoader) LastOrder(ctx context.Context, room int64) (order int64, err error) {
	err = l.db.Read(ctx, func(tx *storage.Tx) error {
		_, err := tx.Get(`SELECT chain_order FROM events WHERE room = $1 AND chain_order IS NOT NULL ORDER BY chain_order DESC LIMIT 1`, []any{room}, &order)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("load auth chains of room %d: %w", room, err)
	}
	return order, nil
}

// putRows hands the rows of a query for (nid, chain) to put.
func putRows(rows *storage.Rows, put func(nid int64, row []byte)) error {
	for rows.Next() {
		var nid int64
		var row []byte
		rows.Scan(&nid, &row)
		put(nid, row)
	}
	return rows.Close()
}

// keyedMutex serialises work by key without keeping a lock for keys that nobody uses.
type keyedMutex[K comparable] struct {
	mu    sync.Mutex
	locks map[K]*countedMutex
}

type countedMutex struct {
	sync.Mutex
	users int
}

// lock takes the lock of key and returns the function that releases it.
func (k *keyedMutex[K]) lock(key K) func() {
	k.mu.Lock()
	l := k.enterLocked(key)
	k.mu.Unlock()
	l.Lock()
	return func() { k.leave(key, l) }
}

// tryLock is lock for a key whose lock nobody holds or waits for; else it returns nil.
func (k *keyedMutex[K]) tryLock(key K) func() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks[key] != nil {
		return nil
	}
	l := k.enterLocked(key)
	l.Lock()
	return func() { k.leave(key, l) }
}

func (k *keyedMutex[K]) enterLocked(key K) *countedMutex {
	if k.locks == nil {
		k.locks = map[K]*countedMutex{}
	}
	l := k.locks[key]
	if l == nil {
		l = &countedMutex{}
		k.locks[key] = l
	}
	l.users++
	return l
}

func (k *keyedMutex[K]) leave(key K, l *countedMutex) {
	l.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}
