package mediaapi

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

var (
	background = context.Background()
	root       = &httpapi.Caller{UserID: "@root:here", Admin: true}
)

// told is events for tests: JSON, and whether it is of the state.
type told map[string]bool

func (e told) all(_ context.Context, _ string, fn func([]byte, bool) error) error {
	for event, state := range e {
		if err := fn([]byte(event), state); err != nil {
			return err
		}
	}
	return nil
}

// withTables also has the tables of accounts, whose profiles show pictures.
func withTables(t *testing.T, events told, fn func(t *testing.T, a *API), options ...func(*Config, *Deps)) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			options := append(slices.Clone(options), func(_ *Config, deps *Deps) {
				deps.DB = storagetest.Open(t, d, roomserver.Schema, accounts.Schema, Schema)
				deps.Events = events.all
			})
			fn(t, newAPI(t, d, origins(func(client.Request) (*http.Response, error) {
				return parts("Content-Type: image/png\r\n", "\x89PNG\r\n\x1a\nremote"), nil
			}), options...))
		})
	}
}

func code(err error) string {
	if e := mxerr.As(err); e != nil {
		return fmt.Sprint(e.Status, " ", e.Code)
	}
	return fmt.Sprint(err)
}

// there tells whether media can be downloaded.
func there(a *API, origin, id string) bool {
	_, err := get(a.download, origin, id, "")
	return err == nil
}

func TestQuarantine(t *testing.T) {
	events := told{}
	withTables(t, events, func(t *testing.T, a *API) {
		one, two, safe := put(t, a, "@bob:here", "image/png", picture(t, 50, 50)), put(t, a, "@bob:here", "text/plain", []byte("two")), put(t, a, "@bob:here", "text/plain", []byte("safe"))
		if _, err := a.protect(background, root, &idParam{safe}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.quarantineOne(background, root, &mediaParams{"here", one}); err != nil {
			t.Fatal(err)
		}
		if there(a, "here", one) || !there(a, "here", two) {
			t.Error("quarantine of one")
		}
		for _, handler := range []httpapi.RawFunc{a.thumbnail, a.thumbnailForServer, a.downloadForServer, a.downloadOpen} {
			if _, err := get(handler, "here", one, "width=10&height=10"); err == nil || err.Code != "M_NOT_FOUND" {
				t.Errorf("what is in quarantine is served: %v", err)
			}
		}
		if out, err := a.quarantineUser(background, root, &userParam{"@bob:here"}); err != nil || out.N != 1 || there(a, "here", two) || !there(a, "here", safe) {
			t.Errorf("quarantine of a user: %+v, %v", out, err)
		}
		if _, err := a.unquarantineOne(background, root, &mediaParams{"here", two}); err != nil || !there(a, "here", two) {
			t.Errorf("the end of quarantine: %v", err)
		}
		if _, err := a.unprotect(background, root, &idParam{safe}); err != nil {
			t.Fatal(err)
		}
		there(a, "there", "remote")
		clear(events)
		events[fmt.Sprintf(`{"content":{"url":"mxc://here/%s","info":{"thumbnail_file":{"url":"mxc:\/\/there\/remote"}}}}`, safe)] = false
		events[`{"content":{"avatar_url":"mxc://there/never"}}`] = true
		list, err := a.roomMedia(background, root, &roomParam{"!room"})
		if err != nil || !slices.Equal(list.Local, []string{"mxc://here/" + safe}) || len(list.Remote) != 2 {
			t.Errorf("media of a room: %+v, %v", list, err)
		}
		if out, err := a.quarantineRoom(background, root, &roomParam{"!room"}); err != nil || out.N != 2 || there(a, "here", safe) || there(a, "there", "remote") {
			t.Errorf("quarantine of a room: %+v, %v", out, err)
		}
		info, err := a.mediaInfo(background, root, &mediaParams{"here", safe})
		if err != nil || info.Info.Quarantined == nil || *info.Info.Quarantined != root.UserID || info.Info.UserID != "@bob:here" {
			t.Errorf("%+v, %v", info, err)
		}
	})
}

func TestBlock(t *testing.T) {
	withTables(t, told{}, func(t *testing.T, a *API) {
		bad := "\x89PNG\r\n\x1a\nremote"
		id := put(t, a, "@bob:here", "image/png", []byte(bad))
		out, err := a.block(background, root, &blockRequest{URI: "mxc://here/" + id})
		if err != nil || out.N != 1 || there(a, "here", id) {
			t.Fatalf("%+v, %v", out, err)
		}
		s, err := a.area.New()
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte(bad))
		if err := a.keepUpload(background, s, a.newRecord(uri{"here", newID()}, "@eve:here"), false); code(err) != "403 M_FORBIDDEN" {
			t.Errorf("it is uploaded again: %v", err)
		}
		s.Close()
		if there(a, "there", "remote") {
			t.Error("it is fetched again")
		}
		if _, err := a.unblock(background, root, &blockRequest{Hash: out.Hash}); err != nil {
			t.Fatal(err)
		}
		put(t, a, "@bob:here", "image/png", []byte(bad))
		for _, in := range []blockRequest{{}, {Hash: "xyz"}, {Hash: "abcd"}, {URI: "mxc://here"}, {URI: "https://x/y"}, {URI: "mxc://here/nothing"}} {
			if _, err := a.block(background, root, &in); mxerr.As(err) == nil || mxerr.As(err).Status >= 500 {
				t.Errorf("%+v: %v", in, err)
			}
		}
	})
}

