package appservice

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/httpapi"
)

// serve runs the API with one application service at a URL. The token "as" is that service's, "user" somebody's.
func serve(t *testing.T, url string) (do func(method, path, token, body string) (int, gjson.Result)) {
	t.Helper()
	r, err := Parse([]byte("id: irc\nurl: " + url + "\nas_token: as\nhs_token: hs\nsender_localpart: bot\nprotocols: [irc]\nnamespaces: {}\n"))
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet("test", r)
	if err != nil {
		t.Fatal(err)
	}
	router, err := httpapi.NewRouter(httpapi.Config{Authenticate: func(_ context.Context, token string, _ *http.Request) (*httpapi.Caller, error) {
		if token == "as" {
			return &httpapi.Caller{UserID: "@bot:test", Appservice: &httpapi.AppserviceInfo{ID: "irc"}}, nil
		}
		return &httpapi.Caller{UserID: "@user:test"}, nil
	}}, New(set).Endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	return func(method, path, token, body string) (int, gjson.Result) {
		t.Helper()
		request := httptest.NewRequest(method, path, strings.NewReader(body))
		request.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		router.ServeHTTP(w, request)
		return w.Code, gjson.ParseBytes(w.Body.Bytes())
	}
}

func TestThirdParty(t *testing.T) {
	do := serve(t, `""`)
	const empty = `{"user_fields":[],"location_fields":[],"icon":"","field_types":{},"instances":[]}`
	for _, tt := range []struct {
		path   string
		status int
		want   string
	}{
		{"protocols", 200, `{"irc":` + empty + `}`},
		{"protocol/irc", 200, empty},
		{"protocol/xmpp", 404, "M_NOT_FOUND"},
		{"location/irc?channel=%23x", 404, "M_NOT_FOUND"},
		{"location/xmpp", 404, "M_NOT_FOUND"},
		{"user/irc?nick=x", 404, "M_NOT_FOUND"},
		{"user/xmpp", 404, "M_NOT_FOUND"},
		{"location?alias=%23x:y", 404, "M_NOT_FOUND"},
		{"location", 400, "M_MISSING_PARAM"},
		{"user?userid=@x:y", 404, "M_NOT_FOUND"},
		{"user", 400, "M_MISSING_PARAM"},
	} {
		status, answer := do("GET", "/_matrix/client/v3/thirdparty/"+tt.path, "user", "")
		if status != tt.status || status == 200 && answer.Raw != tt.want || status != 200 && answer.Get("errcode").Str != tt.want {
			t.Errorf("%s: %d %s", tt.path, status, answer.Raw)
		}
	}
}

func TestPing(t *testing.T) {
	status := http.StatusOK
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != "POST" || r.URL.Path != "/_matrix/app/v1/ping" || r.Header.Get("Authorization") != "Bearer hs" || string(body) != `{"transaction_id":"t1"}` {
			t.Errorf("ping: %s %s %v %s", r.Method, r.URL, r.Header, body)
		}
		w.WriteHeader(status)
		io.WriteString(w, `{"x":"`+strings.Repeat("x", 10_000)+`"}`)
	}))
	t.Cleanup(service.Close)
	do := serve(t, service.URL)
	const path = "/_matrix/client/v1/appservice/irc/ping"
	code, answer := do("POST", path, "as", `{"transaction_id":"t1"}`)
	if code != 200 || !answer.Get("duration_ms").Exists() {
		t.Errorf("ping: %d %s", code, answer.Raw)
	}
	status = http.StatusUnauthorized
	code, answer = do("POST", path, "as", `{"transaction_id":"t1"}`)
	if code != 502 || answer.Get("errcode").Str != "M_BAD_STATUS" || answer.Get("status").Int() != 401 || len(answer.Get("body").Str) != maxPingAnswer {
		t.Errorf("a bad status: %d %.300s", code, answer.Raw)
	}
	for _, tt := range []struct{ path, token string }{{path, "user"}, {strings.Replace(path, "irc", "other", 1), "as"}} {
		if code, answer := do("POST", tt.path, tt.token, `{}`); code != 403 || answer.Get("errcode").Str != "M_FORBIDDEN" {
			t.Errorf("%s by %s: %d %s", tt.path, tt.token, code, answer.Raw)
		}
	}
	if code, answer := serve(t, `""`)("POST", path, "as", `{}`); code != 400 || answer.Get("errcode").Str != "M_URL_NOT_SET" {
		t.Errorf("without a URL: %d %s", code, answer.Raw)
	}
	if err := pingError(context.DeadlineExceeded); !strings.Contains(err.Error(), "in time") {
		t.Errorf("timeout: %v", err)
	}
	service.Close()
	begin := time.Now()
	if code, answer := do("POST", path, "as", `{"transaction_id":"t1"}`); code != 502 || answer.Get("errcode").Str != "M_CONNECTION_FAILED" || time.Since(begin) > pingTimeout {
		t.Errorf("nobody there: %d %s", code, answer.Raw)
	}
}
