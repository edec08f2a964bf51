package directory_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// tree makes spaces and rooms of alice's and links them; it returns ids by name.
func tree(c *Client, spaces, rooms string, links ...[2]string) map[rune]string {
	ids := map[rune]string{}
	for _, n := range spaces {
		ids[n] = c.Create(J{"preset": "public_chat", "name": string(n), "creation_content": J{"type": "m.space"}})
	}
	for _, n := range rooms {
		ids[n] = c.Create(J{"preset": "public_chat", "name": string(n)})
	}
	for _, l := range links {
		for _, to := range l[1] {
			c.State(ids[rune(l[0][0])], "m.space.child", ids[to], J{"via": []string{"x"}})
			time.Sleep(2 * time.Millisecond) // so that their times differ, which is what orders them
		}
	}
	return ids
}

// names are the names of rooms in order, as one text.
func names(rooms gjson.Result) (s string) {
	for _, r := range rooms.Array() {
		s += r.Get("name").Str
	}
	return s
}

func hierarchy(c *Client, room string, query ...string) *Answer {
	q := url.Values{}
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	return c.Do("GET", "/_matrix/client/v1/rooms/"+url.PathEscape(room)+"/hierarchy?"+q.Encode(), nil)
}

func TestHierarchy(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		// The loop from T to S is broken, and a child of a room that is no space is none.
		ids := tree(alice, "STU", "abcd", [2]string{"S", "aTb"}, [2]string{"T", "UcS"}, [2]string{"U", "d"}, [2]string{"b", "c"})
		alice.State(ids['S'], "m.space.child", "!unknown:elsewhere", J{"via": []string{"elsewhere"}})
		alice.State(ids['S'], "m.space.child", ids['d'], J{"via": []string{}}) // not a child
		want(t, "whole", names(hierarchy(bob, ids['S']).JSON.Get("rooms")), "SaTUdcb")
		for depth, names0 := range map[string]string{"0": "S", "1": "SaTb", "2": "SaTUcb"} {
			want(t, "depth "+depth, names(hierarchy(bob, ids['S'], "max_depth", depth).JSON.Get("rooms")), names0)
		}
		r := hierarchy(bob, ids['S'], "max_depth", "1").JSON
		want(t, "children of the deepest", len(r.Get("rooms.2.children_state").Array()), 3)
		want(t, "children of a room", r.Get("rooms.1.children_state").Raw, "[]")
		c := r.Get("rooms.0.children_state.0")
		want(t, "stripped", []any{c.Get("type").Str, c.Get("state_key").Str, c.Get("sender").Str, c.Get("content.via.0").Str, c.Get("origin_server_ts").Int() > 0, len(c.Map())},
			[]any{"m.space.child", ids['a'], alice.UserID, "x", true, 5})
		want(t, "described", []any{r.Get("rooms.0.room_type").Str, r.Get("rooms.0.num_joined_members").Int(), r.Get("rooms.0.room_version").Exists()}, []any{"m.space", int64(1), true})

		var got string
		p := hierarchy(bob, ids['S'], "limit", "2", "max_depth", "2").JSON
		for got = names(p.Get("rooms")); p.Get("next_batch").Exists(); got += names(p.Get("rooms")) {
			if len(got) == 4 {
				s.Restart() // tokens survive
			}
			p = hierarchy(bob, ids['S'], "limit", "2", "from", p.Get("next_batch").Str).JSON
		}
		want(t, "pages", got, "SaTUcb")
		token := hierarchy(bob, ids['S'], "limit", "2", "max_depth", "2").JSON.Get("next_batch").Str
		for _, q := range [][]string{{"from", token, "max_depth", "1"}, {"from", token, "suggested_only", "true"}, {"from", "bad"}, {"limit", "0"}, {"max_depth", "-1"}} {
			if a := hierarchy(bob, ids['S'], q...); a.Status != 400 || a.Code() != "M_INVALID_PARAM" {
				t.Errorf("%v: %v", q, a)
			}
		}
		if a := hierarchy(bob, ids['T'], "from", token); a.Status != 400 {
			t.Errorf("a token of another space: %v", a)
		}
		// The last room of a page is gone: the next one begins where it was.
		alice.State(ids['S'], "m.space.child", ids['a'], J{})
		want(t, "after a change", names(hierarchy(bob, ids['S'], "from", token).JSON.Get("rooms")), "Ucb")

		alice.State(ids['S'], "m.space.child", ids['b'], J{"via": []string{"x"}, "suggested": true})
		r = hierarchy(bob, ids['S'], "suggested_only", "true").JSON
		want(t, "suggested", names(r.Get("rooms")), "Sb")
		want(t, "suggested children", len(r.Get("rooms.0.children_state").Array()), 1)
		for _, room := range []string{"!none:" + s.Name, alice.Create(J{"creation_content": J{"type": "m.space"}})} {
			if a := hierarchy(bob, room); a.Status != 403 || a.Code() != "M_FORBIDDEN" {
				t.Errorf("a space that bob may not see: %v", a)
			}
		}
	})
}