func TestDeletion(t *testing.T) {
	events := told{}
	withTables(t, events, func(t *testing.T, a *API) {
		id := put(t, a, "@bob:here", "text/plain", []byte("one"))
		out, err := a.deleteOne(background, root, &mediaParams{"here", id})
		if err != nil || out.Total != 1 || out.IDs[0] != id || there(a, "here", id) || len(stored(t, a)) != 0 {
			t.Errorf("%+v, %v, left %v", out, err, stored(t, a))
		}
		if _, err := a.deleteOne(background, root, &mediaParams{"here", id}); code(err) != "404 M_NOT_FOUND" {
			t.Errorf("twice: %v", err)
		}
		var ids []string
		for i := range 5 {
			ids = append(ids, put(t, a, "@bob:here", "text/plain", []byte(strings.Repeat("x", 10+i))))
		}
		in := &userMediaRequest{UserID: "@bob:here", Limit: 2, Order: "media_length", Dir: "b"}
		list, err := a.userMedia(background, root, in)
		if err != nil || list.Total != 5 || list.Next != 2 || len(list.Media) != 2 || list.Media[0].ID != ids[4] || list.Media[0].Length != 14 {
			t.Errorf("%+v, %v", list, err)
		}
		in.Order = "password"
		if _, err := a.userMedia(background, root, in); code(err) != "400 M_INVALID_PARAM" {
			t.Errorf("an unknown order: %v", err)
		}
		in.Order = "media_length"
		if out, err = a.deleteUserMedia(background, root, in); err != nil || out.Total != 2 || there(a, "here", ids[4]) || !there(a, "here", ids[0]) {
			t.Errorf("%+v, %v", out, err)
		}
		clear(events)
		events[`{"content":{"url":"mxc://here/`+ids[1]+`"}}`] = true
		now := time.Now()
		a.now = func() time.Time { return now.Add(time.Hour) }
		before := a.ms() - 1
		if out, err = a.deleteMany(background, root, &deleteManyRequest{Before: &before, Larger: 10}); err != nil || out.Total != 1 || out.IDs[0] != ids[2] || !there(a, "here", ids[1]) {
			t.Errorf("of a size: %+v, %v", out, err)
		}
		for _, wrong := range []int64{0, now.Unix(), a.ms() + 1} {
			if _, err := a.deleteMany(background, root, &deleteManyRequest{Before: &wrong}); code(err) != "400 M_INVALID_PARAM" {
				t.Errorf("before %d: %v", wrong, err)
			}
		}
		there(a, "there", "remote")
		a.now = func() time.Time { return now.Add(2 * time.Hour) }
		before = a.ms() - 1
		if out, err := a.purgeCache(background, root, &purgeRequest{&before}); err != nil || out.N != 1 || !there(a, "here", ids[0]) {
			t.Errorf("the cache: %+v, %v", out, err)
		}
		if !there(a, "there", "remote") {
			t.Error("what was purged does not come again")
		}
	})
}

func TestOrphans(t *testing.T) {
	events := told{}
	withTables(t, events, func(t *testing.T, a *API) {
		named, avatar, lost, secret := put(t, a, "@bob:here", "text/plain", []byte("named")), put(t, a, "@bob:here", "text/plain", []byte("avatar")),
			put(t, a, "@bob:here", "text/plain", []byte("lost")), put(t, a, "@bob:here", "", []byte("encrypted"))
		clear(events)
		events[`{"content":{"body":"look","url":"mxc://here/`+named+`"}}`] = false
		events[`{"content":{"membership":"join","avatar_url":"mxc://here/`+avatar+`"}}`] = true
		now := time.Now()
		a.now = func() time.Time { return now.Add(time.Hour) }
		before := a.ms() - 1
		out, err := a.orphans(background, root, &orphansRequest{Before: &before})
		if err != nil || out.Total != 1 || out.Media[0].ID != lost || out.Bytes != 4 || out.Deleted != 0 || !there(a, "here", lost) {
			t.Errorf("a dry run: %+v, %v", out, err)
		}
		if out, err = a.orphans(background, root, &orphansRequest{Before: &before, Delete: true, Secret: true}); err != nil || out.Deleted != 2 {
			t.Errorf("%+v, %v", out, err)
		}
		if there(a, "here", lost) || there(a, "here", secret) || !there(a, "here", named) || !there(a, "here", avatar) {
			t.Error("the wrong ones are gone")
		}
	})
}

