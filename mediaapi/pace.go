package mediaapi

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// pace is the least that an origin must send: so many bytes in each interval that is spent on waiting for it.
type pace struct {
	bytes int64
	every time.Duration
}

// slowest is slower than any link that people have. Who is slower, or has stopped, holds up others that wait to fetch.
var slowest = pace{30 << 10, 30 * time.Second}

var errTooSlow = errors.New("the origin sends too slowly")

// paced is a body whose sender is held to a pace.
type paced struct {
	io.ReadCloser

	mu            sync.Mutex
	watch         *time.Timer
	n             int64 // bytes since the last look
	reading       bool
	slow, stopped bool
}

// hold replaces the body of an answer by one that ends with an error when the sender falls behind.
func (p pace) hold(res *http.Response) {
	b := &paced{ReadCloser: res.Body}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watch = time.AfterFunc(p.every, func() { b.look(p) })
	res.Body = b
}

// look is called once in each interval. The time that this server takes to store what came does not count.
func (b *paced) look(p pace) {
	b.mu.Lock()
	b.slow = b.reading && b.n < p.bytes
	b.n = 0
	slow := b.slow
	if !slow && !b.stopped {
		b.watch.Reset(p.every)
	}
	b.mu.Unlock()
	if slow {
		_ = b.ReadCloser.Close() // which ends the Read that waits
	}
}

func (b *paced) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.reading = true
	b.mu.Unlock()
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	b.n += int64(n)
	if b.slow && !errors.Is(err, io.EOF) {
		err = errTooSlow
	}
	return n, err
}

// Close ends the watch as well.
func (b *paced) Close() error {
	b.mu.Lock()
	b.stopped = true
	b.watch.Stop()
	b.mu.Unlock()
	return b.ReadCloser.Close()
}
