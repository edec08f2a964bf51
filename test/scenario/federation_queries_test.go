package scenario

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/test/harness"
)

func query(path string, pairs ...string) string {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Add(pairs[i], pairs[i+1])
	}
	return path + "?" + q.Encode()
}

// spec: server-server-api v1.19 "Querying for information", "Server implementation"
func TestQueriesOfOtherServers(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		s, peer := servers[0], harness.NewPeer(t, nil)
		alice := s.Register(t, "alice")
		alice.Must("PUT", harness.Path("/profile/%s/displayname", alice.UserID), harness.J{"displayname": "Alice"})
		room := alice.Create(harness.J{"preset": "public_chat", "room_alias_name": "room"})
		const v1 = "/_matrix/federation/v1"
		for _, c := range []struct {
			path   string
			status int
			member string
			want   string
		}{
			{query(v1+"/query/profile", "user_id", alice.UserID), 200, "displayname", "Alice"},
			{query(v1+"/query/profile", "user_id", alice.UserID, "field", "displayname"), 200, "displayname", "Alice"},
			{query(v1+"/query/profile", "user_id", alice.UserID, "field", "avatar_url"), 200, "displayname", ""},
			{query(v1+"/query/profile", "user_id", "@nobody:"+s.Name), 404, "errcode", "M_NOT_FOUND"},
			{query(v1+"/query/profile", "user_id", "@alice:elsewhere"), 400, "errcode", "M_INVALID_PARAM"},
			{query(v1 + "/query/profile"), 400, "errcode", "M_MISSING_PARAM"},
			{query(v1+"/query/directory", "room_alias", "#room:"+s.Name), 200, "room_id", room},
			{query(v1+"/query/directory", "room_alias", "#room:"+s.Name), 200, "servers.0", s.Name},
			{query(v1+"/query/directory", "room_alias", "#none:"+s.Name), 404, "errcode", "M_NOT_FOUND"},
			{query(v1+"/query/directory", "room_alias", "#room:elsewhere"), 404, "errcode", "M_NOT_FOUND"},
			{v1 + "/query/something", 404, "errcode", "M_UNRECOGNIZED"},
			{v1 + "/version", 200, "server.name", "Myelin"},
		} {
			if a := peer.Do(s, "GET", c.path, nil); a.Status != c.status || a.JSON.Get(c.member).Str != c.want {
				t.Errorf("%s: %v, want %d with %s %q", c.path, a, c.status, c.member, c.want)
			}
		}
		s.Client(t).Refused(401, "M_UNAUTHORIZED", "GET", query(v1+"/query/profile", "user_id", alice.UserID), nil)
		s.Client(t).Must("GET", v1+"/version", nil)
	})
}

func TestProfilesAndAliasesOfOtherServers(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		alice.Must("PUT", harness.Path("/profile/%s/displayname", alice.UserID), harness.J{"displayname": "Alice"})
		if got := bob.Must("GET", harness.Path("/profile/%s", alice.UserID), nil).JSON.Get("displayname").Str; got != "Alice" {
			t.Errorf("display name %q", got)
		}
		if got := bob.Must("GET", harness.Path("/profile/%s/displayname", alice.UserID), nil).JSON.Get("displayname").Str; got != "Alice" {
			t.Errorf("display name by itself %q", got)
		}
		bob.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/profile/%s", "@nobody:"+servers[0].Name), nil)
		room := alice.Create(harness.J{"preset": "public_chat", "room_alias_name": "room"})
		found := bob.Must("GET", harness.Path("/directory/room/%s", "#room:"+servers[0].Name), nil).JSON
		if found.Get("room_id").Str != room || !slices.ContainsFunc(found.Get("servers").Array(), func(r gjson.Result) bool { return r.Str == servers[0].Name }) {
			t.Errorf("the alias: %s", found.Raw)
		}
		bob.Refused(404, "M_NOT_FOUND", "GET", harness.Path("/directory/room/%s", "#none:"+servers[0].Name), nil)
		bob.Join("#room:" + servers[0].Name)
		alice.Must("PUT", harness.Path("/profile/%s/displayname", alice.UserID), harness.J{"displayname": "Alice B."})
		bob.Until("the new name in the room", func(sync gjson.Result) bool {
			return strings.Contains(sync.Get("rooms.join").Raw, `"Alice B."`)
		})
		if got := bob.Must("GET", harness.Path("/profile/%s", alice.UserID), nil).JSON.Get("displayname").Str; got != "Alice B." {
			t.Errorf("display name %q after it changed in a room", got)
		}
	})
}