func TestHierarchyOrder(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		ids := tree(alice, "S", "abcdefg")
		for _, c := range []struct {
			room  rune
			order any
		}{{'e', nil}, {'d', "bad\n"}, {'c', "first"}, {'a', "aaaa"}, {'b', " "}, {'g', 5}, {'f', fmt.Sprintf("%051d", 1)}} {
			content := J{"via": []string{"x"}}
			if c.order != nil {
				content["order"] = c.order
			}
			alice.State(ids['S'], "m.space.child", ids[c.room], content)
			time.Sleep(2 * time.Millisecond) // so that their times differ
		}
		want(t, "order, then time", names(hierarchy(alice, ids['S']).JSON.Get("rooms")), "Sbacedgf")
	})
}

func TestHierarchyShowsWhatOneMaySee(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		ids := tree(alice, "S", "p")
		state := func(typ string, content J) []J { return []J{{"type": typ, "content": content}} }
		restricted := J{"join_rule": "restricted", "allow": []J{{"type": "m.room_membership", "room_id": ids['p']}}}
		for name, request := range map[string]J{
			"i": {"preset": "private_chat"},
			"v": {"preset": "private_chat", "invite": []string{bob.UserID}},
			"k": {"initial_state": state("m.room.join_rules", J{"join_rule": "knock"})},
			"o": {"room_version": "6", "initial_state": state("m.room.join_rules", J{"join_rule": "knock"})}, // no knocking there
			"r": {"initial_state": state("m.room.join_rules", restricted)},
			"w": {"initial_state": state("m.room.history_visibility", J{"history_visibility": "world_readable"})},
			"b": {"preset": "public_chat"},
		} {
			request["name"] = name
			room := alice.Create(request)
			if name == "b" {
				alice.Change("ban", room, bob.UserID)
			}
			alice.State(ids['S'], "m.space.child", room, J{"via": []string{"x"}, "order": name})
		}
		alice.State(ids['S'], "m.space.child", ids['p'], J{"via": []string{"x"}, "order": "p"})
		bob.Join(ids['p'])
		want(t, "for one who made them", names(hierarchy(alice, ids['S']).JSON.Get("rooms")), "Sbikoprvw")
		want(t, "for bob", names(hierarchy(bob, ids['S']).JSON.Get("rooms")), "Skprvw")
		want(t, "for carol", names(hierarchy(carol, ids['S']).JSON.Get("rooms")), "Sbkpw")
		alice.Change("ban", ids['S'], carol.UserID)
		if a := hierarchy(carol, ids['S']); a.Status != 403 {
			t.Errorf("for someone banned: %v", a)
		}
		s.Client(t).Refused(401, "M_MISSING_TOKEN", "GET", "/_matrix/client/v1/rooms/"+url.PathEscape(ids['S'])+"/hierarchy", nil)
	})
}

