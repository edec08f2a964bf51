package syncapi

import "sync"

// lazyCache remembers which membership events a device was sent, so that lazy loading sends each once
// (client-server API v1.19, "Lazy-loading room members"). Losing it costs repetition only.
type lazyCache struct {
	mu      sync.Mutex
	devices map[deviceRoom]map[string]int64
	entries int
}

// deviceRoom is a room as one device sees it.
type deviceRoom struct {
	user, device string
	room         int64
}

// maxLazyEntries bounds the memberships remembered, about 100 bytes each.
const maxLazyEntries = 200_000

func newLazyCache() *lazyCache { return &lazyCache{devices: map[deviceRoom]map[string]int64{}} }

// forget makes the device know nothing of the room.
func (c *lazyCache) forget(k deviceRoom) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries -= len(c.devices[k])
	delete(c.devices, k)
}

// knows tells whether the device was sent this membership event of a user.
func (c *lazyCache) knows(k deviceRoom, user string, nid int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.devices[k][user] == nid
}

// knowsUser tells whether the device was sent any membership event of a user.
func (c *lazyCache) knowsUser(k deviceRoom, user string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.devices[k][user]
	return ok
}

// sent notes that the device was sent the membership event of a user.
func (c *lazyCache) sent(k deviceRoom, user string, nid int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries >= maxLazyEntries {
		for other, m := range c.devices {
			c.entries -= len(m)
			delete(c.devices, other)
			if c.entries < maxLazyEntries*9/10 {
				break
			}
		}
	}
	m := c.devices[k]
	if m == nil {
		m = map[string]int64{}
		c.devices[k] = m
	}
	if _, ok := m[user]; !ok {
		c.entries++
	}
	m[user] = nid
}
