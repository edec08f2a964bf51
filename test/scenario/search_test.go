package scenario

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// search asks for messages and returns the category's answer.
func search(c *Client, term string, more J) gjson.Result {
	return searchFrom(c, "", term, more)
}

func searchFrom(c *Client, token, term string, more J) gjson.Result {
	criteria := J{"search_term": term}
	for k, v := range more {
		criteria[k] = v
	}
	path := Path("/search")
	if token != "" {
		path += "?" + url.Values{"next_batch": {token}}.Encode()
	}
	return c.Must("POST", path, J{"search_categories": J{"room_events": criteria}}).JSON.Get("search_categories.room_events")
}

// hits are the ids of the results.
func hits(answer gjson.Result) []string {
	ids := []string{}
	for _, r := range answer.Get("results").Array() {
		ids = append(ids, r.Get("result.event_id").Str)
	}
	return ids
}

// finds asks until the results are these, since the index is a little behind.
func finds(t *testing.T, c *Client, term string, more J, want ...string) {
	t.Helper()
	var got []string
	eventually(func() bool {
		got = hits(search(c, term, more))
		return slices.Equal(got, want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("search for %q finds %q, want %q", term, got, want)
	}
}

// eventually tries until it holds, for at most a minute.
func eventually(holds func() bool) {
	for end := time.Now().Add(time.Minute); !holds() && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
}

func TestSearchMessages(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat", "name": "Garden of forking paths", "topic": "Labyrinths and mirrors"})
		bob.Join(room)
		recent := J{"order_by": "recent"}
		one := alice.Text(room, "The Crème Brûlée is ready")
		two := bob.Text(room, "a CREME of another kind")
		finds(t, alice, "crème", recent, two, one)
		finds(t, bob, "creme BRULEE", nil, one)
		finds(t, bob, "creme nowhere", nil)
		finds(t, bob, "cre", nil)
		finds(t, bob, "...", nil)
		if h := search(alice, "creme", nil).Get("highlights").Raw; !strings.Contains(h, `"crème"`) || !strings.Contains(h, `"creme"`) {
			t.Errorf("highlights are %s", h)
		}

		t.Run("scripts without spaces", func(t *testing.T) {
			alice, bob := alice.With(t), bob.With(t)
			zh := alice.Text(room, "我们明天去北京吃烤鸭")
			ja := bob.Text(room, "ﾊﾟﾘの黒猫カフェでコーヒーを飲みました")
			ko := bob.Text(room, "내일 서울에서 만나요")
			finds(t, alice, "北京", nil, zh)
			finds(t, alice, "鸭", nil, zh)
			finds(t, alice, "京北", nil)
			finds(t, alice, "パリ", nil, ja)
			finds(t, alice, "黒猫カフェ", nil, ja)
			finds(t, alice, "猫", nil, ja)
			finds(t, alice, "서울", nil, ko)
			// All pairs are there, but not together.
			finds(t, alice, "北京吃北", nil)
		})
		t.Run("keys", func(t *testing.T) {
			alice := alice.With(t)
			finds(t, alice, "forking", J{"keys": []string{"content.body"}})
			finds(t, alice, "labyrinths", J{"keys": []string{"content.name", "content.body"}})
			for term, key := range map[string]string{"forking": "content.name", "mirrors": "content.topic"} {
				for _, more := range []J{nil, {"keys": []string{key}}} {
					if a := search(alice, term, more); len(hits(a)) != 1 || "m.room."+strings.TrimPrefix(key, "content.") != a.Get("results.0.result.type").Str {
						t.Errorf("search for %s with %v: %s", term, more, a)
					}
				}
			}
			topic := alice.State(room, "m.room.topic", "", J{"topic": "old", "m.topic": J{"m.text": []J{
				{"mimetype": "text/html", "body": "<b>hypertext</b>"}, {"body": "plainly"}}}})
			finds(t, alice, "plainly", nil, topic)
			finds(t, alice, "hypertext", nil)
		})
		t.Run("filter", func(t *testing.T) {
			alice := alice.With(t)
			finds(t, alice, "creme", J{"filter": J{"senders": []string{bob.UserID}}}, two)
			finds(t, alice, "creme", J{"filter": J{"not_senders": []string{bob.UserID}}}, one)
			finds(t, alice, "creme", J{"filter": J{"rooms": []string{"!other:myelin.test"}}})
			finds(t, alice, "creme", J{"filter": J{"not_rooms": []string{room}}})
			finds(t, alice, "creme", J{"filter": J{"types": []string{"m.room.name"}}})
			finds(t, alice, "creme", J{"order_by": "recent", "filter": J{"rooms": []string{room}, "limit": 1}}, two)
			finds(t, alice, "creme", J{"filter": J{"contains_url": true}})
		})
		t.Run("rank", func(t *testing.T) {
			alice := alice.With(t)
			best := alice.Text(room, "zebra zebra")
			worst := alice.Text(room, "a zebra "+strings.Repeat("and something else ", 20))
			middle := alice.Text(room, "a zebra in the zoo")
			finds(t, alice, "zebra", nil, best, middle, worst)
			finds(t, alice, "zebra", J{"order_by": "rank"}, best, middle, worst)
			finds(t, alice, "zebra", recent, middle, worst, best)
			for _, r := range search(alice, "zebra", nil).Get("results").Array() {
				if r.Get("rank").Type != gjson.Number {
					t.Errorf("no rank in %s", r)
				}
			}
			apart := alice.Text(room, "quince jelly and not elephant")
			together := alice.Text(room, "jelly elephant quince")
			finds(t, alice, "elephant quince", nil, together, apart)
		})
		t.Run("refused", func(t *testing.T) {
			alice := alice.With(t)
			for _, test := range []struct {
				code string
				body any
			}{
				{"M_MISSING_PARAM", J{"order_by": "rank"}},
				{"M_INVALID_PARAM", J{"search_term": "x", "order_by": "sideways"}},
				{"M_INVALID_PARAM", J{"search_term": "x", "keys": []string{"content.secret"}}},
				{"M_INVALID_PARAM", J{"search_term": "x", "groupings": J{"group_by": []J{{"key": "shoe_size"}}}}},
				{"M_INVALID_PARAM", J{"search_term": "x", "event_context": J{"before_limit": -1}}},
				{"M_BAD_JSON", J{"search_term": "x", "filter": J{"senders": 5}}},
				{"M_BAD_JSON", J{"search_term": 5}},
			} {
				alice.Refused(400, test.code, "POST", Path("/search"), J{"search_categories": J{"room_events": test.body}})
			}
			for _, token := range []string{"?", "x", "eyJiIjowfQ", "bnVsbA"} {
				alice.Refused(400, "M_INVALID_PARAM", "POST", Path("/search")+"?next_batch="+url.QueryEscape(token),
					J{"search_categories": J{"room_events": J{"search_term": "x"}}})
			}
			if a := alice.Must("POST", Path("/search"), J{"search_categories": J{}}); a.JSON.Get("search_categories").Raw != "{}" {
				t.Errorf("no category: %v", a)
			}
		})
	})
}

