package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

type sendIn struct {
	RoomID    string          `path:"roomId"`
	EventType string          `path:"eventType"`
	TxnID     string          `path:"txnId"`
	Content   json.RawMessage `body:"raw"`
}

type sendOut struct {
	EventID string `json:"event_id"`
}

type syncIn struct {
	Since   string `query:"since"`
	Filter  string `query:"filter"`
	Timeout int    `query:"timeout" min:"0"`
}

// specEndpoints are the endpoints of a full table, so that matching is measured among its neighbours.
func specEndpoints(t testing.TB) []Endpoint {
	data, err := os.ReadFile("testdata/paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []Endpoint
	for line := range strings.Lines(string(data)) {
		method, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		list = append(list, NewRaw(method, path, Anyone, ratelimit.None,
			func(context.Context, *Caller, http.ResponseWriter, *http.Request) error { return nil }))
	}
	return list
}

const (
	sendPattern = base + "/rooms/{roomId}/send/{eventType}/{txnId}"
	sendTarget  = base + "/rooms/!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM/send/m.room.message/m1763756799123.4"
	sendBody    = `{"msgtype":"m.text","body":"Good morning everyone, the meeting is moved to half past ten","format":"org.matrix.custom.html","formatted_body":"<b>moved</b>"}`
)

// costRouter is a full table with limits and metrics on, where sending and syncing do nothing themselves.
func costRouter(t testing.TB, wait func(context.Context)) *Router {
	limits := ratelimit.DefaultConfig()
	limits.Message = ratelimit.Rate{PerSecond: 1e8, Burst: 1e6}
	limits.Sync = limits.Message
	list := []Endpoint{
		New("PUT", sendPattern, User|Guest, ratelimit.Message, func(context.Context, *Caller, *sendIn) (*sendOut, error) {
			return &sendOut{"$cTYMYmTAVoxDWpPBFpXdXjgQVmGNhUVxrAvwzMbDQCQ"}, nil
		}),
		New("GET", base+"/sync", User|Guest, ratelimit.Sync, func(ctx context.Context, _ *Caller, _ *syncIn) (*Empty, error) {
			wait(ctx)
			return nil, nil
		}),
	}
	for _, e := range specEndpoints(t) {
		if e.Path != sendPattern && e.Path != base+"/sync" {
			list = append(list, e)
		}
	}
	return newTestRouter(t, Config{Limiter: ratelimit.New(limits), Registerer: prometheus.NewRegistry()}, list...)
}

// bareSend is the least that a handler without a framework would do for the same request.
func bareSend(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || !json.Valid(body) {
		w.WriteHeader(400)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"event_id":"$cTYMYmTAVoxDWpPBFpXdXjgQVmGNhUVxrAvwzMbDQCQ"}`)
}

// BenchmarkSend compares PUT /send over one connection with a bare handler: the difference is what
// this package costs (some of it on the other processor, where the client runs).
func BenchmarkSend(b *testing.B) {
	for name, handler := range map[string]http.Handler{"bare": http.HandlerFunc(bareSend), "router": costRouter(b, nil)} {
		b.Run(name, func(b *testing.B) {
			server := httptest.NewUnstartedServer(handler)
			server.Config = NewServer(handler)
			server.Start()
			defer server.Close()
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			in := bufio.NewReader(conn)
			request := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				sendTarget, len(sendBody), sendBody)
			b.ReportAllocs()
			for b.Loop() {
				io.WriteString(conn, request)
				res, err := http.ReadResponse(in, nil)
				if err != nil || res.StatusCode != 200 {
					b.Fatal(res, err)
				}
				io.Copy(io.Discard, res.Body)
			}
		})
	}
}

// nowhere is a ResponseWriter that keeps nothing.
type nowhere struct{ header http.Header }

func (w *nowhere) Header() http.Header             { return w.header }
func (w *nowhere) WriteHeader(int)                 {}
func (w *nowhere) Write(p []byte) (int, error)     { return len(p), nil }
func (w *nowhere) SetReadDeadline(time.Time) error { return nil }

type rewinder struct{ *strings.Reader }

func (rewinder) Close() error { return nil }

// BenchmarkHandle is PUT /send without net/http: this package alone.
func BenchmarkHandle(b *testing.B) {
	rt := costRouter(b, nil)
	for name, h := range map[string]http.Handler{"full": rt, "behind-mux": http.HandlerFunc(rt.serve)} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest("PUT", sendTarget, nil)
			r.Header.Set("Authorization", "Bearer alice")
			r.ContentLength = int64(len(sendBody))
			body := rewinder{strings.NewReader(sendBody)}
			r.Body = body
			w := &nowhere{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Seek(0, io.SeekStart)
				clear(w.header)
				h.ServeHTTP(w, r)
			}
		})
	}
}

func BenchmarkMatch(b *testing.B) {
	rt := costRouter(b, nil)
	for name, target := range map[string]string{"send": sendTarget, "sync": base + "/sync", "unknown": base + "/rooms/x/y/z"} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest("PUT", target, nil)
			var params [maxParams]string
			b.ReportAllocs()
			for b.Loop() {
				path, escaped := rawPath(r.URL)
				rt.tree.match(path, escaped, &params, 0)
			}
		})
	}
}

func BenchmarkCheckObject(b *testing.B) {
	b.SetBytes(int64(len(sendBody)))
	for b.Loop() {
		if err := checkObject([]byte(sendBody), clientDepth); err != nil {
			b.Fatal(err)
		}
	}
}

// parked is how many bytes each of n requests to target costs while its handler waits.
func parked(t *testing.T, h http.Handler, arrived *atomic.Int64, n int, target string) int {
	server := httptest.NewUnstartedServer(h)
	server.Config = NewServer(h)
	server.Start()
	var conns []net.Conn
	for range n {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	before := memory()
	for _, conn := range conns {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\nUser-Agent: test\r\n\r\n", target)
	}
	for deadline := time.Now().Add(time.Minute); arrived.Load() < int64(n); {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d requests arrived", arrived.Load(), n)
		}
		time.Sleep(time.Millisecond)
	}
	used := memory() - before
	for _, conn := range conns {
		conn.Close()
	}
	server.Close()
	return used / n
}

// memory is what heap and stacks hold after a collection.
func memory() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// TestParkedRequests bounds what a waiting long-poll costs beyond a bare net/http handler that waits.
func TestParkedRequests(t *testing.T) {
	const n = 1000
	target := base + "/sync?timeout=30000&since=m1_123456_789&filter=0"
	var arrived atomic.Int64
	wait := func(ctx context.Context) {
		arrived.Add(1)
		<-ctx.Done()
	}
	bare := parked(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { wait(r.Context()) }), &arrived, n, target)
	arrived.Store(0)
	ours := parked(t, costRouter(t, wait), &arrived, n, target)
	t.Logf("a parked request: %d bytes, bare net/http %d", ours, bare)
	if ours-bare > 6<<10 {
		t.Errorf("a parked request costs %d bytes more than a bare handler", ours-bare)
	}
}
