// Package media tests the content repository through HTTP, as clients and other servers see it.
package media

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

const (
	v1     = "/_matrix/client/v1/media"
	legacy = "/_matrix/media/v3"
)

// each runs fn with a server on each database, whose media are in a folder.
func each(t *testing.T, fn func(t *testing.T, s *Server, folder string), options ...func(*config.Config)) {
	t.Helper()
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s, folder := start(t, d, options...)
			fn(t, s, folder)
		})
	}
}

func start(t testing.TB, d storage.Dialect, options ...func(*config.Config)) (*Server, string) {
	folder := t.TempDir()
	return Start(t, d, append([]func(*config.Config){func(c *config.Config) { c.Media.Folder = folder }}, options...)...), folder
}

// do makes a request with headers, given in pairs.
func do(t testing.TB, c *Client, method, path string, body io.Reader, headers ...string) *Answer {
	t.Helper()
	r, err := http.NewRequest(method, c.Server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if c.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.Token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	res, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return &Answer{Status: res.StatusCode, Body: raw, Header: res.Header, JSON: gjson.ParseBytes(raw)}
}

// upload uploads content and returns server and id, as they stand in paths.
func upload(t testing.TB, c *Client, content []byte, typ, query string) string {
	t.Helper()
	headers := []string{"Content-Type", typ}
	if typ == "" {
		headers = nil
	}
	a := do(t, c, "POST", legacy+"/upload"+query, bytes.NewReader(content), headers...)
	uri, ok := strings.CutPrefix(a.JSON.Get("content_uri").Str, "mxc://")
	if a.Status != 200 || !ok || !strings.HasPrefix(uri, c.Server.Name+"/") {
		t.Fatalf("upload: %v", a)
	}
	return uri
}

// expect checks status and errcode.
func expect(t testing.TB, what string, a *Answer, status int, code string) {
	t.Helper()
	if a.Status != status || a.Code() != code {
		t.Errorf("%s: %v, want %d %s", what, a, status, code)
	}
}

// files lists the files below a folder.
func files(t testing.TB, folder string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
