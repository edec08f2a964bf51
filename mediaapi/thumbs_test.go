package mediaapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"image"
	_ "image/jpeg"
	_ "image/png"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/mediaapi/thumbnail"
	"github.com/myelin-im/myelin/storage"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestThumbnails(t *testing.T) {
	eachDB(t, nil, func(t *testing.T, a *API) {
		file := picture(t, 200, 100)
		id, twin := put(t, a, "@alice:here", "image/png", file), put(t, a, "@bob:here", "image/png", file)
		var group sync.WaitGroup
		for range 5 { // at the same time: made once
			group.Go(func() {
				w, err := get(a.thumbnail, "here", id, "width=32&height=32&method=crop")
				if err != nil {
					t.Error(err)
					return
				}
				img, format, derr := image.Decode(w.Body)
				if derr != nil || format != "png" || img.Bounds().Size() != image.Pt(32, 32) || w.Header().Get("Content-Type") != "image/png" ||
					w.Header().Get("Content-Disposition") != "inline; filename=thumbnail.png" {
					t.Errorf("%v %s %v", derr, format, w.Header())
				}
			})
		}
		group.Wait()
		if n := len(stored(t, a)); n != 2 {
			t.Errorf("%d files", n)
		}
		if w, err := get(a.thumbnail, "here", twin, "width=32&height=32&method=crop"); err != nil || w.Code != 200 || len(stored(t, a)) != 2 {
			t.Errorf("equal content has another thumbnail: %v", err)
		}
		// Larger than the picture: the picture itself.
		for range 2 {
			if w, err := get(a.thumbnail, "here", id, "width=300&height=300"); err != nil || !bytes.Equal(w.Body.Bytes(), file) {
				t.Errorf("the original: %v, %d bytes", err, w.Body.Len())
			}
		}
		for i := range maxVariants + 3 { // however many are asked for, a bounded number is kept
			if w, err := get(a.thumbnail, "here", id, fmt.Sprintf("width=%d&height=10", 10+i)); err != nil || w.Body.Len() == 0 {
				t.Fatal(err)
			}
		}
		if n := len(stored(t, a)); n > maxVariants+2 {
			t.Errorf("%d files", n)
		}
		text := put(t, a, "@alice:here", "text/plain", []byte("words"))
		if _, err := get(a.thumbnail, "here", text, "width=1&height=1"); err == nil || err.Status != 400 || err.Code != "M_UNKNOWN" {
			t.Errorf("of a text: %v", err)
		}
		// With the last name of a picture, its thumbnails go.
		err := a.db.Write(context.Background(), func(tx *storage.Tx) error {
			_, err := tx.Exec(`DELETE FROM media WHERE type = $1`, "image/png")
			return err
		})
		var keys []string
		if err == nil {
			keys, err = storage.ReadList[string](context.Background(), a.db, `SELECT key FROM media_blobs`)
		}
		if err == nil {
			err = a.dropBlobs(context.Background(), keys)
		}
		if err != nil || len(stored(t, a)) != 1 {
			t.Errorf("left: %v, %v", stored(t, a), err)
		}
	})
}

func TestThumbnailBombs(t *testing.T) {
	bomb := picture(t, 10, 10)
	binary.BigEndian.PutUint32(bomb[16:], 50_000)
	binary.BigEndian.PutUint32(bomb[20:], 50_000)
	a := newAPI(t, storage.SQLite, origins(func(client.Request) (*http.Response, error) {
		return parts("Content-Type: image/png\r\n", string(bomb)), nil
	}))
	local := put(t, a, "@alice:here", "image/png", bomb)
	// The header of the bomb is broken by its checksum too, or it is too large: never is it decoded.
	if _, err := get(a.thumbnail, "here", local, "width=1&height=1"); err == nil || err.Status != 413 && err.Status != 400 {
		t.Errorf("a local bomb: %v", err)
	}
	if _, err := get(a.thumbnail, "there", "bomb", "width=1&height=1"); err == nil || err.Status != 502 && err.Status != 400 {
		t.Errorf("a remote bomb: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	file := picture(t, 100, 100)
	a := newAPI(t, storage.SQLite, origins(func(client.Request) (*http.Response, error) {
		return parts("Content-Type: image/png\r\n", string(file)), nil
	}), func(c *Config, _ *Deps) { c.Thumbnails.MaxPixels = 9_999 })
	if _, err := get(a.thumbnail, "here", put(t, a, "@alice:here", "image/png", file), "width=1&height=1"); err == nil || err.Status != 413 || err.Code != "M_TOO_LARGE" {
		t.Errorf("local: %v", err)
	}
	if _, err := get(a.thumbnail, "there", "x", "width=1&height=1"); err == nil || err.Status != 502 || err.Code != "M_TOO_LARGE" {
		t.Errorf("remote: %v", err)
	}
}

func TestEarlyThumbnails(t *testing.T) {
	a := newAPI(t, storage.SQLite, nil, func(c *Config, _ *Deps) {
		c.Thumbnails.Early = []thumbnail.Spec{{Width: 32, Height: 32, Crop: true}, {Width: 20, Height: 20}}
	})
	put(t, a, "@alice:here", "image/png", picture(t, 100, 100))
	close(a.early)
	for rec := range a.early {
		for _, spec := range a.Thumbnails.Early {
			if _, err := a.thumbnailOf(context.Background(), rec, spec); err != nil {
				t.Error(err)
			}
		}
	}
	if n := len(stored(t, a)); n != 3 {
		t.Errorf("%d files", n)
	}
}

// TestFFmpeg has a script that finds a picture in what begins like a film, if it is told how large that may be.
func TestFFmpeg(t *testing.T) {
	folder := t.TempDir()
	still := filepath.Join(folder, "still.png")
	program := filepath.Join(folder, "ffmpeg")
	script := "#!/bin/sh\ncase \"$*\" in *' -max_pixels 10485760 '*) ;; *) exit 2;; esac\nfor a; do case $a in file:*) head -c4 \"${a#file:}\" | grep -q ftyp || exit 1;; esac; done\nexec /bin/cat " + still + "\n"
	if err := os.WriteFile(still, picture(t, 300, 200), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil { // #nosec G306
		t.Fatal(err)
	}
	a := newAPI(t, storage.SQLite, nil, func(c *Config, _ *Deps) { c.Thumbnails.FFmpeg = program })
	a.Thumbnails.FFmpeg = program
	film, broken, text := put(t, a, "@alice:here", "video/mp4", []byte("ftyp of a film")), put(t, a, "@alice:here", "video/mp4", []byte("broken")), put(t, a, "@alice:here", "text/plain", []byte("ftyp"))
	films := []string{film, put(t, a, "@alice:here", "image/avif", []byte("ftypavif")), put(t, a, "@alice:here", "image/heic", []byte("ftypheic"))}
	for _, id := range films {
		w, err := get(a.thumbnail, "here", id, "width=30&height=20")
		if err != nil {
			t.Fatal(err)
		}
		if img, _, err := image.Decode(w.Body); err != nil || img.Bounds().Size() != image.Pt(30, 20) {
			t.Errorf("%v, %v", img, err)
		}
	}
	for _, id := range []string{broken, text} {
		if _, err := get(a.thumbnail, "here", id, "width=30&height=20"); err == nil || err.Status != 400 {
			t.Errorf("%v", err)
		}
	}
	if n := len(stored(t, a)); n != 6 { // the thumbnails are equal
		t.Errorf("%d files", n)
	}
}