// What is found changes with edits and redactions, and outlives a restart.
func TestSearchFollowsTheLog(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat"})
		bob.Join(room)
		edit := func(c *Client, target, text string) string {
			return c.Event(room, "m.room.message", J{
				"msgtype": "m.text", "body": "* " + text, "m.new_content": J{"msgtype": "m.text", "body": text},
				"m.relates_to": J{"rel_type": "m.replace", "event_id": target},
			})
		}
		id := alice.Text(room, "apple")
		other := alice.Text(room, "damson")
		finds(t, bob, "apple", nil, id)
		edit(alice, id, "banana")
		finds(t, bob, "banana", nil, id)
		finds(t, bob, "apple", nil)
		if e := search(bob, "banana", nil).Get("results.0.result"); e.Get(`unsigned.m\.relations.m\.replace.content.m\.new_content.body`).Str != "banana" {
			t.Errorf("the result lacks its edit: %s", e)
		}
		second := edit(alice, id, "cherry")
		finds(t, bob, "cherry", nil, id)
		edit(bob, id, "vandalism")
		finds(t, bob, "vandalism", nil)
		alice.Redact(room, second)
		finds(t, bob, "banana", nil, id)
		finds(t, bob, "cherry", nil)
		alice.Redact(room, id)
		finds(t, bob, "banana", nil)
		finds(t, bob, "damson", nil, other)

		last := alice.Text(room, "elderberry")
		s.Restart()
		finds(t, bob, "elderberry", nil, last)
		finds(t, bob, "damson", nil, other)
		finds(t, bob, "banana", nil)
		newest := alice.Text(room, "fig")
		finds(t, bob, "fig", nil, newest)
	})
}

