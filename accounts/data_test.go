package accounts

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/storage"
)

func TestAccountData(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice, bob := s.user("alice"), s.user("bob")
		const me, room = "@alice:test", "!r:test"
		for _, p := range []string{
			path("/user/%/account_data/test.key", me),
			path("/user/%/rooms/%/account_data/test.key", me, room),
			path("/user/%/rooms/%/account_data/test.key", me, "!NoDomainAsInRoomVersion12"),
		} {
			s.want(s.do("GET", p, alice, nil), 404, "M_NOT_FOUND")
			s.ok("PUT", p, alice, `{"value": "first"}`)
			s.ok("PUT", p, alice, `{"value": "second"}`)
			if a := s.ok("GET", p, alice, nil); a.Raw != `{"value": "second"}` {
				t.Errorf("%s: %s", p, a.Raw)
			}
			for _, method := range []string{"GET", "PUT"} {
				s.want(s.do(method, p, bob, obj{}), 403, "M_FORBIDDEN")
				s.want(s.do(method, p, "", obj{}), 401, "M_MISSING_TOKEN")
			}
			s.want(s.do("PUT", p, alice, `[1]`), 400, "M_BAD_JSON")
			s.want(s.do("PUT", p, alice, `{`), 400, "M_NOT_JSON")
			s.want(s.do("PUT", p, alice, nil), 400, "M_NOT_JSON")
			s.want(s.do("PUT", p, alice, `{"a":"`+strings.Repeat("x", 1<<20)+`"}`), 413, "M_TOO_LARGE")
		}
		for _, p := range []string{"/user/%/account_data/", "/user/%/rooms/!r:test/account_data/"} {
			for _, typ := range []string{"m.fully_read", "m.push_rules"} {
				s.want(s.do("PUT", path(p, me)+typ, alice, obj{"a": 1}), 405, "M_BAD_JSON")
			}
			s.want(s.do("PUT", path(p, me)+strings.Repeat("t", 256), alice, obj{"a": 1}), 400, "M_INVALID_PARAM")
		}
		s.want(s.do("PUT", path("/user/%/rooms/%/account_data/a", me, "@notaroom:test"), alice, obj{}), 400, "M_INVALID_PARAM")
		s.want(s.do("GET", path("/user/%/rooms/%/account_data/a", me, "#notaroom:test"), alice, nil), 400, "M_INVALID_PARAM")
		s.want(s.do("GET", path("/user/%/account_data/a", "alice"), alice, nil), 400, "M_INVALID_PARAM")
	})
}

