package syncapi

import "sync"

// lazyCache remembers which membership events a device was sent, so that lazy loading sends each once
// (client-server API v1.19, "Lazy-loading room members"). Losing it costs repetition only.
type lazyCache struct {
	mu      sync.Mutex
	devices map[deviceRoom]map[string]sentMember
	entries int
}

// sentMember is a membership event that a device was sent, in the answer up to pos.
type sentMember struct{ nid, pos int64 }

// deviceRoom is a room as one device sees it.
type deviceRoom struct {
	user, device string
	room         int64
}

// maxLazyEntries bounds the memberships remembered, about 100 bytes each.
const maxLazyEntries = 200_000

func newLazyCache() *lazyCache { return &lazyCache{devices: map[deviceRoom]map[string]sentMember{}} }

// forget makes the device know nothing of the room.
func (c *lazyCache) forget(k deviceRoom) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries -= len(c.devices[k])
	delete(c.devices, k)
}

// knows tells whether the device has this membership event of a user: it was in an answer that the device has
// acknowledged by a token of position since. One in an answer that was lost is sent again.
func (c *lazyCache) knows(k deviceRoom, user string, nid, since int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.devices[k][user]
	return m.nid == nid && m.pos <= since
}

// knowsUser tells whether the device was sent any membership event of a user.
func (c *lazyCache) knowsUser(k deviceRoom, user string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.devices[k][user]
	return ok
}

// sent notes that the device is sent the membership event of a user, in an answer up to pos.
func (c *lazyCache) sent(k deviceRoom, user string, nid, pos int64) {
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
		m = map[string]sentMember{}
		c.devices[k] = m
	}
	old, ok := m[user]
	if !ok {
		c.entries++
	}
	if old.nid != nid || pos < old.pos {
		m[user] = sentMember{nid, pos}
	}
}
