package accounts

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/myelin-im/myelin/internal/httpapi"
)

// session is what the server remembers of an access token, or of an application service acting as a user.
type session struct {
	caller  httpapi.Caller
	expires int64        // milliseconds; 0: never
	seen    atomic.Int64 // when it was last noted for devices.last_seen_ts, milliseconds

	epoch *atomic.Uint64 // of the user's slot, and what it was when the session was cached
	valid uint64
}

// tokenCache keeps sessions in memory. It holds two maps, the young one of which becomes the old one when it is
// full: what was not asked for during a whole filling is gone, without a list to keep up at each request.
//
// Forgetting a user costs one addition: users share slots, each session remembers its slot's count, and one that
// does not match is read again. A session that was read while somebody was being forgotten is not kept at all,
// because what was read may be what has just ended.
type tokenCache struct {
	seed   maphash.Seed
	slots  [1024]atomic.Uint64
	forgot atomic.Uint64 // how often anyone was forgotten

	mu         sync.RWMutex
	young, old map[tokenHash]*session // guarded by mu
}

// maxYoung bounds each of the two maps: together about 15 MB.
const maxYoung = 16 << 10

func newTokenCache() *tokenCache {
	return &tokenCache{seed: maphash.MakeSeed(), young: map[tokenHash]*session{}}
}

// slot returns the counter that a user shares with others.
func (c *tokenCache) slot(userID string) *atomic.Uint64 {
	return &c.slots[maphash.String(c.seed, userID)%uint64(len(c.slots))]
}

// forget makes the next request of every session of a user read the database. It must be called after the commit
// that changes the user and before that is answered.
func (c *tokenCache) forget(userID string) {
	c.forgot.Add(1) // first, so that put cannot see the slot's new count and this one's old
	c.slot(userID).Add(1)
}

// get returns a session that still holds.
func (c *tokenCache) get(h *tokenHash) *session {
	c.mu.RLock()
	s := c.young[*h]
	aged := false
	if s == nil {
		s = c.old[*h]
		aged = s != nil
	}
	c.mu.RUnlock()
	if s == nil || s.epoch.Load() != s.valid {
		return nil
	}
	if aged {
		c.store(h, s)
	}
	return s
}

// before is to be called before a session is read from the database, and its result passed to put.
func (c *tokenCache) before() uint64 { return c.forgot.Load() }

// put keeps a session, unless somebody was forgotten since before.
func (c *tokenCache) put(h *tokenHash, s *session, before uint64) {
	s.epoch = c.slot(s.caller.UserID)
	s.valid = s.epoch.Load()
	if c.forgot.Load() == before {
		c.store(h, s)
	}
}

func (c *tokenCache) store(h *tokenHash, s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= maxYoung {
		c.old, c.young = c.young, make(map[tokenHash]*session, maxYoung)
	}
	c.young[*h] = s
}
