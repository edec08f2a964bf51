package syncapi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// connections are the connections of sliding sync.
//
// Memory is what answers; each answer that changed what its client knows of rooms is one small row, appended without
// waiting for the disk. A crash may lose the last of them, and then the connections concerned begin anew; an orderly
// stop loses none. Rows are cut off by writing a whole state from time to time.
type connections struct {
	db    *storage.DB
	log   *logrus.Entry
	now   func() time.Time
	known *cache.Cache[connectionKey, *connection]
	purge atomic.Int64 // when expired rows are deleted next, in milliseconds
}

// connectionKey names a connection.
type connectionKey struct{ user, device, name string }

// connection is one connection of one device.
type connection struct {
	key connectionKey

	mu     sync.Mutex
	loaded bool
	id     int64 // 0: there is none
	// acked is what the client is known to have processed, latest what it was sent after that. acked may be nil.
	acked, latest *slidingState
	next          int64 // the number of the next answer
	rows          int   // rows since the last whole state
	used          int64
	// superseded is closed when another request of the connection arrives.
	superseded chan struct{}

	// members remembers which membership events of lazily loaded members the client has, pending those in the
	// latest answer. Losing it costs repetition only.
	members map[lazyMember]int64
	pending map[lazyMember]int64
}

// lazyMember is a user in a room.
type lazyMember struct {
	room int64
	user string
}

const (
	// maxConnections bounds the connections in memory, maxLazyMembers what is remembered for each.
	maxConnections = 4000
	maxLazyMembers = 2000
	// maxDeviceConnections bounds the connections of one device; those not used for longest end.
	maxDeviceConnections = 16
	// maxAnswerRows is after how many rows the whole state is written.
	maxAnswerRows = 50
	// connectionLife is after which time without use a connection ends.
	connectionLife = 30 * 24 * time.Hour
	// usedEvery is how exactly the last use is known.
	usedEvery  = time.Hour
	purgeEvery = time.Hour
)

var errUnknownPos = mxerr.New(400, "M_UNKNOWN_POS", "There is no such connection any more; begin anew without pos")

var (
	connectionsTable = storage.DeclareTable("sliding_connections", storage.Put,
		storage.Key("user_id", storage.Bytes), storage.Key("device_id", storage.Bytes), storage.Key("name", storage.Bytes),
		storage.Col("conn", storage.Int), storage.Col("used", storage.Int))
	answersTable = storage.DeclareTable("sliding_answers", storage.Put,
		storage.Key("conn", storage.Int), storage.Key("seq", storage.Int),
		storage.Col("base", storage.Int), storage.Col("data", storage.Bytes))
)

func newConnections(db *storage.DB, log *logrus.Entry, now func() time.Time) *connections {
	return &connections{db: db, log: log, now: now, known: cache.New[connectionKey, *connection](maxConnections)}
}

// slidingTurn is one request's hold on a connection.
type slidingTurn struct {
	conn *connection
	id   int64
	// base is what the client knows.
	base *slidingState
	// over is closed when another request takes the connection.
	over chan struct{}
	// fresh tells that the connection begins with this request.
	fresh bool
	olds  []oldConnection
	// members is what the client knows of lazily loaded members; not to be changed.
	members map[lazyMember]int64
}

// begin starts a connection.
func (c *connections) begin(ctx context.Context, key connectionKey) (*slidingTurn, error) {
	olds, err := c.old(ctx, key)
	if err != nil {
		return nil, err
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("choose a number for a connection: %w", err)
	}
	conn := c.entry(key)
	conn.mu.Lock()
	defer conn.mu.Unlock()
	id := int64(binary.LittleEndian.Uint64(b[:])>>2) + 1
	return &slidingTurn{conn: conn, id: id, base: &slidingState{}, over: conn.take(), fresh: true, olds: olds}, nil
}

func (c *connections) entry(key connectionKey) *connection {
	conn, ok := c.known.Get(key)
	if !ok {
		conn = c.known.GetOrPut(key, &connection{key: key}, 1)
	}
	return conn
}

// take ends the request that had the connection.
func (conn *connection) take() chan struct{} {
	if conn.superseded != nil {
		close(conn.superseded)
	}
	conn.superseded = make(chan struct{})
	return conn.superseded
}

// resume goes on from a token.
func (c *connections) resume(ctx context.Context, key connectionKey, t slidingToken) (*slidingTurn, error) {
	conn := c.entry(key)
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if err := c.load(ctx, conn); err != nil {
		return nil, err
	}
	if conn.id == 0 || conn.id != t.conn || t.seq == 0 || c.now().UnixMilli()-conn.used > connectionLife.Milliseconds() {
		return nil, errUnknownPos
	}
	switch {
	case conn.latest.seq == t.seq:
		conn.acked = conn.latest
		for k, v := range conn.pending {
			if conn.members == nil || len(conn.members) >= maxLazyMembers {
				conn.members = map[lazyMember]int64{}
			}
			conn.members[k] = v
		}
		conn.pending = nil
	case conn.acked != nil && conn.acked.seq == t.seq:
	default:
		return nil, errUnknownPos
	}
	known := make(map[lazyMember]int64, len(conn.members))
	for k, v := range conn.members {
		known[k] = v
	}
	return &slidingTurn{conn: conn, id: conn.id, base: conn.acked, over: conn.take(), members: known}, nil
}

