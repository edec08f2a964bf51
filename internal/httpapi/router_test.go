package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// accounts are the callers that the tests' tokens stand for.
var accounts = map[string]*Caller{
	"alice":     {UserID: "@alice:test", Localpart: "alice", DeviceID: "D1"},
	"guest":     {UserID: "@1:test", Guest: true},
	"admin":     {UserID: "@root:test", Admin: true},
	"locked":    {UserID: "@locked:test", Locked: true},
	"suspended": {UserID: "@suspended:test", Suspended: true},
	"bridge":    {UserID: "@_irc:test", Appservice: &AppserviceInfo{ID: "irc", RateLimited: true}},
	"freebrige": {UserID: "@_irc:test", Appservice: &AppserviceInfo{ID: "irc"}},
}

func authenticate(_ context.Context, token string, _ *http.Request) (*Caller, error) {
	if by := accounts[token]; by != nil {
		return by, nil
	}
	return nil, mxerr.UnknownToken(false)
}

func authenticateServer(_ context.Context, r *http.Request, body []byte) (*Caller, error) {
	if origin := r.Header.Get("X-Test-Origin"); origin != "" && string(body) == r.Header.Get("X-Test-Signed") {
		return &Caller{Origin: origin}, nil
	}
	return nil, mxerr.New(401, "M_UNAUTHORIZED", "bad signature")
}

// echo answers with what was decoded and who called.
type echo[In any] struct {
	In In     `json:"in"`
	By string `json:"by"`
}

func echoes[In any](_ context.Context, by *Caller, in *In) (*echo[In], error) {
	return &echo[In]{*in, by.UserID + by.Origin}, nil
}

