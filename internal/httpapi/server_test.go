package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

// arrival is how long requests may take to arrive: much longer than a busy machine lets a process wait.
const arrival = 1500 * time.Millisecond

// serveEndpoints starts a server that gives requests the time of arrival.
func serveEndpoints(t *testing.T, http2 bool, endpoints ...Endpoint) *httptest.Server {
	rt := newTestRouter(t, Config{}, endpoints...)
	server := httptest.NewUnstartedServer(rt)
	server.Config = NewServer(rt)
	server.Config.ReadHeaderTimeout = arrival
	server.Config.ReadTimeout = arrival
	if http2 {
		server.EnableHTTP2 = true
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server
}

// exchange sends parts of a request with pauses between them and returns the answer.
func exchange(t *testing.T, server *httptest.Server, pause time.Duration, parts ...string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	for i, part := range parts {
		if i > 0 {
			time.Sleep(pause)
		}
		io.WriteString(conn, part)
	}
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestLongPolls: a handler may wait longer than a request may take to arrive.
func TestLongPolls(t *testing.T) {
	t.Parallel() // it mostly waits
	wait := func(ctx context.Context, _ *Caller, _ *Empty) (*Empty, error) {
		select {
		case <-time.After(6 * arrival / 5):
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var group sync.WaitGroup
	for _, http2 := range []bool{false, true} {
		server := serveEndpoints(t, http2,
			New("GET", "/wait", Anyone, ratelimit.None, wait), New("POST", "/wait", Anyone, ratelimit.None, wait))
		group.Go(func() {
			for _, method := range []string{"GET", "POST", "POST"} {
				r, _ := http.NewRequest(method, server.URL+"/wait", nil)
				if method == "POST" {
					r, _ = http.NewRequest(method, server.URL+"/wait", strings.NewReader("{}"))
				}
				res, err := server.Client().Do(r)
				if err != nil {
					t.Errorf("HTTP/2 %v, %s: %v", http2, method, err)
					return
				}
				if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "{}" {
					t.Errorf("HTTP/2 %v, %s: %s %s", http2, method, res.Status, body)
				}
				res.Body.Close()
			}
		})
	}
	group.Wait()
}

func TestClientHangsUp(t *testing.T) {
	ended := make(chan error, 1)
	server := serveEndpoints(t, false, New("POST", "/wait", Anyone, ratelimit.None, func(ctx context.Context, _ *Caller, _ *Empty) (*Empty, error) {
		select {
		case <-ctx.Done():
			ended <- ctx.Err()
		case <-time.After(time.Minute):
			ended <- errors.New("the handler was not told")
		}
		return nil, ctx.Err()
	}))
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	time.Sleep(20 * time.Millisecond)
	conn.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSlowBodies(t *testing.T) {
	t.Parallel() // it mostly waits
	read := func(_ context.Context, _ *Caller, w http.ResponseWriter, r *http.Request) error {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			fmt.Fprintf(w, "%s", body)
		}
		return err
	}
	called := false
	server := serveEndpoints(t, false,
		New("POST", "/typed", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*Empty, error) {
			called = true
			return nil, nil
		}),
		NewRaw("POST", "/raw", Anyone, ratelimit.None, read).WithMaxBody(10),
	)
	start := time.Now()
	if res := exchange(t, server, 0, "POST /typed HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{"); res.StatusCode != 408 || !res.Close || called {
		t.Errorf("a body that never comes: %s, handler called: %v", res.Status, called)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("a body that never comes was awaited for %s", took)
	}
	// An upload takes its time as long as it goes on.
	res := exchange(t, server, 6*arrival/5, "POST /raw HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", "def", "ghi")
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "abcdefghi" {
		t.Errorf("slow upload: %s %s", res.Status, body)
	}
	for _, head := range []string{"Content-Length: 11\r\n\r\nabcdefghijk", "Transfer-Encoding: chunked\r\n\r\nb\r\nabcdefghijk\r\n0\r\n\r\n"} {
		if res := exchange(t, server, 0, "POST /raw HTTP/1.1\r\nHost: x\r\n"+head); res.StatusCode != 413 {
			t.Errorf("an upload over the bound: %s", res.Status)
		}
	}
}

func TestRawAnswers(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // several chunks of sendfile
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	raw := func(path string, fn RawFunc) Endpoint { return NewRaw("GET", path, Anyone, ratelimit.None, fn) }
	server := serveEndpoints(t, false,
		raw("/file", func(_ context.Context, _ *Caller, w http.ResponseWriter, r *http.Request) error {
			http.ServeFile(w, r, name)
			return nil
		}),
		raw("/copy", func(_ context.Context, _ *Caller, w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusAccepted)
			_, err := io.Copy(w, bytes.NewReader(content))
			return err
		}),
		raw("/nothing", func(context.Context, *Caller, http.ResponseWriter, *http.Request) error { return nil }),
		raw("/flush", func(_ context.Context, _ *Caller, w http.ResponseWriter, _ *http.Request) error {
			io.WriteString(w, "a")
			return http.NewResponseController(w).Flush()
		}),
		raw("/hijack", func(_ context.Context, _ *Caller, w http.ResponseWriter, _ *http.Request) error {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return err
			}
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
			return conn.Close()
		}),
		raw("/late", func(_ context.Context, _ *Caller, w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
			return errors.New("the disk is gone")
		}),
		raw("/latepanic", func(_ context.Context, _ *Caller, w http.ResponseWriter, _ *http.Request) error {
			io.WriteString(w, "half")
			panic("late")
		}),
	)
	var complaints bytes.Buffer
	server.Config.ErrorLog = log.New(&complaints, "", 0)
	for range 2 {
		for path, want := range map[string]int{"/file": 200, "/copy": 202, "/nothing": 200, "/flush": 200} {
			res, err := server.Client().Get(server.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if big := path == "/file" || path == "/copy"; res.StatusCode != want || err != nil || big && !bytes.Equal(body, content) {
				t.Errorf("%s: %s, %d bytes, %v", path, res.Status, len(body), err)
			}
		}
	}
	part, _ := http.NewRequest("GET", server.URL+"/file", nil)
	part.Header.Set("Range", "bytes=1-2000000")
	res, err := server.Client().Do(part)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(body, content[1:2_000_001]) {
		t.Errorf("range of a file: %s, %d bytes, %v", res.Status, len(body), err)
	}
	res.Body.Close()
	for _, path := range []string{"/late", "/latepanic"} {
		if res, err := server.Client().Get(server.URL + path); err == nil {
			if body, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("%s: an answer broken off looks complete: %s", path, body)
			}
		}
	}
	res = exchange(t, server, 0, "GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != 101 {
		t.Errorf("hijacked: %s", res.Status)
	}
	server.Close()
	if complaints.Len() > 0 {
		t.Errorf("net/http complains: %s", complaints.String())
	}
}

// sink takes what is given to ReadFrom, as the connection of a real answer does.
type sink struct {
	nowhere
	bytes.Buffer
	sources []io.Reader
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }

func (s *sink) ReadFrom(src io.Reader) (int64, error) {
	s.sources = append(s.sources, src.(*io.LimitedReader).R)
	return s.Buffer.ReadFrom(src)
}

// TestReadFrom: files reach the connection in a form that sendfile understands, and no byte too many is read.
func TestReadFrom(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), readFromChunk/4)
	for _, n := range []int64{0, 10, readFromChunk, 2*readFromChunk + 10, math.MaxInt64} {
		to := &sink{nowhere: nowhere{http.Header{}}}
		file := bytes.NewReader(content)
		w := newRawWriter(to, httptest.NewRequest("GET", "/", nil), 0)
		var src io.Reader = &io.LimitedReader{R: file, N: n}
		if n == math.MaxInt64 {
			src = file
		}
		want := min(n, int64(len(content)))
		if got, err := w.ReadFrom(src); got != want || err != nil || !bytes.Equal(to.Bytes(), content[:want]) {
			t.Errorf("%d of %d bytes: %v", got, want, err)
		}
		if left := file.Len(); int64(left) != int64(len(content))-want {
			t.Errorf("%d bytes left after %d", left, want)
		}
		for _, given := range to.sources {
			if given != file {
				t.Errorf("sendfile would be given a %T", given)
			}
		}
		if w.status != 200 {
			t.Errorf("status %d", w.status)
		}
	}
}