func TestAccountDataPositions(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		var mu sync.Mutex
		var notices []storage.Notice
		db.Subscribe(func(batch []storage.Notice, _ int64) {
			mu.Lock()
			defer mu.Unlock()
			for _, n := range batch {
				if n.Kind == storage.AccountData {
					notices = append(notices, n)
				}
			}
		})
		token := s.user("alice")
		const me, unstable = "@alice:test", "/_matrix/client/unstable/org.matrix.msc3391"
		list := func(of func(tx *storage.Tx) ([]Datum, error)) string {
			t.Helper()
			var text []string
			err := db.Read(context.Background(), func(tx *storage.Tx) error {
				data, err := of(tx)
				text = nil
				for _, d := range data {
					text = append(text, fmt.Sprintf("%s/%s=%s", d.Room, d.Type, d.Content))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(text, " ")
		}
		between := func(since, upto int64) string {
			t.Helper()
			return list(func(tx *storage.Tx) ([]Datum, error) { return AccountDataBetween(tx, me, since, upto) })
		}
		all := func() string {
			t.Helper()
			return list(func(tx *storage.Tx) ([]Datum, error) { return AccountData(tx, me) })
		}
		start := db.Head()
		s.ok("PUT", path("/user/%/account_data/a", me), token, `{"n":1}`)
		p1 := db.Head()
		s.ok("PUT", path("/user/%/rooms/!r:test/account_data/b", me), token, `{"n":2}`)
		p2 := db.Head()
		if p1 <= start || p2 <= p1 {
			t.Fatalf("positions %d, %d, %d", start, p1, p2)
		}
		if got := between(start, p1); got != `/a={"n":1}` {
			t.Errorf("after the first change: %s", got)
		}
		if got := between(p1, p2); got != `!r:test/b={"n":2}` {
			t.Errorf("after the second change: %s", got)
		}
		s.ok("PUT", path("/user/%/account_data/a", me), token, `{"n":3}`)
		p3 := db.Head()
		if got := between(start, p3); got != `!r:test/b={"n":2} /a={"n":3}` {
			t.Errorf("after the third change: %s", got)
		}
		if got := between(p3, p3+10); got != "" {
			t.Errorf("after everything: %s", got)
		}
		if got := all(); got != `/a={"n":3} !r:test/b={"n":2}` {
			t.Errorf("all: %s", got)
		}
		// Deletion, by its method and by an empty object, is told once and then forgotten.
		s.ok("DELETE", unstable+path("/user/%/account_data/a", me), token, nil)
		s.ok("PUT", path("/user/%/rooms/!r:test/account_data/b", me), token, `{ }`)
		if got := between(p3, db.Head()); got != `/a={} !r:test/b={}` {
			t.Errorf("deletions: %s", got)
		}
		if got := all(); got != "" {
			t.Errorf("all after deletion: %s", got)
		}
		s.want(s.do("GET", path("/user/%/account_data/a", me), token, nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", path("/user/%/rooms/!r:test/account_data/b", me), token, nil), 404, "M_NOT_FOUND")
		s.ok("DELETE", unstable+path("/user/%/rooms/!r:test/account_data/b", me), token, nil)
		s.want(s.do("DELETE", unstable+path("/user/%/account_data/m.push_rules", me), token, nil), 405, "M_BAD_JSON")
		mu.Lock()
		defer mu.Unlock()
		if len(notices) != 6 || notices[0].User != me || notices[0].Pos != p1 {
			t.Errorf("notices: %+v", notices)
		}
	})
}

func TestTags(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice, bob := s.user("alice"), s.user("bob")
		base := path("/user/%/rooms/%/tags", "@alice:test", "!r:test")
		if a := s.ok("GET", base, alice, nil); a.Raw != `{"tags":{}}` {
			t.Errorf("no tags: %s", a.Raw)
		}
		s.ok("PUT", base+"/m.favourite", alice, `{"order":0.25,"custom":true}`)
		s.ok("PUT", base+"/u.Work%2Fhome", alice, `{}`)
		if a := s.ok("GET", base, alice, nil); a.Raw != `{"tags":{"m.favourite":{"order":0.25,"custom":true},"u.Work/home":{}}}` {
			t.Errorf("tags: %s", a.Raw)
		}
		// They are the content of m.tag.
		if a := s.ok("GET", path("/user/%/rooms/%/account_data/m.tag", "@alice:test", "!r:test"), alice, nil); a.Get(`tags.m\.favourite.order`).Num != 0.25 {
			t.Errorf("m.tag: %s", a.Raw)
		}
		head := db.Head()
		s.ok("DELETE", base+"/none", alice, nil)
		if db.Head() != head {
			t.Error("deleting a tag that is not there wakes devices")
		}
		s.ok("DELETE", base+"/m.favourite", alice, nil)
		s.ok("DELETE", base+"/u.Work%2Fhome", alice, nil)
		if a := s.ok("GET", base, alice, nil); a.Raw != `{"tags":{}}` {
			t.Errorf("after deletion: %s", a.Raw)
		}
		s.want(s.do("PUT", base+"/a", alice, `{"order":"0.5"}`), 400, "M_BAD_JSON")
		s.want(s.do("PUT", base+"/a", alice, `{"order":1.5}`), 400, "M_INVALID_PARAM")
		s.want(s.do("PUT", base+"/"+strings.Repeat("a", 256), alice, `{}`), 400, "M_INVALID_PARAM")
		s.want(s.do("PUT", base+"/a", alice, `{"x":"`+strings.Repeat("x", 64<<10)+`"}`), 413, "M_TOO_LARGE")
		s.want(s.do("PUT", path("/user/%/rooms/%/tags/a", "@alice:test", "r"), alice, `{}`), 400, "M_INVALID_PARAM")
		s.want(s.do("GET", base, bob, nil), 403, "M_FORBIDDEN")
		s.want(s.do("PUT", base+"/a", bob, `{}`), 403, "M_FORBIDDEN")
		s.want(s.do("DELETE", base+"/a", bob, nil), 403, "M_FORBIDDEN")
		// Another client wrote something else.
		s.ok("PUT", path("/user/%/rooms/%/account_data/m.tag", "@alice:test", "!r:test"), alice, `{"tags":[1]}`)
		s.ok("PUT", base+"/m.favourite", alice, `{}`)
		if a := s.ok("GET", base, alice, nil); a.Raw != `{"tags":{"m.favourite":{}}}` {
			t.Errorf("after a malformed m.tag: %s", a.Raw)
		}
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() { s.ok("PUT", fmt.Sprintf("%s/t%d", base, i), alice, `{}`) })
		}
		wg.Wait()
		if n := len(s.ok("GET", base, alice, nil).Get("tags").Map()); n != 11 {
			t.Errorf("%d tags after parallel changes, want 11", n)
		}
	})
}

