package media

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
	. "github.com/myelin-im/myelin/test/harness"
)

var notReally = []byte("\x89PNG\r\n\x1a\nnot really")

func TestUploadAndDownload(t *testing.T) {
	each(t, func(t *testing.T, s *Server, folder string) {
		alice, guest := s.Register(t, "alice"), s.Guest(t)
		for _, test := range []struct {
			content       []byte
			typ, file     string
			wantType, how string
		}{
			{notReally, "image/png", "picture.png", "image/png", "inline"},
			{notReally, "img/png", "picture.png", "img/png", "attachment"},
			{[]byte("words"), "Text/Plain; charset=utf-8", "", "Text/Plain; charset=utf-8", "inline"},
			{[]byte("<html>"), "text/html", "page.html", "text/html", "attachment"},
			{[]byte("<svg/>"), "image/svg+xml", "x.svg", "image/svg+xml", "attachment"},
			{[]byte("encrypted"), "image/png", "secret.png", "application/octet-stream", "attachment"},
			{[]byte("?"), "", "", "application/octet-stream", "attachment"},
			{[]byte("?"), "nonsense", "name with spaces", "application/octet-stream", "attachment"},
			{[]byte("?"), "text/css", "name;with;\"semicolons\"\\", "text/css", "inline"},
			{[]byte("?"), "audio/ogg", "\U0001f414 голос ☕.ogg", "audio/ogg", "inline"},
			{[]byte("?"), "audio/ogg", "line\r\nX-Evil: 1", "audio/ogg", "inline"},
			{nil, "text/plain", "empty.txt", "text/plain", "inline"},
		} {
			query := ""
			if test.file != "" {
				query = "?filename=" + url.QueryEscape(test.file)
			}
			id := upload(t, alice, test.content, test.typ, query)
			for _, reader := range []*Client{alice, guest} {
				a := do(t, reader, "GET", v1+"/download/"+id, nil)
				how, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
				if a.Status != 200 || !bytes.Equal(a.Body, test.content) || a.Header.Get("Content-Type") != test.wantType ||
					err != nil || how != test.how || params["filename"] != test.file {
					t.Errorf("%q: %d, %q, %s, %s", test.file, a.Status, a.Body, a.Header.Get("Content-Type"), a.Header.Get("Content-Disposition"))
				}
				for header, want := range map[string]string{
					"Content-Security-Policy":      "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';",
					"Cross-Origin-Resource-Policy": "cross-origin", "X-Content-Type-Options": "nosniff", "X-Evil": "",
					"Content-Length": fmt.Sprint(len(test.content)),
				} {
					if got := a.Header.Get(header); got != want {
						t.Errorf("%s is %q", header, got)
					}
				}
			}
			a := do(t, alice, "GET", v1+"/download/"+id+"/"+url.PathEscape("other ☕/name"), nil)
			if _, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition")); err != nil || params["filename"] != "other ☕/name" {
				t.Errorf("another name: %s", a.Header.Get("Content-Disposition"))
			}
			expect(t, "no token", do(t, s.Client(t), "GET", v1+"/download/"+id, nil), 401, "M_MISSING_TOKEN")
			expect(t, "frozen", do(t, s.Client(t), "GET", legacy+"/download/"+id, nil), 404, "M_NOT_FOUND")
		}
		expect(t, "a guest's upload", do(t, guest, "POST", legacy+"/upload", strings.NewReader("x")), 403, "M_GUEST_ACCESS_FORBIDDEN")
		expect(t, "a long name", do(t, alice, "POST", legacy+"/upload?filename="+strings.Repeat("x", 2000), strings.NewReader("x")), 400, "M_INVALID_PARAM")
		for _, id := range []string{s.Name + "/nothing", s.Name + "/..%2Fetc", s.Name + "/%C3%A9", s.Name + "/a.b"} {
			expect(t, id, do(t, alice, "GET", v1+"/download/"+id, nil), 404, "M_NOT_FOUND")
		}
		expect(t, "no server name", do(t, alice, "GET", v1+"/download/..%2F..%2Fetc/passwd", nil), 400, "M_INVALID_PARAM")
		for _, path := range []string{v1 + "/config", legacy + "/config"} {
			if n := alice.Must("GET", path, nil).JSON.Get("m\\.upload\\.size").Int(); n != 100<<20 {
				t.Errorf("%s: %d", path, n)
			}
		}
		// Equal content is stored once.
		if n := len(files(t, folder)); n != 7 {
			t.Errorf("%d files: %v", n, files(t, folder))
		}
	})
}

