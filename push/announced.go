package push

import "sync"

// announced orders announcements of changes and the caching of what was read before them.
type announced struct {
	mu   sync.Mutex
	last int64 // the position of the last announced change; guarded by mu
}

// announce runs forget for a change at pos.
func (a *announced) announce(pos int64, forget func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = pos
	forget()
}

// unlessSince runs keep unless a change after the given position was announced.
func (a *announced) unlessSince(pos int64, keep func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last <= pos {
		keep()
	}
}