func TestDirectoriesOfOtherServers(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		for _, name := range []string{"Cheese", "Bread", "Wine"} {
			alice.Create(harness.J{"preset": "public_chat", "visibility": "public", "name": name})
		}
		names := func(a *harness.Answer) (list []string) {
			for _, room := range a.JSON.Get("chunk").Array() {
				list = append(list, room.Get("name").Str)
			}
			slices.Sort(list)
			return list
		}
		path := query(harness.Path("/publicRooms"), "server", servers[0].Name)
		if got := names(bob.Must("GET", path, nil)); !slices.Equal(got, []string{"Bread", "Cheese", "Wine"}) {
			t.Errorf("the directory: %q", got)
		}
		if got := names(bob.Must("POST", path, harness.J{"filter": harness.J{"generic_search_term": "ine"}})); !slices.Equal(got, []string{"Wine"}) {
			t.Errorf("a search: %q", got)
		}
		first := bob.Must("POST", path, harness.J{"limit": 2})
		second := bob.Must("POST", path, harness.J{"limit": 2, "since": first.JSON.Get("next_batch").Str})
		if all := append(names(first), names(second)...); len(all) != 3 {
			t.Errorf("pages: %q and %q", names(first), names(second))
		}
		servers[1].Client(t).Refused(401, "M_MISSING_TOKEN", "GET", path, nil)
		peer := harness.NewPeer(t, nil)
		if got := names(peer.Do(servers[0], "GET", "/_matrix/federation/v1/publicRooms?limit=2", nil)); len(got) != 2 {
			t.Errorf("what another server is told: %q", got)
		}
		servers[0].Stop()
		if a, err := bob.Send("GET", path, nil); err != nil || a.Status != 502 {
			t.Errorf("the directory of a server that is gone: %v, %v", a, err)
		}
	})
}