// Nobody finds what they may not see, nor can they tell from the count that it exists.
func TestSearchKeepsSecrets(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		room := alice.Create(J{"preset": "private_chat", "initial_state": []J{
			{"type": "m.room.history_visibility", "content": J{"history_visibility": "joined"}}}})
		alice.Text(room, "word before")
		alice.Change("invite", room, bob.UserID)
		alice.Text(room, "word while invited")
		only := func(c *Client, want ...string) {
			t.Helper()
			finds(t, c, "word", J{"order_by": "recent"}, want...)
			if a := search(c, "word", nil); a.Get("count").Int() != int64(len(want)) {
				t.Errorf("%s counts %s", c.UserID, a)
			}
		}
		only(bob)
		bob.Join(room)
		during := alice.Text(room, "word during")
		finds(t, alice, "during", nil, during)
		only(bob, during)
		bob.Leave(room)
		after := alice.Text(room, "word after")
		finds(t, alice, "after", nil, after)
		only(bob, during)
		if c := search(bob, "during", J{"event_context": J{"after_limit": 50}}).Get("results.0.context.events_after").Raw; strings.Contains(c, "word") {
			t.Errorf("the context tells the secret: %s", c)
		}
		only(carol)
		bob.Must("POST", Path("/rooms/%s/forget", room), J{})
		only(bob)

		// World-readable rooms are searched for those who were in them only, until they left.
		open := alice.Create(J{"preset": "public_chat", "initial_state": []J{
			{"type": "m.room.history_visibility", "content": J{"history_visibility": "world_readable"}}}})
		shown := alice.Text(open, "phrase one")
		finds(t, carol, "phrase", nil)
		carol.Join(open)
		finds(t, carol, "phrase", nil, shown)
		carol.Leave(open)
		hidden := alice.Text(open, "phrase two")
		finds(t, alice, "two", nil, hidden)
		finds(t, carol, "phrase", nil, shown)

		// Encrypted rooms are not searched, although they were not encrypted once.
		bob.Join(open)
		finds(t, bob, "one", nil, shown)
		alice.State(open, "m.room.encryption", "", J{"algorithm": "m.megolm.v1.aes-sha2"})
		finds(t, bob, "one", nil)

		// Nor does one find what somebody says whom one ignores.
		third := alice.Create(J{"preset": "public_chat"})
		bob.Join(third)
		said := alice.Text(third, "nuisance")
		finds(t, bob, "nuisance", nil, said)
		bob.Must("PUT", Path("/user/%s/account_data/m.ignored_user_list", bob.UserID), J{"ignored_users": J{alice.UserID: J{}}})
		finds(t, bob, "nuisance", nil)
	})
}

