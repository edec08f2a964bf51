package scenario

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// v1Path is Path for endpoints of version 1.
func v1Path(format string, segments ...string) string {
	return "/_matrix/client/v1" + Path(format, segments...)[len("/_matrix/client/v3"):]
}

// relate sends an event that relates to another one.
func relate(c *Client, room, typ, relType, target string, more J) string {
	content := J{"msgtype": "m.text", "body": "*", "m.relates_to": J{"rel_type": relType, "event_id": target}}
	for k, v := range more {
		content[k] = v
	}
	return c.Event(room, typ, content)
}

func edit(c *Client, room, target, body string) string {
	return relate(c, room, "m.room.message", "m.replace", target, J{"m.new_content": J{"msgtype": "m.text", "body": body}})
}

func reply(c *Client, room, root string) string {
	return relate(c, room, "m.room.message", "m.thread", root, nil)
}

func reaction(target, key string) J {
	return J{"m.relates_to": J{"rel_type": "m.annotation", "event_id": target, "key": key}}
}

// bundled returns what is bundled with an event, as /event shows it.
func bundled(c *Client, room, id string) gjson.Result {
	return c.Must("GET", Path("/rooms/%s/event/%s", room, id), nil).JSON.Get(`unsigned.m\.relations`)
}

func ignore(c *Client, users ...string) {
	list := J{}
	for _, u := range users {
		list[u] = J{}
	}
	c.Must("PUT", Path("/user/%s/account_data/m.ignored_user_list", c.UserID), J{"ignored_users": list})
}

// find returns the event with an id.
func find(events gjson.Result, id string) gjson.Result {
	for _, e := range events.Array() {
		if e.Get("event_id").Str == id {
			return e
		}
	}
	return gjson.Result{}
}

func wantIDs(t *testing.T, what string, got gjson.Result, want ...string) {
	t.Helper()
	if ids := IDs(got); !slices.Equal(ids, want) {
		t.Errorf("%s: %v, want %v", what, ids, want)
	}
}

func TestOnlyValidEditsAreBundled(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		original := alice.Text(id, "one")
		valid := edit(alice, id, original, "two")
		edit(bob, id, original, "not yours")
		relate(alice, id, "m.room.message", "m.replace", original, nil)
		relate(alice, id, "m.room.other", "m.replace", original, J{"m.new_content": J{}})
		alice.State(id, "m.room.message", "key", J{"m.new_content": J{}, "m.relates_to": J{"rel_type": "m.replace", "event_id": original}})
		other := alice.Create(J{})
		edit(alice, other, original, "in another room")
		edit(alice, id, valid, "of an edit")

		got := bundled(alice, id, original)
		if r := got.Get(`m\.replace`); r.Get("event_id").Str != valid || r.Get(`content.m\.new_content.body`).Str != "two" || r.Get("room_id").Str != id || r.Get("sender").Str != alice.UserID {
			t.Errorf("bundled with the original: %s", got)
		}
		if got := bundled(alice, id, valid); got.Exists() {
			t.Errorf("bundled with an edit: %s", got)
		}
		topic := alice.State(id, "m.room.topic", "", J{"topic": "x"})
		relate(alice, id, "m.room.topic", "m.replace", topic, J{"m.new_content": J{"topic": "y"}})
		if got := bundled(alice, id, topic); got.Exists() {
			t.Errorf("bundled with a state event: %s", got)
		}
		secret := alice.Event(id, "m.room.encrypted", J{"ciphertext": "a"})
		sealed := relate(alice, id, "m.room.encrypted", "m.replace", secret, J{"ciphertext": "b"})
		if got := bundled(bob, id, secret).Get(`m\.replace.event_id`).Str; got != sealed {
			t.Errorf("the edit of an encrypted event: %q", got)
		}

		third := edit(alice, id, original, "three")
		if got := bundled(bob, id, original).Get(`m\.replace.event_id`).Str; got != third {
			t.Errorf("the latest edit is %q, want %q", got, third)
		}
		alice.Redact(id, third)
		if got := bundled(bob, id, original).Get(`m\.replace.event_id`).Str; got != valid {
			t.Errorf("after its redaction the latest edit is %q, want %q", got, valid)
		}
		s.Restart()
		alice = alice.Login()
		if got := bundled(alice, id, original).Get(`m\.replace.event_id`).Str; got != valid {
			t.Errorf("after a restart the latest edit is %q, want %q", got, valid)
		}
		reference := relate(alice, id, "m.room.message", "m.reference", original, nil)
		alice.Redact(id, original)
		if got := bundled(alice, id, original); got.Get(`m\.replace`).Exists() || got.Get(`m\.reference.chunk.0.event_id`).Str != reference {
			t.Errorf("bundled with a redacted event: %s", got)
		}
	})
}

