// Package cache is a bounded map, for what can be worked out again.
//
// It is our own because of what a richer one costs where it is not run: each use of otter's cache with other types put
// some 2,000 functions (8 MB) into every package that imports it, and made building the server six times slower.
package cache

import (
	"hash/maphash"
	"sync"
)

// Overhead is about how many bytes an entry takes in a map beyond its key and value, for those who count bytes.
const Overhead = 64

// shards is how many parts a large cache has, so that cores seldom wait for each other; largeCache is from which limit.
const (
	shards     = 16
	largeCache = 4096
)

// Cache keeps what was used of late. Each part of it has two generations: what is put or found goes into the young one;
// when that holds half of the part's limit, it becomes the old one, and what the old one held and nobody asked for is
// forgotten. That is a coarse "least recently used" for two map accesses and no list. Safe for concurrent use.
type Cache[K comparable, V any] struct {
	seed  maphash.Seed
	parts []part[K, V]
}

type part[K comparable, V any] struct {
	mu         sync.Mutex
	half       int
	young, old map[K]item[V] // guarded by mu
	size       int           // of young; guarded by mu
}

type item[V any] struct {
	value V
	size  int
}

// New makes a cache whose entries' sizes add up to at most limit. What a size counts is the caller's choice: entries
// (each has size 1) or bytes.
func New[K comparable, V any](limit int) *Cache[K, V] {
	n := 1
	if limit >= largeCache {
		n = shards
	}
	c := &Cache[K, V]{seed: maphash.MakeSeed(), parts: make([]part[K, V], n)}
	for i := range c.parts {
		c.parts[i].half = max(limit/n/2, 1)
		c.parts[i].young = make(map[K]item[V])
	}
	return c
}

func (c *Cache[K, V]) part(key K) *part[K, V] {
	if len(c.parts) == 1 {
		return &c.parts[0]
	}
	return &c.parts[maphash.Comparable(c.seed, key)%shards]
}

// Get returns what was put under the key and not yet forgotten.
func (c *Cache[K, V]) Get(key K) (V, bool) {
	p := c.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.get(key)
}

// Put keeps value, which has the given size, in place of what stood there.
func (c *Cache[K, V]) Put(key K, value V, size int) {
	p := c.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.old, key)
	p.put(key, item[V]{value, size})
}

// GetOrPut returns what stands under the key, or else puts value there and returns it.
func (c *Cache[K, V]) GetOrPut(key K, value V, size int) V {
	p := c.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	if v, ok := p.get(key); ok {
		return v
	}
	p.put(key, item[V]{value, size})
	return value
}

// Delete forgets what stands under the key.
func (c *Cache[K, V]) Delete(key K) {
	p := c.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size -= p.young[key].size
	delete(p.young, key)
	delete(p.old, key)
}

// Clear forgets everything.
func (c *Cache[K, V]) Clear() {
	for i := range c.parts {
		p := &c.parts[i]
		p.mu.Lock()
		p.young, p.old, p.size = make(map[K]item[V]), nil, 0
		p.mu.Unlock()
	}
}

// Len is the number of entries.
func (c *Cache[K, V]) Len() (n int) {
	for i := range c.parts {
		p := &c.parts[i]
		p.mu.Lock()
		n += len(p.young) + len(p.old)
		p.mu.Unlock()
	}
	return n
}

func (p *part[K, V]) get(key K) (V, bool) {
	if it, ok := p.young[key]; ok {
		return it.value, true
	}
	it, ok := p.old[key]
	if ok {
		delete(p.old, key)
		p.put(key, it)
	}
	return it.value, ok
}

func (p *part[K, V]) put(key K, it item[V]) {
	p.size += it.size - p.young[key].size
	p.young[key] = it
	if p.size > p.half {
		p.old, p.young, p.size = p.young, make(map[K]item[V]), 0
	}
}
