package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

const (
	slidingV4    = "/_matrix/client/v4/sync"
	slidingDraft = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
)

// slider is one connection of a device in the accepted dialect.
type slider struct {
	*Client
	name string
	pos  string
}

func (s *slider) body(more J) J {
	body := J{"conn_id": s.name}
	if s.pos != "" {
		body["pos"] = s.pos
	}
	for k, v := range more {
		body[k] = v
	}
	return body
}

// sync asks and goes on from the answer.
func (s *slider) sync(more J) gjson.Result {
	r := s.Must("POST", slidingV4, s.body(more)).JSON
	s.pos = r.Get("pos").Str
	return r
}

// draftBody is a request of the drafts' dialect with one list.
func draftList(from, to, limit int, state ...[]string) J {
	return J{"all": J{"ranges": [][]int{{from, to}}, "timeline_limit": limit, "required_state": append([][]string{}, state...)}}
}

// list is a request's list in the accepted dialect; a negative end means no range.
func list(from, to, limit int, state J) J {
	l := J{"timeline_limit": limit, "required_state": state}
	if to >= 0 {
		l["range"] = []int{from, to}
	}
	return J{"all": l}
}

// slid finds a room in an answer.
func slid(r gjson.Result, id string) gjson.Result { return r.Get("rooms." + Key(id)) }

var everything = J{"include": []J{{}}}

func TestSlidingRoom(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		one := alice.Text(id, "one")
		c := &slider{Client: bob, name: "main"}
		lists := J{"lists": list(0, 9, 2, J{"include": []J{{"type": "m.room.create", "state_key": ""}, {"type": "m.room.topic"}}, "lazy_members": true})}
		answer := c.sync(lists)
		r := slid(answer, id)
		if !r.Get("initial").Bool() || r.Get("membership").Str != "join" || r.Get("lists.0").Str != "all" || r.Get("joined_count").Int() != 2 ||
			!r.Get("limited").Bool() || r.Get("bump_stamp").Int() == 0 || r.Get("num_live").Int() != 0 || r.Get("name").Exists() {
			t.Errorf("the room is new: %s", r)
		}
		if ids := IDs(r.Get("timeline")); len(ids) != 2 || ids[1] != one {
			t.Errorf("timeline %v", ids)
		}
		if r.Get("heroes.0.user_id").Str != alice.UserID {
			t.Errorf("heroes %s", r.Get("heroes"))
		}
		state := r.Get("required_state")
		if !Find(state, "m.room.create", "").Exists() || !Find(state, "m.room.member", alice.UserID).Exists() || len(state.Array()) != 3 {
			t.Errorf("required state %s", state)
		}
		if n := answer.Get("lists.all.count").Int(); n != 1 {
			t.Errorf("count %d", n)
		}
		if r := c.sync(lists); slid(r, id).Exists() || r.Get("lists.all.count").Int() != 1 {
			t.Errorf("nothing has changed: %s", r)
		}
		topic := alice.State(id, "m.room.topic", "", J{"topic": "t"})
		alice.State(id, "m.room.name", "", J{"name": "n"})
		r = slid(c.sync(lists), id)
		if r.Get("initial").Bool() || r.Get("name").Str != "n" || r.Get("num_live").Int() != 2 || r.Get("limited").Bool() || r.Get("joined_count").Exists() ||
			fmt.Sprint(IDs(r.Get("required_state"))) != fmt.Sprint([]string{topic}) {
			t.Errorf("topic and name: %s", r)
		}
		alice.State(id, "m.room.name", "", J{})
		if r = slid(c.sync(lists), id); r.Get("name").Type != gjson.Null || !r.Get("name").Exists() || len(r.Get("heroes").Array()) != 1 {
			t.Errorf("the name is gone: %s", r)
		}
		stamp := r.Get("bump_stamp").Int()
		two := alice.Text(id, "two")
		r = slid(c.sync(lists), id)
		if r.Get("bump_stamp").Int() <= stamp || fmt.Sprint(IDs(r.Get("timeline"))) != fmt.Sprint([]string{two}) {
			t.Errorf("a message: %s", r)
		}
		// prev_batch and pos are places for /messages.
		for _, token := range []string{r.Get("prev_batch").Str, c.pos} {
			if p := bob.Messages(id, token, "b", 1, nil); len(p.Events) != 1 {
				t.Errorf("before %q: %v", token, p)
			}
		}
		bob.Leave(id)
		if r = slid(c.sync(lists), id); r.Get("membership").Str != "leave" || len(r.Get("timeline").Array()) != 1 {
			t.Errorf("left: %s", r)
		}
		alice.Text(id, "after")
		if r := c.sync(lists); slid(r, id).Exists() {
			t.Errorf("after leaving: %s", r)
		}
		bob.Join(id)
		if r = slid(c.sync(lists), id); !r.Get("initial").Bool() || r.Get("membership").Str != "join" {
			t.Errorf("joined again: %s", r)
		}
	})
}

