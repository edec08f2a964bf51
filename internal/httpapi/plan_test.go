package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

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
		// What some parsers of other clients would fail on, wherever it stands.
		{"POST /typed", `{"name":"a","x":{"\ud83d\ude00":[1e308,-1E-400,` + strings.Repeat("9", 308) + `]}}`, `{"name":"a"`},
		{"POST /typed", `{"name":"a","x":[1,-1E400]}`, badJSON + " A number is out of range"},
		{"POST /typed", `{"name":"a","x":` + strings.Repeat("9", 400) + `}`, badJSON + " A number is out of range"},
		{"POST /typed", `{"name":"\\ud800"}`, `{"name":"\\ud800"`},
		{"POST /typed", `{"name":"\ud800"}`, badJSON + " Half of a surrogate pair"},
		{"POST /typed", `{"name":"\ud800\n"}`, badJSON},
		{"POST /typed", `{"name":"\ud800\ud800"}`, badJSON},
		{"POST /typed", `{"name":"a\udc00"}`, badJSON},
		{"PUT /raw", `{"name":"a","\ud800":1}`, badJSON},
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
