package mediaapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// connected asks an HTTP server in place of all origins. For one file that redirects to it.
type connected string

func (c connected) Stream(ctx context.Context, r client.Request) (*http.Response, error) {
	if strings.Contains(r.Path, "/redirects?") {
		return parts("Location: "+string(c)+"/bucket\r\n", ""), nil
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, string(c)+r.Path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultTransport.RoundTrip(req)
}

// TestSlowOrigins has origins that stop in the middle, or send a byte now and then without end, on connections that live.
func TestSlowOrigins(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { testSlowOrigins(t, d) })
	}
}

func testSlowOrigins(t *testing.T, d storage.Dialect) {
	const begin = "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n"
	hungUp := make(chan string, 10)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := path.Base(r.URL.Path)
		send := func(text string) {
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Content-Type", "multipart/mixed; boundary=b")
		switch what {
		case "silent":
			send("")
		case "metadata":
			send("--b\r\nContent-Type: appl")
		case "half":
			send(begin + "Content-Type: text/plain\r\nContent-Length: 100\r\n\r\nhalf")
		case "much":
			w.Header().Set("Content-Length", "900000")
			send(begin + "Content-Type: video/mp4\r\n\r\n" + strings.Repeat("x", 500_000))
		case "drips":
			send(begin + "\r\n")
			for r.Context().Err() == nil {
				send("x")
				time.Sleep(time.Millisecond)
			}
		case "bucket":
			w.Header().Set("Content-Length", "100")
			send("half")
		}
		<-r.Context().Done()
		hungUp <- what
	}))
	defer origin.Close()
	a := newAPI(t, d, connected(origin.URL))
	a.pace = pace{64 << 10, 200 * time.Millisecond}
	for _, id := range []string{"silent", "metadata", "half", "much", "drips", "redirects"} {
		if w, err := get(a.download, "there", id, ""); err == nil || err.Code != "M_NOT_FOUND" {
			t.Errorf("%s: %v, %d bytes", id, err, w.Body.Len())
		}
		want := id
		if id == "redirects" {
			want = "bucket"
		}
		select {
		case got := <-hungUp:
			if got != want {
				t.Errorf("hung up on %s", got)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: the connection stays", id)
		}
	}
	if list := stored(t, a); len(list) > 0 {
		t.Errorf("stored: %v", list)
	}
}

// TestPace looks at a sender by hand.
func TestPace(t *testing.T) {
	p := pace{10, time.Hour}
	res := answer(200, strings.NewReader(strings.Repeat("x", 100)))
	p.hold(res)
	b := res.Body.(*paced)
	defer b.Close()
	read := func(n int) error {
		_, err := io.CopyN(io.Discard, b, int64(n))
		return err
	}
	b.look(p) // nobody reads
	if err := read(10); err != nil {
		t.Fatal(err)
	}
	b.reading = true
	b.look(p) // it has sent enough
	if err := read(9); err != nil {
		t.Fatal(err)
	}
	b.reading = true
	b.look(p) // too little since then
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errTooSlow) {
		t.Errorf("after less than the least: %v", err)
	}
}