func TestSearchPagesAndGroups(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		rooms := []string{alice.Create(J{"preset": "public_chat", "name": "first"}), alice.Create(J{"preset": "public_chat", "name": "second"})}
		var sent, firsts []string
		for _, room := range rooms {
			bob.Join(room)
		}
		for i := range 25 {
			c := []*Client{alice, bob}[i%2]
			id := c.Text(rooms[i%5/4], fmt.Sprint("needle ", strings.Repeat("hay ", i)))
			sent = append(sent, id)
			if i%5/4 == 0 {
				firsts = append(firsts, id)
			}
		}
		slices.Reverse(sent)
		slices.Reverse(firsts)
		finds(t, alice, "needle", J{"order_by": "recent", "filter": J{"limit": 50}}, sent...)
		walk := func(token string, more J) (all []string) {
			for range 20 {
				a := searchFrom(alice, token, "needle", more)
				all = append(all, hits(a)...)
				if token = a.Get("next_batch").Str; token == "" {
					return all
				}
			}
			t.Fatal("the pages do not end")
			return nil
		}
		if got := walk("", J{"order_by": "recent", "filter": J{"limit": 4}}); !slices.Equal(got, sent) {
			t.Errorf("the pages by time are %q, want %q", got, sent)
		}
		ranked := slices.Clone(sent)
		slices.Reverse(ranked) // the shorter the better
		if got := walk("", J{"filter": J{"limit": 4}}); !slices.Equal(got, ranked) {
			t.Errorf("the pages by rank are %q, want %q", got, ranked)
		}
		grouped := J{"order_by": "recent", "filter": J{"limit": 4}, "groupings": J{"group_by": []J{{"key": "room_id"}, {"key": "sender"}}}}
		a := search(alice, "needle", grouped)
		group := a.Get("groups.room_id").Get(Key(rooms[0]))
		if a.Get("count").Int() != 25 || group.Get("order").Int() != 2 || len(a.Get("groups.sender").Map()) != 2 {
			t.Errorf("groups are %s", a.Get("groups"))
		}
		var got []string
		for _, id := range group.Get("results").Array() {
			got = append(got, id.Str)
		}
		if got = append(got, walk(group.Get("next_batch").Str, grouped)...); !slices.Equal(got, firsts) {
			t.Errorf("the pages of a group are %q, want %q", got, firsts)
		}
		// What comes later does not move what was ranked before.
		first := search(alice, "needle", J{"filter": J{"limit": 4}})
		newer := alice.Text(rooms[0], "needle")
		finds(t, alice, "needle", J{"order_by": "recent", "filter": J{"limit": 1}}, newer)
		got = append(hits(first), walk(first.Get("next_batch").Str, J{"filter": J{"limit": 4}})...)
		if !slices.Equal(got, ranked) {
			t.Errorf("the pages by rank with news are %q, want %q", got, ranked)
		}
	})
}

func TestSearchContext(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		room := alice.Create(J{"preset": "public_chat", "name": "Here"})
		alice.Must("PUT", Path("/profile/%s/displayname", alice.UserID), J{"displayname": "Early"})
		var ids []string
		for i := range 15 {
			text := fmt.Sprint("filler ", i)
			if i == 7 {
				text = "target"
			}
			ids = append(ids, alice.Text(room, text))
		}
		finds(t, alice, "target", nil, ids[7])
		alice.Must("PUT", Path("/profile/%s/displayname", alice.UserID), J{"displayname": "Late"})

		if r := search(alice, "target", nil).Get("results.0"); r.Get("context").Exists() || r.Get("result.room_id").Str != room {
			t.Errorf("without context: %s", r)
		}
		r := search(alice, "target", J{"event_context": J{}}).Get("results.0.context")
		before, after := IDs(r.Get("events_before")), IDs(r.Get("events_after"))
		slices.Reverse(before)
		if !slices.Equal(before, ids[2:7]) || !slices.Equal(after, ids[8:13]) || r.Get("profile_info").Exists() {
			t.Errorf("the context is %s", r)
		}
		r = search(alice, "target", J{"event_context": J{"before_limit": 1, "after_limit": 2, "include_profile": true}, "include_state": true})
		c := r.Get("results.0.context")
		if !slices.Equal(IDs(c.Get("events_before")), ids[6:7]) || !slices.Equal(IDs(c.Get("events_after")), ids[8:10]) {
			t.Errorf("the limited context is %s", c)
		}
		if name := c.Get("profile_info").Get(Key(alice.UserID)).Get("displayname").Str; name != "Early" {
			t.Errorf("the profile in the context is %s", c.Get("profile_info"))
		}
		if n := Find(r.Get("state").Get(Key(room)), "m.room.name", "").Get("content.name").Str; n != "Here" {
			t.Errorf("the state is %s", r.Get("state"))
		}
		// The tokens go on where the context ends.
		if p := alice.Messages(room, c.Get("start").Str, "b", 1, nil); len(p.Events) != 1 || p.Events[0].Get("event_id").Str != ids[5] {
			t.Errorf("before the context is %v", p.Events)
		}
		if p := alice.Messages(room, c.Get("end").Str, "f", 1, nil); len(p.Events) != 1 || p.Events[0].Get("event_id").Str != ids[10] {
			t.Errorf("after the context is %v", p.Events)
		}
	})
}