func TestFilters(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice, bob := s.user("alice"), s.user("bob")
		base := path("/user/%/filter", "@alice:test")
		const text = `{"room":{"timeline":{"limit":10}},"custom":1}`
		id := s.ok("POST", base, alice, text).Get("filter_id").Str
		if id == "" || id[0] == '{' || strings.ContainsAny(id, "/?#") {
			t.Errorf("filter id %q", id)
		}
		if a := s.ok("GET", base+"/"+id, alice, nil); a.Raw != text {
			t.Errorf("filter: %s", a.Raw)
		}
		if again := s.ok("POST", base, alice, text).Get("filter_id").Str; again != id {
			t.Error("the same filter gets another id")
		}
		if other := s.ok("POST", base, alice, `{}`).Get("filter_id").Str; other == id {
			t.Error("another filter gets the same id")
		}
		s.want(s.do("GET", base+"/none", alice, nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", path("/user/%/filter/", "@bob:test")+id, bob, nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", base+"/"+id, bob, nil), 403, "M_FORBIDDEN")
		s.want(s.do("POST", base, bob, `{}`), 403, "M_FORBIDDEN")
		s.want(s.do("POST", base, alice, `{"room":{"timeline":{"rooms":["not_a_room_id"]}}}`), 400, "M_BAD_JSON")
		s.want(s.do("POST", base, alice, `{"presence":"x"}`), 400, "M_BAD_JSON")
		s.want(s.do("POST", base, alice, `[]`), 400, "M_BAD_JSON")
		s.want(s.do("POST", base, alice, `{`), 400, "M_NOT_JSON")
		s.want(s.do("POST", base, alice, `{"a":"`+strings.Repeat("x", 70_000)+`"}`), 413, "M_TOO_LARGE")
		err := db.Read(context.Background(), func(tx *storage.Tx) error {
			stored, err := Filter(tx, "@alice:test", id)
			if string(stored) != text {
				t.Errorf("Filter = %s", stored)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Write(context.Background(), func(tx *storage.Tx) error {
			for i := range maxFilters {
				if _, err := tx.Exec(`INSERT INTO filters (user_id, filter_id, content) VALUES ($1, $2, $3)`, "@bob:test", fmt.Sprint(i), "{}"); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.want(s.do("POST", path("/user/%/filter", "@bob:test"), bob, `{}`), 413, "M_TOO_LARGE")
	})
}

func TestProfile(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		alice, bob := s.user("alice"), s.user("bob")
		me := path("/profile/%", "@alice:test")
		if a := s.ok("GET", me, "", nil); a.Raw != `{"displayname":"alice"}` {
			t.Errorf("new profile: %s", a.Raw)
		}
		s.ok("DELETE", me+"/displayname", alice, nil)
		if a := s.ok("GET", me, "", nil); a.Raw != `{}` {
			t.Errorf("profile without a name: %s", a.Raw)
		}
		s.want(s.do("GET", me+"/displayname", "", nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", path("/profile/%", "@nobody:test"), "", nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", path("/profile/%/displayname", "@nobody:test"), "", nil), 404, "M_NOT_FOUND")
		s.want(s.do("GET", path("/profile/%", "@remote:other"), "", nil), 404, "M_NOT_FOUND")

		s.ok("PUT", me+"/displayname", alice, `{"displayname":"Ålice"}`)
		s.ok("PUT", me+"/avatar_url", alice, `{"avatar_url":"mxc://a/b"}`)
		s.ok("PUT", me+"/m.tz", alice, `{"m.tz":"Europe/London"}`)
		s.ok("PUT", me+"/org.example.job", alice, `{"org.example.job":{"title":"x","n":[1,null]}}`)
		s.ok("PUT", me+"/org.example.null", alice, `{"org.example.null":null}`)
		if a := s.ok("GET", me, "", nil); a.Raw != `{"avatar_url":"mxc://a/b","displayname":"Ålice","m.tz":"Europe/London","org.example.job":{"title":"x","n":[1,null]},"org.example.null":null}` {
			t.Errorf("profile: %s", a.Raw)
		}
		if a := s.ok("GET", me+"/displayname", "", nil); a.Raw != `{"displayname":"Ålice"}` {
			t.Errorf("field: %s", a.Raw)
		}
		s.ok("DELETE", me+"/org.example.null", alice, nil)
		s.ok("DELETE", me+"/org.example.null", alice, nil)
		s.want(s.do("GET", me+"/org.example.null", "", nil), 404, "M_NOT_FOUND")
		s.ok("PUT", me+"/avatar_url", alice, `{"avatar_url":""}`)
		s.want(s.do("GET", me+"/avatar_url", "", nil), 404, "M_NOT_FOUND")

		tests := []struct {
			method, field, token, body string
			status                     int
			code                       string
		}{
			{"PUT", "displayname", alice, `{}`, 400, "M_MISSING_PARAM"},
			{"PUT", "displayname", alice, `{"avatar_url":"x"}`, 400, "M_MISSING_PARAM"},
			{"PUT", "displayname", alice, `{"displayname":1}`, 400, "M_BAD_JSON"},
			{"PUT", "displayname", alice, `{"displayname":null}`, 400, "M_BAD_JSON"},
			{"PUT", "displayname", alice, `{"displayname":"` + strings.Repeat("é", 257) + `"}`, 400, "M_INVALID_PARAM"},
			{"PUT", "avatar_url", alice, `{"avatar_url":"` + strings.Repeat("a", 1001) + `"}`, 400, "M_INVALID_PARAM"},
			{"PUT", "m.tz", alice, `{"m.tz":1}`, 400, "M_BAD_JSON"},
			{"PUT", "displayname", alice, `{`, 400, "M_NOT_JSON"},
			{"PUT", "displayname", alice, `[]`, 400, "M_BAD_JSON"},
			{"PUT", "displayname", bob, `{"displayname":"x"}`, 403, "M_FORBIDDEN"},
			{"DELETE", "displayname", bob, ``, 403, "M_FORBIDDEN"},
			{"PUT", "displayname", "", `{"displayname":"x"}`, 401, "M_MISSING_TOKEN"},
			{"PUT", "Upper.Case", alice, `{"Upper.Case":1}`, 400, "M_INVALID_PARAM"},
			{"PUT", "1a.b", alice, `{"1a.b":1}`, 400, "M_INVALID_PARAM"},
			{"PUT", "a.b%20c", alice, `{"a.b c":1}`, 400, "M_INVALID_PARAM"},
			{"DELETE", "Upper", alice, ``, 400, "M_INVALID_PARAM"},
			{"GET", "Upper", alice, ``, 400, "M_INVALID_PARAM"},
			{"PUT", "a." + strings.Repeat("b", 254), alice, `{"a":1}`, 400, "M_KEY_TOO_LARGE"},
			{"PUT", "a.big", alice, `{"a.big":"` + strings.Repeat("x", 64<<10) + `"}`, 400, "M_PROFILE_TOO_LARGE"},
		}
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s %.20s %.20s", tt.method, tt.field, tt.body), func(t *testing.T) {
				s.t = t
				s.want(s.do(tt.method, me+"/"+tt.field, tt.token, tt.body), tt.status, tt.code)
			})
		}
		s.t = t
		// The limit is of the whole profile, and exact.
		used := len(s.ok("GET", me, "", nil).Raw)
		room := 64<<10 - used - len(`,"a.rest":""`)
		s.want(s.do("PUT", me+"/a.rest", alice, `{"a.rest":"`+strings.Repeat("x", room)+`"}`), 400, "M_PROFILE_TOO_LARGE")
		s.ok("PUT", me+"/a.rest", alice, `{"a.rest":"`+strings.Repeat("x", room-1)+`"}`)
		if n := len(s.ok("GET", me, "", nil).Raw); n != 64<<10-1 {
			t.Errorf("the profile has %d bytes", n)
		}
		s.ok("PUT", me+"/a.rest", alice, `{"a.rest":1}`)

		err := db.Read(context.Background(), func(tx *storage.Tx) error {
			name, avatar, err := MemberProfile(tx, "@alice:test")
			if name != "Ålice" || avatar != "" {
				t.Errorf("MemberProfile = %q, %q", name, avatar)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.setSuspended(context.Background(), "@alice:test", true); err != nil {
			t.Fatal(err)
		}
		s.want(s.do("PUT", me+"/displayname", alice, `{"displayname":"x"}`), 403, "M_USER_SUSPENDED")
	})
}

func TestProfileChangesReachRooms(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		me := path("/profile/%", "@alice:test")
		s.ok("PUT", me+"/displayname", token, `{"displayname":"A"}`)
		s.ok("PUT", me+"/displayname?org.matrix.msc4069.propagate=false", token, `{"displayname":"B"}`)
		s.ok("PUT", me+"/displayname?computer.gingershaped.msc4466.propagate_to=none", token, `{"displayname":"C"}`)
		s.ok("PUT", me+"/displayname?computer.gingershaped.msc4466.propagate_to=unchanged", token, `{"displayname":"D"}`)
		s.ok("PUT", me+"/m.tz", token, `{"m.tz":"UTC"}`)
		s.ok("PUT", me+"/avatar_url", token, `{"avatar_url":"mxc://a/b"}`)
		s.ok("DELETE", me+"/displayname", token, nil)
		s.want(s.do("PUT", me+"/displayname?computer.gingershaped.msc4466.propagate_to=some", token, `{"displayname":"C"}`), 400, "M_INVALID_PARAM")
		// Who was answered finds the change in the rooms already.
		got, _ := s.rooms.seen()
		want := []ProfileChange{
			{"displayname", "alice", "A", false},
			{"displayname", "C", "D", true},
			{"avatar_url", "", "mxc://a/b", false},
			{"displayname", "D", "", false},
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("rooms heard %+v, want %+v", got, want)
		}
	})
}

