package blob

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// newS3 starts a server with a bucket.
func newS3(t testing.TB) (*S3, S3Config) {
	backend := s3mem.New()
	server := httptest.NewServer(gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(server.Close)
	if err := backend.CreateBucket("media"); err != nil {
		t.Fatal(err)
	}
	cfg := S3Config{Endpoint: server.URL, Region: "us-east-1", Bucket: "media", Prefix: "matrix", AccessKey: "key", SecretKey: "secret", PathStyle: true}
	s, err := NewS3(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, cfg
}

func TestS3(t *testing.T) {
	s, cfg := newS3(t)
	area, err := NewArea(filepath.Join(t.TempDir(), "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	exercise(t, area, s)
	ctx := context.Background()
	key := store(t, area, s, "content")
	if u, err := s.URL(ctx, key, Link{}); u != "" || err != nil {
		t.Errorf("a URL that was not asked for: %s, %v", u, err)
	}
	cfg.Redirect = true
	if s, err = NewS3(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	u, err := s.URL(ctx, key, Link{Type: "text/plain", Disposition: `inline; filename="ü x"`, For: time.Minute})
	if err != nil || !strings.Contains(u, "X-Amz-Signature=") || !strings.Contains(u, "/media/matrix/"+key[:2]+"/"+key) || !strings.Contains(u, "response-content-type=text%2Fplain") {
		t.Fatalf("%s, %v", u, err)
	}
	res, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); string(body) != "content" {
		t.Errorf("%d %q: %v", res.StatusCode, body, err)
	}
	cfg.Bucket = "missing"
	if _, err := NewS3(ctx, cfg); err == nil {
		t.Error("a bucket that is not there was opened")
	}
}

// TestParts sends a file that goes in several pieces.
func TestParts(t *testing.T) {
	s, _ := newS3(t)
	area, err := NewArea(filepath.Join(t.TempDir(), "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	spool, err := area.New()
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	const size = 2*partSize + 12345
	if _, err := spool.ReadFrom(io.LimitReader(rand.NewChaCha8([32]byte{1}), size)); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := errors.Join(spool.Seal(), s.Put(ctx, spool)); err != nil {
		t.Fatal(err)
	}
	o, err := s.Open(ctx, spool.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	again, err := area.New()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.ReadFrom(o); err != nil || string(again.Hash()) != string(spool.Hash()) {
		t.Errorf("%d bytes: %v", again.Size(), err)
	}
}