func newTestRouter(t testing.TB, cfg Config, endpoints ...Endpoint) *Router {
	t.Helper()
	cfg.Authenticate, cfg.AuthenticateServer = authenticate, authenticateServer
	rt, err := NewRouter(cfg, endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

// call sends a request with token "alice" unless headers ("Name: value") say otherwise.
func do(h http.Handler, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer alice")
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
		if value == "" {
			r.Header.Del(name)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// errcode is the errcode of an answer.
func errcode(w *httptest.ResponseRecorder) string {
	var e struct{ Errcode, Error string }
	if json.Unmarshal(w.Body.Bytes(), &e) != nil || e.Errcode != "" && e.Error == "" {
		return "not a standard error: " + w.Body.String()
	}
	return e.Errcode
}

func TestDeclarations(t *testing.T) {
	fine := func(context.Context, *Caller, *Empty) (*Empty, error) { return nil, nil }
	for name, e := range map[string]Endpoint{
		"no access":   New("GET", "/x", 0, ratelimit.None, fine),
		"no class":    New("GET", "/x", User, 0, fine),
		"method":      New("FETCH", "/x", User, ratelimit.None, fine),
		"path":        New("GET", "x", User, ratelimit.None, fine),
		"duplicate":   New("GET", "/taken/{b}", User, ratelimit.None, fine),
		"state key":   New("GET", "/taken", User, ratelimit.None, fine),
		"anyone|user": New("GET", "/x", Anyone|User, ratelimit.None, fine),
		"server|user": New("GET", "/x", Server|User, ratelimit.None, fine),
		"zero":        {Method: "GET", Path: "/x", Who: User, Class: ratelimit.None},
		"wildcards":   New("GET", "/{a}/{b}/{c}/{d}/{e}/{f}/{g}", User, ratelimit.None, fine),
		"no struct":   New("GET", "/x", User, ratelimit.None, echoes[int]),
		"untagged":    New("GET", "/x", User, ratelimit.None, echoes[struct{ A string }]),
		"no wildcard": New("GET", "/x", User, ratelimit.None, echoes[struct {
			A string `path:"a"`
		}]),
		"path type": New("GET", "/{a}", User, ratelimit.None, echoes[struct {
			A int `path:"a"`
		}]),
		"query type": New("GET", "/x", User, ratelimit.None, echoes[struct {
			A float64 `query:"a"`
		}]),
		"bound": New("GET", "/x", User, ratelimit.None, echoes[struct {
			A int `query:"a" min:"x"`
		}]),
		"raw type": New("PUT", "/x", User, ratelimit.None, echoes[struct {
			A string `body:"raw"`
		}]),
		"body of a GET": New("GET", "/x", User, ratelimit.None, echoes[struct {
			A string `json:"a"`
		}]),
	} {
		_, err := NewRouter(Config{Authenticate: authenticate, AuthenticateServer: authenticateServer},
			New("GET", "/taken/{stateKey}", User, ratelimit.None, fine), e)
		if err == nil || !strings.Contains(err.Error(), e.Method+" "+e.Path+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, e := range []Endpoint{New("GET", "/x", User, ratelimit.None, fine), New("GET", "/x", Server, ratelimit.None, fine)} {
		if _, err := NewRouter(Config{}, e); err == nil {
			t.Errorf("%s: served without a way to authenticate", e.Who)
		}
	}
}

func TestTable(t *testing.T) {
	fine := func(context.Context, *Caller, *Empty) (*Empty, error) { return nil, nil }
	got := fmt.Sprint(Table([]Endpoint{
		New("PUT", "/b/{x}", User|Appservice, ratelimit.Message, fine),
		New("GET", "/b/{x}", User|Guest, ratelimit.Read, fine),
		New("GET", "/a", Anyone, ratelimit.None, fine),
	}))
	if want := "[{GET /a anyone none false 0} {GET /b/{x} guest|user read false 0} {PUT /b/{x} user|appservice message false 0}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	e := New("PUT", "/{roomId}/x/{txnId}", User, ratelimit.Message, echoes[struct {
		Body json.RawMessage `body:"raw"`
	}])
	if fmt.Sprint(e.Params()) != "[roomId txnId]" || e.Body != RequiredBody || e.Raw {
		t.Errorf("metadata: %v %v %v", e.Params(), e.Body, e.Raw)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	endpoint := New("POST", "/x/{userId}", User, ratelimit.None, echoes[Empty])
	rt := newTestRouter(t, Config{Registerer: reg}, endpoint)
	other := newTestRouter(t, Config{Registerer: reg}, endpoint)
	do(rt, "POST", "/x/@a:test", "")
	do(rt, "POST", "/x/@b:test", "")
	do(other, "POST", "/x/@b:test", "")
	do(rt, "POST", "/x/nobody", "")
	do(rt, "GET", "/wp-login.php", "")
	want := `
# HELP myelin_http_requests_total Requests by method, route and status; 499 is a client that hung up.
# TYPE myelin_http_requests_total counter
myelin_http_requests_total{code="200",method="POST",route="/x/{userId}"} 3
myelin_http_requests_total{code="400",method="POST",route="/x/{userId}"} 1
myelin_http_requests_total{code="404",method="other",route="other"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "myelin_http_requests_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "myelin_http_request_seconds"); err != nil || n != 2 {
		t.Errorf("%d histograms: %v", n, err)
	}
}

func TestRequestID(t *testing.T) {
	var addr string
	rt := newTestRouter(t, Config{}, New("GET", "/x", Anyone, ratelimit.None, func(ctx context.Context, _ *Caller, _ *Empty) (*Empty, error) {
		child, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		addr = ClientAddr(child)
		return nil, nil
	}))
	first := do(rt, "GET", "/x", "").Header().Get("X-Request-Id")
	if first == "" {
		t.Error("a request without an id")
	}
	if second := do(rt, "GET", "/x", "").Header().Get("X-Request-Id"); second == first {
		t.Error("two requests have one id")
	}
	if addr != "192.0.2.1" { // what httptest sets
		t.Errorf("address %q", addr)
	}
	if ClientAddr(t.Context()) != "" {
		t.Error("an address outside of a request")
	}
}

func TestFrontDoor(t *testing.T) {
	rt := newTestRouter(t, Config{}, New("GET", base+"/x", Anyone, ratelimit.None, echoes[Empty]))
	rt.Front().PathPrefix("/web/").HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page") })
	for target, want := range map[string]string{
		base + "/x": `{"in":{},"by":""}`, "/web/": "page", "/web/a//b": "page",
		"/elsewhere": `{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}`,
	} {
		if w := do(rt, "GET", target, ""); w.Body.String() != want {
			t.Errorf("%s: %s", target, w.Body)
		}
	}
}
