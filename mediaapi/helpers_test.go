package mediaapi

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/mediaapi/blob"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// origins is other servers: paths and how they answer.
type origins func(r client.Request) (*http.Response, error)

func (o origins) Stream(_ context.Context, r client.Request) (*http.Response, error) { return o(r) }

// newAPI makes one on a database of its own.
func newAPI(t testing.TB, d storage.Dialect, servers Servers, options ...func(*Config, *Deps)) *API {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	cfg := Config{
		ServerName: "here", Folder: t.TempDir(), MaxUpload: 1 << 20, MaxRemote: 1 << 20, MaxPending: 10, PendingFor: time.Hour, AllowPrivate: true,
		Thumbnails: Thumbnails{MaxPixels: 10 << 20, MaxFrames: 50, Workers: 2},
	}
	deps := Deps{DB: storagetest.Open(t, d, Schema), Servers: servers, Log: logrus.NewEntry(log)}
	for _, o := range options {
		o(&cfg, &deps)
	}
	a, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.end()
		if !t.Failed() {
			consistent(t, a)
		}
	})
	return a
}

// consistent compares the tables with each other and with the store, unless the test has closed the database.
func consistent(t testing.TB, a *API) {
	known := map[string]int64{}
	err := a.db.Read(context.Background(), func(tx *storage.Tx) error {
		clear(known)
		rows := tx.Query(`SELECT key, size FROM media_blobs`)
		for rows.Next() {
			var key string
			var size int64
			rows.Scan(&key, &size)
			known[key] = size
		}
		if err := rows.Close(); err != nil {
			return err
		}
		for what, query := range map[string]string{
			"media names a blob":        `SELECT m.id FROM media m WHERE blob IS NOT NULL AND NOT EXISTS (SELECT 1 FROM media_blobs WHERE key = m.blob)`,
			"a thumbnail names a blob":  `SELECT t.data FROM media_thumbnails t WHERE NOT EXISTS (SELECT 1 FROM media_blobs WHERE key = t.data)`,
			"a thumbnail is of a blob":  `SELECT t.blob FROM media_thumbnails t WHERE NOT EXISTS (SELECT 1 FROM media_blobs WHERE key = t.blob)`,
			"an attachment is of media": `SELECT t.id FROM media_attachments t WHERE NOT EXISTS (SELECT 1 FROM media m WHERE m.origin = t.origin AND m.id = t.id)`,
		} {
			var which string
			if found, err := tx.Get(query, nil, &which); err != nil {
				return err
			} else if found {
				t.Errorf("%s that is not there: %s", what, which)
			}
		}
		return nil
	})
	if err != nil { // the test has closed it
		return
	}
	for _, file := range stored(t, a) {
		if _, ok := known[file]; !ok && blob.ValidKey(file) {
			t.Errorf("a file that no row knows: %s", file)
		}
	}
	for key, size := range known {
		o, err := a.store.Open(context.Background(), key)
		if err != nil {
			t.Errorf("a row without its file: %v", err)
			continue
		}
		if n, err := o.Seek(0, io.SeekEnd); n != size || err != nil {
			t.Errorf("a file of %d bytes, not %d: %v", n, size, err)
		}
		o.Close()
	}
}

// eachDB runs fn with an API on each database.
func eachDB(t *testing.T, servers Servers, fn func(t *testing.T, a *API), options ...func(*Config, *Deps)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { fn(t, newAPI(t, d, servers, options...)) })
	}
}

// get asks a raw endpoint for media; query goes behind the path.
func get(handler httpapi.RawFunc, origin, id, query string, headers ...string) (*httptest.ResponseRecorder, *mxerr.Error) {
	r := httptest.NewRequest("GET", "/x?"+query, nil)
	r.SetPathValue("serverName", origin)
	r.SetPathValue("mediaId", id)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	err := handler(r.Context(), &httpapi.Caller{UserID: "@alice:here"}, w, r)
	var e *mxerr.Error
	if err != nil && !errors.As(err, &e) {
		e = mxerr.New(500, "NO MATRIX ERROR", err.Error())
	}
	return w, e
}

// put uploads as a user and returns the id.
func put(t testing.TB, a *API, user, typ string, content []byte) string {
	t.Helper()
	s, err := a.area.New()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Write(content)
	rec := a.newRecord(uri{a.ServerName, newID()}, user)
	rec.typ, rec.size = contentType(typ, s.Head()), s.Size()
	if err := a.keepUpload(context.Background(), s, rec, false); err != nil {
		t.Fatal(err)
	}
	return rec.id
}

// stored lists the files of an API.
func stored(t testing.TB, a *API) (list []string) {
	t.Helper()
	err := filepath.WalkDir(a.Folder, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, filepath.Base(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func answer(status int, body io.Reader, headers ...string) *http.Response {
	res := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(body), ContentLength: -1}
	for i := 0; i < len(headers); i += 2 {
		res.Header.Set(headers[i], headers[i+1])
	}
	return res
}

// parts is an answer of two parts.
func parts(header, content string) *http.Response {
	return answer(200, strings.NewReader("--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n"+header+"\r\n"+content+"\r\n--b--\r\n"),
		"Content-Type", `multipart/mixed; boundary="b"`)
}

func picture(t testing.TB, w, h int) []byte {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range img.Pix {
		img.Pix[i] = byte(i * 7)
	}
	img.Set(0, 0, color.NRGBA{1, 2, 3, 4})
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