func TestDiscovery(t *testing.T) {
	each(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		token := s.user("alice")
		v := s.ok("GET", "/_matrix/client/versions", "", nil)
		if v.Get("versions.0").Str != "v1.1" || !v.Get("unstable_features").IsObject() {
			t.Errorf("versions: %s", v.Raw)
		}
		s.ok("GET", "/_matrix/client/versions", "expired", nil)
		c := s.ok("GET", "/capabilities", token, nil).Get("capabilities")
		if !c.Get(`m\.change_password.enabled`).Bool() || c.Get(`m\.room_versions.default`).Str != "12" || c.Get(`m\.room_versions.available.11`).Str != "stable" ||
			c.Get(`m\.3pid_changes.enabled`).Bool() || !c.Get(`m\.3pid_changes.enabled`).Exists() || !c.Get(`m\.get_login_token.enabled`).Bool() {
			t.Errorf("capabilities: %s", c.Raw)
		}
		s.want(s.do("GET", "/capabilities", "", nil), 401, "M_MISSING_TOKEN")
		for _, name := range []string{"client", "server", "support"} {
			s.want(s.do("GET", "/.well-known/matrix/"+name, "", nil), 404, "M_NOT_FOUND")
		}
		s.cfg.WellKnown = WellKnown{ClientURL: "https://c", Server: "s:443", Contacts: []Contact{{Email: "a@b", Role: "m.role.admin"}}, SupportPage: "https://p"}
		for name, want := range map[string]string{
			"client":  `{"m.homeserver":{"base_url":"https://c"}}`,
			"server":  `{"m.server":"s:443"}`,
			"support": `{"contacts":[{"email_address":"a@b","role":"m.role.admin"}],"support_page":"https://p"}`,
		} {
			a := s.ok("GET", "/.well-known/matrix/"+name, "", nil)
			if a.Raw != want || a.header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s: %s", name, a.Raw)
			}
		}
	})
}
