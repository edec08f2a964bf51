package mediaapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/storage"
)

func TestFetch(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/there" {
			w.WriteHeader(404)
			return
		}
		w.Header().Set("Content-Type", "audio/ogg")
		io.WriteString(w, "from a bucket")
	}))
	defer elsewhere.Close()
	missing := func(code string) *client.Error { return &client.Error{Server: "there", Status: 404, Code: code} }
	cut := func() *http.Response {
		return answer(200, io.MultiReader(strings.NewReader("--b\r\n\r\n{}\r\n--b\r\nContent-Type: text/plain\r\n\r\nhalf of"), iotest.ErrReader(io.ErrUnexpectedEOF)),
			"Content-Type", "multipart/mixed; boundary=b")
	}
	tests := map[string]struct {
		answer      func() (*http.Response, error)
		old         func() (*http.Response, error) // of the unauthenticated endpoint
		status      int
		code        string
		body        string
		typ, header string
	}{
		"plain": {answer: func() (*http.Response, error) {
			return parts("Content-Type: text/plain\r\nContent-Disposition: inline; filename*=utf-8''%E2%98%95.txt\r\n", "a remote file"), nil
		}, status: 200, body: "a remote file", typ: "text/plain", header: `inline; filename*=utf-8''%E2%98%95.txt`},
		"no-type": {answer: func() (*http.Response, error) { return parts("", "x"), nil }, status: 200, body: "x", typ: "application/octet-stream", header: "attachment"},
		"html": {answer: func() (*http.Response, error) {
			return parts("Content-Type: text/html\r\nContent-Disposition: inline\r\n", "<script>"), nil
		}, status: 200, body: "<script>", typ: "text/html", header: "attachment"},
		"length":     {answer: func() (*http.Response, error) { return parts("Content-Length: 3\r\n", "abc"), nil }, status: 200, body: "abc", typ: "application/octet-stream", header: "attachment"},
		"redirected": {answer: func() (*http.Response, error) { return parts("Location: "+elsewhere.URL+"/there\r\n", ""), nil }, status: 200, body: "from a bucket", typ: "audio/ogg", header: "inline"},
		"old": {answer: func() (*http.Response, error) { return nil, missing("M_UNRECOGNIZED") }, old: func() (*http.Response, error) {
			return answer(200, strings.NewReader("an old server"), "Content-Type", "text/plain"), nil
		}, status: 200, body: "an old server", typ: "text/plain", header: "inline"},

		"no-matrix": {answer: func() (*http.Response, error) { return nil, &client.Error{Status: 400} }, old: func() (*http.Response, error) {
			return answer(200, strings.NewReader("old"), "Content-Type", "text/plain"), nil
		}, status: 200, body: "old", typ: "text/plain", header: "inline"},
		"misled":   {answer: func() (*http.Response, error) { return parts("Location: "+elsewhere.URL+"/nowhere\r\n", ""), nil }, status: 404, code: "M_NOT_FOUND"},
		"file-url": {answer: func() (*http.Response, error) { return parts("Location: file:///etc/passwd\r\n", ""), nil }, status: 404, code: "M_NOT_FOUND"},
		"missing":  {answer: func() (*http.Response, error) { return nil, missing("M_NOT_FOUND") }, status: 404, code: "M_NOT_FOUND"},
		"gone":     {answer: func() (*http.Response, error) { return nil, missing("M_UNRECOGNIZED") }, old: func() (*http.Response, error) { return nil, missing("") }, status: 404, code: "M_NOT_FOUND"},
		"early":    {answer: func() (*http.Response, error) { return nil, &client.Error{Status: 504, Code: "M_NOT_YET_UPLOADED"} }, status: 504, code: "M_NOT_YET_UPLOADED"},
		"busy":     {answer: func() (*http.Response, error) { return nil, &client.Error{Status: 429, Code: "M_LIMIT_EXCEEDED"} }, status: 429, code: "M_LIMIT_EXCEEDED"},
		"down":     {answer: func() (*http.Response, error) { return nil, errors.New("connection refused") }, status: 404, code: "M_NOT_FOUND"},
		"cut":      {answer: func() (*http.Response, error) { return cut(), nil }, status: 404, code: "M_NOT_FOUND"},
		"short":    {answer: func() (*http.Response, error) { return parts("Content-Length: 30\r\n", "abc"), nil }, status: 404, code: "M_NOT_FOUND"},
		"long":     {answer: func() (*http.Response, error) { return parts("Content-Length: 2\r\n", "abc"), nil }, status: 404, code: "M_NOT_FOUND"},
		"endless":  {answer: func() (*http.Response, error) { return endless("Content-Type: text/plain\r\n"), nil }, status: 502, code: "M_TOO_LARGE"},
		"huge":     {answer: func() (*http.Response, error) { return parts("Content-Length: 99999999999\r\n", "abc"), nil }, status: 502, code: "M_TOO_LARGE"},
		"no-parts": {answer: func() (*http.Response, error) {
			return answer(200, strings.NewReader("x"), "Content-Type", "text/plain"), nil
		}, status: 404, code: "M_NOT_FOUND"},
		"one-part": {answer: func() (*http.Response, error) {
			return answer(200, strings.NewReader("--b\r\n\r\n{}\r\n--b--\r\n"), "Content-Type", "multipart/mixed; boundary=b"), nil
		}, status: 404, code: "M_NOT_FOUND"},
		"endless-json": {answer: func() (*http.Response, error) {
			return answer(200, io.MultiReader(strings.NewReader("--b\r\n\r\n"), zeros{}), "Content-Type", "multipart/mixed; boundary=b"), nil
		}, status: 404, code: "M_NOT_FOUND"},
	}
	var ask atomic.Pointer[origins] // what the origin answers at the moment
	eachDB(t, origins(func(r client.Request) (*http.Response, error) { return (*ask.Load())(r) }), func(t *testing.T, a *API) {
		for id, test := range tests {
			t.Run(id, func(t *testing.T) {
				var asked atomic.Int32
				origin := origins(func(r client.Request) (*http.Response, error) {
					asked.Add(1)
					switch {
					case r.Server != "there" || r.Method != "GET":
					case strings.HasPrefix(r.Path, "/_matrix/federation/v1/media/download/"+id+"?") && !r.Unsigned:
						return test.answer()
					case strings.HasPrefix(r.Path, "/_matrix/media/v3/download/there/"+id+"?") && r.Unsigned && test.old != nil:
						return test.old()
					}
					t.Errorf("unexpected: %+v", r)
					return nil, errors.New("unexpected")
				})
				ask.Store(&origin)
				before := len(stored(t, a))
				for range 2 { // the second time from here, or not at all
					w, err := get(a.download, "there", id, "")
					switch {
					case test.code != "" && (err == nil || err.Status != test.status || err.Code != test.code):
						t.Fatalf("%d %s, %v", w.Code, w.Body, err)
					case test.code == "" && (err != nil || w.Body.String() != test.body || w.Header().Get("Content-Type") != test.typ ||
						w.Header().Get("Content-Disposition") != test.header):
						t.Fatalf("%v, %q, %v", err, w.Body, w.Header())
					}
				}
				want := int32(1)
				if test.old != nil || test.code == "M_NOT_YET_UPLOADED" {
					want = 2
				}
				if asked.Load() != want {
					t.Errorf("the origin was asked %d times", asked.Load())
				}
				files := before
				if test.code == "" {
					files++
				}
				if list := stored(t, a); len(list) != files {
					t.Errorf("stored: %v", list)
				}
				if test.code == "" {
					if w, err := get(a.download, "there", id, "", "Range", "bytes=1-"); err != nil && len(test.body) > 1 || len(test.body) > 1 && w.Body.String() != test.body[1:] {
						t.Errorf("a part: %v %q", err, w.Body)
					}
				}
			})
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func endless(header string) *http.Response {
	return answer(200, io.MultiReader(strings.NewReader("--b\r\n\r\n{}\r\n--b\r\n"+header+"\r\n"), zeros{}), "Content-Type", "multipart/mixed; boundary=b")
}

// TestCoalescing asks for the same file many times while it is on its way.
func TestCoalescing(t *testing.T) {
	release, asked := make(chan struct{}), atomic.Int32{}
	a := newAPI(t, storage.SQLite, origins(func(client.Request) (*http.Response, error) {
		asked.Add(1)
		<-release
		return parts("Content-Type: text/plain\r\n", "once"), nil
	}))
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if w, err := get(a.download, "there", "file", ""); err != nil || w.Body.String() != "once" {
				t.Errorf("%v %q", err, w.Body)
			}
		})
	}
	// One who gives up leaves the others alone.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.fetch(ctx, &request{uri: uri{"there", "file"}, remote: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	close(release)
	group.Wait()
	if asked.Load() != 1 {
		t.Errorf("the origin was asked %d times", asked.Load())
	}
}

