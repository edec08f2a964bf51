package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/myelin-im/myelin/internal/httpapi"
)

const (
	// liveFrom is how much of a file must have arrived before it is passed on while the rest is on its way.
	liveFrom = 1 << 20
	// heldBack is how much of it is kept until everything is there and known to be good: a file that turns out to be cut,
	// longer than announced, or blocked, never arrives whole.
	heldBack = 256 << 10
)

// live is a remote file that is being fetched and read at the same time. The content is in the spool's file; here is how
// much of it may be read.
type live struct {
	ready chan struct{} // closed when enough is there

	mu      sync.Mutex
	begun   bool
	more    chan struct{} // closed when n, over or err change
	n       int64
	over    bool
	err     error
	path    string
	file    *remote
	typ     string
	readers int
}

// lives are the files under way.
type lives struct {
	mu   sync.Mutex
	list map[uri]*live
}

// join returns the file of a URI, under way or about to be.
func (l *lives) join(u uri) (one *live, leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list == nil {
		l.list = map[uri]*live{}
	}
	one = l.list[u]
	if one == nil {
		one = &live{ready: make(chan struct{}), more: make(chan struct{})}
		l.list[u] = one
	}
	one.readers++
	return one, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.readers--; one.readers == 0 && l.list[u] == one {
			delete(l.list, u)
		}
	}
}

// change wakes the readers after fn has changed something.
func (l *live) change(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn()
	close(l.more)
	l.more = make(chan struct{})
	if !l.begun && l.n >= liveFrom && l.path != "" {
		l.begun = true
		close(l.ready)
	}
}

// finish tells the readers how it ended.
func (l *live) finish(err error) {
	l.change(func() { l.over, l.err = true, err })
}

// readable waits until more than have bytes may be read. It returns io.EOF at the end.
func (l *live) readable(ctx context.Context, have int64) (n int64, err error) {
	for {
		l.mu.Lock()
		n, more := l.n, l.more
		if !l.over {
			n -= heldBack
		}
		over, err := l.over, l.err
		l.mu.Unlock()
		switch {
		case over && err != nil:
			return have, fmt.Errorf("the fetch ended: %w", err)
		case n > have:
			return n, nil
		case over:
			return n, io.EOF
		}
		select {
		case <-more:
		case <-ctx.Done():
			return have, ctx.Err()
		}
	}
}

// fetchOrFollow is fetch for a reader that can begin before everything is there; then it returns a file under way, which
// must be left. Only files of a known length are followed: for others, a client is told if they are too large.
func (a *API) fetchOrFollow(ctx context.Context, req *request) (*record, *follower, func(), error) {
	one, leave := a.lives.join(req.uri)
	type result struct {
		rec *record
		err error
	}
	done := make(chan result, 1)
	go func() {
		rec, err := a.fetch(ctx, req)
		done <- result{rec, err}
	}()
	select {
	case r := <-done:
		leave()
		return r.rec, nil, nil, r.err
	case <-one.ready:
	}
	f, err := one.open()
	if f == nil {
		leave()
		r := <-done // it has ended meanwhile, or will in a moment
		return r.rec, nil, nil, errors.Join(r.err, err)
	}
	return nil, &follower{one, f}, func() { f.Close(); leave() }, nil
}

// follower is a reader of a file under way.
type follower struct {
	*live
	content *os.File
}

// open opens the content, unless the file has arrived or will not.
func (l *live) open() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return nil, nil
	}
	f, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) { // it has a place already
		return nil, nil
	}
	return f, err
}

// follows tells whether a request can be answered with a file under way.
func (a *API) follows(req *request, by *httpapi.Caller, r *http.Request) bool {
	return by != nil && !req.open && req.origin != a.ServerName && a.ScanCommand == "" && a.servers != nil &&
		r.Method == http.MethodGet && r.Header.Get("Range") == ""
}

// serveLive passes a file on that is still on its way.
func (a *API) serveLive(ctx context.Context, w http.ResponseWriter, one *follower, name *string) error {
	one.mu.Lock()
	file, typ := one.file, one.typ
	one.mu.Unlock()
	h := w.Header()
	protect(h)
	if name == nil {
		name = file.name()
	}
	h.Set("Content-Type", typ)
	h.Set("Content-Disposition", disposition(typ, name))
	h.Set("Cache-Control", "private, max-age=3600")
	if file.length >= 0 {
		h.Set("Content-Length", fmt.Sprint(file.length))
	}
	for have := int64(0); ; {
		n, err := one.readable(ctx, have)
		if err == io.EOF { //nolint:errorlint // wrapped, it says how the fetch failed
			return nil
		}
		if err != nil {
			return err
		}
		sent, err := io.CopyN(w, one.content, n-have)
		if have += sent; err != nil {
			return fmt.Errorf("pass a file on: %w", err)
		}
		_ = http.NewResponseController(w).Flush()
	}
}
