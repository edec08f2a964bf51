package mediaapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/mxerr"
)

func TestPreviews(t *testing.T) {
	large := picture(t, 279, 129)
	var asked atomic.Int32
	mux := http.NewServeMux()
	page := func(path, typ, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.Header().Set("Content-Type", typ)
			io.WriteString(w, body)
		})
	}
	page("/og.html", "text/html", `<meta property="og:title" content="The Rock"><meta property="og:type" content="video.movie"><meta property="og:image" content="test.png"><meta property="og:description" content="A film">`)
	page("/test.png", "image/png", string(large))
	page("/large.png", "image/png", string(large)+strings.Repeat("x", 1<<20))
	page("/fake.png", "image/png", "no picture at all")
	page("/no-image.html", "text/html", `<title>Without</title><body>text<img src="/large.png">`)
	page("/fake.html", "text/html", `<title>Fake</title><meta property="og:image" content="fake.png"><meta name=description content="d">`)
	page("/private/x.html", "text/html", `<title>Private</title>`)
	page("/noindex.html", "text/html", `<title>Hidden</title><meta name="robots" content="noindex">`)
	page("/robots.txt", "text/plain", "User-agent: *\nDisallow: /private")
	page("/words.txt", "text/plain; charset=iso-8859-1", "caf\xe9 au lait")
	page("/film.mp4", "video/mp4", "ftyp")
	page("/embedded.html", "text/html", `<link rel="alternate" type="application/json+oembed" href="/oembed.json">`)
	page("/oembed.json", "application/json", `{"title":"From oEmbed","thumbnail_url":"/test.png","provider_name":"Tube"}`)
	page("/endless.html", "text/html", "<title>Endless</title>"+strings.Repeat("<p>words ", 1<<19))
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/og.html", http.StatusFound) })
	mux.HandleFunc("/astray", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://denied.example/", http.StatusFound)
	})
	site := httptest.NewServer(mux)
	defer site.Close()

	eachDB(t, nil, func(t *testing.T, a *API) {
		ask := func(path string) (map[string]any, *mxerr.Error) {
			if strings.HasPrefix(path, "/") {
				path = site.URL + path
			}
			answer, err := a.preview(context.Background(), nil, &previewRequest{URL: path})
			if err != nil {
				return nil, mxerr.As(err)
			}
			raw, _ := answer.AppendJSON(nil)
			var out map[string]any
			if err := json.Unmarshal(raw, &out); err != nil {
				t.Fatal(err)
			}
			return out, nil
		}
		for path, want := range map[string]map[string]any{
			"/og.html": {"og:title": "The Rock", "og:type": "video.movie", "og:description": "A film", "og:image": "*", "og:image:type": "image/png",
				"og:image:width": 279.0, "og:image:height": 129.0, "matrix:image:size": float64(len(large))},
			"/moved#fragment": {"og:title": "The Rock", "og:image": "*"},
			"/no-image.html":  {"og:title": "Without", "og:description": "text", "og:image": nil},
			"/fake.html":      {"og:title": "Fake", "og:image": nil, "matrix:image:size": nil},
			"/private/x.html": {"og:title": nil},
			"/noindex.html":   {"og:title": nil},
			"/test.png":       {"og:title": "test.png", "og:image": "*", "og:image:width": 279.0},
			"/words.txt":      {"og:title": "words.txt", "og:description": "café au lait"},
			"/film.mp4":       {"og:title": nil},
			"/embedded.html":  {"og:title": "From oEmbed", "og:site_name": "Tube", "og:image": "*"},
			"/endless.html":   {"og:title": "Endless"},
		} {
			got, err := ask(path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			for k, v := range want {
				uri, isText := got[k].(string)
				if v == "*" && isText && strings.HasPrefix(uri, "mxc://here/") {
					w, err := get(a.download, "here", uri[len("mxc://here/"):], "")
					if err != nil || !bytes.Equal(w.Body.Bytes(), large) {
						t.Errorf("%s: the picture: %v", path, err)
					}
					continue
				}
				if got[k] != v {
					t.Errorf("%s: %s is %v, want %v", path, k, got[k], v)
				}
			}
		}
		if n := len(stored(t, a)); n != 1 {
			t.Errorf("%d files", n)
		}
		before := asked.Load()
		if got, err := ask("/og.html#other"); err != nil || got["og:title"] != "The Rock" || asked.Load() != before {
			t.Errorf("the second time: %v %v, asked %d times", got, err, asked.Load()-before)
		}
		for path, want := range map[string]string{
			"/missing": "404 M_NOT_FOUND", "ftp://x/": "403 M_FORBIDDEN", "http://denied.example/": "403 M_FORBIDDEN", "/astray": "403 M_FORBIDDEN",
			"::": "400 M_INVALID_PARAM", "http://" + strings.Repeat("x", 5000): "400 M_INVALID_PARAM", "http://u:p@x/": "403 M_FORBIDDEN", "no url": "403 M_FORBIDDEN",
		} {
			for range 2 {
				if _, err := ask(path); err == nil || fmt.Sprint(err.Status, " ", err.Code) != want {
					t.Errorf("%.50s: %v", path, err)
				}
			}
		}
		// Later it is fetched anew.
		at := a.now().Add(2 * time.Hour)
		a.now = func() time.Time { return at }
		before = asked.Load()
		if _, err := ask("/og.html"); err != nil || asked.Load() == before {
			t.Errorf("after its time: %v, asked %d times", err, asked.Load()-before)
		}
		a.Previews.Enabled = false
		if _, err := ask("/og.html"); err == nil || err.Status != 403 || err.Code != "M_FORBIDDEN" {
			t.Errorf("disabled: %v", err)
		}
	}, func(c *Config, _ *Deps) {
		c.Previews = Previews{Enabled: true, AllowPrivate: true, Deny: []string{"denied.example"}, Keep: time.Hour, MaxImage: 1 << 20, Robots: true}
	})
}

func TestPreviewsOfPrivateAddresses(t *testing.T) {
	var asked atomic.Int32
	site := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer site.Close()
	eachDB(t, nil, func(t *testing.T, a *API) {
		for _, url := range []string{site.URL, "http://127.0.0.1/", "http://localhost/", "http://169.254.169.254/", "http://[::1]/"} {
			_, err := a.preview(context.Background(), nil, &previewRequest{URL: url})
			if e := mxerr.As(err); e == nil || e.Status != 403 {
				t.Errorf("%s: %v", url, err)
			}
		}
	}, func(c *Config, _ *Deps) { c.Previews = Previews{Enabled: true, Keep: time.Hour, MaxImage: 1 << 20} })
	if asked.Load() > 0 {
		t.Errorf("asked %d times", asked.Load())
	}
}