// TestLive reads a large file while it is still being fetched, to its end or to where it breaks.
func TestLive(t *testing.T) {
	for name, test := range map[string]struct {
		end    string
		blocks bool
		good   bool
	}{
		"whole": {end: "\r\n--b--\r\n", good: true}, "cut": {}, "blocked": {end: "\r\n--b--\r\n", blocks: true},
	} {
		t.Run(name, func(t *testing.T) {
			const size = 3 << 20
			body, feed := io.Pipe()
			a := newAPI(t, storage.SQLite, origins(func(client.Request) (*http.Response, error) {
				res := answer(200, body, "Content-Type", "multipart/mixed; boundary=b")
				res.ContentLength = size + 100
				return res, nil
			}), func(c *Config, _ *Deps) { c.MaxRemote = 4 << 20 })
			content := strings.Repeat("0123456789abcdef", size/16)
			if test.blocks {
				hash := sha256.Sum256([]byte(content))
				if _, err := a.block(background, root, &blockRequest{Hash: hex.EncodeToString(hash[:])}); err != nil {
					t.Fatal(err)
				}
			}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.SetPathValue("serverName", "there")
				r.SetPathValue("mediaId", "file")
				if err := a.download(r.Context(), root, w, r); err != nil {
					panic(http.ErrAbortHandler) // as the router does
				}
			}))
			defer server.Close()
			go io.WriteString(feed, "--b\r\n\r\n{}\r\n--b\r\nContent-Type: video/mp4\r\n\r\n"+content[:2<<20])
			res, err := http.Get(server.URL) // the rest comes only now that the answer has begun
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			first := make([]byte, 1<<20)
			if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != content[:1<<20] || res.Header.Get("Content-Type") != "video/mp4" {
				t.Fatalf("the beginning: %v, %v", err, res.Header)
			}
			go func() {
				io.WriteString(feed, content[2<<20:]+test.end)
				if feed.Close(); test.end == "" {
					feed.CloseWithError(io.ErrUnexpectedEOF)
				}
			}()
			rest, err := io.ReadAll(res.Body)
			if test.good && (err != nil || string(rest) != content[1<<20:]) {
				t.Errorf("%d bytes more: %v", len(rest), err)
			}
			if !test.good && (err == nil || len(rest) >= size-1<<20) {
				t.Errorf("%d bytes more, and no error", len(rest))
			}
			files := 0
			if test.good {
				files = 1
			}
			if list := stored(t, a); len(list) != files {
				t.Errorf("stored: %v", list)
			}
		})
	}
}