func TestRetention(t *testing.T) {
	withTables(t, told{}, func(t *testing.T, a *API) {
		id, safe := put(t, a, "@bob:here", "image/png", picture(t, 60, 60)), put(t, a, "@bob:here", "text/plain", []byte("safe"))
		if _, err := a.protect(background, root, &idParam{safe}); err != nil {
			t.Fatal(err)
		}
		if _, err := get(a.thumbnail, "here", id, "width=20&height=20"); err != nil {
			t.Fatal(err)
		}
		there(a, "there", "remote")
		created, err := a.create(background, root, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, _ := parseURI(created.URI)
		if err := os.WriteFile(filepath.Join(a.partial.folder, u.id), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		after := func(d time.Duration) {
			t.Helper()
			a.now = func() time.Time { return start.Add(d) }
			if err := a.cleanUp(background); err != nil {
				t.Fatal(err)
			}
		}
		if after(30 * time.Minute); len(stored(t, a)) != 5 {
			t.Errorf("after half an hour: %v", stored(t, a))
		}
		after(90 * time.Minute) // the created URI has expired; somebody looks at the picture
		if !there(a, "here", id) || len(stored(t, a)) != 4 {
			t.Errorf("after the upload's time: %v", stored(t, a))
		}
		a.flushTouches()
		if after(6 * time.Hour); len(stored(t, a)) != 3 { // the remote one is gone
			t.Errorf("after six hours: %v", stored(t, a))
		}
		if after(11 * time.Hour); !there(a, "here", id) { // it was looked at
			t.Error("what was looked at is gone")
		}
		if after(12 * time.Hour); there(a, "here", id) || !there(a, "here", safe) || len(stored(t, a)) != 1 {
			t.Errorf("after its time: %v", stored(t, a))
		}
	}, func(c *Config, _ *Deps) {
		c.Retention = Retention{LocalUnused: 10 * time.Hour, RemoteAge: 5 * time.Hour}
	})
}

func TestScan(t *testing.T) {
	program := filepath.Join(t.TempDir(), "scan")
	script := "#!/bin/sh\nread line <\"$1\" || true\ncase $line in *virus*) exit 1;; *broken*) exit 3;; esac\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil { // #nosec G306
		t.Fatal(err)
	}
	a := newAPI(t, storage.SQLite, origins(func(client.Request) (*http.Response, error) {
		return parts("", "a remote virus"), nil
	}), func(c *Config, _ *Deps) { c.ScanCommand = program })
	for content, want := range map[string]string{"fine": "<nil>", "a virus": "403 M_FORBIDDEN", "broken": "503 M_UNKNOWN"} {
		s, err := a.area.New()
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte(content))
		if err := a.keepUpload(background, s, a.newRecord(uri{"here", newID()}, "@bob:here"), false); code(err) != want {
			t.Errorf("%s: %v", content, err)
		}
		s.Close()
	}
	if there(a, "there", "x") {
		t.Error("a remote virus is served")
	}
	if n := len(stored(t, a)); n != 1 {
		t.Errorf("%d files", n)
	}
}

func TestURIs(t *testing.T) {
	for text, want := range map[string][]uri{
		`{"url":"mxc://a/b","x":["mxc:\/\/c:8448\/d_-9"]}`:                  {{"a", "b"}, {"c:8448", "d_-9"}},
		`{"formatted_body":"<img src=\"mxc://a/b\" alt='mxc://c/d'>"}`:      {{"a", "b"}, {"c", "d"}},
		`"mxc://" "mxc:///x" "mxc://a/" "mxc://a/b/c" "mxc://a/b?x" mxc://`: {{"a", "b"}},
	} {
		var got []uri
		eachURI([]byte(text), func(u uri) { got = append(got, u) })
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v", text, got)
		}
	}
	for text, ok := range map[string]bool{"mxc://a/b": true, "mxc://a/b/c": false, "xmxc://a/b": false, "": false, "mxc://a/b c": false} {
		if _, got := parseURI(text); got != ok {
			t.Errorf("%q: %v", text, got)
		}
	}
}