// load reads a connection that is not in memory.
func (c *connections) load(ctx context.Context, conn *connection) error {
	if conn.loaded {
		return nil
	}
	var id, used int64
	var states []*slidingState
	err := c.db.Read(ctx, func(tx *storage.Tx) error {
		id, states = 0, nil
		found, err := tx.Get(`SELECT conn, used FROM sliding_connections WHERE user_id = $1 AND device_id = $2 AND name = $3`,
			[]any{conn.key.user, conn.key.device, conn.key.name}, &id, &used)
		if err != nil || !found {
			return err
		}
		rows := tx.Query(`SELECT seq, base, data FROM sliding_answers WHERE conn = $1 ORDER BY seq`, id)
		var seq, base int64
		var data []byte
		for rows.Next() {
			rows.Scan(&seq, &base, &data)
			change, err := decodeSlidingChange(data)
			if err != nil {
				rows.Close()
				return err
			}
			from := &slidingState{}
			if base != 0 {
				if len(states) == 0 || states[len(states)-1].seq != base {
					states = nil // a crash has torn the chain: nothing of it can be trusted
					break
				}
				from = states[len(states)-1]
			}
			states = append(states, from.apply(seq, change))
		}
		return rows.Close()
	})
	if err != nil {
		return fmt.Errorf("read a connection of %s: %w", conn.key.user, err)
	}
	conn.loaded = true
	if len(states) == 0 {
		return nil
	}
	conn.id, conn.used, conn.latest, conn.rows = id, used, states[len(states)-1], len(states)
	conn.next = conn.latest.seq + 1
	if len(states) > 1 {
		conn.acked = states[len(states)-2]
	}
	return nil
}

// commit makes a change the latest answer and returns its number; ok is false if another request has taken the
// connection meanwhile. sent are the lazily loaded members that the answer has.
func (c *connections) commit(t *slidingTurn, change *slidingChange, sent map[lazyMember]int64) (seq int64, ok bool) {
	conn := t.conn
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.superseded != t.over {
		return 0, false
	}
	u := &storage.Unit{}
	now := c.now().UnixMilli()
	if t.fresh {
		c.replace(u, conn, t.olds, now)
		conn.loaded, conn.id, conn.next, conn.acked, conn.latest = true, t.id, 1, t.base, nil
		conn.members, conn.rows, conn.used = nil, 0, 0
	}
	if conn.latest != nil && conn.latest != t.base {
		u.Delete(answersTable, conn.id, conn.latest.seq) // an answer that the client did not get or will not use
	}
	seq = conn.next
	conn.next++
	conn.latest = t.base.apply(seq, change)
	conn.pending = sent
	if conn.rows++; conn.rows > maxAnswerRows && t.base.seq > 0 {
		u.Add(answersTable, conn.id, t.base.seq, int64(0), t.base.whole().encode(nil))
		u.Exec(`DELETE FROM sliding_answers WHERE conn = $1 AND seq < $2`, conn.id, t.base.seq)
		conn.rows = 2
	}
	u.Add(answersTable, conn.id, seq, t.base.seq, change.encode(nil))
	if now-conn.used > usedEvery.Milliseconds() {
		conn.used = now
		u.Add(connectionsTable, conn.key.user, conn.key.device, conn.key.name, conn.id, now)
	}
	u.Done = func(_ int64, err error) {
		if err != nil && !errors.Is(err, storage.ErrClosed) {
			c.log.WithError(err).WithField("user", conn.key.user).Error("A sliding sync connection could not be stored")
		}
	}
	c.db.Append(u)
	return seq, true
}

// oldConnection is a row that makes place.
type oldConnection struct {
	name string
	id   int64
}

// old finds what a new connection takes the place of: the one of the same name, and those of the device beyond its bound.
func (c *connections) old(ctx context.Context, key connectionKey) (olds []oldConnection, err error) {
	err = c.db.Read(ctx, func(tx *storage.Tx) error {
		olds = nil
		rows := tx.Query(`SELECT name, conn FROM sliding_connections WHERE user_id = $1 AND device_id = $2 ORDER BY used DESC`, key.user, key.device)
		var o oldConnection
		others := 0
		for rows.Next() {
			rows.Scan(&o.name, &o.id)
			if o.name != key.name {
				others++
			}
			if o.name == key.name || others >= maxDeviceConnections {
				olds = append(olds, o)
			}
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read the connections of %s: %w", key.user, err)
	}
	for _, o := range olds {
		if o.name == key.name {
			continue
		}
		k := connectionKey{key.user, key.device, o.name}
		if other, ok := c.known.Get(k); ok {
			other.mu.Lock()
			other.take() // so that a request under way leaves nothing behind
			other.superseded = nil
			other.mu.Unlock()
			c.known.Delete(k)
		}
	}
	return olds, nil
}

// replace removes what a new connection takes the place of, and once in a while those that have expired.
func (c *connections) replace(u *storage.Unit, conn *connection, olds []oldConnection, now int64) {
	if conn.id != 0 { // its row may still be on the way to the disk
		olds = append(olds, oldConnection{conn.key.name, conn.id})
	}
	for _, o := range olds {
		u.Exec(`DELETE FROM sliding_answers WHERE conn = $1`, o.id)
		if o.name != conn.key.name {
			u.Delete(connectionsTable, conn.key.user, conn.key.device, o.name)
		}
	}
	if due := c.purge.Load(); now > due && c.purge.CompareAndSwap(due, now+purgeEvery.Milliseconds()) {
		old := now - connectionLife.Milliseconds()
		u.Exec(`DELETE FROM sliding_answers WHERE conn IN (SELECT conn FROM sliding_connections WHERE used < $1)`, old)
		u.Exec(`DELETE FROM sliding_connections WHERE used < $1`, old)
	}
}
