// Package ratelimit bounds how often one caller may do one class of things.
//
// Each (class, key) has a token bucket: a burst that may be spent at once and a rate at which
// it refills. The key is a user, a server or an address. A bucket is one number (the moment at
// which it will be full again: the generic cell rate algorithm), so full buckets need not be
// kept, and memory stays bounded whatever keys strangers invent.
package ratelimit

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"
)

// Rate is the budget of one bucket.
type Rate struct {
	// PerSecond is how many requests a second are allowed in the long run; 0 means no limit.
	PerSecond float64
	// Burst is how many requests may come at once; at least 1.
	Burst int
}

// Config holds the budget of every class. DefaultConfig is the starting point.
type Config struct {
	// Enabled turns all limits on.
	Enabled bool
	// ExemptAdmins lets server administrators pass without limits.
	ExemptAdmins bool

	Message      Rate
	State        Rate
	Create       Rate
	Join         Rate
	Invite       Rate
	Login        Rate
	LoginAccount Rate
	Mail         Rate
	Register     Rate
	Account      Rate
	Media        Rate
	Read         Rate
	Search       Rate
	Sync         Rate
	Ephemeral    Rate
	Keys         Rate
	ToDevice     Rate
	Delayed      Rate
	Federation   Rate
	Admin        Rate
}

// DefaultConfig is generous to people and their clients and slow for guessing and flooding.
// A client that opens a large account reads hundreds of rooms at once; a member of a call
// restarts a delayed event each second and sends keys to every other member at once.
func DefaultConfig() Config {
	return Config{
		Enabled:      true,
		ExemptAdmins: true,
		Message:      Rate{10, 50},
		State:        Rate{5, 50},
		Create:       Rate{0.5, 10},
		Join:         Rate{1, 20},
		Invite:       Rate{1, 50},
		Login:        Rate{0.2, 10},
		LoginAccount: Rate{0.05, 5},
		Mail:         Rate{0.002, 5},
		Register:     Rate{0.2, 5},
		Account:      Rate{5, 50},
		Media:        Rate{30, 300},
		Read:         Rate{50, 500},
		Search:       Rate{2, 20},
		Sync:         Rate{20, 100},
		Ephemeral:    Rate{10, 60},
		Keys:         Rate{10, 100},
		ToDevice:     Rate{10, 60},
		Delayed:      Rate{5, 40},
		Federation:   Rate{200, 1000},
		Admin:        Rate{50, 200},
	}
}

// rates is the configured budgets by class.
func (c *Config) rates() [classes]Rate {
	return [classes]Rate{
		Message: c.Message, State: c.State, Create: c.Create, Join: c.Join, Invite: c.Invite,
		Login: c.Login, LoginAccount: c.LoginAccount, Mail: c.Mail, Register: c.Register, Account: c.Account,
		Media: c.Media, Read: c.Read, Search: c.Search, Sync: c.Sync, Ephemeral: c.Ephemeral,
		Keys: c.Keys, ToDevice: c.ToDevice, Delayed: c.Delayed, Federation: c.Federation, Admin: c.Admin,
	}
}

const (
	shards = 64
	// shardBuckets bounds the buckets that are not full, per shard: 131,072 in all, some 20 MB.
	shardBuckets = 2048
)

type bucketKey struct {
	class Class
	key   string
}

// shard holds the moments (nanoseconds since the limiter's start) at which its buckets are full again.
type shard struct {
	mu   sync.Mutex
	full map[bucketKey]int64 // guarded by mu
}

// maxWindow bounds how long a bucket takes to fill, in nanoseconds: a hundred years do not overflow.
const maxWindow = float64(100 * 365 * 24 * time.Hour)

// budget is a Rate in the limiter's units.
type budget struct {
	interval int64 // nanoseconds that one request costs; 0: not limited
	window   int64 // nanoseconds that an empty bucket is away from full
}

// Limiter keeps the buckets. A nil Limiter allows everything. It is safe for concurrent use.
type Limiter struct {
	budgets      [classes]budget
	exemptAdmins bool
	seed         maphash.Seed
	start        time.Time
	now          func() int64
	shards       [shards]shard
}

// New makes a Limiter, or nil if limits are turned off.
func New(cfg Config) *Limiter {
	if !cfg.Enabled {
		return nil
	}
	l := &Limiter{exemptAdmins: cfg.ExemptAdmins, seed: maphash.MakeSeed(), start: time.Now()}
	l.now = func() int64 { return int64(time.Since(l.start)) }
	for class, r := range cfg.rates() {
		if r.PerSecond <= 0 {
			continue
		}
		interval := math.Max(float64(time.Second)/r.PerSecond, 1)
		window := interval * float64(max(r.Burst, 1))
		l.budgets[class] = budget{int64(math.Min(interval, maxWindow)), int64(math.Min(window, maxWindow))}
	}
	return l
}

// ExemptAdmins reports whether administrators pass without limits.
func (l *Limiter) ExemptAdmins() bool { return l == nil || l.exemptAdmins }

// Allow spends one request of the key's budget in the class. If the budget is spent, it answers
// false and when the next request will be allowed, and spends nothing.
func (l *Limiter) Allow(class Class, key string) (ok bool, retryAfter time.Duration) {
	if l == nil || class >= classes {
		return true, 0
	}
	b := l.budgets[class]
	if b.interval == 0 {
		return true, 0
	}
	k := bucketKey{class, key}
	s := &l.shards[maphash.String(l.seed, key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	now := l.now() // under the lock: an older time than the bucket's would make it look emptier than it is
	full := max(s.full[k], now) + b.interval
	if over := full - now - b.window; over > 0 {
		return false, time.Duration(over)
	}
	s.put(k, full, now)
	return true, 0
}

// put stores a bucket and keeps the shard within its bound.
func (s *shard) put(k bucketKey, full, now int64) {
	if len(s.full) >= shardBuckets {
		if _, known := s.full[k]; !known {
			s.evict(now)
		}
	}
	if s.full == nil {
		s.full = make(map[bucketKey]int64)
	}
	s.full[k] = full
}

// evict drops the buckets that are full again, which changes nothing for anyone. If there are
// none, strangers are inventing keys faster than buckets refill; then an arbitrary eighth goes,
// so that the sweep is paid for once in hundreds of requests and nobody's bucket is safe prey.
func (s *shard) evict(now int64) {
	for k, full := range s.full {
		if full <= now {
			delete(s.full, k)
		}
	}
	for k := range s.full {
		if len(s.full) <= shardBuckets-shardBuckets/8 {
			return
		}
		delete(s.full, k)
	}
}

// AddrKey is the key of a client address: the address itself, or the /64 network of an IPv6
// address, because one household or one attacker commonly holds all of it.
func AddrKey(addr string) string {
	for i := 0; i < len(addr); i++ {
		if addr[i] != ':' {
			continue
		}
		ip, err := netip.ParseAddr(addr)
		if err != nil || ip.Is4In6() {
			return addr
		}
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr
}
