// Package cache is a map bounded by bytes, for what can be worked out again.
package cache

import "sync"

// Cache keeps what was used of late. It has two generations: what is put or found goes into the
// young one; when that holds half of the limit, it becomes the old one, and what the old one held
// and nobody asked for is forgotten. That is a coarse "least recently used" for two map accesses
// and no list. Safe for concurrent use.
type Cache[K comparable, V any] struct {
	half int

	mu         sync.Mutex
	young, old map[K]item[V] // guarded by mu
	size       int           // of young; guarded by mu
}

type item[V any] struct {
	value V
	size  int
}

// overhead is about what an entry costs in a map beyond its key and value.
const overhead = 64

// New makes a cache of at most about limit bytes, as the callers of Put count them.
func New[K comparable, V any](limit int) *Cache[K, V] {
	return &Cache[K, V]{half: max(limit/2, 1), young: make(map[K]item[V])}
}

// Get returns what was put under the key and not yet forgotten.
func (c *Cache[K, V]) Get(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.get(key)
}

func (c *Cache[K, V]) get(key K) (V, bool) {
	if it, ok := c.young[key]; ok {
		return it.value, true
	}
	it, ok := c.old[key]
	if ok {
		delete(c.old, key)
		c.put(key, it)
	}
	return it.value, ok
}

// Put keeps value, which takes size bytes, in place of what stood there.
func (c *Cache[K, V]) Put(key K, value V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.old, key)
	c.put(key, item[V]{value, size + overhead})
}

// GetOrPut returns what stands under the key, or else puts value there and returns it.
func (c *Cache[K, V]) GetOrPut(key K, value V, size int) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.get(key); ok {
		return v
	}
	c.put(key, item[V]{value, size + overhead})
	return value
}

func (c *Cache[K, V]) put(key K, it item[V]) {
	c.size += it.size - c.young[key].size
	c.young[key] = it
	if c.size > c.half {
		c.old, c.young, c.size = c.young, make(map[K]item[V]), 0
	}
}

// Delete forgets what stands under the key.
func (c *Cache[K, V]) Delete(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size -= c.young[key].size
	delete(c.young, key)
	delete(c.old, key)
}

// Len is the number of entries.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.young) + len(c.old)
}