func TestRoomSummary(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, nobody := s.Register(t, "alice"), s.Register(t, "bob"), s.Client(t)
		path := func(room string) string { return "/_matrix/client/v1/room_summary/" + url.PathEscape(room) }
		public := alice.Create(J{"preset": "public_chat", "name": "Cheese", "topic": "Tasty", "room_alias_name": "cheese", "room_version": "11",
			"creation_content": J{"type": "m.space"}, "initial_state": []J{
				{"type": "m.room.encryption", "content": J{"algorithm": "m.megolm.v1.aes-sha2"}},
				{"type": "m.room.avatar", "content": J{"url": "mxc://a/b"}},
			}})
		r := nobody.Must("GET", path(public), nil).JSON
		for name, value := range map[string]any{
			"room_id": public, "name": "Cheese", "topic": "Tasty", "canonical_alias": "#cheese:" + s.Name, "avatar_url": "mxc://a/b",
			"join_rule": "public", "room_type": "m.space", "room_version": "11", "encryption": "m.megolm.v1.aes-sha2",
			"num_joined_members": 1.0, "guest_can_join": false, "world_readable": false, "membership": nil, "allowed_room_ids": nil,
		} {
			want(t, name, r.Get(name).Value(), value)
		}
		want(t, "by alias", bob.Must("GET", path("#cheese:"+s.Name), nil).JSON.Get("room_id").Str, public)
		for _, c := range []struct {
			who  *Client
			want string
		}{{alice, "join"}, {bob, "leave"}} {
			want(t, "membership", c.who.Must("GET", path(public), nil).JSON.Get("membership").Str, c.want)
		}
		old := "/_matrix/client/unstable/im.nheko.summary/summary/" + url.PathEscape(public)
		want(t, "as before", bob.Must("GET", old, nil).JSON.Get("im\\.nheko\\.summary\\.encryption").Str, "m.megolm.v1.aes-sha2")

		restricted := alice.Create(J{"initial_state": []J{{"type": "m.room.join_rules", "content": J{
			"join_rule": "restricted", "allow": []J{{"type": "m.room_membership", "room_id": public}, {"type": "other", "room_id": "!x:y"}}}}}})
		want(t, "allowed", alice.Must("GET", path(restricted), nil).JSON.Get("allowed_room_ids").Raw, `["`+public+`"]`)
		bob.Refused(404, "M_NOT_FOUND", "GET", path(restricted), nil)
		nobody.Refused(404, "M_NOT_FOUND", "GET", path(restricted), nil)
		bob.Join(public)
		bob.Must("GET", path(restricted), nil)

		private := alice.Create(J{"preset": "private_chat"})
		for _, room := range []string{private, "!none:" + s.Name, "#none:" + s.Name} {
			bob.Refused(404, "M_NOT_FOUND", "GET", path(room), nil)
		}
		alice.Change("invite", private, bob.UserID)
		want(t, "invited", bob.Must("GET", path(private), nil).JSON.Get("membership").Str, "invite")
		bob.Refused(400, "M_INVALID_PARAM", "GET", path("neither"), nil)
	})
}

func TestMutualRooms(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		path := func(user string) string {
			return "/_matrix/client/v1/mutual_rooms?user_id=" + url.QueryEscape(user)
		}
		var shared []string
		for range 3 {
			room := alice.Create(J{"preset": "public_chat"})
			bob.Join(room)
			shared = append(shared, room)
		}
		alice.Create(J{"invite": []string{bob.UserID}})
		bob.Leave(shared[0])
		shared = shared[1:]
		slices.Sort(shared)
		r := alice.Must("GET", path(bob.UserID), nil).JSON
		got := []string{}
		for _, id := range r.Get("joined").Array() {
			got = append(got, id.Str)
		}
		want(t, "shared", got, shared)
		want(t, "count", r.Get("count").Int(), int64(2))
		want(t, "next", r.Get("next_batch").Exists(), false)
		want(t, "nobody", alice.Must("GET", path("@none:"+s.Name), nil).JSON.Raw, `{"joined":[],"count":0}`)
		want(t, "as before", len(alice.Must("GET", "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms?user_id="+url.QueryEscape(bob.UserID), nil).JSON.Get("joined").Array()), 2)
		for _, p := range []string{path(alice.UserID), path("bob"), path(""), path(bob.UserID) + "&from=bad"} {
			alice.Refused(400, "M_INVALID_PARAM", "GET", p, nil)
		}
	})
}
