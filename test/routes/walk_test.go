// Package routes tests every route of the server with what no client should send: the answer is the specification's
// error, and nothing has happened.
package routes

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/homeserver"
	"github.com/myelin-im/myelin/internal/httpapi"

	. "github.com/myelin-im/myelin/test/harness"
)

// A caller is a fresh user with a room of their own, so that one route cannot spoil the walk for the next.
type caller struct {
	*Client
	t       *testing.T
	values  map[string]string // of wildcards
	watcher *Client
}

// place is the position of the log, which moves with everything durable.
func (c *caller) place() string {
	parts := strings.Split(c.watcher.Must("GET", Path("/sync?timeout=0&filter=")+url.QueryEscape(`{"room":{"rooms":[]}}`), nil).JSON.Get("next_batch").Str, "_")
	return parts[2]
}

// path fills in the wildcards of a route; the last argument, if any, overrides one of them, as it is.
func (c *caller) path(route string, override ...string) string {
	segments := strings.Split(route, "/")
	for i, s := range segments {
		name := strings.Trim(s, "{}")
		if name == s {
			continue
		}
		value, ok := c.values[name]
		if !ok {
			c.t.Fatalf("%s: add a value for {%s} to this test", route, name)
		}
		segments[i] = url.PathEscape(value)
		if len(override) == 2 && override[0] == name {
			segments[i] = override[1]
		}
	}
	return strings.Join(segments, "/")
}

func wildcards(route string) (names []string) {
	for s := range strings.SplitSeq(route, "/") {
		if name := strings.Trim(s, "{}"); name != s {
			names = append(names, name)
		}
	}
	return names
}

func newCaller(t *testing.T, s *Server, watcher *Client, n int, who string) *caller {
	register := s.Register
	if who == "admin" {
		register = s.Admin
	}
	c := register(t, fmt.Sprint("caller", n))
	room := c.Create(J{"preset": "public_chat"})
	return &caller{Client: c, t: t, watcher: watcher, values: map[string]string{
		"roomId": room, "roomIdOrAlias": room, "userId": c.UserID, "eventId": c.Text(room, "hello"), "txnId": "txn", "delayId": "delay", "eventType": "m.room.message",
		"stateKey": "", "roomAlias": "#alias:" + s.Name, "deviceId": c.DeviceID, "keyName": "displayname", "type": "m.type", "filterId": "0",
		"tag": "m.favourite", "kind": "override", "ruleId": ".m.rule.master", "networkId": "network", "receiptType": "m.read",
		"relType": "m.annotation", "protocol": "irc", "appserviceId": "irc", "version": "1", "sessionId": "session", "threadId": "main", "serverName": s.Name, "keyId": "ed25519:1", "mediaId": "media", "fileName": "file",
	}}
}

// refused checks that an answer is an error of the specification's form.
func refused(t *testing.T, what string, a *Answer) {
	t.Helper()
	if a.Status == 401 && a.JSON.Get("flows").IsArray() && a.JSON.Get("session").Exists() { // asks for a password
		return
	}
	if a.Status < 400 || a.Status >= 500 || !strings.HasPrefix(a.Code(), "M_") || a.JSON.Get("error").Str == "" {
		t.Errorf("%s: %v", what, a)
	}
}

// want checks status and errcode.
func want(t *testing.T, what string, a *Answer, status int, codes ...string) {
	t.Helper()
	if a.Status != status || !slices.Contains(codes, a.Code()) {
		t.Errorf("%s: %v, want %d %v", what, a, status, codes)
	}
}

func TestWalk(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		watcher, guest := s.Register(t, "watcher"), s.Guest(t)
		for i, row := range homeserver.Routes() {
			if strings.HasPrefix(row.Who, "server") || row.Raw && !strings.Contains(row.Path, "media") && !resumable(row) {
				continue
			}
			t.Run(row.Method+" "+strings.TrimPrefix(row.Path, "/_matrix/client"), func(t *testing.T) {
				c := newCaller(t, s, watcher.With(t), i, row.Who)
				before := c.place()
				c.tokens(row, guest.With(t))
				c.methods(row)
				c.bodies(row)
				if after := c.place(); after != before {
					t.Errorf("requests that were refused moved the log from %s to %s", before, after)
				}
				c.segments(row)
				c.queries(row)
			})
		}
	})
}