// TestSpacesOfOtherServers looks through a space here at one there, which has a room here among its children.
func TestSpacesOfOtherServers(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		space := func(c *harness.Client, name string) string {
			return c.Create(harness.J{"preset": "public_chat", "name": name, "creation_content": harness.J{"type": "m.space"}})
		}
		child := func(c *harness.Client, of, room, order string, via *harness.Server) {
			c.State(of, "m.space.child", room, harness.J{"via": []string{via.Name}, "order": order})
		}
		here, there, deep := space(bob, "here"), space(alice, "there"), space(alice, "deep")
		public := alice.Create(harness.J{"preset": "public_chat", "name": "public"})
		private := alice.Create(harness.J{"preset": "private_chat", "name": "private"})
		back := bob.Create(harness.J{"preset": "public_chat", "name": "back"})
		last := alice.Create(harness.J{"preset": "public_chat", "name": "last"})
		child(bob, here, there, "a", servers[0])
		child(alice, there, public, "a", servers[0])
		child(alice, there, private, "b", servers[0])
		child(alice, there, back, "c", servers[1])
		child(alice, there, deep, "d", servers[0])
		child(alice, deep, last, "a", servers[0])
		hierarchy := func(more ...string) (list []string) {
			answer := bob.Must("GET", query("/_matrix/client/v1/rooms/"+url.PathEscape(here)+"/hierarchy", more...), nil)
			for _, room := range answer.JSON.Get("rooms").Array() {
				list = append(list, room.Get("name").Str)
			}
			return list
		}
		if got, want := hierarchy(), []string{"here", "there", "public", "back", "deep", "last"}; !slices.Equal(got, want) {
			t.Errorf("the space: %q, want %q", got, want)
		}
		if got, want := hierarchy("max_depth", "2"), []string{"here", "there", "public", "back", "deep"}; !slices.Equal(got, want) {
			t.Errorf("two levels of the space: %q, want %q", got, want)
		}
		// A space that nothing here links to is found through servers that the client names, page by page.
		far := "/_matrix/client/v1/rooms/" + url.PathEscape(deep) + "/hierarchy"
		found := []string{}
		for page := query(far, "limit", "1", "org.matrix.msc4235.via", servers[0].Name); page != ""; {
			a := bob.Must("GET", page, nil).JSON
			found = append(found, a.Get("rooms.0.name").Str)
			if page = ""; a.Get("next_batch").Exists() {
				page = query(far, "limit", "1", "from", a.Get("next_batch").Str)
			}
		}
		if want := []string{"deep", "last"}; !slices.Equal(found, want) {
			t.Errorf("a space there: %q, want %q", found, want)
		}
		apart := space(alice, "apart")
		bob.Refused(403, "M_FORBIDDEN", "GET", "/_matrix/client/v1/rooms/"+url.PathEscape(apart)+"/hierarchy", nil)
		peer := harness.NewPeer(t, nil)
		told := peer.Do(servers[0], "GET", "/_matrix/federation/v1/hierarchy/"+url.PathEscape(there), nil).JSON
		if told.Get("room.name").Str != "there" || told.Get("room.children_state.#").Int() != 4 || told.Get("children.#").Int() != 2 ||
			told.Get("inaccessible_children.#").Int() != 1 || told.Get("inaccessible_children.0").Str != private {
			t.Errorf("what another server is told: %s", told.Raw)
		}
		if a := peer.Do(servers[0], "GET", "/_matrix/federation/v1/hierarchy/"+url.PathEscape(private), nil); a.Status != 404 {
			t.Errorf("another server is told of a private room: %v", a)
		}

		summary := func(room string) string { return "/_matrix/client/v1/room_summary/" + url.PathEscape(room) }
		unheard := alice.Create(harness.J{"preset": "public_chat", "name": "unheard"})
		bob.Refused(404, "M_NOT_FOUND", "GET", summary(unheard), nil) // nobody was named who may know it
		bob.Must("GET", query(summary(unheard), "via", servers[0].Name), nil)
		seen := bob.Must("GET", query(summary(public), "via", servers[0].Name), nil).JSON
		if seen.Get("name").Str != "public" || seen.Get("membership").Str != "leave" || seen.Get("num_joined_members").Int() != 1 {
			t.Errorf("summary: %s", seen.Raw)
		}
		bob.Refused(404, "M_NOT_FOUND", "GET", query(summary(private), "via", servers[0].Name), nil)
		alias := "#public:" + servers[0].Name
		alice.Must("PUT", harness.Path("/directory/room/%s", alias), harness.J{"room_id": public})
		if byAlias := bob.Must("GET", summary(alias), nil).JSON; byAlias.Raw != seen.Raw {
			t.Errorf("summary by alias: %s, by room id: %s", byAlias.Raw, seen.Raw)
		}
		bob.Refused(404, "M_NOT_FOUND", "GET", summary("#nothing:"+servers[0].Name), nil)
		servers[1].Client(t).Refused(404, "M_NOT_FOUND", "GET", summary(alias), nil) // who is not logged in has nobody else asked
	})
}

// TestRoomsToldWithoutTheirRules asks a server that leaves out what it may leave out of what it tells of its rooms: there, no
// join rule means that the room is public.
func TestRoomsToldWithoutTheirRules(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		s := servers[0]
		var room string
		peer := harness.NewPeer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/publicRooms") {
				fmt.Fprintf(w, `{"chunk":[{"room_id":%q,"num_joined_members":1,"world_readable":false,"guest_can_join":false}]}`, room)
				return
			}
			fmt.Fprintf(w, `{"room":{"room_id":%q,"num_joined_members":1,"world_readable":false,"guest_can_join":false,"children_state":[]},
				"children":[],"inaccessible_children":[]}`, room)
		}))
		room = "!room:" + peer.Name
		alice := s.Register(t, "alice")
		space := alice.Create(harness.J{"preset": "public_chat", "creation_content": harness.J{"type": "m.space"}})
		alice.State(space, "m.space.child", room, harness.J{"via": []string{peer.Name}})
		for what, got := range map[string]gjson.Result{
			"directory": alice.Must("GET", query(harness.Path("/publicRooms"), "server", peer.Name), nil).JSON.Get("chunk.0"),
			"hierarchy": alice.Must("GET", "/_matrix/client/v1/rooms/"+url.PathEscape(space)+"/hierarchy", nil).JSON.Get("rooms.1"),
			"summary":   alice.Must("GET", query("/_matrix/client/v1/room_summary/"+url.PathEscape(room), "via", peer.Name), nil).JSON,
		} {
			if got.Get("room_id").Str != room || got.Get("join_rule").Exists() && got.Get("join_rule").Str != "public" || got.Get("room_version").Exists() {
				t.Errorf("%s: %s", what, got.Raw)
			}
		}
	})
}
