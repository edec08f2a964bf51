package media

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
	. "github.com/myelin-im/myelin/test/harness"
)

// bucket starts an S3 server and returns settings that name a bucket of it.
func bucket(t testing.TB, redirect bool) func(*config.Config) {
	backend := s3mem.New()
	if err := backend.CreateBucket("media"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(server.Close)
	return func(c *config.Config) {
		c.Media.S3 = config.S3{
			Endpoint: server.URL, Region: "us-east-1", Bucket: "media", AccessKey: "key", SecretKey: "secret", PathStyle: true, Redirect: redirect,
		}
	}
}

func TestBucket(t *testing.T) {
	each(t, func(t *testing.T, s *Server, folder string) {
		alice := s.Register(t, "alice")
		id := upload(t, alice, painting(t, 100, 100), "image/png", "")
		if list := files(t, folder); len(list) != 0 {
			t.Errorf("on the disk: %v", list)
		}
		if a := do(t, alice, "GET", v1+"/download/"+id, nil, "Range", "bytes=1-3"); a.Status != 206 || string(a.Body) != "PNG" {
			t.Errorf("a part: %v", a)
		}
		a := do(t, alice, "GET", v1+"/thumbnail/"+id+"?width=10&height=10", nil)
		if a.Status != 200 || a.Header.Get("Content-Type") != "image/png" {
			t.Errorf("a thumbnail: %v", a)
		}
	}, bucket(t, false))
}

// TestRedirects sends clients and other servers to the bucket.
func TestRedirects(t *testing.T) {
	servers := []*Server{Start(t, storage.SQLite, Federating(t), bucket(t, true)), Start(t, storage.SQLite, Federating(t))}
	alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
	id := upload(t, alice, []byte("in the bucket"), "text/plain", "?filename=x.txt")
	a := do(t, alice, "GET", v1+"/download/"+id, nil)
	if a.Status != http.StatusTemporaryRedirect || !strings.Contains(a.Header.Get("Location"), "response-content-disposition=inline") {
		t.Fatalf("%d %v", a.Status, a.Header)
	}
	res, err := http.Get(a.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); string(body) != "in the bucket" {
		t.Errorf("%d %q", res.StatusCode, body)
	}
	if a := do(t, bob, "GET", v1+"/download/"+id, nil); a.Status != 200 || string(a.Body) != "in the bucket" {
		t.Errorf("through the other server: %v", a)
	}
}