// TestPace: a large answer moves its deadline with the bytes, and leaves none to the next request.
func TestPace(t *testing.T) {
	var deadlines []time.Time
	control := &paced{nowhere{http.Header{}}, &deadlines}
	w := newRawWriter(control, httptest.NewRequest("GET", "/", nil), 1)
	w.Write(make([]byte, patientWrite-1))
	w.finish()
	if len(deadlines) > 0 {
		t.Error("a small answer pays for deadlines")
	}
	for range 3 {
		w.Write(make([]byte, 60*minBytesPerSecond))
	}
	w.finish()
	if len(deadlines) != 5 || deadlines[3] != flushed || !deadlines[4].IsZero() {
		t.Fatalf("deadlines: %v", deadlines)
	}
	if step := deadlines[2].Sub(deadlines[1]); step != time.Minute {
		t.Errorf("%d bytes give %s", 60*minBytesPerSecond, step)
	}
}

// TestDeadlinesEnd: the deadline of a large answer covers its last byte and is gone afterwards.
func TestDeadlinesEnd(t *testing.T) {
	rt := newTestRouter(t, Config{GzipMin: -1},
		New("GET", "/typed", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*[]string, error) {
			return &[]string{strings.Repeat("x", patientWrite)}, nil
		}),
		NewRaw("GET", "/raw", Anyone, ratelimit.None, func(_ context.Context, _ *Caller, w http.ResponseWriter, _ *http.Request) error {
			_, err := w.Write(make([]byte, patientWrite))
			return err
		}))
	for _, path := range []string{"/typed", "/raw"} {
		var deadlines []time.Time
		rt.ServeHTTP(&paced{nowhere{http.Header{}}, &deadlines}, httptest.NewRequest("GET", path, nil))
		if len(deadlines) != 3 || deadlines[0].IsZero() || deadlines[1] != flushed || !deadlines[2].IsZero() {
			t.Errorf("%s: %v", path, deadlines)
		}
	}
}

// paced notes deadlines, and flushes among them.
type paced struct {
	nowhere
	deadlines *[]time.Time
}

var flushed = time.Unix(1, 0)

func (p *paced) SetWriteDeadline(at time.Time) error {
	*p.deadlines = append(*p.deadlines, at)
	return nil
}

func (p *paced) Flush() { *p.deadlines = append(*p.deadlines, flushed) }
