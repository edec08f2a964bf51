package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// accounts are the callers that the tests' tokens stand for.
var accounts = map[string]*Caller{
	"alice":     {UserID: "@alice:test", Localpart: "alice", DeviceID: "D1"},
	"guest":     {UserID: "@1:test", Guest: true},
	"admin":     {UserID: "@root:test", Admin: true},
	"locked":    {UserID: "@locked:test", Locked: true},
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

const base = "/_matrix/client/v3"

func TestPaths(t *testing.T) {
	name := func(params ...string) func(context.Context, *Caller, http.ResponseWriter, *http.Request) error {
		return func(_ context.Context, _ *Caller, w http.ResponseWriter, r *http.Request) error {
			for _, p := range params {
				fmt.Fprintf(w, "[%s]", r.PathValue(p))
			}
			return nil
		}
	}
	raw := func(method, path string, params ...string) Endpoint {
		return NewRaw(method, path, Anyone, ratelimit.None, name(params...))
	}
	rt := newTestRouter(t, Config{},
		raw("GET", base+"/rooms/{roomId}/state"),
		raw("GET", base+"/rooms/{roomId}/state/{eventType}/{stateKey}", "roomId", "eventType", "stateKey"),
		raw("PUT", base+"/rooms/{roomId}/state/{eventType}/{stateKey}", "roomId", "eventType", "stateKey"),
		raw("GET", base+"/profile/{userId}", "userId"),
		raw("GET", base+"/profile/{userId}/{keyName}", "userId", "keyName"),
		raw("GET", base+"/pushrules/"),
		raw("GET", base+"/pushrules/global/{kind}/{ruleId}", "kind", "ruleId"),
		raw("GET", base+"/pushrules/global/{kind}/{ruleId}/actions", "kind", "ruleId"),
		raw("GET", base+"/directory/room/{roomAlias}", "roomAlias"),
		raw("GET", "/_matrix/federation/v1/query/directory"),
		raw("GET", "/_matrix/federation/v1/query/{queryType}", "queryType"),
		raw("GET", "/_matrix/federation/v1/query/directory/{a}/x", "a"),
		raw("GET", "/_matrix/federation/v1/query/{queryType}/{b}/y", "queryType", "b"),
		raw("GET", "/.well-known/matrix/client"),
		raw("GET", "/way/dead/{a}/{b}/{c}/end"),
		raw("GET", "/way/{x}/s/t/{stateKey}", "x", "stateKey"),
		raw("GET", "/way/{x}/s/u/{y}/{stateKey}", "x", "y", "stateKey"),
	)
	for _, c := range []struct {
		target string
		status int
		body   string
	}{
		{base + "/rooms/!r:test/state", 200, ""},
		{base + "/rooms/!r:test/state/m.room.name", 200, "[!r:test][m.room.name][]"},
		{base + "/rooms/!r:test/state/m.room.name/", 200, "[!r:test][m.room.name][]"},
		{base + "/rooms/!r:test/state/m.room.member/@a:test", 200, "[!r:test][m.room.member][@a:test]"},
		{base + "/rooms/%21r%3Atest/state/m.room.member/%40a%3Atest", 200, "[!r:test][m.room.member][@a:test]"},
		{base + "/rooms/!r%2Fs:test/state/a%2Fb/c%252Fd", 200, "[!r/s:test][a/b][c%2Fd]"},
		{base + "/rooms/!r:test/state/a%20b/c+d", 200, "[!r:test][a b][c+d]"},
		{base + "/rooms/!r:test/state/%25/x", 200, "[!r:test][%][x]"},
		{base + "/rooms/!r:test/state/..%2F..%2Fx/..", 200, "[!r:test][../../x][..]"},
		{base + "/rooms/!r:test/state/", 404, ""},
		{base + "/rooms/!r:test/state//", 404, ""},
		{base + "/rooms//state", 404, ""},
		{base + "/rooms/!r:test/state/a/b/c", 404, ""},
		{base + "/rooms/!r:test/state/a/%ff", 400, ""},
		{"/" + base + "/rooms/!r:test/state", 404, ""},
		{base + "/profile/@a:test", 200, "[@a:test]"},
		{base + "/profile/@a:test/", 404, ""},
		{base + "/profile/", 404, ""},
		{base + "/profile/@a%2Fb:test/displayname", 200, "[@a/b:test][displayname]"},
		{base + "/pushrules/", 200, ""},
		{base + "/pushrules", 404, ""},
		{base + "/pushrules/global/underride/.m.rule.master", 200, "[underride][.m.rule.master]"},
		{base + "/pushrules/global/room/!r:test/actions", 200, "[room][!r:test]"},
		{base + "/pushrules/global/content/..", 200, "[content][..]"},
		{base + "/directory/room/%23a:test", 200, "[#a:test]"},
		{"/_matrix/federation/v1/query/directory", 200, ""},
		{"/_matrix/federation/v1/query/other", 200, "[other]"},
		{"/_matrix/federation/v1/query/directory/p/x", 200, "[p]"},
		{"/_matrix/federation/v1/query/directory/p/y", 200, "[directory][p]"},
		{"/_matrix/federation/v1/query", 404, ""},
		{"/.well-known/matrix/client", 200, ""},
		{"/.well-known/matrix", 404, ""},
		{"/way/dead/s/t", 200, "[dead][]"},
		{"/way/dead/s/u/1", 200, "[dead][1][]"},
		{"/", 404, ""},
		{"/_matrix/client/r0/login", 404, ""},
	} {
		w := do(rt, "GET", c.target, "")
		if w.Code != c.status {
			t.Errorf("GET %s: status %d, want %d", c.target, w.Code, c.status)
		} else if c.status == 200 && w.Body.String() != c.body {
			t.Errorf("GET %s: %s, want %s", c.target, w.Body, c.body)
		} else if c.status == 404 && errcode(w) != "M_UNRECOGNIZED" {
			t.Errorf("GET %s: %s", c.target, w.Body)
		}
	}
	w := do(rt, "DELETE", base+"/rooms/!r:test/state/m.room.name", "")
	if w.Code != 405 || errcode(w) != "M_UNRECOGNIZED" || w.Header().Get("Allow") != "GET, HEAD, OPTIONS, PUT" {
		t.Errorf("wrong method: %d %s, Allow %s", w.Code, w.Body, w.Header().Get("Allow"))
	}
}

func TestParamSyntax(t *testing.T) {
	endpoint := func(path string) Endpoint {
		return NewRaw("GET", path, Anyone, ratelimit.None,
			func(context.Context, *Caller, http.ResponseWriter, *http.Request) error { return nil })
	}
	rt := newTestRouter(t, Config{}, endpoint("/u/{userId}"), endpoint("/r/{roomId}"), endpoint("/e/{eventId}"),
		endpoint("/a/{roomAlias}"), endpoint("/ra/{roomIdOrAlias}"), endpoint("/s/{serverName}"), endpoint("/t/{txnId}"))
	long := strings.Repeat("x", 250)
	for target, good := range map[string]bool{
		"/u/@a:test": true, "/u/@a:test:8448": true, "/u/@a:[::1]:8448": true, "/u/@:test": true, "/u/@Ä b:test": true,
		"/u/a:test": false, "/u/@a": false, "/u/@a:": false, "/u/@a:te%20st": false, "/u/@a%00b:test": false,
		"/u/@" + long + ":test": false, "/u/@%ff:test": false, "/u/@a:te%2Fst": false,
		"/r/!r:test": true, "/r/!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM": true,
		"/r/!": false, "/r/r:test": false, "/r/%23r:test": false, "/r/!" + long + ":test": false, "/r/!%00": false,
		"/e/$e": true, "/e/$e%2Ff": true, "/e/$e:test": true, "/e/e": false, "/e/$": false, "/e/$" + long + "xxxxx": false,
		"/a/%23a:test": true, "/a/%23a": false, "/a/!a:test": false,
		"/ra/%23a:test": true, "/ra/!a:test": true, "/ra/@a:test": false, "/ra/x": false,
		"/s/matrix.org": true, "/s/1.2.3.4:80": true, "/s/[::1]": true, "/s/..%2Fetc": false, "/s/a@b": false, "/s/" + long + "xxxxxx": false,
		"/t/%00": true, "/t/" + strings.Repeat("x", 2048): true, "/t/" + strings.Repeat("x", 2049): false,
	} {
		w := do(rt, "GET", strings.ReplaceAll(strings.ReplaceAll(target, " ", "%20"), "Ä", "%C3%84"), "")
		if good != (w.Code == 200) || !good && (w.Code != 400 || errcode(w) != "M_INVALID_PARAM") {
			t.Errorf("%.60s: %d %s", target, w.Code, w.Body)
		}
	}
}

func TestAccess(t *testing.T) {
	row := func(name string, who Access) Endpoint {
		return New("POST", "/"+name, who, ratelimit.None, echoes[Empty])
	}
	rt := newTestRouter(t, Config{}, row("anyone", Anyone), row("optional", Optional), row("guest", User|Guest),
		row("user", User), row("logout", User|Guest).EvenLocked(), row("bridge", Appservice), row("admin", Admin),
		row("server", Server))
	const (
		ok      = "200 "
		missing = "401 M_MISSING_TOKEN"
		unknown = "401 M_UNKNOWN_TOKEN"
		noGuest = "403 M_GUEST_ACCESS_FORBIDDEN"
		no      = "403 M_FORBIDDEN"
		locked  = "401 M_USER_LOCKED"
		sign    = "401 M_UNAUTHORIZED"
	)
	for _, c := range []struct {
		path string
		want map[string]string
	}{
		{"anyone", map[string]string{"": ok, "alice": ok, "bad": ok, "guest": ok, "locked": ok}},
		{"optional", map[string]string{"": ok, "alice": ok, "bad": unknown, "guest": ok, "locked": locked}},
		{"guest", map[string]string{"": missing, "alice": ok, "bad": unknown, "guest": ok, "admin": ok, "bridge": ok, "locked": locked}},
		{"user", map[string]string{"": missing, "alice": ok, "bad": unknown, "guest": noGuest, "admin": ok, "bridge": ok, "locked": locked}},
		{"logout", map[string]string{"": missing, "alice": ok, "guest": ok, "locked": ok}},
		{"bridge", map[string]string{"": missing, "alice": no, "guest": no, "admin": no, "bridge": ok}},
		{"admin", map[string]string{"": missing, "alice": no, "guest": no, "admin": ok, "bridge": no}},
		{"server", map[string]string{"": sign, "alice": sign}},
	} {
		for tok, want := range c.want {
			auth := "Authorization: "
			if tok != "" {
				auth += "Bearer " + tok
			}
			w := do(rt, "POST", "/"+c.path, "", auth)
			if got := fmt.Sprint(w.Code, " ", errcode(w)); got != want {
				t.Errorf("%s by %q: %s, want %s", c.path, tok, got, want)
			}
		}
	}
	if w := do(rt, "POST", "/user", "", "Authorization: Bearer locked"); !strings.Contains(w.Body.String(), `"soft_logout":true`) {
		t.Errorf("a locked account is not told to log out softly: %s", w.Body)
	}
	if w := do(rt, "POST", "/server", `{"a":1}`, "X-Test-Origin: remote.test", `X-Test-Signed: {"a":1}`); w.Code != 200 || !strings.Contains(w.Body.String(), "remote.test") {
		t.Errorf("a signed request: %d %s", w.Code, w.Body)
	}
	deep := `{"a":` + strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999) + `}`
	for body, want := range map[string]int{deep: 200, `{"b":` + deep + `}`: 400} {
		if w := do(rt, "POST", "/server", body, "X-Test-Origin: remote.test", "X-Test-Signed: "+body); w.Code != want {
			t.Errorf("%d bytes of deep JSON from a server: %d %s", len(body), w.Code, w.Body)
		}
	}
	// Where a token may stand.
	for _, c := range []struct {
		target, auth, want string
	}{
		{"/user?access_token=alice", "", ok},
		{"/user?x=1&access_token=al%69ce", "", ok},
		{"/user?xaccess_token=alice", "", missing},
		{"/user?access_token=alice", "Bearer bad", unknown},
		{"/user?access_token=alice", "X-Matrix origin=x", missing},
		{"/user", "bearer alice", ok},
		{"/user", "Bearer ", missing},
		{"/user", "Basic alice", missing},
	} {
		w := do(rt, "POST", c.target, "", "Authorization: "+c.auth)
		if got := fmt.Sprint(w.Code, " ", errcode(w)); got != c.want {
			t.Errorf("%s with %q: %s, want %s", c.target, c.auth, got, c.want)
		}
	}
}

