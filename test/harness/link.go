package harness

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/homeserver/config"
)

// Link is how other servers reach a server of a test: it can be cut while the server runs.
type Link struct {
	listener net.Listener
	target   string
	group    sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	ended bool
	conns map[net.Conn]struct{}
}

// Linked makes a server that Federating has set up one that is reached over a link, under the link's name. It is an option
// of Start, after Federating; the link ends with the test.
func Linked(t testing.TB) (*Link, func(*config.Config)) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{listener: listener, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		l.set(true, true)
		l.group.Wait()
	})
	return l, func(cfg *config.Config) {
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		cfg.Server.Name, l.target = "localhost:"+port, strings.Clone(cfg.Federation.Address)
		l.group.Go(l.accept)
	}
}

// Cut ends all connections to the server and lets no new ones through, until Heal.
func (l *Link) Cut() { l.set(true, false) }

// Heal lets connections through again.
func (l *Link) Heal() { l.set(false, false) }

func (l *Link) set(cut, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut = cut; cut {
		for conn := range l.conns {
			conn.Close()
		}
	}
	if end {
		l.ended = true
		l.listener.Close()
	}
}

func (l *Link) accept() {
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.group.Go(func() { l.carry(conn) })
	}
}

// carry passes on what goes through one connection.
func (l *Link) carry(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer out.Close()
	if !l.hold(in, out) {
		return
	}
	defer l.release(in, out)
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // that it ends is all that matters
			in.Close()
			out.Close()
		})
	}
	both.Wait()
}

// hold notes connections, so that Cut ends them; it refuses them while the link is cut.
func (l *Link) hold(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut || l.ended {
		return false
	}
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return true
}

func (l *Link) release(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}