func TestThreadsAreSummedUpForTheReader(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		carol.Join(id)
		root := alice.Text(id, "root")
		if got := bundled(alice, id, root); got.Exists() {
			t.Errorf("bundled without relations: %s", got)
		}
		first := reply(bob, id, root)
		second := reply(carol, id, root)
		check := func(c *Client, count int64, latest string, participated bool) {
			t.Helper()
			got := bundled(c, id, root).Get(`m\.thread`)
			if got.Get("count").Int() != count || got.Get("latest_event.event_id").Str != latest || got.Get("current_user_participated").Bool() != participated {
				t.Errorf("%s sees %s; want %d replies, the latest %s, participated %v", c.UserID, got, count, latest, participated)
			}
		}
		dave := s.Register(t, "dave")
		dave.Join(id)
		check(alice, 2, second, true)
		check(bob, 2, second, true)
		check(dave, 2, second, false)
		edited := edit(carol, id, second, "better")
		if got := bundled(dave, id, root).Get(`m\.thread.latest_event.unsigned.m\.relations.m\.replace.event_id`).Str; got != edited {
			t.Errorf("the edit of the latest reply is %q, want %q", got, edited)
		}
		ignore(dave, carol.UserID)
		check(dave, 1, first, false)
		third := reply(dave, id, root)
		check(dave, 2, third, true)
		check(alice, 3, third, true)
		alice.Redact(id, third)
		check(dave, 1, first, false)
		check(bob, 2, second, true)
		bob.Redact(id, first)
		if got := bundled(dave, id, root); got.Exists() {
			t.Errorf("bundled with nothing left: %s", got)
		}

		// A thread cannot start at what relates to another event.
		dave.Refused(400, "M_UNKNOWN", "PUT", Path("/rooms/%s/send/m.room.message/%s", id, Txn()), J{
			"body": "x", "msgtype": "m.text", "m.relates_to": J{"rel_type": "m.thread", "event_id": second}})
	})
}

func TestBundlesInPagesAndSync(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		bob.Sync(nil)
		root := alice.Text(id, "root")
		edited := edit(alice, id, root, "better")
		const path = `unsigned.m\.relations.m\.replace.event_id`
		if r := room(bob.Sync(nil), id); r.Get("timeline.limited").Bool() || find(r.Get("timeline.events"), root).Get(path).Exists() {
			t.Errorf("a timeline without a gap: %s", r)
		}
		for i := range 3 {
			alice.Text(id, fmt.Sprint(i))
		}
		late := bob.Login()
		short := Filter(J{"room": J{"timeline": J{"limit": 5}}})
		if r := room(late.Sync(short), id); !r.Get("timeline.limited").Bool() || find(r.Get("timeline.events"), root).Get(path).Str != edited {
			t.Errorf("a timeline with a gap: %s", r)
		}
		page := bob.Must("GET", Path("/rooms/%s/messages?dir=b&limit=50", id), nil).JSON.Get("chunk")
		if got := find(page, root).Get(path).Str; got != edited {
			t.Errorf("/messages shows the edit %q", got)
		}
		around := bob.Must("GET", Path("/rooms/%s/context/%s", id, edited), nil).JSON
		if got := find(around.Get("events_before"), root).Get(path).Str; got != edited {
			t.Errorf("/context shows the edit %q before", got)
		}
		if got := bob.Must("GET", Path("/rooms/%s/context/%s", id, root), nil).JSON.Get("event." + path).Str; got != edited {
			t.Errorf("/context shows the edit %q of the event itself", got)
		}
	})
}

