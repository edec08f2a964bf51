package mediaapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
)

// lackOfSpace is what the system says of it.
var lackOfSpace = &fs.PathError{Op: "write", Path: "file", Err: syscall.ENOSPC}

// fullStore finds, when all is written, that there was no space for something of it.
type fullStore struct{ blob.Store }

func (f fullStore) Put(ctx context.Context, s *blob.Spool) error {
	return errors.Join(f.Store.Put(ctx, s), lackOfSpace)
}

// TestFullDisk: what cannot be stored is to be tried again later, and nothing of it stays.
func TestFullDisk(t *testing.T) {
	remote := origins(func(client.Request) (*http.Response, error) { return parts("", "a remote file"), nil })
	eachDB(t, remote, func(t *testing.T, a *API) {
		stays := put(t, a, "@alice:here", "image/png", picture(t, 200, 200))
		disk := a.store
		by := &httpapi.Caller{UserID: "@alice:here"}
		upload := func(handler httpapi.RawFunc, id string, body io.Reader) error {
			r := httptest.NewRequest("POST", "/x", body)
			r.SetPathValue("serverName", "here")
			r.SetPathValue("mediaId", id)
			return handler(r.Context(), by, httptest.NewRecorder(), r)
		}
		ask := func(handler httpapi.RawFunc, origin, id, query string) error {
			if _, e := get(handler, origin, id, query); e != nil {
				return e
			}
			return nil
		}
		for name, try := range map[string]func() error{
			"arriving":          func() error { return upload(a.upload, "", iotest.ErrReader(lackOfSpace)) },
			"upload":            func() error { return upload(a.upload, "", bytes.NewReader([]byte("an upload"))) },
			"upload to address": func() error { return upload(a.uploadTo, create(t, a), bytes.NewReader([]byte("an upload"))) },
			"remote":            func() error { return ask(a.download, "there", "x", "") },
			"thumbnail":         func() error { return ask(a.thumbnail, "here", stays, "width=32&height=32") },
		} {
			t.Run(name, func(t *testing.T) {
				a.store = fullStore{disk}
				err := try()
				a.store = disk
				if e := mxerr.As(err); e == nil || e.Status != http.StatusServiceUnavailable || e.Code != "M_UNKNOWN" || e.RetryAfter <= 0 {
					t.Errorf("without space: %v", err)
				}
				if files := stored(t, a); len(files) != 1 {
					t.Errorf("stored: %v", files)
				}
			})
		}
		if err := upload(a.upload, "", bytes.NewReader([]byte("an upload"))); err != nil {
			t.Errorf("with space again: %v", err)
		}
	})
}

// TestTusOnAFullDisk sends a piece, and the last piece, when there is no space.
func TestTusOnAFullDisk(t *testing.T) {
	eachDB(t, nil, func(t *testing.T, a *API) {
		server := serveTus(t, a)
		octets := []string{"Content-Type", "application/offset+octet-stream", "Upload-Offset", "0"}
		refused := func(what, url string) {
			t.Helper()
			res := mustTus(t, http.StatusServiceUnavailable, "PATCH", url, bytes.NewReader([]byte("abcdef")), octets...)
			if res.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %v", what, res.Header)
			}
		}
		id := create(t, a)
		url, file := server.URL+resumable+"/here/"+id, filepath.Join(a.Folder, "partial", id)
		mustTus(t, 201, "POST", url, nil, "Upload-Length", "6")
		if err := errors.Join(os.Remove(file), os.Symlink("/dev/full", file)); err != nil {
			t.Fatal(err)
		}
		refused("a piece", url)
		mustTus(t, 204, "DELETE", url, nil)

		url = server.URL + resumable + "/here/" + create(t, a)
		mustTus(t, 201, "POST", url, nil, "Upload-Length", "6")
		disk := a.store
		a.store = fullStore{disk}
		refused("the end", url)
		a.store = disk

		id = create(t, a)
		url, file = server.URL+resumable+"/here/"+id, filepath.Join(a.Folder, "partial", id)
		if err := os.Symlink(filepath.Join(a.Folder, "missing", "x"), file+".json"); err != nil {
			t.Fatal(err)
		}
		mustTus(t, 500, "POST", url, nil, "Upload-Length", "6")
		if files := stored(t, a); len(files) > 0 {
			t.Errorf("left behind: %v", files)
		}
	})
}