func TestSlidingPositions(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{"name": "room"})
		lists := J{"lists": list(0, 9, 5, everything)}
		main, other := &slider{Client: alice, name: "main"}, &slider{Client: alice, name: "other"}
		main.sync(lists)
		other.sync(lists)
		acked := main.pos
		one := alice.Text(id, "one")
		// The same position gives the same again, also after an answer that got lost, with another body, and after a restart.
		for i := range 3 {
			main.pos = acked
			r := slid(main.sync(lists), id)
			if fmt.Sprint(IDs(r.Get("timeline"))) != fmt.Sprint([]string{one}) || r.Get("initial").Bool() {
				t.Errorf("attempt %d: %s", i, r)
			}
		}
		lost := main.pos
		main.pos = acked
		r := slid(main.sync(J{"room_subscriptions": J{id: J{"timeline_limit": 1, "required_state": J{}}}}), id)
		if fmt.Sprint(IDs(r.Get("timeline"))) != fmt.Sprint([]string{one}) || r.Get("lists").Exists() {
			t.Errorf("with another body: %s", r)
		}
		latest := main.pos
		for _, bad := range []string{lost, "q1_1_1_1_1_1_1", "x", other.pos} {
			main.pos = bad
			main.Refused(400, "M_UNKNOWN_POS", "POST", slidingV4, main.body(lists))
		}
		second := &slider{Client: alice.Login(), name: "main", pos: latest}
		second.Refused(400, "M_UNKNOWN_POS", "POST", slidingV4, second.body(lists))
		s.Restart()
		two := alice.Text(id, "two")
		// The answer that is built on the acknowledged one replaces the latest.
		for _, step := range []struct {
			pos  string
			want []string
		}{{latest, []string{two}}, {latest, []string{two}}} {
			main.pos = step.pos
			if ids := IDs(slid(main.sync(lists), id).Get("timeline")); !slices.Equal(ids, step.want) {
				t.Errorf("after a restart from %s: %v", step.pos, ids)
			}
			s.Restart()
		}
		// Many answers are cut off, and still lead to the same.
		for i := range 120 {
			sent := alice.Text(id, fmt.Sprint(i))
			if ids := IDs(slid(main.sync(lists), id).Get("timeline")); !slices.Equal(ids, []string{sent}) {
				t.Fatalf("message %d: %v", i, ids)
			}
			if i == 110 {
				s.Restart()
			}
		}
		// A device has so many connections and no more.
		for i := range 20 {
			(&slider{Client: alice, name: fmt.Sprint(i)}).sync(lists)
		}
		for range 2 {
			s.Restart()
			(&slider{Client: alice, name: "last"}).sync(lists)
		}
		other.Refused(400, "M_UNKNOWN_POS", "POST", slidingV4, other.body(lists))
	})
}