func TestRemoteRules(t *testing.T) {
	var asked atomic.Int32
	a := newAPI(t, storage.SQLite, origins(func(client.Request) (*http.Response, error) {
		asked.Add(1)
		return parts("Content-Type: text/plain\r\n", "x"), nil
	}), func(c *Config, _ *Deps) { c.Frozen = true })
	if _, err := get(a.downloadOpen, "there", "file", "allow_remote=false"); err == nil || err.Status != 404 || asked.Load() != 0 {
		t.Errorf("allow_remote=false: %v, asked %d times", err, asked.Load())
	}
	// What is fetched while frozen is new, however old it is at its origin.
	if _, err := get(a.downloadOpen, "there", "file", ""); err == nil || err.Status != 404 {
		t.Errorf("frozen: %v", err)
	}
	if w, err := get(a.download, "there", "file", ""); err != nil || w.Body.String() != "x" {
		t.Errorf("authenticated: %v", err)
	}
	if _, err := get(a.downloadForServer, "", "file", ""); err == nil || err.Status != 404 {
		t.Errorf("served to servers: %v", err)
	}
}

// TestServers looks at what other servers get.
func TestServers(t *testing.T) {
	eachDB(t, nil, func(t *testing.T, a *API) {
		large := picture(t, 100, 50)
		id := put(t, a, "@alice:here", "image/png", large)
		read := func(body io.Reader, typ string) (header http.Header, content string) {
			_, params, err := mime.ParseMediaType(typ)
			if err != nil {
				t.Fatal(err)
			}
			r := multipart.NewReader(body, params["boundary"])
			first, err := r.NextPart()
			if err != nil || first.Header.Get("Content-Type") != "application/json" {
				t.Fatal(err, first)
			}
			if raw, _ := io.ReadAll(first); string(raw) != "{}" {
				t.Errorf("metadata %s", raw)
			}
			second, err := r.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			raw, err := io.ReadAll(second)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.NextPart(); err != io.EOF {
				t.Errorf("after the second part: %v", err)
			}
			return http.Header(second.Header), string(raw)
		}
		w, err := get(a.downloadForServer, "", id, "")
		if err != nil {
			t.Fatal(err)
		}
		size := w.Body.Len()
		header, content := read(w.Body, w.Header().Get("Content-Type"))
		if content != string(large) || header.Get("Content-Type") != "image/png" || header.Get("Content-Disposition") != "inline" ||
			w.Header().Get("Content-Length") != itoa(size) {
			t.Errorf("%d bytes of %d, %v, %v", len(content), len(large), header, w.Header())
		}
		w, err = get(a.thumbnailForServer, "", id, "width=20&height=10&method=scale")
		if err != nil {
			t.Fatal(err)
		}
		header, content = read(w.Body, w.Header().Get("Content-Type"))
		mine, err := get(a.thumbnail, "here", id, "width=20&height=10&method=scale")
		if err != nil || content != mine.Body.String() || header.Get("Content-Type") != "image/png" {
			t.Errorf("a thumbnail of %d bytes, %v, %v", len(content), header, err)
		}
		for _, query := range []string{"", "width=20", "width=0&height=1", "width=x&height=1", "width=1&height=1&method=stretch"} {
			if _, err := get(a.thumbnailForServer, "", id, query); err == nil || err.Status != 400 {
				t.Errorf("%q: %v", query, err)
			}
		}
		if _, err := get(a.downloadForServer, "", "nothing", ""); err == nil || err.Code != "M_NOT_FOUND" {
			t.Errorf("nothing: %v", err)
		}
	})
}
