package roomserver

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// keyFilter tells of keys that are hashes whether they may have been added (a Bloom filter that grows): never "no" of one
// that was, and "yes" of about one in a thousand others.
type keyFilter struct {
	mu    sync.Mutex
	parts []filterPart
	// complete tells that all keys have been added that there were before.
	complete bool
}

// filterPart holds keys in 16 bits each.
type filterPart struct {
	bits []uint64
	free int       // how many more keys it takes
	last time.Time // when one was added
}

const (
	// The parts of a filter take from filterMin to filterMax keys, each four times as many as the one before it.
	filterMin, filterMax = 1 << 12, 1 << 20
	filterProbes         = 7
)

// enter adds a key, and tells whether it may have been added before.
func (f *keyFilter) enter(key [16]byte, now time.Time) (known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known = !f.complete || f.has(key)
	f.add(key, now)
	return known
}

// has tells whether a key may have been added. The caller holds mu.
func (f *keyFilter) has(key [16]byte) bool {
	for i := range f.parts {
		if f.parts[i].has(key) {
			return true
		}
	}
	return false
}

// learn adds keys that there were before; with all, these are the last of them.
func (f *keyFilter) learn(keys []string, now time.Time, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		f.add([16]byte([]byte(k)), now)
	}
	f.complete = f.complete || all
}

// add adds a key, and lets go of parts whose keys are all older than a transaction's lifetime. The caller holds mu.
func (f *keyFilter) add(key [16]byte, now time.Time) {
	n := len(f.parts)
	if n == 0 || f.parts[n-1].free == 0 {
		size := filterMin
		if n > 0 {
			size = min(4*64*len(f.parts[n-1].bits)/16, filterMax)
		}
		f.parts = slices.DeleteFunc(f.parts, func(p filterPart) bool { return now.Sub(p.last) >= txnLifetime })
		f.parts = append(f.parts, filterPart{bits: make([]uint64, size*16/64), free: size})
	}
	p := &f.parts[len(f.parts)-1]
	p.free--
	p.last = now
	for i := range uint64(filterProbes) {
		at := p.bit(key, i)
		p.bits[at/64] |= 1 << (at % 64)
	}
}

func (p *filterPart) has(key [16]byte) bool {
	for i := range uint64(filterProbes) {
		at := p.bit(key, i)
		if p.bits[at/64]&(1<<(at%64)) == 0 {
			return false
		}
	}
	return true
}

// bit is the i-th bit of a key.
func (p *filterPart) bit(key [16]byte, i uint64) uint64 {
	first, step := binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])|1
	return (first + i*step) % uint64(64*len(p.bits))
}