func TestSlidingLists(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		plain := alice.Create(J{"name": "plain"})
		secret := alice.Create(J{"name": "secret", "initial_state": []J{{"type": "m.room.encryption", "content": J{"algorithm": "m.megolm.v1.aes-sha2"}}}})
		space := alice.Create(J{"name": "space", "creation_content": J{"type": "m.space"}})
		alice.State(space, "m.space.child", plain, J{"via": []string{s.Name}})
		invited := bob.Create(J{"name": "invited", "invite": []string{alice.UserID}})
		kicked := bob.Create(J{"preset": "public_chat", "name": "kicked"})
		alice.Join(kicked)
		bob.Change("kick", kicked, alice.UserID)
		own := bob.Create(J{"preset": "public_chat", "name": "left"})
		alice.Join(own)
		alice.Leave(own)
		user := Path("/user/%s", alice.UserID)
		alice.Must("PUT", user+"/account_data/m.direct", J{bob.UserID: []string{secret}})
		alice.Must("PUT", user+"/rooms/"+plain+"/tags/m.favourite", J{})
		names := map[string]string{plain: "plain", secret: "secret", space: "space", invited: "invited", kicked: "kicked", own: "left"}
		for filters, want := range map[string][]string{
			`{}`:                         {"invited", "kicked", "plain", "secret", "space"},
			`{"is_dm":true}`:             {"secret"},
			`{"is_encrypted":true}`:      {"secret"},
			`{"is_invite":true}`:         {"invited"},
			`{"room_types":["m.space"]}`: {"space"},
			`{"room_types":[null],"is_invite":false}`:           {"kicked", "plain", "secret"},
			`{"not_room_types":["m.space"],"is_invite":false}`:  {"kicked", "plain", "secret"},
			fmt.Sprintf(`{"spaces":[%q]}`, space):               {"plain"},
			`{"tags":["m.favourite"]}`:                          {"plain"},
			`{"not_tags":["m.favourite"],"is_encrypted":false}`: {"invited", "kicked", "space"},
		} {
			a := alice.Must("POST", slidingDraft, `{"lists":{"l":{"ranges":[[0,9]],"timeline_limit":1,"required_state":[],"filters":`+filters+`}}}`).JSON
			var got []string
			a.Get("rooms").ForEach(func(id, _ gjson.Result) bool { got = append(got, names[id.Str]); return true })
			slices.Sort(got)
			if !slices.Equal(got, want) || a.Get("lists.l.count").Int() != int64(len(want)) {
				t.Errorf("%s: %v, want %v, count %s", filters, got, want, a.Get("lists.l.count"))
			}
		}
		// The invite, in both dialects.
		c := &slider{Client: alice}
		r := c.sync(J{"lists": list(0, -1, 1, J{})})
		if p := slid(r, invited); p.Get("membership").Str != "invite" || Find(p.Get("stripped_state"), "m.room.name", "").Get("content.name").Str != "invited" || p.Get("timeline").Exists() {
			t.Errorf("invite: %s", p)
		}
		if p := slid(r, kicked); p.Get("membership").Str != "leave" || !p.Get("initial").Bool() {
			t.Errorf("kicked: %s", p)
		}
		if !slid(r, secret).Get("is_dm").Bool() {
			t.Errorf("a direct chat: %s", slid(r, secret))
		}
		r = alice.Must("POST", slidingDraft, J{"lists": draftList(0, 9, 1)}).JSON
		if !slid(r, invited).Get("invite_state.0").Exists() {
			t.Errorf("invite: %s", slid(r, invited))
		}
		// Windows and growth: what was in the first is not in the second.
		w := &slider{Client: alice, name: "w"}
		r = w.sync(J{"lists": list(0, 1, 1, J{})})
		first := len(r.Get("rooms").Map())
		r = w.sync(J{"lists": list(0, 4, 1, J{})})
		if first != 2 || len(r.Get("rooms").Map()) != 3 || r.Get("lists.all.count").Int() != 5 {
			t.Errorf("windows: %d, then %s", first, r)
		}
		// More timeline and more state are sent at once.
		r = w.sync(J{"lists": list(0, 4, 1, J{}), "room_subscriptions": J{plain: J{"timeline_limit": 4, "required_state": J{"include": []J{{"type": "m.room.create"}}}}}})
		p := slid(r, plain)
		if !p.Get("expanded_timeline").Bool() || len(p.Get("timeline").Array()) != 4 || len(p.Get("required_state").Array()) != 1 || p.Get("num_live").Int() != 0 || p.Get("initial").Bool() {
			t.Errorf("expanded: %s", p)
		}
		// Rooms of others are nobody's.
		stranger := bob.Create(J{})
		if r := w.sync(J{"room_subscriptions": J{stranger: J{"timeline_limit": 4, "required_state": everything}}}); len(r.Get("rooms").Map()) != 0 {
			t.Errorf("a room of others: %s", r)
		}
		w.Refused(400, "M_MISSING_PARAM", "POST", slidingV4, J{"lists": J{"a": J{}}})
		w.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, J{"set_presence": "x"})
		wanted := J{"timeline_limit": 1, "required_state": J{}}
		for _, window := range [][]int{{0}, {0, 1, 2}, {}} {
			wanted["range"] = window
			w.Refused(400, "M_BAD_JSON", "POST", slidingV4, J{"lists": J{"a": wanted}})
			w.Refused(400, "M_BAD_JSON", "POST", slidingDraft, J{"lists": J{"a": J{"ranges": [][]int{window}}}})
		}
		w.Refused(400, "M_BAD_JSON", "POST", slidingDraft, J{"lists": J{"a": J{"required_state": [][]string{{"m.room.name"}}}}})
		if a := w.Refused(400, "M_BAD_JSON", "POST", slidingDraft, J{"lists": J{"a": J{"timeline_limit": "1"}}}); !strings.Contains(a.JSON.Get("error").Str, "timeline_limit") {
			t.Errorf("a wrong type is not named: %v", a)
		}
	})
}