func TestConditionsAndRanges(t *testing.T) {
	s, _ := start(t, storage.SQLite)
	alice := s.Register(t, "alice")
	content := []byte(strings.Repeat("0123456789", 100_000))
	id := upload(t, alice, content, "video/mp4", "")
	whole := do(t, alice, "HEAD", v1+"/download/"+id, nil)
	tag := whole.Header.Get("ETag")
	if whole.Status != 200 || len(whole.Body) > 0 || tag == "" || whole.Header.Get("Accept-Ranges") != "bytes" || whole.Header.Get("Content-Length") != "1000000" {
		t.Fatalf("HEAD: %v %v", whole, whole.Header)
	}
	for _, test := range []struct {
		headers []string
		status  int
		body    string
	}{
		{[]string{"Range", "bytes=5-14"}, 206, "5678901234"},
		{[]string{"Range", "bytes=-3"}, 206, "789"},
		{[]string{"Range", "bytes=999998-"}, 206, "89"},
		{[]string{"Range", "bytes=5-14", "If-Range", tag}, 206, "5678901234"},
		{[]string{"Range", "bytes=5-14", "If-Range", `"another"`}, 200, string(content)},
		{[]string{"Range", "bytes=1000000-"}, 416, ""},
		{[]string{"If-None-Match", tag}, 304, ""},
		{[]string{"If-None-Match", `"another"`}, 200, string(content)},
	} {
		a := do(t, alice, "GET", v1+"/download/"+id, nil, test.headers...)
		if a.Status != test.status || a.Status != 416 && string(a.Body) != test.body {
			t.Errorf("%v: %d, %d bytes", test.headers, a.Status, len(a.Body))
		}
		if a.Status == 206 && !strings.HasSuffix(a.Header.Get("Content-Range"), "/1000000") {
			t.Errorf("Content-Range is %q", a.Header.Get("Content-Range"))
		}
	}
}

func TestFreeze(t *testing.T) {
	var cfg *config.Config
	each(t, func(t *testing.T, s *Server, _ string) {
		alice := s.Register(t, "alice")
		before := upload(t, alice, notReally, "image/png", "")
		cfg.Media.Frozen = true
		s.Restart()
		nobody := s.Client(t)
		after := upload(t, alice, notReally, "image/png", "")
		for _, path := range []string{legacy, "/_matrix/media/r0"} {
			if a := do(t, nobody, "GET", path+"/download/"+before, nil); a.Status != 200 || !bytes.Equal(a.Body, notReally) {
				t.Errorf("what was there before: %v", a)
			}
			expect(t, "what came after", do(t, nobody, "GET", path+"/download/"+after, nil), 404, "M_NOT_FOUND")
		}
	}, func(c *config.Config) { cfg, c.Media.Frozen = c, false })
}

func TestCreate(t *testing.T) {
	each(t, func(t *testing.T, s *Server, folder string) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		create := func() string {
			a := alice.Must("POST", "/_matrix/media/v1/create", nil)
			left := time.Until(time.UnixMilli(a.JSON.Get("unused_expires_at").Int()))
			if left < 23*time.Hour || left > 25*time.Hour {
				t.Errorf("it expires in %v", left)
			}
			return strings.TrimPrefix(a.JSON.Get("content_uri").Str, "mxc://")
		}
		id := create()
		expect(t, "too early", do(t, bob, "GET", v1+"/download/"+id+"?timeout_ms=1", nil), 504, "M_NOT_YET_UPLOADED")
		expect(t, "no number", do(t, bob, "GET", v1+"/download/"+id+"?timeout_ms=x", nil), 400, "M_INVALID_PARAM")
		expect(t, "somebody else's", do(t, bob, "PUT", legacy+"/upload/"+id, strings.NewReader("x")), 403, "M_FORBIDDEN")
		expect(t, "unknown", do(t, alice, "PUT", legacy+"/upload/"+s.Name+"/unknown", strings.NewReader("x")), 404, "M_NOT_FOUND")
		expect(t, "elsewhere", do(t, alice, "PUT", legacy+"/upload/elsewhere/"+strings.Split(id, "/")[1], strings.NewReader("x")), 404, "M_NOT_FOUND")

		waiting := make(chan *Answer)
		go func() { waiting <- do(t, bob, "GET", v1+"/download/"+id, nil) }()
		if a := do(t, alice, "PUT", legacy+"/upload/"+id+"?filename=late.txt", strings.NewReader("it came"), "Content-Type", "text/plain"); a.Status != 200 || string(a.Body) != "{}" {
			t.Errorf("upload: %v", a)
		}
		if a := <-waiting; a.Status != 200 || string(a.Body) != "it came" || a.Header.Get("Content-Disposition") != `inline; filename=late.txt` {
			t.Errorf("who waited got %v", a)
		}
		expect(t, "twice", do(t, alice, "PUT", legacy+"/upload/"+id, strings.NewReader("something else")), 409, "M_CANNOT_OVERWRITE_MEDIA")
		if n := len(files(t, folder)); n != 1 {
			t.Errorf("%d files", n)
		}
		for range 3 {
			create()
		}
		a := alice.Refused(429, "M_LIMIT_EXCEEDED", "POST", "/_matrix/media/v1/create", nil)
		if a.JSON.Get("retry_after_ms").Int() < time.Hour.Milliseconds() {
			t.Errorf("retry after %v", a)
		}
		bob.Must("POST", "/_matrix/media/v1/create", J{})
	}, func(c *config.Config) { c.Media.MaxPending = 3 })
}