func TestRelationsOfAnEvent(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		before := alice.Text(id, "before")
		root := alice.Text(id, "root")
		bob.Join(id)
		one := reply(alice, id, root)
		two := relate(alice, id, "m.room.other", "m.thread", root, nil)
		like := alice.Event(id, "m.reaction", reaction(root, "+1"))
		edited := edit(alice, id, one, "better")         // 2nd level
		deep := relate(alice, id, "t", "r", edited, nil) // 3rd
		deeper := relate(alice, id, "t", "r", deep, nil) // 4th
		relate(alice, id, "t", "r", deeper, nil)         // further than anyone follows
		gone := reply(alice, id, root)
		alice.Redact(id, gone)
		ask := func(rest string) gjson.Result {
			t.Helper()
			return bob.Must("GET", v1Path("/rooms/%s/relations/%s", id, root)+rest, nil).JSON
		}
		for _, c := range []struct {
			rest string
			want []string
		}{
			{"", []string{like, two, one}},
			{"?dir=f", []string{one, two, like}},
			{"?limit=1", []string{like}},
			{"/m.thread", []string{two, one}},
			{"/m.thread/m.room.other", []string{two}},
			{"/m.thread/m.room.other?dir=f", []string{two}},
			{"/m.replace", []string{}},
			{"?recurse=true", []string{deeper, deep, edited, like, two, one}},
			{"?recurse=true&dir=f&limit=4", []string{one, two, like, edited}},
			{"/m.thread?recurse=true", []string{two, one}},
			{"?recurse=false", []string{like, two, one}},
		} {
			r := ask(c.rest)
			wantIDs(t, c.rest, r.Get("chunk"), c.want...)
			if depth := r.Get("recursion_depth"); depth.Exists() != strings.Contains(c.rest, "recurse") || strings.Contains(c.rest, "recurse=true") != (depth.Int() == 3) {
				t.Errorf("%s: recursion_depth %s", c.rest, depth)
			}
		}

		for _, dir := range []string{"b", "f"} {
			var ids, tokens []string
			for from := ""; ; {
				q := url.Values{"dir": {dir}, "limit": {"2"}, "recurse": {"true"}}
				if from != "" {
					q.Set("from", from)
				}
				r := ask("?" + q.Encode())
				ids = append(ids, IDs(r.Get("chunk"))...)
				if prev := r.Get("prev_batch"); prev.Exists() != (from != "") {
					t.Errorf("prev_batch %s from %q", prev, from)
				}
				if from = r.Get("next_batch").Str; from == "" {
					break
				}
				tokens = append(tokens, from)
			}
			want := []string{deeper, deep, edited, like, two, one}
			if dir == "f" {
				slices.Reverse(want)
			}
			if !slices.Equal(ids, want) || len(tokens) != 2 {
				t.Errorf("paging %s: %v with %d tokens, want %v", dir, ids, len(tokens), want)
			}
			wantIDs(t, "between tokens "+dir, ask("?recurse=true&dir="+dir+"&from="+tokens[0]+"&to="+tokens[1]).Get("chunk"), want[2:4]...)
			wantIDs(t, "between tokens the wrong way round", ask("?recurse=true&dir="+dir+"&from="+tokens[1]+"&to="+tokens[0]).Get("chunk"))
		}
		// The chunk has bundles of its own, and tokens of /sync and /messages serve as well.
		if got := find(ask("").Get("chunk"), one).Get(`unsigned.m\.relations.m\.replace.event_id`).Str; got != edited {
			t.Errorf("the edit bundled with a related event is %q", got)
		}
		alice.Sync(nil)
		wantIDs(t, "from a sync token", ask("?limit=1&from="+alice.Since()).Get("chunk"), like)
		ignore(bob, alice.UserID)
		wantIDs(t, "of an ignored user", ask("").Get("chunk"))

		bob.Refused(404, "M_NOT_FOUND", "GET", v1Path("/rooms/%s/relations/%s", id, "$nothing"), nil)
		bob.Refused(400, "M_INVALID_PARAM", "GET", v1Path("/rooms/%s/relations/%s?from=x", id, root), nil)
		bob.Refused(400, "M_INVALID_PARAM", "GET", v1Path("/rooms/%s/relations/%s?dir=x", id, root), nil)
		s.Register(t, "carol").Refused(404, "M_NOT_FOUND", "GET", v1Path("/rooms/%s/relations/%s", id, root), nil)
		wantIDs(t, "of an event without relations", alice.Must("GET", v1Path("/rooms/%s/relations/%s", id, before), nil).JSON.Get("chunk"))
	})
}

