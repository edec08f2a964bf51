package push

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/push/rules"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const alice, bob = "@alice:example.org", "@bob:example.org"

// server is the API behind a router. Users show their user ID as token.
type server struct {
	t      *testing.T
	db     *storage.DB
	api    *API
	router http.Handler

	mu      sync.Mutex
	notices []storage.Notice // guarded by mu
}

func newServer(t *testing.T, db *storage.DB) *server {
	s := &server{t: t, db: db, api: New(db)}
	db.Subscribe(func(batch []storage.Notice, _ int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.notices = append(s.notices, batch...)
	})
	router, err := httpapi.NewRouter(httpapi.Config{
		Authenticate: func(_ context.Context, token string, _ *http.Request) (*httpapi.Caller, error) {
			if !strings.HasPrefix(token, "@") {
				return nil, mxerr.UnknownToken(false)
			}
			return &httpapi.Caller{UserID: token, Guest: strings.HasPrefix(token, "@guest")}, nil
		},
	}, s.api.Endpoints()...)
	if err != nil {
		t.Fatal(err)
	}
	s.router = router
	return s
}

// do makes a request to a path under /pushrules/ and returns status and body.
func (s *server) do(user, method, path, body string) (int, string) {
	s.t.Helper()
	r := httptest.NewRequest(method, "/_matrix/client/v3/pushrules/"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+user)
	w := httptest.NewRecorder()
	s.router.ServeHTTP(w, r)
	out, _ := io.ReadAll(w.Body)
	return w.Code, string(out)
}

// ok is do for a request that must succeed.
func (s *server) ok(method, path, body string) string {
	s.t.Helper()
	status, out := s.do(alice, method, path, body)
	if status != 200 {
		s.t.Fatalf("%s %s %s: %d %s", method, path, body, status, out)
	}
	return out
}

func each(t *testing.T, fn func(t *testing.T, s *server)) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) { fn(t, newServer(t, db)) })
}

