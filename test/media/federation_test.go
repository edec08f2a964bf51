package media

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

func painting(t testing.TB, w, h int) []byte {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			img.SetNRGBA(x, y, color.NRGBA{byte(x), byte(y), byte(x * y), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFederation(t *testing.T) {
	EachFederation(t, 2, func(t *testing.T, servers []*Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		file := painting(t, 200, 100)
		id := upload(t, alice, file, "image/png", "?filename="+url.QueryEscape("рисунок ☕.png"))
		for range 2 { // from there, then from here
			a := do(t, bob, "GET", v1+"/download/"+id, nil)
			_, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
			if a.Status != 200 || !bytes.Equal(a.Body, file) || a.Header.Get("Content-Type") != "image/png" || err != nil || params["filename"] != "рисунок ☕.png" {
				t.Fatalf("%d, %d bytes, %v", a.Status, len(a.Body), a.Header)
			}
		}
		servers[0].Stop()
		if a := do(t, bob, "GET", v1+"/download/"+id, nil, "Range", "bytes=10-19"); a.Status != 206 || !bytes.Equal(a.Body, file[10:20]) {
			t.Errorf("a part of the copy: %v", a)
		}
		a := do(t, bob, "GET", v1+"/thumbnail/"+id+"?width=32&height=32&method=scale", nil)
		if img, _, err := image.Decode(bytes.NewReader(a.Body)); err != nil || img.Bounds().Size() != image.Pt(64, 32) {
			t.Errorf("thumbnail: %d, %v", a.Status, err)
		}
		expect(t, "what was not fetched in time", do(t, bob, "GET", v1+"/download/"+servers[0].Name+"/other", nil), 404, "M_NOT_FOUND")
	})
}

// TestPeers has origins that lie and one that takes its time.
func TestPeers(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) { testPeers(t, d) })
	}
}

func testPeers(t *testing.T, d storage.Dialect) {
	release, begun := make(chan struct{}), make(chan struct{}, 1)
	parts := func(w http.ResponseWriter, header, content string) {
		w.Header().Set("Content-Type", "multipart/mixed; boundary=b")
		io.WriteString(w, "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n"+header+"\r\n"+content)
	}
	const end = "\r\n--b--\r\n"
	peer := NewPeer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		signed := strings.HasPrefix(r.Header.Get("Authorization"), "X-Matrix ")
		if old := strings.HasPrefix(r.URL.Path, "/_matrix/media/v3/download/"); old || !signed {
			if id == "old" && old && !signed {
				w.Header().Set("Content-Type", "text/plain")
				io.WriteString(w, "an old server")
				return
			}
			w.WriteHeader(404)
			return
		}
		switch id {
		case "fine":
			parts(w, "Content-Type: text/plain\r\n", "fine"+end)
		case "slow":
			parts(w, "Content-Type: text/plain\r\n", "slow")
			w.(http.Flusher).Flush()
			begun <- struct{}{}
			<-release
			io.WriteString(w, end)
		case "endless":
			parts(w, "Content-Type: video/mp4\r\n", "")
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		case "cut":
			w.Header().Set("Content-Length", "100000")
			parts(w, "", "half")
		case "short":
			parts(w, "Content-Length: 100\r\n", "short"+end)
		default:
			w.WriteHeader(404)
			io.WriteString(w, `{"errcode":"M_UNRECOGNIZED"}`)
		}
	}))
	s, folder := start(t, d, Federating(t))
	alice := s.Register(t, "alice")
	get := func(id string) *Answer { return do(t, alice, "GET", v1+"/download/"+peer.Name+"/"+id, nil) }
	slow := make(chan *Answer, 2)
	for range 2 {
		go func() { slow <- get("slow?timeout_ms=60000") }() // until all others are through
	}
	<-begun
	if a := get("fine"); a.Status != 200 || string(a.Body) != "fine" {
		t.Errorf("beside a slow one: %v", a)
	}
	if a := get("old"); a.Status != 200 || string(a.Body) != "an old server" {
		t.Errorf("the old endpoint: %v", a)
	}
	expect(t, "endless", get("endless"), 502, "M_TOO_LARGE")
	expect(t, "cut", get("cut"), 404, "M_NOT_FOUND")
	expect(t, "short", get("short"), 404, "M_NOT_FOUND")
	expect(t, "nothing", get("nothing"), 404, "M_NOT_FOUND")
	close(release)
	for range 2 {
		if a := <-slow; a.Status != 200 || string(a.Body) != "slow" {
			t.Errorf("the slow one: %v", a)
		}
	}
	if list := files(t, folder); len(list) != 3 {
		t.Errorf("stored: %v", list)
	}

	// The other way round: what a server gets, signed and unsigned.
	id := upload(t, alice, []byte("words"), "text/plain", "?filename=w.txt")
	path := "/_matrix/federation/v1/media/download/" + id[strings.Index(id, "/")+1:]
	expect(t, "unsigned", do(t, s.Client(t), "GET", path, nil), 401, "M_UNAUTHORIZED")
}