func TestSlidingExtensions(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		one := alice.Text(id, "one")
		user := Path("/user/%s", bob.UserID)
		bob.Must("PUT", user+"/account_data/test.global", J{"a": 1})
		bob.Must("PUT", user+"/rooms/"+id+"/account_data/test.room", J{"a": 1})
		alice.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, one), J{})
		on := J{"enabled": true}
		ask := J{"lists": list(0, 9, 5, J{}), "extensions": J{"account_data": on, "receipts": on, "typing": on, "to_device": on, "e2ee": on}}
		c := &slider{Client: bob}
		x := c.sync(ask).Get("extensions")
		if !x.Get(`account_data.global.#(type=="test.global")`).Exists() || !x.Get(`account_data.global.#(type=="m.push_rules")`).Exists() ||
			!x.Get("account_data.rooms").Get(Key(id)).Get(`#(type=="test.room")`).Exists() {
			t.Errorf("account data: %s", x.Get("account_data"))
		}
		receipts := func(x gjson.Result) gjson.Result { return x.Get("receipts.rooms").Get(Key(id)).Get("content") }
		if !receipts(x).Get(Key(one) + `.m\.read.` + Key(alice.UserID)).Exists() {
			t.Errorf("receipts: %s", x.Get("receipts"))
		}
		if x.Get("to_device.next_batch").Str == "" || !x.Get("to_device.events").IsArray() || !x.Get("e2ee.device_one_time_keys_count").Exists() {
			t.Errorf("to-device and encryption: %s", x)
		}
		if x = c.sync(ask).Get("extensions"); x.Get("account_data").Exists() || x.Get("receipts").Exists() || x.Get("typing").Exists() {
			t.Errorf("nothing has changed: %s", x)
		}
		// Each wakes a request that waits.
		ask["timeout"] = 30_000
		wait := func(what string, act func(), ok func(gjson.Result) bool) {
			t.Helper()
			done := make(chan gjson.Result, 1)
			body := c.body(ask)
			go func() {
				a, err := bob.Send("POST", slidingV4, body)
				if err != nil {
					done <- gjson.Result{}
					return
				}
				done <- a.JSON
			}()
			act()
			r := <-done
			if c.pos = r.Get("pos").Str; !ok(r) {
				t.Errorf("%s: %s", what, r)
			}
		}
		typing := Path("/rooms/%s/typing/%s", id, alice.UserID)
		wait("typing", func() { alice.Must("PUT", typing, J{"typing": true, "timeout": 30_000}) }, func(r gjson.Result) bool {
			return r.Get("extensions.typing.rooms").Get(Key(id)).Get("content.user_ids.0").Str == alice.UserID
		})
		wait("typing no more", func() { alice.Must("PUT", typing, J{"typing": false}) }, func(r gjson.Result) bool {
			u := r.Get("extensions.typing.rooms").Get(Key(id)).Get("content.user_ids")
			return u.IsArray() && len(u.Array()) == 0
		})
		wait("a message", func() { alice.Text(id, "two") }, func(r gjson.Result) bool { return slid(r, id).Get("num_live").Int() == 1 })
		wait("a receipt", func() { bob.Must("POST", Path("/rooms/%s/receipt/m.read.private/%s", id, one), J{}) }, func(r gjson.Result) bool {
			return receipts(r.Get("extensions")).Get(Key(one) + `.m\.read\.private.` + Key(bob.UserID)).Exists()
		})
		wait("account data", func() { bob.Must("PUT", user+"/rooms/"+id+"/account_data/test.room", J{"a": 2}) }, func(r gjson.Result) bool {
			return r.Get("extensions.account_data.rooms").Get(Key(id)).Get("0.content.a").Int() == 2
		})
		c.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, J{"extensions": J{"to_device": J{"enabled": true, "since": "x"}}})
		if !alice.Must("GET", "/_matrix/client/versions", nil).JSON.Get(`unstable_features.org\.matrix\.simplified_msc3575`).Bool() {
			t.Error("the flag is missing")
		}
	})
}

