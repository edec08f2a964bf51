package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

// FuzzCheckObject compares with encoding/json: whatever passes is an object that it accepts, and
// whatever it accepts passes, unless it is no object, no UTF-8 or too deep.
func FuzzCheckObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,-0.5e+3,true,false,null,"\u00e4\\"]}`, ` { "a" : { } } `, `{"a":01}`, `{"a":1.}`,
		`{"a":.5}`, `{"a":-}`, `{"a":1e}`, `{"a" 1}`, `{"a":1 "b":2}`, `{,}`, `{"a":[1,]}`, `{"a":tru}`, `{"\x":1}`, `{"a":"\u12g4"}`,
		`[]`, `{`, `{"`, `{"a`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, "{\"\x7f\":1}", `{"a":"\ud800"}`, `{"a]}`, `{"a":[}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		err := checkObject(body, clientDepth)
		var members map[string]json.RawMessage
		theirs := json.Unmarshal(body, &members)
		object := theirs == nil && members != nil
		switch {
		case err == nil && !object:
			t.Fatalf("accepted %q, which is no object: %v", body, theirs)
		case err != nil && object && utf8.Valid(body) && err.Text != "The body is nested too deeply":
			t.Fatalf("refused %q: %v", body, err)
		case (err != nil && err.Code == "M_NOT_JSON") == (json.Valid(body) && utf8.Valid(body)):
			if err == nil || err.Text != "The body is nested too deeply" {
				t.Fatalf("%q: %v", body, err)
			}
		}
		if err != nil {
			return
		}
		seen := make(map[string]string)
		if err := eachMember(body, func(key, value []byte) error {
			var name string
			if err := json.Unmarshal([]byte(`"`+string(key)+`"`), &name); err != nil {
				t.Fatalf("key %q: %v", key, err)
			}
			seen[name] = string(value)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(seen) != len(members) {
			t.Fatalf("%q: members %v, want %v", body, seen, members)
		}
		for name, value := range members {
			if seen[name] != string(value) {
				t.Fatalf("%q: %s is %q, want %q", body, name, seen[name], value)
			}
		}
	})
}

// FuzzRequest: whatever path, query and body come, the answer is an answer and no 500.
func FuzzRequest(f *testing.F) {
	rt := newTestRouter(f, Config{},
		New("GET", "/x/{roomId}", Anyone, ratelimit.None, echoes[queryIn]),
		New("POST", "/x/{roomId}/state/{eventType}/{stateKey}", Anyone, ratelimit.None, echoes[bodyIn]))
	f.Add("!r", "dir=b&limit=3&via=%2", `{"name":"a"}`)
	f.Add("%21r/state/a%2F/", "%&=;+", `{"n\u0061me":1,"list":[null]}`)
	f.Fuzz(func(t *testing.T, path, query, body string) {
		for _, method := range []string{"GET", "POST"} {
			r := newFuzzRequest(method, "/x/"+path+"?"+query, body)
			if r == nil {
				return
			}
			w := &recorder{nowhere: nowhere{make(map[string][]string)}}
			rt.ServeHTTP(w, r)
			if w.status == 0 || w.status >= 500 || !json.Valid(w.body) {
				t.Fatalf("%s %q ? %q with %q: %d %s", method, path, query, body, w.status, w.body)
			}
		}
	})
}

type recorder struct {
	nowhere
	status int
	body   []byte
}

func (w *recorder) WriteHeader(status int) { w.status = status }

func (w *recorder) Write(p []byte) (int, error) {
	w.body = append(w.body, p...)
	return len(p), nil
}

// newFuzzRequest makes a request as net/http would, or nil if net/http would refuse it.
func newFuzzRequest(method, target, body string) *http.Request {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil
	}
	return &http.Request{Method: method, URL: u, ProtoMajor: 1, Header: http.Header{}, ContentLength: -1,
		Body: io.NopCloser(strings.NewReader(body)), RemoteAddr: "127.0.0.1:1"}
}
