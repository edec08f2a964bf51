package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// TestHeaders is the golden list of headers of each kind of answer.
func TestHeaders(t *testing.T) {
	rt := newTestRouter(t, Config{},
		New("GET", "/good", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*Empty, error) { return nil, nil }),
		New("GET", "/slow", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*Empty, error) {
			return nil, mxerr.LimitExceeded(1500 * time.Millisecond)
		}))
	always := map[string]string{
		"Access-Control-Allow-Origin":  "*",
		"Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
		"Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization, Range, If-Range, If-None-Match, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata",
		"X-Content-Type-Options":       "nosniff",
	}
	answer := map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"}
	for _, c := range []struct {
		method, target string
		status         int
		body           string
		more           []map[string]string
	}{
		{"GET", "/good", 200, `{}`, []map[string]string{answer}},
		{"GET", "/unknown", 404, `{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}`, []map[string]string{answer}},
		{"POST", "/good", 405, `{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}`,
			[]map[string]string{answer, {"Allow": "GET, HEAD, OPTIONS"}}},
		{"GET", "/slow", 429, `{"errcode":"M_LIMIT_EXCEEDED","error":"Too many requests","retry_after_ms":1500}`,
			[]map[string]string{answer, {"Retry-After": "2", "Access-Control-Expose-Headers": "Retry-After"}}},
		{"OPTIONS", "/good", 204, ``, []map[string]string{{"Access-Control-Max-Age": "86400"}}},
		{"OPTIONS", "/unknown", 204, ``, []map[string]string{{"Access-Control-Max-Age": "86400"}}},
	} {
		w := do(rt, c.method, c.target, "")
		if w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s %s: %d %s", c.method, c.target, w.Code, w.Body)
		}
		want := maps.Clone(always)
		for _, more := range c.more {
			maps.Copy(want, more)
		}
		if w.Header().Get("X-Request-Id") == "" {
			t.Errorf("%s %s: no request id", c.method, c.target)
		}
		w.Header().Del("X-Request-Id")
		got := make(map[string]string)
		for name := range w.Header() {
			got[name] = w.Header().Get(name)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s %s: headers %v, want %v", c.method, c.target, got, want)
		}
	}
}

func TestHeadersOverTheWire(t *testing.T) {
	big := strings.Repeat("<&>", 2000)
	rt := newTestRouter(t, Config{},
		New("GET", "/small", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*map[string]string, error) {
			return &map[string]string{"a": "<b>"}, nil
		}),
		New("GET", "/big", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*map[string]string, error) {
			return &map[string]string{"a": big}, nil
		}),
		New("GET", "/huge", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*map[string]string, error) {
			return &map[string]string{"a": strings.Repeat(big, 200)}, nil
		}))
	server := httptest.NewUnstartedServer(rt)
	server.Config = NewServer(rt)
	server.Start()
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	get := func(method, path, encoding string) (*http.Response, string) {
		t.Helper()
		r, _ := http.NewRequest(method, server.URL+path, nil)
		if encoding != "" {
			r.Header.Set("Accept-Encoding", encoding)
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.ContentLength < 0 || len(res.TransferEncoding) > 0 {
			t.Errorf("%s %s has no Content-Length", method, path)
		}
		return res, string(body)
	}
	if _, body := get("GET", "/small", "gzip"); body != `{"a":"<b>"}` {
		t.Errorf("small answer: %s", body)
	}
	if res, body := get("HEAD", "/small", ""); res.StatusCode != 200 || res.ContentLength != int64(len(`{"a":"<b>"}`)) || body != "" {
		t.Errorf("HEAD: %d, length %d", res.StatusCode, res.ContentLength)
	}
	want := `{"a":"` + big + `"}`
	if res, body := get("GET", "/big", ""); body != want || res.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("uncompressed answer: %.20s, Vary %q", body, res.Header.Get("Vary"))
	}
	res, packed := get("GET", "/big", "br, gzip;q=0.8")
	if res.Header.Get("Content-Encoding") != "gzip" || len(packed) > len(want)/10 {
		t.Errorf("compressed answer: %s, %d bytes", res.Header.Get("Content-Encoding"), len(packed))
	}
	for range 3 { // the connection survives the deadline of a large answer
		if _, body := get("GET", "/huge", ""); len(body) != 200*len(big)+8 {
			t.Errorf("large answer has %d bytes", len(body))
		}
	}
}

func TestAcceptsGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "deflate, gzip": true, "*": true, "identity": false, "gzip;q=0": false,
		"gzip; q=0.5": true, "gzip;q=x": false, "xgzip": false,
	} {
		if got := acceptsGzip([]string{header}); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

func TestFailures(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	failing := func(path string, err error) Endpoint {
		return New("GET", path, Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*Empty, error) { return nil, err })
	}
	uia := mxerr.New(401, "", "").WithField("flows", []string{"a"}).WithField("session", "s")
	full := errors.New("full")
	rt := newTestRouter(t, Config{Log: logrus.NewEntry(logger), Unavailable: func(err error) bool { return errors.Is(err, full) }},
		failing("/full", fmt.Errorf("write: %w", full)),
		failing("/secret", errors.New("the password is 1234")),
		failing("/wrapped", fmt.Errorf("look up: %w", mxerr.NotFound("No such thing").With(errors.New("row 7")))),
		failing("/uia", uia),
		failing("/bad", mxerr.New(502, "M_UNKNOWN", "Remote failed").With(errors.New("dial"))),
		failing("/canceled", context.Canceled),
		New("GET", "/unencodable", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*struct{ F func() }, error) {
			return &struct{ F func() }{}, nil
		}),
		New("GET", "/panic", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*Empty, error) {
			panic("out of luck")
		}),
		NewRaw("GET", "/rawpanic", Anyone, ratelimit.None, func(context.Context, *Caller, http.ResponseWriter, *http.Request) error {
			panic("raw")
		}),
		NewRaw("GET", "/rawerror", Anyone, ratelimit.None, func(context.Context, *Caller, http.ResponseWriter, *http.Request) error {
			return mxerr.NotFound("gone")
		}))
	const internal = `{"errcode":"M_UNKNOWN","error":"Internal server error"}`
	for _, c := range []struct {
		path   string
		status int
		body   string
		log    string
	}{
		{"/secret", 500, internal, "the password is 1234"},
		{"/wrapped", 404, `{"errcode":"M_NOT_FOUND","error":"No such thing"}`, ""},
		{"/uia", 401, `{"flows":["a"],"session":"s"}`, ""},
		{"/bad", 502, `{"errcode":"M_UNKNOWN","error":"Remote failed"}`, "dial"},
		{"/full", 503, `{"errcode":"M_UNKNOWN","error":"The server can store nothing at the moment","retry_after_ms":1000}`, ""},
		{"/canceled", 500, internal, "context canceled"},
		{"/unencodable", 500, internal, "encode answer"},
		{"/panic", 500, internal, "router_test.go"},
		{"/rawpanic", 500, internal, "panic: raw"},
		{"/rawerror", 404, `{"errcode":"M_NOT_FOUND","error":"gone"}`, ""},
	} {
		out.Reset()
		w := do(rt, "GET", c.path, "")
		if w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s: %d %s", c.path, w.Code, w.Body)
		}
		if c.log == "" && out.Len() > 0 || !strings.Contains(out.String(), c.log) ||
			c.log != "" && !strings.Contains(out.String(), w.Header().Get("X-Request-Id")) {
			t.Errorf("%s: logged %q", c.path, out.String())
		}
		if after := w.Header().Get("Retry-After"); (after == "1") != (c.status == http.StatusServiceUnavailable) {
			t.Errorf("%s: to be tried again after %q s", c.path, after)
		}
	}
	// A client that has gone is no error of the server.
	out.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	rt.ServeHTTP(w, httptest.NewRequest("GET", "/canceled", nil).WithContext(ctx))
	if out.Len() > 0 || w.Code != statusClientGone {
		t.Errorf("a client that hung up: %d, logged %s", w.Code, out.String())
	}
}