// tokens tries the wrong ones.
func (c *caller) tokens(row httpapi.Row, guest *Client) {
	t, path := c.t, c.path(row.Path)
	nobody, stranger := c.Server.Client(t), c.Server.Client(t)
	stranger.Token = "not a token"
	body := bodyFor(row)
	switch row.Who {
	case "anyone":
		return
	case "optional":
		want(t, "an unknown token", stranger.Do(row.Method, path, body), 401, "M_UNKNOWN_TOKEN")
		return
	}
	want(t, "no token", nobody.Do(row.Method, path, body), 401, "M_MISSING_TOKEN")
	for _, token := range []string{"x", strings.Repeat("x", 5000), c.Token + "x", "a b", "é"} {
		stranger.Token = token
		want(t, "an unknown token", stranger.Do(row.Method, path, body), 401, "M_UNKNOWN_TOKEN")
	}
	if row.Who == "admin" {
		want(t, "a user", c.watcher.Do(row.Method, path, body), 403, "M_FORBIDDEN")
	}
	if !strings.Contains(row.Who, "guest") {
		want(t, "a guest", guest.Do(row.Method, path, body), 403, "M_GUEST_ACCESS_FORBIDDEN", "M_FORBIDDEN")
	}
}

func bodyFor(row httpapi.Row) any {
	if row.Method == "GET" || row.Method == "DELETE" {
		return nil
	}
	return "{}"
}

// resumable tells of the routes of uploads in pieces, one for each of the methods that others do not have.
func resumable(row httpapi.Row) bool { return strings.Contains(row.Path, "/im.myelin.tus/") }

// methods tries methods and paths that the route does not have.
func (c *caller) methods(row httpapi.Row) {
	path := c.path(row.Path)
	method := "PATCH"
	if resumable(row) {
		method = "PUT"
	}
	a := c.Do(method, path, "{}")
	want(c.t, method, a, 405, "M_UNRECOGNIZED")
	if !strings.Contains(a.Header.Get("Allow"), row.Method) {
		c.t.Errorf("Allow is %q", a.Header.Get("Allow"))
	}
	if !strings.HasSuffix(path, "/") {
		want(c.t, "a trailing slash", c.Do(row.Method, path+"/", bodyFor(row)), 404, "M_UNRECOGNIZED")
	}
	want(c.t, "a longer path", c.Do(row.Method, path+"/x/y/z", bodyFor(row)), 404, "M_UNRECOGNIZED")
	if a := c.Do("OPTIONS", path, nil); a.Status != 204 || a.Header.Get("Access-Control-Allow-Origin") != "*" {
		c.t.Errorf("OPTIONS: %v", a)
	}
}

// bodies sends what is not a JSON object.
func (c *caller) bodies(row httpapi.Row) {
	if row.Method == "GET" || row.Method == "DELETE" || row.Who == "appservice" || strings.HasPrefix(row.Path, "/_matrix/media/v3/upload") ||
		strings.HasSuffix(row.Path, "/media/upload") || resumable(row) {
		return // the last take any body
	}
	path := c.path(row.Path)
	for _, body := range []string{`{`, `}`, `{"a":`, `{"a":1}x`, `{a:1}`, `{'a':1}`, "{\"a\":\"\xff\"}", `nul`, `{"a":01}`, `{"a":"` + "\n" + `"}`} {
		want(c.t, fmt.Sprintf("the body %.20q", body), c.Do(row.Method, path, body), 400, "M_NOT_JSON")
	}
	for _, body := range []string{`[]`, `"text"`, `1`, `null`, `[{}]`} {
		want(c.t, "the body "+body, c.Do(row.Method, path, body), 400, "M_BAD_JSON", "M_NOT_JSON")
	}
	deep := `{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`
	want(c.t, "a deep body", c.Do(row.Method, path, deep), 400, "M_BAD_JSON", "M_NOT_JSON")
	if row.MaxBody > 0 {
		return // it takes more than others
	}
	if a, err := c.Send(row.Method, path, `{"a":"`+strings.Repeat("x", 2<<20)+`"}`); err == nil { // the server may hang up instead
		want(c.t, "a large body", a, 413, "M_TOO_LARGE")
	}
}