func TestCallersAddress(t *testing.T) {
	var got string
	handler := func(_ context.Context, by *Caller, _ *Empty) (*Empty, error) {
		got = by.Addr
		return nil, nil
	}
	rt := newTestRouter(t, Config{}, New("POST", "/anyone", Anyone, ratelimit.None, handler),
		New("POST", "/user", User, ratelimit.None, handler), New("POST", "/server", Server, ratelimit.None, handler))
	for _, path := range []string{"/anyone", "/user", "/server"} {
		got = ""
		if do(rt, "POST", path, "", "X-Test-Origin: remote.test"); got != "192.0.2.1" { // what httptest sets
			t.Errorf("%s: %q", path, got)
		}
	}
	if accounts["alice"].Addr != "" {
		t.Error("the caller that Authenticate returned was changed")
	}
}

type bodyIn struct {
	Name   string          `json:"name" required:"true"`
	Count  int             `json:"count"`
	Flag   *bool           `json:"flag"`
	List   []string        `json:"list"`
	Nested struct{ A int } `json:"nested"`
	Any    json.RawMessage `json:"any,omitempty"`
	Hidden string          `json:"-"`
}

func TestBodies(t *testing.T) {
	rt := newTestRouter(t, Config{MaxBody: 1000},
		New("POST", "/typed", Anyone, ratelimit.None, echoes[bodyIn]),
		New("POST", "/optional", Anyone, ratelimit.None, echoes[struct {
			Reason string `json:"reason"`
		}]),
		New("POST", "/nothing", Anyone, ratelimit.None, echoes[Empty]),
		New("POST", "/strict", Anyone, ratelimit.None, echoes[Empty]).BodyRequired(),
		New("POST", "/small", Anyone, ratelimit.None, echoes[Empty]).WithMaxBody(10),
		New("DELETE", "/delete", Anyone, ratelimit.None, echoes[Empty]),
		New("PUT", "/raw", Anyone, ratelimit.None, echoes[struct {
			Body json.RawMessage `body:"raw"`
			Name string          `json:"name"`
		}]))
	const notJSON, badJSON, missing = "400 M_NOT_JSON", "400 M_BAD_JSON", "400 M_MISSING_PARAM"
	for _, c := range []struct{ target, body, want string }{
		{"POST /typed", `{"name":"a","count":-3,"flag":true,"list":["x","y"],"nested":{"A":7},"any":{"z":[1,null]},"unknown":1}`,
			`{"name":"a","count":-3,"flag":true,"list":["x","y"],"nested":{"A":7},"any":{"z":[1,null]}}`},
		{"POST /typed", `{"name":"\u00e4\n\"","n\u0061me":"b","NAME":"c","any":null,"count":null}`,
			`{"name":"b","count":0,"flag":null,"list":null,"nested":{"A":0},"any":null}`},
		{"POST /typed", " {\"name\" :\t\"\\u00e4\\n\" } \r\n", `{"name":"ä\n","count":0,"flag":null,"list":null,"nested":{"A":0}}`},
		{"POST /typed", ``, missing},
		{"POST /typed", `{}`, missing},
		{"POST /typed", `{"Name":"a"}`, missing},
		{"POST /typed", `{"name":null}`, missing},
		{"POST /typed", `{"name":""}`, `{"name":"","count":0,"flag":null,"list":null,"nested":{"A":0}}`},
		{"POST /typed", `{"name":1}`, badJSON + " name must be a string, not number"},
		{"POST /typed", `{"name":{"a":1}}`, badJSON + " name must be a string, not object"},
		{"POST /typed", `{"name":"a","count":"1"}`, badJSON + " count must be an integer within range, not string"},
		{"POST /typed", `{"name":"a","count":1.5}`, badJSON + " count must be an integer within range, not number 1.5"},
		{"POST /typed", `{"name":"a","count":1e400}`, badJSON},
		{"POST /typed", `{"name":"a","flag":"true"}`, badJSON + " flag must be a boolean, not string"},
		{"POST /typed", `{"name":"a","list":"x"}`, badJSON + " list must be an array, not string"},
		{"POST /typed", `{"name":"a","list":[1]}`, badJSON + " list"},
		{"POST /typed", `{"name":"a","nested":{"A":[]}}`, badJSON + " nested.A must be an integer within range, not array"},
		{"POST /typed", `{"name":"a","nested":[]}`, badJSON + " nested must be an object, not array"},
		{"POST /typed", `{"name":"a"`, notJSON},
		{"POST /typed", `{"name":"a"} x`, notJSON},
		{"POST /typed", `{"name":"a"}{}`, notJSON},
		{"POST /typed", `{"name":"a",}`, notJSON},
		{"POST /typed", `{'name':'a'}`, notJSON},
		{"POST /typed", "{\"name\":\"a\nb\"}", notJSON},
		{"POST /typed", "{\"name\":\"\xff\"}", notJSON},
		{"POST /typed", "\xef\xbb\xbf{\"name\":\"a\"}", notJSON},
		{"POST /typed", `name=a`, notJSON},
		{"POST /typed", ` `, notJSON},
		{"POST /typed", `[]`, badJSON},
		{"POST /typed", `"a"`, badJSON},
		{"POST /typed", `null`, badJSON},
		{"POST /typed", `7`, badJSON},
		{"POST /typed", `{"name":"a","x":` + strings.Repeat("[", 99) + strings.Repeat("]", 99) + `}`, `{"name":"a"`},
		{"POST /typed", `{"name":"a","x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, badJSON},
		{"POST /typed", `{"name":"` + strings.Repeat("x", 2000) + `"}`, "413 M_TOO_LARGE"},
		{"POST /optional", ``, `{"reason":""}`},
		{"POST /optional", `{}`, `{"reason":""}`},
		{"POST /optional", `[]`, badJSON},
		{"POST /nothing", ``, `{}`},
		{"POST /nothing", `{"a":1}`, `{}`},
		{"POST /nothing", `nonsense`, notJSON},
		{"POST /strict", ``, notJSON},
		{"POST /strict", `{}`, `{}`},
		{"POST /small", `{"a":1234}`, `{}`},
		{"POST /small", `{"a":12345}`, "413 M_TOO_LARGE"},
		{"DELETE /delete", `nonsense`, `{}`},
		{"PUT /raw", ``, notJSON},
		{"PUT /raw", `[]`, badJSON},
		{"PUT /raw", `{"b":1, "name":"n","b":2}`, `{"Body":{"b":1,"name":"n","b":2},"name":"n"}`},
	} {
		method, target, _ := strings.Cut(c.target, " ")
		for _, chunked := range []bool{false, true} {
			r := httptest.NewRequest(method, target, strings.NewReader(c.body))
			if chunked {
				r.ContentLength = -1
			}
			w := httptest.NewRecorder()
			rt.ServeHTTP(w, r)
			got := fmt.Sprint(w.Code, " ", errcode(w))
			if text, isError := strings.CutPrefix(c.want, got); isError && w.Code != 200 {
				if strings.Contains(w.Body.String(), strings.TrimSpace(text)) {
					continue
				}
			} else if strings.HasPrefix(w.Body.String(), `{"in":`+c.want) {
				continue
			}
			t.Errorf("%s %.80s (chunked %v): %d %s, want %s", c.target, c.body, chunked, w.Code, w.Body, c.want)
		}
	}
}

// TestBodiesAreNotShared: what a handler keeps does not change with the next request.
func TestBodiesAreNotShared(t *testing.T) {
	type in struct {
		Body   json.RawMessage `body:"raw"`
		Name   string          `json:"name"`
		Member json.RawMessage `json:"member"`
	}
	var kept []*in
	rt := newTestRouter(t, Config{}, New("PUT", "/x", Anyone, ratelimit.None, func(_ context.Context, _ *Caller, in *in) (*Empty, error) {
		kept = append(kept, in)
		return nil, nil
	}), New("POST", "/x", Anyone, ratelimit.None, func(_ context.Context, _ *Caller, given *struct {
		Name   string          `json:"name"`
		Member json.RawMessage `json:"member"`
	}) (*Empty, error) {
		kept = append(kept, &in{Name: given.Name, Member: given.Member})
		return nil, nil
	}))
	for i := range 50 {
		body := fmt.Sprintf(`{"name":"n%02d","member":[%02d]}`, i, i+10)
		do(rt, "PUT", "/x", body)
		do(rt, "POST", "/x", body)
		for _, in := range kept[:2] {
			if in.Name != "n00" || string(in.Member) != "[10]" || in.Body != nil && string(in.Body) != `{"name":"n00","member":[10]}` {
				t.Fatalf("after request %d the first one says %s %s %s", i, in.Name, in.Member, in.Body)
			}
		}
	}
}

type queryIn struct {
	Room string   `path:"roomId" json:"room"`
	From string   `query:"from" json:"from,omitempty"`
	Num  int      `query:"limit" min:"1" max:"100" default:"10" json:"num"`
	Big  *int64   `query:"ts" json:"big,omitempty"`
	Flag bool     `query:"full_state" json:"flag"`
	Dir  string   `query:"dir" enum:"b|f" required:"true" json:"dir"`
	Via  []string `query:"via" json:"via,omitempty"`
	Etag string   `header:"If-None-Match" json:"etag,omitempty"`
}

func TestQueries(t *testing.T) {
	rt := newTestRouter(t, Config{}, New("GET", "/x/{roomId}", Anyone, ratelimit.None, echoes[queryIn]))
	const invalid = "400 M_INVALID_PARAM"
	for query, want := range map[string]string{
		"dir=b":                                 `{"room":"!r","num":10,"flag":false,"dir":"b"}`,
		"dir=f&from=a%2Bb+c&limit=100&ts=-5":    `{"room":"!r","from":"a+b c","num":100,"big":-5,"flag":false,"dir":"f"}`,
		"via=a&dir=b&full_state=true&via=b&":    `{"room":"!r","num":10,"flag":true,"dir":"b","via":["a","b"]}`,
		"d%69r=b&dir=f&unknown=%zz&&=":          `{"room":"!r","num":10,"flag":false,"dir":"b"}`,
		"dir=b&from=a;b&from=c":                 `{"room":"!r","from":"a;b","num":10,"flag":false,"dir":"b"}`,
		"":                                      "400 M_MISSING_PARAM",
		"dir":                                   invalid,
		"dir=x":                                 invalid,
		"dir=b&limit=":                          invalid,
		"dir=b&limit=x":                         invalid,
		"dir=b&limit=1.0":                       invalid,
		"dir=b&limit=0":                         invalid,
		"dir=b&limit=101":                       invalid,
		"dir=b&limit=99999999999999999999":      invalid,
		"dir=b&ts=1e3":                          invalid,
		"dir=b&full_state=1":                    invalid,
		"dir=b&full_state=True":                 invalid,
		"dir=b&from=%zz":                        invalid,
		"dir=b&from=%ff":                        invalid,
		"dir=b" + strings.Repeat("&via=a", 101): invalid,
	} {
		w := do(rt, "GET", "/x/!r?"+query, "")
		got := fmt.Sprint(w.Code, " ", errcode(w))
		if w.Code == 200 {
			got = strings.TrimSuffix(strings.TrimPrefix(w.Body.String(), `{"in":`), `,"by":""}`)
		}
		if got != want {
			t.Errorf("%.60s: %s, want %s", query, got, want)
		}
	}
	if w := do(rt, "GET", "/x/!r?dir=b", "", "If-None-Match: tag"); !strings.Contains(w.Body.String(), `"etag":"tag"`) {
		t.Errorf("header not read: %s", w.Body)
	}
}

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
		"Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization",
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
	rt := newTestRouter(t, Config{Log: logrus.NewEntry(logger)},
		failing("/secret", errors.New("the password is 1234")),
		failing("/wrapped", fmt.Errorf("look up: %w", mxerr.NotFound("No such thing").With(errors.New("row 7")))),
		failing("/uia", uia),
		failing("/bad", mxerr.New(502, "M_UNKNOWN", "Remote failed").With(errors.New("dial"))),
		failing("/canceled", context.Canceled),
		New("GET", "/unencodable", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*struct{ F func() }, error) {
			return &struct{ F func() }{}, nil
		}),
		New("GET", "/panic", Anyone, ratelimit.None, func(context.Context, *Caller, *Empty) (*Empty, error) {
			var none []int
			return nil, fmt.Errorf("%d", none[len(none)])
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

func TestLimits(t *testing.T) {
	limits := ratelimit.Config{Enabled: true, ExemptAdmins: true,
		Message: ratelimit.Rate{PerSecond: 0.001, Burst: 2}, Federation: ratelimit.Rate{PerSecond: 0.001, Burst: 1}}
	limiter := ratelimit.New(limits)
	rt := newTestRouter(t, Config{Limiter: limiter},
		New("POST", "/user", User, ratelimit.Message, echoes[Empty]),
		New("POST", "/free", User, ratelimit.None, echoes[Empty]),
		New("POST", "/anyone", Anyone, ratelimit.Message, echoes[Empty]),
		New("POST", "/server", Server, ratelimit.Federation, echoes[Empty]))
	codes := func(n int, target string, headers ...string) string {
		var got []string
		for range n {
			w := do(rt, "POST", target, "", headers...)
			got = append(got, fmt.Sprint(w.Code))
			if w.Code == 429 && (errcode(w) != "M_LIMIT_EXCEEDED" || w.Header().Get("Retry-After") == "") {
				t.Errorf("refused with %s, %v", w.Body, w.Header())
			}
		}
		return strings.Join(got, " ")
	}
	for _, c := range []struct{ target, header, want string }{
		{"/user", "Authorization: Bearer alice", "200 200 429"},
		{"/free", "Authorization: Bearer alice", "200 200 200"},
		{"/user", "Authorization: Bearer bridge", "200 200 429"},
		{"/user", "Authorization: Bearer freebrige", "200 200 200"},
		{"/user", "Authorization: Bearer admin", "200 200 200"},
		{"/anyone", "Authorization: ", "200 200 429"},
		{"/server", "X-Test-Origin: a.test", "200 429 429"},
		{"/server", "X-Test-Origin: b.test", "200 429 429"},
	} {
		if got := codes(3, c.target, c.header); got != c.want {
			t.Errorf("%s with %s: %s, want %s", c.target, c.header, got, c.want)
		}
	}
}

func TestClientAddr(t *testing.T) {
	rt := newTestRouter(t, Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	for _, c := range []struct{ remote, forwarded, want string }{
		{"1.2.3.4:5", "", "1.2.3.4"},
		{"[2001:db8::1]:5", "", "2001:db8::1"},
		{"1.2.3.4:5", "9.9.9.9", "1.2.3.4"},
		{"10.0.0.1:5", "9.9.9.9", "9.9.9.9"},
		{"10.0.0.1:5", "6.6.6.6, 9.9.9.9, 10.1.1.1", "9.9.9.9"},
		{"10.0.0.1:5", "10.2.2.2, 10.1.1.1", "10.2.2.2"},
		{"10.0.0.1:5", "9.9.9.9, nonsense", "10.0.0.1"},
		{"10.0.0.1:5", "", "10.0.0.1"},
		{"[::1]:5", "2001:db8::7", "2001:db8::7"},
		{"[::ffff:10.0.0.1]:5", "9.9.9.9:1234", "9.9.9.9"},
		{"@", "9.9.9.9", "@"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := rt.clientAddr(r); got != c.want {
			t.Errorf("%s for %s: %s, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
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
	if want := "[{GET /a anyone none} {GET /b/{x} guest|user read} {PUT /b/{x} user|appservice message}]"; got != want {
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
	var inside, addr string
	rt := newTestRouter(t, Config{}, New("GET", "/x", Anyone, ratelimit.None, func(ctx context.Context, _ *Caller, _ *Empty) (*Empty, error) {
		child, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		inside, addr = RequestID(child), ClientAddr(child)
		return nil, nil
	}))
	first := do(rt, "GET", "/x", "").Header().Get("X-Request-Id")
	if inside != first || first == "" {
		t.Errorf("header %q, context %q", first, inside)
	}
	if second := do(rt, "GET", "/x", "").Header().Get("X-Request-Id"); second == first {
		t.Error("two requests have one id")
	}
	if addr != "192.0.2.1" { // what httptest sets
		t.Errorf("address %q", addr)
	}
	if RequestID(t.Context()) != "" || ClientAddr(t.Context()) != "" {
		t.Error("an id or address outside of a request")
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
