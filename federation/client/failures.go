package client

import (
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/cache"
)

// A server that cannot be connected to is not dialled again for a moment: a room with users of a hundred servers that are
// gone would otherwise hold up everything that asks all servers of the room.
const (
	// minUnreachable is for how long after the first failure; it doubles up to maxUnreachable.
	minUnreachable = 2 * time.Second
	maxUnreachable = time.Minute
)

// failures remembers where connecting failed.
type failures struct {
	hosts *cache.Cache[string, failure] // by poolHost
	now   func() time.Time
}

type failure struct {
	until time.Time
	count int
}

func newFailures() *failures {
	return &failures{hosts: cache.New[string, failure](maxNames), now: time.Now}
}

// recent tells whether connecting failed a moment ago.
func (f *failures) recent(host string) bool {
	last, ok := f.hosts.Get(host)
	return ok && f.now().Before(last.until)
}

func (f *failures) note(host string) {
	last, _ := f.hosts.Get(host)
	last.until = f.now().Add(min(minUnreachable<<min(last.count, 10), maxUnreachable))
	last.count++
	f.hosts.Put(strings.Clone(host), last, 1)
}

func (f *failures) forget(host string) {
	if _, ok := f.hosts.Get(host); ok {
		f.hosts.Put(strings.Clone(host), failure{}, 1)
	}
}

// Reached says that a server was heard of, so that it is worth another try if connecting to it failed.
func (c *Client) Reached(server string) {
	delegated := server
	if known, ok := c.discovery.names.Get(server); ok && known.mu.TryLock() {
		if known.to != "" {
			delegated = known.to
		}
		known.mu.Unlock()
	}
	if name, ok := ParseName(delegated); ok {
		c.failures.forget(poolHost(delegated, name))
	}
}
