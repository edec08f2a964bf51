// Package memo remembers what was read, until somebody says that it has changed.
package memo

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/myelin-im/myelin/internal/cache"
)

// Memo holds what load returned for the keys asked about of late. It is safe for concurrent use.
//
// Whoever learns of a change calls Changed before others may learn of it. Then a Get that begins after
// that never returns what was read before.
type Memo[K comparable, V any] struct {
	load    func(ctx context.Context, key K) (V, error)
	entries *cache.Cache[K, *entry[V]]
}

// entry is what is known of one key.
type entry[V any] struct {
	changes atomic.Int64

	mu    sync.Mutex // held while loading, so that many who ask at once read once
	value V
	valid int64 // changes+1 when value was read; 0 if it never was
}

// New makes a Memo of at most size keys. load must not call back into it for the same key.
func New[K comparable, V any](size int, load func(ctx context.Context, key K) (V, error)) *Memo[K, V] {
	return &Memo[K, V]{load, cache.New[K, *entry[V]](size)}
}

// Get returns what load says of the key, as of now or of its last change. An error is not remembered. The value is
// shared: nobody may change what it refers to.
func (m *Memo[K, V]) Get(ctx context.Context, key K) (V, error) {
	e, ok := m.entries.Get(key)
	if !ok {
		e = m.entries.GetOrPut(key, &entry[V]{}, 1)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	changes := e.changes.Load()
	if e.valid == changes+1 {
		return e.value, nil
	}
	value, err := m.load(ctx, key)
	if err == nil {
		e.value, e.valid = value, changes+1
	}
	return value, err
}

// Changed says that what was read of the key is no longer so. It never waits for a load.
func (m *Memo[K, V]) Changed(key K) {
	if e, ok := m.entries.Get(key); ok {
		e.changes.Add(1)
	}
}
