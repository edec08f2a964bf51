package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

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
