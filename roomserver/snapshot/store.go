package snapshot

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Loader reads stored rows.
type Loader interface {
	// LoadPacks calls put once for each of the rows of a room that ids names, in any
	// order, with bytes that nobody changes afterwards. A row that is not there is
	// left out. It is asked for at most 256 rows at once.
	LoadPacks(ctx context.Context, room int64, ids []int64, put func(id int64, data []byte)) error
}

// Store reads the states of all rooms, through a cache of rows bounded by bytes.
// Rows of packs that are not yet durable are kept beside it until Durable or Drop.
// It is safe for concurrent use.
type Store struct {
	loader Loader
	hash   hasher
	shards [16]shard
}

// NewStore returns a store that keeps at most maxBytes of rows in memory, not
// counting those of packs that are not yet durable.
func NewStore(loader Loader, maxBytes int64) *Store {
	s := &Store{loader: loader, hash: sipHash}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.max = maxBytes / int64(len(s.shards))
		sh.rows = map[rowKey]*cached{}
		sh.lru.next, sh.lru.prev = &sh.lru, &sh.lru
	}
	return s
}

// Durable says that the rows of a pack are stored: from now on they can be evicted.
func (s *Store) Durable(room, pack int64) {
	for part := int64(0); ; part++ {
		k := rowKey{room, pack<<partBits | part}
		if !s.shard(k).unpin(k, true) {
			return
		}
	}
}

// Drop forgets a pack that will not be stored. States made from it can no longer be
// read.
func (s *Store) Drop(room, pack int64) {
	for part := int64(0); ; part++ {
		k := rowKey{room, pack<<partBits | part}
		if !s.shard(k).unpin(k, false) {
			return
		}
	}
}

// pin makes the rows of a new pack readable before they are stored.
func (s *Store) pin(room int64, rows []Row) {
	for _, r := range rows {
		k := rowKey{room, r.ID}
		s.shard(k).pin(k, r.Data)
	}
}

// row returns one row, from memory or the loader.
func (s *Store) row(ctx context.Context, room, id int64) ([]byte, error) {
	k := rowKey{room, id}
	if data := s.shard(k).get(k); data != nil {
		return data, nil
	}
	var out []byte
	err := s.load(ctx, room, []int64{id}, func(_ int64, data []byte) { out = data })
	return out, err
}

// load reads rows that are not in memory, and keeps them.
func (s *Store) load(ctx context.Context, room int64, ids []int64, put func(id int64, data []byte)) error {
	found := 0
	err := s.loader.LoadPacks(ctx, room, ids, func(id int64, data []byte) {
		k := rowKey{room, id}
		s.shard(k).add(k, data)
		put(id, data)
		found++
	})
	if err != nil {
		return fmt.Errorf("load %d state rows of room %d: %w", len(ids), room, err)
	}
	if found < len(ids) {
		return fmt.Errorf("load state rows %v of room %d: %d are missing: %w", ids[:min(len(ids), 4)], room, len(ids)-found, ErrCorrupt)
	}
	return nil
}

// fetch puts the rows that hold refs into rows; what is not in memory is loaded at
// once. A ref of 0 is skipped.
func (s *Store) fetch(ctx context.Context, room int64, refs []Ref, rows map[int64][]byte) error {
	var missing []int64
	for _, r := range refs {
		id := r.Row()
		if _, ok := rows[id]; ok || r == 0 {
			continue
		}
		k := rowKey{room, id}
		data := s.shard(k).get(k)
		rows[id] = data
		if data == nil {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	for chunk := range slices.Chunk(missing, rowNodes) {
		if err := s.load(ctx, room, chunk, func(id int64, data []byte) { rows[id] = data }); err != nil {
			return err
		}
	}
	return nil
}

type rowKey struct{ room, id int64 }

func (s *Store) shard(k rowKey) *shard {
	h := (uint64(k.room)*0x9e3779b97f4a7c15 ^ uint64(k.id)) * 0xff51afd7ed558ccd
	return &s.shards[h>>60]
}

// cached is a row in memory; unpinned ones are in the list of their shard, the
// least recently used last.
type cached struct {
	key        rowKey
	data       []byte
	pinned     bool
	prev, next *cached
}

// rowOverhead is about what a row takes beside its bytes: entry and map slot.
const rowOverhead = 120

func (c *cached) size() int64 { return int64(len(c.data)) + rowOverhead }

func (c *cached) unlink() { c.prev.next, c.next.prev = c.next, c.prev }

// shard is a part of the cache with a lock of its own.
type shard struct {
	mu            sync.Mutex
	rows          map[rowKey]*cached
	lru           cached // head of the list of unpinned rows
	max           int64
	bytes, pinned int64
}

func (sh *shard) get(k rowKey) []byte {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.rows[k]
	if c == nil {
		return nil
	}
	if !c.pinned && sh.lru.next != c {
		c.unlink()
		sh.pushLocked(c)
	}
	return c.data
}

func (sh *shard) pushLocked(c *cached) {
	c.prev, c.next = &sh.lru, sh.lru.next
	c.prev.next, c.next.prev = c, c
}

func (sh *shard) add(k rowKey, data []byte) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.rows[k] == nil {
		c := &cached{key: k, data: data}
		sh.rows[k] = c
		sh.bytes += c.size()
		sh.pushLocked(c)
		sh.evictLocked()
	}
}

func (sh *shard) pin(k rowKey, data []byte) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.removeLocked(sh.rows[k])
	c := &cached{key: k, data: data, pinned: true}
	sh.rows[k] = c
	sh.pinned += c.size()
}

// unpin ends the pinning of a row and reports whether it was pinned.
func (sh *shard) unpin(k rowKey, keep bool) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.rows[k]
	if c == nil || !c.pinned {
		return false
	}
	if !keep {
		sh.removeLocked(c)
		return true
	}
	sh.pinned -= c.size()
	sh.bytes += c.size()
	c.pinned = false
	sh.pushLocked(c)
	sh.evictLocked()
	return true
}

func (sh *shard) evictLocked() {
	for sh.bytes > sh.max && sh.lru.prev != &sh.lru {
		sh.removeLocked(sh.lru.prev)
	}
}

func (sh *shard) removeLocked(c *cached) {
	switch {
	case c == nil:
		return
	case c.pinned:
		sh.pinned -= c.size()
	default:
		sh.bytes -= c.size()
		c.unlink()
	}
	delete(sh.rows, c.key)
}