func TestRelationsThatTheReaderMayNotSee(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		root := alice.Text(id, "for all")
		alice.State(id, "m.room.history_visibility", "", J{"history_visibility": "joined"})
		reply(alice, id, root)
		secret := alice.Text(id, "for members")
		reply(alice, id, secret)
		alice.State(id, "m.room.history_visibility", "", J{"history_visibility": "shared"})
		bob.Join(id)
		list := func(c *Client) gjson.Result {
			t.Helper()
			return c.Must("GET", v1Path("/rooms/%s/threads", id), nil).JSON.Get("chunk")
		}
		wantIDs(t, "threads before", list(bob))
		wantIDs(t, "relations before", bob.Must("GET", v1Path("/rooms/%s/relations/%s", id, root), nil).JSON.Get("chunk"))
		shown := reply(alice, id, root)
		if got := bundled(bob, id, root).Get(`m\.thread`); got.Get("count").Int() != 1 || got.Get("latest_event.event_id").Str != shown {
			t.Errorf("bob sees %s", got)
		}
		if got := bundled(alice, id, root).Get(`m\.thread.count`).Int(); got != 2 {
			t.Errorf("alice sees %d replies", got)
		}
		wantIDs(t, "threads after", list(bob), root)
		wantIDs(t, "threads of alice", list(alice), root, secret)
		wantIDs(t, "relations after", bob.Must("GET", v1Path("/rooms/%s/relations/%s", id, root), nil).JSON.Get("chunk"), shown)
		bob.Refused(404, "M_NOT_FOUND", "GET", v1Path("/rooms/%s/relations/%s", id, secret), nil)
		bob.Leave(id)
		reply(alice, id, root)
		if got := bundled(bob, id, root).Get(`m\.thread.count`).Int(); got != 1 {
			t.Errorf("bob sees %d replies after leaving", got)
		}
	})
}

