package directory_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

// roomIDs are the ids of an array of rooms.
func roomIDs(rooms gjson.Result) []string {
	ids := []string{}
	for _, r := range rooms.Array() {
		ids = append(ids, r.Get("room_id").Str)
	}
	return ids
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestPublicRooms(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, nobody := s.Register(t, "alice"), s.Register(t, "bob"), s.Client(t)
		search := func(body J) gjson.Result { return bob.Must("POST", Path("/publicRooms"), body).JSON }
		if r := nobody.Must("GET", Path("/publicRooms"), nil).JSON; r.Get("chunk").Raw != "[]" || r.Get("total_room_count_estimate").Int() != 0 {
			t.Errorf("the empty directory is %v", r)
		}
		small := alice.Create(J{"visibility": "public", "name": "Small", "topic": "Wombles and others", "room_alias_name": "small"})
		large := alice.Create(J{"visibility": "public", "name": "Large ÄRGER"})
		space := alice.Create(J{"visibility": "public", "preset": "private_chat", "name": "Space", "creation_content": J{"type": "m.space"}})
		alice.Create(J{"preset": "public_chat", "name": "Hidden"})
		bob.Join(large)
		all := search(J{})
		want(t, "the largest comes first", roomIDs(all.Get("chunk"))[0], large)
		want(t, "total", all.Get("total_room_count_estimate").Int(), int64(3))
		want(t, "everyone sees the same", nobody.Must("GET", Path("/publicRooms"), nil).JSON.Raw, all.Raw)

		for _, c := range []struct {
			name   string
			filter J
			want   []string
		}{
			{"topic", J{"generic_search_term": "wOmBles"}, []string{small}},
			{"name beyond ASCII", J{"generic_search_term": "ärger"}, []string{large}},
			{"alias", J{"generic_search_term": "#small:"}, []string{small}},
			{"nothing", J{"generic_search_term": "Hidden"}, []string{}},
			{"spaces", J{"room_types": []any{"m.space"}}, []string{space}},
			{"rooms", J{"room_types": []any{nil}, "generic_search_term": "a"}, []string{large, small}},
			{"no type at all", J{"room_types": []any{}}, []string{}},
		} {
			want(t, c.name, roomIDs(search(J{"filter": c.filter}).Get("chunk")), c.want)
		}

		r := search(J{"filter": J{"generic_search_term": "wombles"}}).Get("chunk.0")
		for path, value := range map[string]any{
			"name": "Small", "topic": "Wombles and others", "canonical_alias": "#small:" + s.Name, "num_joined_members": 1.0,
			"world_readable": false, "guest_can_join": false, "join_rule": "public", "room_type": nil, "avatar_url": nil,
		} {
			want(t, path, r.Get(path).Value(), value)
		}

		// Changes show at once: state, members, and leaving the directory.
		alice.State(small, "m.room.topic", "", J{"topic": "old form", "m.topic": J{"m.text": []J{{"mimetype": "text/html", "body": "<b>new</b>"}, {"body": "new"}}}})
		alice.State(small, "m.room.history_visibility", "", J{"history_visibility": "world_readable"})
		bob.Leave(large)
		r = search(J{"filter": J{"generic_search_term": "small"}}).Get("chunk.0")
		want(t, "topic", r.Get("topic").Str, "new")
		want(t, "world_readable", r.Get("world_readable").Bool(), true)
		want(t, "members", search(J{"filter": J{"generic_search_term": "large"}}).Get("chunk.0.num_joined_members").Int(), int64(1))
		want(t, "listed", nobody.Must("GET", Path("/directory/list/room/%s", small), nil).JSON.Get("visibility").Str, "public")
		alice.Must("PUT", Path("/directory/list/room/%s", small), J{"visibility": "private"})
		want(t, "unlisted", nobody.Must("GET", Path("/directory/list/room/%s", small), nil).JSON.Get("visibility").Str, "private")
		want(t, "unlisted", slices.Contains(roomIDs(search(J{}).Get("chunk")), small), false)
		bob.Refused(403, "M_FORBIDDEN", "PUT", Path("/directory/list/room/%s", small), J{})
		alice.Refused(400, "M_INVALID_PARAM", "PUT", Path("/directory/list/room/%s", small), J{"visibility": "secret"})
		alice.Must("PUT", Path("/directory/list/room/%s", small), J{})
		want(t, "listed by default", slices.Contains(roomIDs(search(J{}).Get("chunk")), small), true)
		nobody.Refused(404, "M_NOT_FOUND", "GET", Path("/directory/list/room/%s", "!none:"+s.Name), nil)
		alice.Refused(404, "M_NOT_FOUND", "PUT", Path("/directory/list/room/%s", "!none:"+s.Name), J{})

		if a, err := alice.Send("POST", "/_matrix/client/v3/publicRooms?server=127.0.0.1:1", J{}); err != nil || a.Status != 502 {
			t.Errorf("the directory of a server that does not exist: %v, %v", a, err)
		}
		bob.Refused(400, "M_INVALID_PARAM", "POST", Path("/publicRooms?server=a%20b"), J{})
		bob.Refused(400, "M_INVALID_PARAM", "POST", Path("/publicRooms"), J{"since": "%%%"})
		bob.Refused(400, "M_INVALID_PARAM", "POST", Path("/publicRooms"), J{"limit": -1})
		bob.Refused(400, "M_BAD_JSON", "POST", Path("/publicRooms"), J{"filter": J{"room_types": "m.space"}})
		nobody.Refused(401, "M_MISSING_TOKEN", "POST", Path("/publicRooms"), J{})
		want(t, "its own name", len(roomIDs(bob.Must("GET", Path("/publicRooms?server="+s.Name), nil).JSON.Get("chunk"))), 3)
	})
}