// at returns the content of m.push_rules at a position.
func (s *server) at(user string, pos int64) string {
	s.t.Helper()
	var out []byte
	if err := s.db.Read(s.t.Context(), func(tx *storage.Tx) (err error) {
		out, err = s.api.AppendAccountData(tx, user, pos, nil)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return string(out)
}

// sound is what a message of Bob's sounds like to Alice by the rules at a position.
func (s *server) sound(pos int64) string {
	s.t.Helper()
	c, _, err := s.api.RulesSpan(s.t.Context(), alice, pos)
	if err != nil {
		s.t.Fatal(err)
	}
	e := &rules.Event{Type: "m.room.message", Sender: bob, Content: []byte(`{}`)}
	return c.Evaluate(rules.Prepare(e), &rules.Room{MemberCount: 3}, "").Sound
}

// spans goes through the positions up to the head and returns the sound of each span with the same
// rules, with its last position.
func (s *server) spans() string {
	s.t.Helper()
	out := ""
	for pos := int64(1); pos <= s.db.Head(); pos++ {
		c, until, err := s.api.RulesSpan(s.t.Context(), alice, pos)
		if err != nil {
			s.t.Fatal(err)
		}
		e := &rules.Event{Type: "m.room.message", Sender: bob, Content: []byte(`{}`)}
		out += fmt.Sprintf("%s:%d ", c.Evaluate(rules.Prepare(e), &rules.Room{MemberCount: 3}, "").Sound, until)
		pos = until
	}
	return out
}

func setSound(sound string) string {
	return fmt.Sprintf(`{"actions":["notify",{"set_tweak":"sound","value":%q}]}`, sound)
}

func TestRulesOverHTTP(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		all := s.ok("GET", "", "")
		if got := gjson.Get(all, "global.override.0.rule_id").Str; got != ".m.rule.master" {
			t.Errorf("first override rule: %q", got)
		}
		if global := s.ok("GET", "global/", ""); `{"global":`+global+`}` != all {
			t.Errorf("GET global/: %s", global)
		}

		// The examples of the specification.
		if out := s.ok("PUT", "global/room/%21dj234r78wl45Gh4D%3Amatrix.org", `{"actions":[]}`); out != "{}" {
			t.Errorf("PUT answers %s", out)
		}
		s.ok("PUT", "global/sender/%40spambot%3Amatrix.org", `{"actions":[]}`)
		s.ok("PUT", "global/content/SSByZWFsbHkgbGlrZSBjYWtl", `{"pattern":"cake","actions":["notify",{"set_tweak":"sound","value":"cakealarm.wav"}]}`)
		s.ok("PUT", "global/content/U3BvbmdlIGNha2UgaXMgYmVzdA?before=SSByZWFsbHkgbGlrZSBjYWtl", `{"pattern":"cake*lie","actions":["notify"]}`)
		s.ok("PUT", "global/override/U2VlIHlvdSBpbiBUaGUgRHVrZQ", `{"conditions":[{"kind":"event_match","key":"content.body","pattern":"beer"},{"kind":"room_member_count","is":"<=10"}],"actions":["notify",{"set_tweak":"sound","value":"beeroclock.wav"}]}`)

		all = s.ok("GET", "", "")
		for path, want := range map[string]string{
			"global.room.0.rule_id":                "!dj234r78wl45Gh4D:matrix.org",
			"global.sender.0.rule_id":              "@spambot:matrix.org",
			"global.content.0.rule_id":             "U3BvbmdlIGNha2UgaXMgYmVzdA",
			"global.content.1.pattern":             "cake",
			"global.override.1.rule_id":            "U2VlIHlvdSBpbiBUaGUgRHVrZQ",
			"global.override.1.conditions.1.is":    "<=10",
			"global.override.2.rule_id":            ".m.rule.suppress_notices",
			"global.override.1.actions.1.value":    "beeroclock.wav",
			"global.room.0.actions.#":              "0",
			"global.content.0.enabled":             "true",
			"global.content.0.default":             "false",
			"global.underride.0.default":           "true",
			"global.override.3.conditions.2.value": "",
		} {
			if got := gjson.Get(all, path).String(); got != want {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}

		rule := s.ok("GET", "global/room/%21dj234r78wl45Gh4D:matrix.org", "")
		if want := `{"rule_id":"!dj234r78wl45Gh4D:matrix.org","default":false,"enabled":true,"actions":[]}`; rule != want {
			t.Errorf("room rule: %s", rule)
		}

		const message = "global/underride/.m.rule.message"
		s.ok("PUT", message+"/enabled", `{"enabled":false}`)
		if out := s.ok("GET", message+"/enabled", ""); out != `{"enabled":false}` {
			t.Errorf("enabled: %s", out)
		}
		s.ok("PUT", message+"/actions", `{"actions":["dont_notify",{"set_tweak":"highlight"}]}`)
		if out := s.ok("GET", message+"/actions", ""); out != `{"actions":["dont_notify",{"set_tweak":"highlight"}]}` {
			t.Errorf("actions: %s", out)
		}
		if out := s.ok("GET", "global/override/.m.rule.master/actions", ""); out != `{"actions":[]}` {
			t.Errorf("actions: %s", out)
		}

		s.ok("DELETE", "global/content/SSByZWFsbHkgbGlrZSBjYWtl", "")
		if n := gjson.Get(s.ok("GET", "", ""), "global.content.#").Int(); n != 1 {
			t.Errorf("%d content rules after the deletion", n)
		}

		// Nobody else's rules changed.
		_, bobs := s.do(bob, "GET", "", "")
		if strings.Contains(bobs, "beeroclock") || strings.Contains(bobs, alice) || !strings.Contains(bobs, bob) {
			t.Errorf("Bob's rules: %s", bobs)
		}
	})
}

func TestErrors(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.ok("PUT", "global/content/x", `{"pattern":"x","actions":[]}`)
		before := s.db.Head()
		large, _ := json.Marshal(strings.Repeat("x", rules.MaxOverlay))
		for _, c := range []struct {
			method, path, body string
			status             int
			code               string
		}{
			{"GET", "global/content/y", "", 404, "M_NOT_FOUND"},
			{"GET", "global/override/x", "", 404, "M_NOT_FOUND"},
			{"GET", "global/underride/.m.rule.master", "", 404, "M_NOT_FOUND"},
			{"GET", "global/content/y/enabled", "", 404, "M_NOT_FOUND"},
			{"GET", "global/content/y/actions", "", 404, "M_NOT_FOUND"},
			{"GET", "global/nonsense/x", "", 404, "M_NOT_FOUND"},
			{"GET", "global/nonsense/x/enabled", "", 404, "M_NOT_FOUND"},
			{"DELETE", "global/content/y", "", 404, "M_NOT_FOUND"},
			{"DELETE", "global/override/.m.rule.master", "", 400, "M_INVALID_PARAM"},
			{"DELETE", "global/nonsense/x", "", 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/y/enabled", `{"enabled":true}`, 404, "M_NOT_FOUND"},
			{"PUT", "global/override/.m.rule.nothing/enabled", `{"enabled":true}`, 404, "M_NOT_FOUND"},
			{"PUT", "global/content/y/actions", `{"actions":[]}`, 404, "M_NOT_FOUND"},
			{"PUT", "global/content/x/enabled", `{}`, 400, "M_MISSING_PARAM"},
			{"PUT", "global/content/x/enabled", `{"enabled":"true"}`, 400, "M_BAD_JSON"},
			{"PUT", "global/content/x/enabled", `{"enabled":1}`, 400, "M_BAD_JSON"},
			{"PUT", "global/content/x/enabled", `nonsense`, 400, "M_NOT_JSON"},
			{"PUT", "global/nonsense/x/enabled", `{"enabled":true}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/x/actions", `{}`, 400, "M_MISSING_PARAM"},
			{"PUT", "global/content/x/actions", `{"actions":"notify"}`, 400, "M_BAD_JSON"},
			{"PUT", "global/content/x/actions", `{"actions":["shout"]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/nonsense/x/actions", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/.y", `{"pattern":"y","actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/override/.m.rule.master", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/a%2Fb", `{"pattern":"y","actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/a%5Cb", `{"pattern":"y","actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/y", `{"actions":[]}`, 400, "M_MISSING_PARAM"},
			{"PUT", "global/content/y", `{"pattern":null,"actions":[]}`, 400, "M_MISSING_PARAM"},
			{"PUT", "global/content/y", `{"pattern":1,"actions":[]}`, 400, "M_BAD_JSON"},
			{"PUT", "global/content/y", `{"pattern":"y"}`, 400, "M_MISSING_PARAM"},
			{"PUT", "global/content/y", `{"pattern":"y","actions":["shout"]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/y", `{"pattern":"y","actions":{}}`, 400, "M_BAD_JSON"},
			{"PUT", "global/content/y", `{"pattern":` + string(large) + `,"actions":[]}`, 413, "M_TOO_LARGE"},
			{"PUT", "global/override/y", `{"conditions":[1],"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/override/y", `{"conditions":"x","actions":[]}`, 400, "M_BAD_JSON"},
			{"PUT", "global/nonsense/y", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "global/content/y?before=nothing", `{"pattern":"y","actions":[]}`, 400, "M_UNKNOWN"},
			{"PUT", "global/content/y?after=nothing", `{"pattern":"y","actions":[]}`, 400, "M_UNKNOWN"},
			{"PUT", "global/underride/y?after=.m.rule.call", `{"actions":[]}`, 400, "M_UNKNOWN"},
			{"GET", "device/x/", "", 404, "M_UNRECOGNIZED"},
			{"POST", "global/content/x", "{}", 405, "M_UNRECOGNIZED"},
		} {
			status, out := s.do(alice, c.method, c.path, c.body)
			if got := gjson.Get(out, "errcode").Str; status != c.status || got != c.code {
				t.Errorf("%s %s %.80s: %d %s, want %d %s", c.method, c.path, c.body, status, out, c.status, c.code)
			}
		}
		if status, _ := s.do("@guest1:example.org", "GET", "", ""); status != 403 {
			t.Errorf("a guest gets %d", status)
		}
		if s.db.Head() != before {
			t.Error("a refused request took a position")
		}
	})
}

// Every change has a position, tells the user's other devices, and leaves the rules at earlier
// positions as they were.
func TestRulesByPosition(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		const rule = "global/underride/.m.rule.message/actions"
		start := s.db.Head()
		if got := s.sound(start); got != "" {
			t.Errorf("without changes: sound %q", got)
		}
		var at []int64
		for i := range 3 {
			s.ok("PUT", rule, setSound(fmt.Sprint("s", i)))
			at = append(at, s.db.Head())
			if got := s.sound(s.db.Head()); got != fmt.Sprint("s", i) {
				t.Errorf("after change %d: sound %q", i, got)
			}
		}
		s.ok("PUT", rule, setSound("s2")) // the same again is a change too: its client waits for it in /sync
		if s.db.Head() == at[2] {
			t.Error("no position for a change to the same")
		}
		for range 2 { // with and without cache
			for i, pos := range at {
				if got := s.sound(pos); got != fmt.Sprint("s", i) {
					t.Errorf("at change %d: sound %q", i, got)
				}
				if got := s.sound(pos - 1); i > 0 && got != fmt.Sprint("s", i-1) || i == 0 && got != "" {
					t.Errorf("before change %d: sound %q", i, got)
				}
				if got := gjson.Get(s.at(alice, pos), "global.underride.3.actions.1.value").Str; got != fmt.Sprint("s", i) {
					t.Errorf("account data at change %d: %q", i, got)
				}
			}
			s.api.versions.histories = cache.New[string, *history](rulesCacheBytes)
			s.api.versions.older = cache.New[versionKey, *version](rulesCacheBytes)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.notices) != 4 {
			t.Fatalf("%d notices for 4 changes", len(s.notices))
		}
		for i, n := range s.notices[:3] {
			if n.Kind != storage.PushRules || n.User != alice || n.Pos != at[i] {
				t.Errorf("notice %d: %+v", i, n)
			}
		}
	})
}

func TestRulesChangedBetween(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		p0 := s.db.Head()
		s.ok("PUT", "global/underride/.m.rule.message/actions", setSound("a"))
		p1 := s.db.Head()
		s.do(bob, "PUT", "global/underride/.m.rule.message/actions", setSound("a"))
		p2 := s.db.Head()
		s.ok("PUT", "global/underride/.m.rule.message/actions", setSound("b"))
		p3 := s.db.Head()
		for _, c := range []struct {
			since, until int64
			want         bool
		}{
			{p0, p0, false}, {p0, p1, true}, {p0, p3, true}, {p1, p1, false}, {p1, p2, false}, {p1, p3, true}, {p2, p3, true}, {p3, p3, false},
		} {
			var got bool
			if err := s.db.Read(t.Context(), func(tx *storage.Tx) (err error) {
				got, err = s.api.RulesChangedBetween(tx, alice, c.since, c.until)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("(%d,%d]: %v, want %v", c.since, c.until, got, c.want)
			}
		}
	})
}

func TestRulesSpan(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		change := func(user, sound string) {
			s.do(user, "PUT", "global/underride/.m.rule.message/actions", setSound(sound))
		}
		change(bob, "x")
		change(alice, "a")
		change(bob, "x")
		change(alice, "b")
		change(alice, "c")
		change(bob, "x")
		if s.db.Head() != 6 {
			t.Fatalf("head %d after 6 changes", s.db.Head())
		}
		for range 2 { // with and without cache
			if got, want := s.spans(), ":1 a:3 b:4 c:6 "; got != want {
				t.Errorf("spans %q, want %q", got, want)
			}
		}
	})
}

// Old versions are pruned; the oldest one kept stands for what came before.
func TestHistoryIsBounded(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		const rule = "global/underride/.m.rule.message/actions"
		for i := range keepVersions + 5 {
			s.ok("PUT", rule, setSound(fmt.Sprint("s", i)))
			s.sound(s.db.Head())
		}
		if got := s.versions(); got != keepVersions {
			t.Errorf("%d versions are kept, want %d", got, keepVersions)
		}
		if got := s.sound(1); got != "s5" {
			t.Errorf("at the beginning: sound %q, want that of the oldest version kept", got)
		}
		if got, want := s.sound(s.db.Head()), fmt.Sprint("s", keepVersions+4); got != want {
			t.Errorf("now: sound %q, want %q", got, want)
		}
		// Large versions are pruned earlier.
		s.ok("PUT", "global/content/large", fmt.Sprintf(`{"pattern":%q,"actions":[]}`, strings.Repeat("x", rules.MaxOverlay-2000)))
		for range 12 {
			s.ok("PUT", "global/content/large/enabled", `{"enabled":true}`)
		}
		if got := s.versions(); got > keepBytes/(rules.MaxOverlay-2000) {
			t.Errorf("%d large versions are kept", got)
		}
	})
}

func (s *server) versions() (n int64) {
	s.t.Helper()
	if _, err := s.db.Get(s.t.Context(), `SELECT count(*) FROM push_rules WHERE user_id = $1`, []any{alice}, &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// Readers that run beside changes see, at each head, the rules of that head: a reader whose
// snapshot was older must not leave stale rules in the cache.
func TestCacheFollowsChanges(t *testing.T) {
	each(t, func(t *testing.T, s *server) {
		s.ok("PUT", "global/underride/.m.rule.message/actions", setSound("0"))
		first := s.db.Head()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					head := s.db.Head()
					if got, want := s.sound(head), fmt.Sprint(head-first); got != want {
						t.Errorf("at head %d: sound %q, want %q", head, got, want)
						return
					}
				}
			})
		}
		for i := range keepVersions - 1 { // all versions are kept, for readers that are slow
			s.ok("PUT", "global/underride/.m.rule.message/actions", setSound(fmt.Sprint(i+1)))
		}
		close(stop)
		wg.Wait()
	})
}

func BenchmarkRulesSpan(b *testing.B) {
	api := New(storagetest.Open(b, storage.SQLite, Schema))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := api.RulesSpan(b.Context(), alice, 0); err != nil {
			b.Fatal(err)
		}
	}
}