func TestAdministration(t *testing.T) {
	each(t, func(t *testing.T, s *Server, folder string) {
		root, alice := s.Admin(t, "root"), s.Register(t, "alice")
		const admin = "/_synapse/admin/v1"
		named, lost := upload(t, alice, []byte("named"), "text/plain", "?filename=n.txt"), upload(t, alice, []byte("lost"), "text/plain", "")
		room := alice.Create(J{"name": "room"})
		alice.Event(room, "m.room.message", J{"msgtype": "m.file", "body": "n.txt", "url": "mxc://" + named})
		alice.Refused(403, "M_FORBIDDEN", "GET", admin+"/users/"+alice.UserID+"/media", nil)
		list := root.Must("GET", admin+"/users/"+alice.UserID+"/media", nil).JSON
		if list.Get("total").Int() != 2 || list.Get("media.#").Int() != 2 || list.Get("media.1.upload_name").Str+list.Get("media.0.upload_name").Str != "n.txt" {
			t.Errorf("%s", list.Raw)
		}
		if got := root.Must("GET", admin+"/room/"+url.PathEscape(room)+"/media", nil).JSON; got.Get("local.0").Str != "mxc://"+named || got.Get("local.#").Int() != 1 {
			t.Errorf("media of the room: %s", got.Raw)
		}
		root.Refused(404, "M_NOT_FOUND", "GET", admin+"/room/!nothing:"+s.Name+"/media", nil)
		root.Must("POST", admin+"/quarantine_media/"+url.PathEscape(room), nil)
		expect(t, "in quarantine", do(t, alice, "GET", v1+"/download/"+named, nil), 404, "M_NOT_FOUND")
		root.Must("POST", admin+"/media/unquarantine/"+named, nil)
		if a := do(t, alice, "GET", v1+"/download/"+named, nil); a.Status != 200 {
			t.Errorf("out of quarantine: %v", a)
		}
		far := J{"before_ts": int64(30_000_000_001)}
		if n := root.Must("POST", "/_myelin/admin/v1/media/orphans", far).JSON.Get("total").Int(); n != 0 {
			t.Errorf("%d orphans of long ago", n)
		}
		root.Must("DELETE", admin+"/media/"+lost, nil)
		expect(t, "deleted", do(t, alice, "GET", v1+"/download/"+lost, nil), 404, "M_NOT_FOUND")
		root.Refused(400, "M_MISSING_PARAM", "POST", admin+"/purge_media_cache", nil)
		if n := len(files(t, folder)); n != 1 {
			t.Errorf("%d files", n)
		}
	})
}

func TestPreviewURL(t *testing.T) {
	s, _ := start(t, storage.SQLite)
	alice := s.Register(t, "alice")
	for _, path := range []string{v1 + "/preview_url", legacy + "/preview_url"} {
		alice.Refused(400, "M_MISSING_PARAM", "GET", path, nil)
		alice.Refused(403, "M_FORBIDDEN", "GET", path+"?url="+url.QueryEscape(s.URL), nil)
	}
	if c := alice.Must("GET", Path("/capabilities"), nil).JSON.Get("capabilities").Get(Key("io.element.msc4452.preview_url")); !c.Get("enabled").Bool() {
		t.Errorf("capability: %s", c.Raw)
	}
}