func TestPublicRoomsPages(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		for i := range 7 {
			alice.Create(J{"visibility": "public", "name": fmt.Sprint("room ", i)})
		}
		whole := roomIDs(alice.Must("GET", Path("/publicRooms"), nil).JSON.Get("chunk"))
		var forward, backward []string
		get := func(since string) gjson.Result {
			return alice.Must("GET", Path("/publicRooms?limit=3&since="+url.QueryEscape(since)), nil).JSON
		}
		p := get("")
		want(t, "the first page has nothing before it", p.Get("prev_batch").Exists(), false)
		for forward = roomIDs(p.Get("chunk")); p.Get("next_batch").Exists(); forward = append(forward, roomIDs(p.Get("chunk"))...) {
			if len(forward) == 3 {
				s.Restart() // tokens survive
			}
			p = get(p.Get("next_batch").Str)
		}
		want(t, "forward", forward, whole)
		for backward = roomIDs(p.Get("chunk")); p.Get("prev_batch").Exists(); backward = append(roomIDs(p.Get("chunk")), backward...) {
			p = get(p.Get("prev_batch").Str)
		}
		want(t, "backward", backward, whole)
	})
}

func TestNetworks(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "irc.yaml")
			registration := "id: bridge\nurl: null\nas_token: as\nhs_token: hs\nsender_localpart: irc\nnamespaces: {users: [], aliases: [], rooms: []}\n"
			if err := os.WriteFile(file, []byte(registration), 0o600); err != nil {
				t.Fatal(err)
			}
			s := Start(t, d, func(c *config.Config) { c.Appservices.Files = []string{file} })
			alice, bridge := s.Register(t, "alice"), s.Client(t)
			bridge.Token = "as"
			listed := alice.Create(J{"visibility": "public"})
			bridged := alice.Create(J{"preset": "public_chat"})
			path := Path("/directory/list/appservice/%s/%s", "libera", bridged)
			alice.Refused(403, "M_FORBIDDEN", "PUT", path, J{"visibility": "public"})
			bridge.Refused(400, "M_MISSING_PARAM", "PUT", path, J{})
			bridge.Refused(404, "M_NOT_FOUND", "PUT", Path("/directory/list/appservice/%s/%s", "libera", "!no:where"), J{"visibility": "public"})
			bridge.Must("PUT", path, J{"visibility": "public"})
			search := func(body J) []string {
				return roomIDs(alice.Must("POST", Path("/publicRooms"), body).JSON.Get("chunk"))
			}
			want(t, "the server's own", search(J{}), []string{listed})
			want(t, "the network's", search(J{"third_party_instance_id": "libera"}), []string{bridged})
			want(t, "the network's, with the service", search(J{"third_party_instance_id": "bridge|libera"}), []string{bridged})
			want(t, "another network's", search(J{"third_party_instance_id": "oftc"}), []string{})
			want(t, "all", len(search(J{"include_all_networks": true})), 2)
			alice.Refused(400, "M_INVALID_PARAM", "POST", Path("/publicRooms"), J{"include_all_networks": true, "third_party_instance_id": "libera"})
			bridge.Must("PUT", path, J{"visibility": "private"})
			want(t, "the network's", search(J{"third_party_instance_id": "libera"}), []string{})
		})
	}
}