func TestLimits(t *testing.T) {
	each(t, func(t *testing.T, s *Server, folder string) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		large := bytes.Repeat([]byte("x"), 10<<10+1)
		expect(t, "too large", do(t, alice, "POST", legacy+"/upload", bytes.NewReader(large)), 413, "M_TOO_LARGE")
		expect(t, "too large, without a length", do(t, alice, "POST", legacy+"/upload", io.MultiReader(bytes.NewReader(large))), 413, "M_TOO_LARGE")
		for i := range 3 {
			upload(t, alice, append(large[:10<<10-1:10<<10-1], byte(i)), "", "")
		}
		expect(t, "over the quota", do(t, alice, "POST", legacy+"/upload", bytes.NewReader(large[2:])), 403, "M_FORBIDDEN")
		expect(t, "over the quota, without a length", do(t, alice, "POST", legacy+"/upload", io.MultiReader(bytes.NewReader(large[2:]))), 403, "M_FORBIDDEN")
		upload(t, bob, large[2:], "", "")
		if n := len(files(t, folder)); n != 4 {
			t.Errorf("%d files", n)
		}
	}, func(c *config.Config) { c.Media.MaxUpload, c.Media.UserQuota = 10<<10, 30<<10 })
}

// TestBrokenUpload hangs up in the middle: nothing is left.
func TestBrokenUpload(t *testing.T) {
	s, folder := start(t, storage.SQLite)
	alice := s.Register(t, "alice")
	reader, writer := io.Pipe()
	r, err := http.NewRequest("POST", s.URL+legacy+"/upload", reader)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = 1 << 20
	r.Header.Set("Authorization", "Bearer "+alice.Token)
	done := make(chan error, 1)
	go func() {
		_, err := (&http.Transport{}).RoundTrip(r)
		done <- err
	}()
	if _, err := writer.Write(make([]byte, 300<<10)); err != nil {
		t.Fatal(err)
	}
	writer.CloseWithError(fmt.Errorf("the phone is in a tunnel"))
	if err := <-done; err == nil {
		t.Error("half an upload was answered")
	}
	for end := time.Now().Add(time.Minute); len(files(t, folder)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left behind: %v", files(t, folder))
		}
	}
}

// TestRestart leaves behind what a crash would, and keeps what was answered.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, s *Server, folder string) {
		alice := s.Register(t, "alice")
		id := upload(t, alice, notReally, "image/png", "")
		kept := files(t, folder)
		if len(kept) != 1 {
			t.Fatalf("%v", kept)
		}
		key := filepath.Base(kept[0])
		lost := strings.Repeat("ab", 32) + "-0123456789abcdef"
		for path, content := range map[string]string{
			"tmp/part-1": "half", "tmp/" + key: string(notReally), "tmp/" + lost: "unanswered", "blobs/ab/" + lost: "unanswered",
		} {
			if err := os.WriteFile(filepath.Join(folder, path), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.Restart()
		if left := files(t, folder); len(left) != 1 || left[0] != kept[0] {
			t.Errorf("after the restart: %v", left)
		}
		if a := do(t, alice, "GET", v1+"/download/"+id, nil); !bytes.Equal(a.Body, notReally) {
			t.Errorf("%v", a)
		}
	})
}

// TestMemory moves large files and looks at how much more memory the process uses for each of them.
func TestMemory(t *testing.T) {
	const transfers, size = 8, 24 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(10)) // what is measured is what is in use, not what waits for collection
	s, _ := start(t, storage.SQLite)
	alice := s.Register(t, "alice")
	peak := func(work func()) uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		before, most := m.HeapAlloc, m.HeapAlloc
		done := make(chan struct{})
		go func() { work(); close(done) }()
		for {
			select {
			case <-done:
				return most - before
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}
	ids := make([]string, transfers)
	all := func(one func(i int)) func() {
		return func() {
			done := make(chan struct{}, transfers)
			for i := range transfers {
				go func() { one(i); done <- struct{}{} }()
			}
			for range transfers {
				<-done
			}
		}
	}
	transport := &http.Transport{MaxIdleConnsPerHost: transfers}
	send := func(r *http.Request) *http.Response {
		r.Header.Set("Authorization", "Bearer "+alice.Token)
		res, err := transport.RoundTrip(r)
		if err != nil {
			t.Error(err)
			return nil
		}
		return res
	}
	up := peak(all(func(i int) {
		r, _ := http.NewRequest("POST", s.URL+legacy+"/upload", io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size))
		if res := send(r); res != nil {
			raw, _ := io.ReadAll(res.Body)
			res.Body.Close()
			_, ids[i], _ = strings.Cut(strings.TrimSuffix(string(raw), `"}`), "mxc://")
		}
	}))
	down := peak(all(func(i int) {
		r, _ := http.NewRequest("GET", s.URL+v1+"/download/"+ids[i], nil)
		if res := send(r); res != nil {
			if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
			res.Body.Close()
		}
	}))
	t.Logf("for each transfer of %d MiB, client and server: %d KiB up, %d KiB down", size>>20, up/transfers>>10, down/transfers>>10)
	if up > transfers<<20 || down > transfers<<20 {
		t.Errorf("more than 1 MiB for a transfer: %d up, %d down", up/transfers, down/transfers)
	}
}
