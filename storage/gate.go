package storage

import (
	"context"
	"sync"
	"time"
)

// gate counts the readers of a SQLite database and can keep new ones out until the present ones are
// gone.
type gate struct {
	mu      sync.Mutex
	active  int
	closed  chan struct{} // closed when the gate opens again; nil while it is open
	drained chan struct{} // closed when active reaches 0; nil if nobody waits for that
	shut    bool          // closed for good
}

// enter waits while the gate is closed.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		closed := g.closed
		if g.shut {
			g.mu.Unlock()
			return ErrClosed
		}
		if closed == nil {
			g.active++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-closed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	g.active--
	if g.active == 0 && g.drained != nil {
		close(g.drained)
		g.drained = nil
	}
	g.mu.Unlock()
}

// close keeps new readers out and waits for the present ones, but not beyond the patience.
func (g *gate) close(patience time.Duration) {
	g.mu.Lock()
	g.closed = make(chan struct{})
	drained := make(chan struct{})
	if g.active == 0 {
		close(drained)
	} else {
		g.drained = drained
	}
	g.mu.Unlock()
	select {
	case <-drained:
	case <-time.After(patience):
	}
}

// shutDown closes the gate for good: who waits and who comes later gets ErrClosed.
func (g *gate) shutDown(patience time.Duration) {
	g.close(patience)
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	g.open()
}

func (g *gate) open() {
	g.mu.Lock()
	close(g.closed)
	g.closed, g.drained = nil, nil
	g.mu.Unlock()
}