// TestSlidingForgotten checks that a connection is told once of the end of a stay or an invite that another device has
// forgotten meanwhile, and that others never hear of it.
func TestSlidingForgotten(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		stay, invite := alice.Create(J{"preset": "public_chat"}), alice.Create(J{"invite": []string{bob.UserID}})
		bob.Join(stay)
		c, draft := &slider{Client: bob, name: "v4"}, &slider{Client: bob, name: "draft"}
		lists := J{"lists": list(0, 9, 1, everything)}
		asDraft := func() gjson.Result {
			path := slidingDraft
			if draft.pos != "" {
				path += "?pos=" + draft.pos
			}
			r := draft.Must("POST", path, J{"conn_id": "draft", "lists": draftList(0, 9, 1, []string{"m.room.member", "$ME"})}).JSON
			draft.pos = r.Get("pos").Str
			return r
		}
		for _, r := range []gjson.Result{c.sync(lists), asDraft()} {
			if !slid(r, stay).Exists() || !slid(r, invite).Exists() {
				t.Fatalf("the rooms at the beginning: %s", r)
			}
		}
		for _, id := range []string{stay, invite} {
			bob.Leave(id)
			bob.Must("POST", Path("/rooms/%s/forget", id), J{})
		}
		r := c.sync(lists)
		if slid(r, stay).Get("membership").Str != "leave" || slid(r, invite).Get("membership").Str != "leave" {
			t.Errorf("forgotten: %s", r)
		}
		r = asDraft()
		for _, id := range []string{stay, invite} {
			if m := Find(slid(r, id).Get("required_state"), "m.room.member", bob.UserID); m.Get("content.membership").Str != "leave" {
				t.Errorf("forgotten, in the drafts' dialect: %s", r)
			}
		}
		for _, r := range []gjson.Result{c.sync(lists), asDraft(), (&slider{Client: bob, name: "new"}).sync(lists)} {
			if slid(r, stay).Exists() || slid(r, invite).Exists() || r.Get("lists.all.count").Int() != 0 {
				t.Errorf("told again: %s", r)
			}
		}
		bob.Join(stay)
		if r := slid(c.sync(lists), stay); r.Get("membership").Str != "join" || !r.Get("initial").Bool() {
			t.Errorf("joined again: %s", r)
		}
		c.pos = ""
		c.Refused(400, "M_INVALID_PARAM", "POST", slidingV4, c.body(J{"lists": J{"a list": lists["lists"].(J)["all"]}}))
	})
}