// segments puts into each wildcard what may be no identifier at all.
func (c *caller) segments(row httpapi.Row) {
	for _, name := range wildcards(row.Path) {
		for _, value := range []string{
			strings.Repeat("x", 300), strings.Repeat("%C3%A9", 3000), "%00", "%FF", "%2F", "%2E%2E", "!", "@", "$", "#", "%20", "!:", "@:", "$:", "%23:",
			"!x:" + c.Server.Name, "!nosuchroom:elsewhere", "@nobody:" + c.Server.Name, "@nobody:elsewhere", "%23nothing:" + c.Server.Name, "%23nothing:elsewhere",
			"$nosuchevent", "$" + strings.Repeat("A", 43), "'", "%22", "%27;--", "m.room.create", "m.room.member", "%F0%9F%92%A9",
		} {
			path := c.path(row.Path, name, value)
			if strings.HasSuffix(row.Path, "logout") || strings.HasSuffix(row.Path, "all") {
				continue
			}
			a := c.try(row.Method, path, bodyFor(row))
			if a.Status >= 400 {
				refused(c.t, row.Method+" "+path, a)
			}
			if name == "roomId" && a.Status < 400 && !perUser(row.Path) {
				c.t.Errorf("%s %s: %v", row.Method, path, a)
			}
		}
	}
}

// try is Do for what may concern a server that cannot be reached: then the answer is 502 or 504.
func (c *caller) try(method, path string, body any) *Answer {
	c.t.Helper()
	a, err := c.Send(method, path, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	elsewhere := strings.Contains(path, "elsewhere") || strings.Contains(path, "server=")
	if a.Status == 502 || a.Status == 504 {
		if !elsewhere || !strings.HasPrefix(a.Code(), "M_") {
			c.t.Errorf("%s %s: %v", method, path, a)
		}
		a.Status = 404 // as good as an answer that there is no such thing
	} else if a.Status >= 500 {
		c.t.Errorf("%s %s: %v", method, path, a)
	}
	return a
}

// perUser tells of routes for which a room is only a name under which users keep something.
func perUser(route string) bool {
	return strings.Contains(route, "/user/{userId}/")
}

// queries gives every parameter that any endpoint has values that it cannot have. The longest is below the 64 KiB at which
// net/http refuses a request itself.
func (c *caller) queries(row httpapi.Row) {
	if row.Method != "GET" || testing.Short() { // thousands of requests, one after the other: nothing for the race detector
		return
	}
	path := c.path(row.Path)
	for _, name := range []string{
		"limit", "from", "to", "dir", "since", "timeout", "filter", "ts", "at", "membership", "not_membership", "set_presence", "full_state",
		"use_state_after", "format", "username", "token", "user_id", "via", "max_depth", "suggested_only", "server", "recurse",
	} {
		for _, value := range []string{"", "x", "-1", "0", "1.5", "99999999999999999999", "-9223372036854775808", "true", "%00", "%FF", "{", "[]", "{}", `{"room":1}`, strings.Repeat("9", 5000), strings.Repeat("x", 60_000)} {
			if name == "timeout" && value != "x" { // waiting is another test's
				continue
			}
			if !strings.Contains(value, "%") {
				value = url.QueryEscape(value)
			}
			a := c.try("GET", path+"?"+name+"="+value, nil)
			if a.Status >= 400 {
				refused(c.t, fmt.Sprintf("GET %s?%s=%.40s", path, name, value), a)
			}
		}
	}
	refused(c.t, "an unknown parameter alone", c.Server.Client(c.t).Do("GET", "/_matrix/client/v3/nothing?x=%ZZ", nil))
}
