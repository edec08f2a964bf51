package httpapi

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

func TestAccess(t *testing.T) {
	row := func(name string, who Access) Endpoint {
		return New("POST", "/"+name, who, ratelimit.None, echoes[Empty])
	}
	rt := newTestRouter(t, Config{}, row("anyone", Anyone), row("optional", Optional), row("guest", User|Guest),
		row("user", User), row("logout", User|Guest).EvenLocked(), row("bridge", Appservice), row("admin", Admin),
		row("act", User).UnlessSuspended(), row("perhaps", Optional).UnlessSuspended(),
		row("server", Server))
	const (
		ok      = "200 "
		missing = "401 M_MISSING_TOKEN"
		unknown = "401 M_UNKNOWN_TOKEN"
		noGuest = "403 M_GUEST_ACCESS_FORBIDDEN"
		no      = "403 M_FORBIDDEN"
		locked  = "401 M_USER_LOCKED"
		halted  = "403 M_USER_SUSPENDED"
		sign    = "401 M_UNAUTHORIZED"
	)
	for _, c := range []struct {
		path string
		want map[string]string
	}{
		{"anyone", map[string]string{"": ok, "alice": ok, "bad": ok, "guest": ok, "locked": ok}},
		{"optional", map[string]string{"": ok, "alice": ok, "bad": unknown, "guest": ok, "locked": locked}},
		{"guest", map[string]string{"": missing, "alice": ok, "bad": unknown, "guest": ok, "admin": ok, "bridge": ok, "locked": locked}},
		{"user", map[string]string{"": missing, "alice": ok, "suspended": ok, "bad": unknown, "guest": noGuest, "admin": ok, "bridge": ok, "locked": locked}},
		{"logout", map[string]string{"": missing, "alice": ok, "guest": ok, "locked": ok}},
		{"bridge", map[string]string{"": missing, "alice": no, "guest": no, "admin": no, "bridge": ok}},
		{"admin", map[string]string{"": missing, "alice": no, "guest": no, "admin": ok, "bridge": no}},
		{"server", map[string]string{"": sign, "alice": sign}},
		{"act", map[string]string{"": missing, "alice": ok, "suspended": halted, "locked": locked}},
		{"perhaps", map[string]string{"": ok, "suspended": halted}},
		{"admin", map[string]string{"suspended": no}},
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