func TestListOfThreads(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		carol.Join(id)
		var roots []string
		for i := range 5 {
			roots = append(roots, []*Client{alice, carol}[i%2].Text(id, fmt.Sprint("thread ", i)))
		}
		alice.Text(id, "not a thread")
		for _, r := range roots {
			reply(alice, id, r)
		}
		bobs := reply(bob, id, roots[1])
		edit(bob, id, bobs, "an edit is no activity")
		list := func(c *Client, q string) gjson.Result {
			t.Helper()
			return c.Must("GET", v1Path("/rooms/%s/threads?", id)+q, nil).JSON
		}
		want := []string{roots[1], roots[4], roots[3], roots[2], roots[0]}
		wantIDs(t, "all", list(bob, "").Get("chunk"), want...)
		wantIDs(t, "of bob", list(bob, "include=participated").Get("chunk"), roots[1])
		wantIDs(t, "of carol", list(carol, "include=participated").Get("chunk"), roots[1], roots[3])
		var ids []string
		pages := 0
		for from := ""; ; pages++ {
			r := list(bob, "limit=2"+from)
			ids = append(ids, IDs(r.Get("chunk"))...)
			if from = r.Get("next_batch").Str; from == "" {
				break
			}
			from = "&from=" + from
		}
		if !slices.Equal(ids, want) || pages != 2 {
			t.Errorf("paging: %v after %d pages", ids, pages+1)
		}
		if got := find(list(bob, "").Get("chunk"), roots[1]).Get(`unsigned.m\.relations.m\.thread.latest_event.event_id`).Str; got != bobs {
			t.Errorf("the latest reply is %q", got)
		}

		// The activity of ignored users does not count, and what they said is not shown.
		ignore(carol, bob.UserID)
		wantIDs(t, "without bob", list(carol, "").Get("chunk"), roots[4], roots[3], roots[2], roots[1], roots[0])
		ignore(bob, carol.UserID)
		r := find(list(bob, "").Get("chunk"), roots[1])
		if r.Get("content.body").Exists() || r.Get(`unsigned.m\.relations.m\.thread.count`).Int() != 2 {
			t.Errorf("the thread of an ignored user: %s", r)
		}
		bob.Redact(id, bobs)
		wantIDs(t, "after a redaction", list(alice, "").Get("chunk"), roots[4], roots[3], roots[2], roots[1], roots[0])

		alice.Refused(400, "M_INVALID_PARAM", "GET", v1Path("/rooms/%s/threads?from=x", id), nil)
		alice.Refused(400, "M_INVALID_PARAM", "GET", v1Path("/rooms/%s/threads?include=x", id), nil)
		alice.Refused(400, "M_INVALID_PARAM", "GET", v1Path("/rooms/%s/threads?limit=0", id), nil)
		s.Register(t, "dave").Refused(403, "M_FORBIDDEN", "GET", v1Path("/rooms/%s/threads", id), nil)
	})
}

func TestDuplicateAnnotations(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		target := alice.Text(id, "like me")
		like := alice.Event(id, "m.reaction", reaction(target, "👍"))
		again := func() string { return Path("/rooms/%s/send/m.reaction/%s", id, Txn()) }
		alice.Refused(400, "M_DUPLICATE_ANNOTATION", "PUT", again(), reaction(target, "👍"))
		alice.Event(id, "m.reaction", reaction(target, "👎"))
		alice.Event(id, "other", reaction(target, "👍"))
		bob.Event(id, "m.reaction", reaction(target, "👍"))
		alice.Redact(id, like)
		alice.Event(id, "m.reaction", reaction(target, "👍"))
		alice.Refused(400, "M_DUPLICATE_ANNOTATION", "PUT", again(), reaction(target, "👍"))
		if got := bundled(bob, id, target); got.Exists() {
			t.Errorf("annotations are bundled: %s", got)
		}
	})
}

func TestFiltersByWhatRelates(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		alice.Text(id, "plain")
		thread, liked := alice.Text(id, "thread"), alice.Text(id, "liked")
		reply(alice, id, thread)
		bob.Event(id, "m.reaction", reaction(liked, "+"))
		for _, c := range []struct {
			filter J
			want   []string
		}{
			{J{"related_by_rel_types": []string{"m.thread"}}, []string{thread}},
			{J{"related_by_rel_types": []string{"m.thread", "m.annotation"}}, []string{thread, liked}},
			{J{"related_by_senders": []string{bob.UserID}}, []string{liked}},
			{J{"related_by_senders": []string{bob.UserID}, "related_by_rel_types": []string{"m.thread"}}, []string{}},
			{J{"related_by_senders": []string{}}, []string{}},
		} {
			r := room(alice.Login().Sync(Filter(J{"room": J{"timeline": c.filter}})), id)
			wantIDs(t, fmt.Sprint("sync ", c.filter), r.Get("timeline.events"), c.want...)
			page := alice.Messages(id, "", "f", 100, url.Values{"filter": {Filter(c.filter).Get("filter")}})
			var ids []string
			for _, e := range page.Events {
				ids = append(ids, e.Get("event_id").Str)
			}
			if !slices.Equal(ids, c.want) && len(ids)+len(c.want) > 0 {
				t.Errorf("/messages %v: %v, want %v", c.filter, ids, c.want)
			}
		}
	})
}
