package scenario

import (
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// timelineOf makes a filter with a limit for timelines.
func timelineOf(limit int) url.Values {
	return Filter(J{"room": J{"timeline": J{"limit": limit}}})
}

func TestLimitedTimelines(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		bob.Sync(timelineOf(3))
		alice.State(id, "m.room.topic", "", J{"topic": "in the gap"})
		alice.State(id, "m.room.name", "", J{"name": "first"})
		var sent []string
		for i := range 6 {
			sent = append(sent, alice.Text(id, fmt.Sprint(i)))
		}
		sent = append(sent, alice.State(id, "m.room.name", "", J{"name": "second"}))
		part := room(bob.Sync(timelineOf(3)), id)
		if got := IDs(part.Get("timeline.events")); !slices.Equal(got, sent[len(sent)-3:]) || !part.Get("timeline.limited").Bool() {
			t.Errorf("the timeline is %s", part.Get("timeline"))
		}
		// The state takes the client to the start of the timeline.
		state := part.Get("state.events")
		if Find(state, "m.room.topic", "").Get("content.topic").Str != "in the gap" {
			t.Errorf("the state of the gap is missing: %s", state)
		}
		if name := Find(state, "m.room.name", ""); name.Get("content.name").Str != "first" {
			t.Errorf("the state at the start of the timeline has the name %s", name)
		}
		if n := len(state.Array()); n != 2 {
			t.Errorf("%d events in the state: %s", n, state)
		}
		page := bob.Messages(id, part.Get("timeline.prev_batch").Str, "b", 4, nil)
		var got []string
		for _, e := range slices.Backward(page.Events) {
			got = append(got, e.Get("event_id").Str)
		}
		if !slices.Equal(got, sent[:4]) {
			t.Errorf("before the gap came %v, want %v", got, sent[:4])
		}
		// The same page again, and up to a token.
		again := bob.Messages(id, part.Get("timeline.prev_batch").Str, "b", 100, url.Values{"to": {page.End}})
		if len(again.Events) != 4 {
			t.Errorf("up to a token there are %d events instead of 4", len(again.Events))
		}
		for _, limit := range []int{0, 1} {
			part = room(bob.Login().Sync(timelineOf(limit)), id)
			if n := len(part.Get("timeline.events").Array()); n != limit || !part.Get("timeline.limited").Bool() {
				t.Errorf("with limit %d: %s", limit, part.Get("timeline"))
			}
		}
		if room(bob.Sync(nil), id).Exists() {
			t.Error("a room without news is in the answer")
		}
	})
}

func TestStateAfterAndFullState(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "name": "one"})
		bob.Join(id)
		bob.Sync(nil)
		alice.State(id, "m.room.name", "", J{"name": "two"})
		since := bob.Since()
		for parameter, answer := range map[string]string{"use_state_after": "state_after", "org.matrix.msc4222.use_state_after": `org\.matrix\.msc4222\.state_after`} {
			bob.SyncFrom(since)
			part := room(bob.Sync(url.Values{parameter: {"true"}}), id)
			after := part.Get(answer + ".events")
			if Find(after, "m.room.name", "").Get("content.name").Str != "two" || len(after.Array()) != 1 || part.Get("state").Exists() {
				t.Errorf("%s: %s", parameter, part)
			}
			if len(part.Get("timeline.events").Array()) != 1 {
				t.Errorf("%s: %s", parameter, part.Get("timeline"))
			}
		}
		part := room(bob.Sync(url.Values{"full_state": {"true"}}), id)
		if !has(part, "m.room.create", "") || !has(part, "m.room.member", alice.UserID) || !has(part, "m.room.power_levels", "") || len(part.Get("timeline.events").Array()) != 0 {
			t.Errorf("full_state: %s", part)
		}
		fresh := room(bob.Login().Sync(url.Values{"use_state_after": {"true"}}), id)
		all := alice.Must("GET", Path("/rooms/%s/state", id), nil).JSON
		for _, e := range all.Array() {
			if got := Find(fresh.Get("state_after.events"), e.Get("type").Str, e.Get("state_key").Str); got.Get("event_id").Str != e.Get("event_id").Str {
				t.Errorf("the state after an initial sync lacks %s", e)
			}
		}
		// Without it, the state before the timeline and the timeline make up the same.
		fresh = room(bob.Login().Sync(timelineOf(4)), id)
		current := map[string]string{}
		for _, e := range slices.Concat(fresh.Get("state.events").Array(), fresh.Get("timeline.events").Array()) {
			if key := e.Get("state_key"); key.Exists() {
				current[e.Get("type").Str+"|"+key.Str] = e.Get("event_id").Str
			}
		}
		for _, e := range all.Array() {
			if current[e.Get("type").Str+"|"+e.Get("state_key").Str] != e.Get("event_id").Str {
				t.Errorf("state and timeline do not lead to %s", e)
			}
		}
	})
}

func TestNewlyJoined(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "topic": "old"})
		for range 15 {
			alice.Text(id, "before")
		}
		bob.Sync(nil)
		bob.Join(id)
		alice.Text(id, "after")
		part := room(bob.Sync(nil), id)
		for _, typ := range []string{"m.room.create", "m.room.topic", "m.room.power_levels", "m.room.join_rules"} {
			if !Find(part.Get("state.events"), typ, "").Exists() {
				t.Errorf("the state lacks %s: %s", typ, part.Get("state"))
			}
		}
		if n := len(part.Get("timeline.events").Array()); n != 10 || !part.Get("timeline.limited").Bool() {
			t.Errorf("the timeline has %d events: %s", n, part.Get("timeline"))
		}
		// Left and joined again between two syncs: whatever happened meanwhile, all state comes anew.
		bob.Leave(id)
		alice.State(id, "m.room.topic", "", J{"topic": "while away"})
		bob.Join(id)
		part = room(bob.Sync(nil), id)
		if !has(part, "m.room.topic", "") || !has(part, "m.room.create", "") {
			t.Errorf("after leaving and joining again: %s", part)
		}
		if Room(bob.Sync(nil), "leave", id).Exists() {
			t.Error("a room that was joined again is in the leave section")
		}
	})
}

func TestLazyLoading(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		dave := s.Register(t, "dave")
		id := alice.Create(J{"preset": "public_chat", "name": "room"})
		for _, c := range []*Client{bob, carol, dave} {
			c.Join(id)
		}
		for range 5 {
			bob.Text(id, "hello")
		}
		lazy := func(redundant bool) url.Values {
			return Filter(J{"room": J{
				"state":    J{"lazy_load_members": true, "include_redundant_members": redundant},
				"timeline": J{"limit": 5, "lazy_load_members": true, "include_redundant_members": redundant},
			}})
		}
		members := func(part gjson.Result) []string {
			var out []string
			for _, e := range part.Get("state.events").Array() {
				if e.Get("type").Str == "m.room.member" {
					out = append(out, e.Get("state_key").Str)
				}
			}
			slices.Sort(out)
			return out
		}
		want := func(what string, part gjson.Result, users ...*Client) {
			t.Helper()
			var ids []string
			for _, c := range users {
				ids = append(ids, c.UserID)
			}
			if got := members(part); !slices.Equal(got, ids) {
				t.Errorf("%s: members %v, want %v", what, got, ids)
			}
		}
		part := room(alice.Sync(lazy(false)), id)
		want("initial sync", part, alice, bob)
		if !Find(part.Get("state.events"), "m.room.create", "").Exists() {
			t.Error("lazy loading leaves out other state")
		}
		if part.Get("summary.m\\.joined_member_count").Int() != 4 {
			t.Errorf("the summary is %s", part.Get("summary"))
		}
		bob.Text(id, "again")
		want("a sender who was sent before", room(alice.Sync(lazy(false)), id))
		carol.Text(id, "hello")
		want("a new sender", room(alice.Sync(lazy(false)), id), carol)
		bob.Text(id, "hello")
		want("redundant members", room(alice.Sync(lazy(true)), id), bob)
		dave.Leave(id)
		part = room(alice.Sync(lazy(false)), id)
		if Find(part.Get("timeline.events"), "m.room.member", dave.UserID).Get("content.membership").Str != "leave" {
			t.Errorf("a leave is missing: %s", part)
		}
		// Another device knows nothing of what this one was sent.
		want("another device", room(alice.Login().Sync(lazy(false)), id), alice, bob, carol, dave)
		page := alice.Messages(id, "", "b", 3, url.Values{"filter": {`{"lazy_load_members":true}`}})
		var state []string
		for _, e := range page.State {
			state = append(state, e.Get("state_key").Str)
		}
		for _, e := range page.Events {
			if !slices.Contains(state, e.Get("sender").Str) {
				t.Errorf("/messages does not say who %s is", e.Get("sender"))
			}
		}
		if slices.Contains(state, alice.UserID) {
			t.Error("/messages has members nobody asked for")
		}
	})
}

func TestSummaries(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "private_chat", "invite": []string{bob.UserID, carol.UserID}})
		summary := func(c *Client) gjson.Result { return room(c.Sync(nil), id).Get("summary") }
		check := func(what string, s gjson.Result, joined, invited int64, heroes ...string) {
			t.Helper()
			var got []string
			for _, h := range s.Get(`m\.heroes`).Array() {
				got = append(got, h.Str)
			}
			slices.Sort(got)
			if s.Get(`m\.joined_member_count`).Int() != joined || s.Get(`m\.invited_member_count`).Int() != invited || !slices.Equal(got, heroes) {
				t.Errorf("%s: %s", what, s)
			}
		}
		check("two invited", summary(alice), 1, 2, bob.UserID, carol.UserID)
		bob.Join(id)
		check("one joined", summary(alice), 2, 1, bob.UserID, carol.UserID)
		alice.Text(id, "no change of members")
		if s := summary(alice); s.Exists() {
			t.Errorf("a summary without a change: %s", s)
		}
		carol.Leave(id)
		check("one left", summary(alice), 2, 0, bob.UserID)
		bob.Leave(id)
		check("all left", summary(alice), 1, 0, bob.UserID, carol.UserID)
		alice.State(id, "m.room.name", "", J{"name": "Named"})
		alice.Change("invite", id, bob.UserID)
		check("a room with a name", summary(alice), 1, 1)
	})
}

func TestFilters(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		other := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		alice.Must("PUT", Path("/user/%s/account_data/m.one", alice.UserID), J{"a": 1})
		alice.Must("PUT", Path("/user/%s/account_data/m.two", alice.UserID), J{"a": 2})
		alice.Must("PUT", Path("/user/%s/rooms/%s/account_data/m.three", alice.UserID, id), J{"a": 3})
		text := alice.Text(id, "text")
		picture := alice.Event(id, "m.room.message", J{"msgtype": "m.image", "body": "x", "url": "mxc://a/b"})
		custom := bob.Event(id, "org.example.custom", J{"a": J{"b": "c"}, "d": 1})
		name := alice.State(id, "m.room.name", "", J{"name": "x"})
		created := alice.Must("GET", Path("/rooms/%s/state/m.room.create/?format=event", id), nil).JSON.Get("event_id").Str
		events := func(r gjson.Result) []string { return IDs(timeline(r, id)) }
		of := func(timeline J) J { timeline["limit"] = 4; return J{"room": J{"timeline": timeline}} }
		for _, test := range []struct {
			filter J
			want   []string
		}{
			{of(J{}), []string{text, picture, custom, name}},
			{of(J{"types": []string{"m.room.message"}}), []string{text, picture}},
			{of(J{"types": []string{"m.room.create"}}), []string{created}},
			{of(J{"types": []string{"m.room.m*ssage", "org.*"}}), []string{text, picture, custom}},
			{of(J{"types": []string{}}), []string{}},
			{of(J{"types": []string{"org.*"}, "not_types": []string{"*custom"}}), []string{}},
			{of(J{"types": []string{"m.room.message", "org.*"}, "not_types": []string{"m.*"}}), []string{custom}},
			{of(J{"senders": []string{bob.UserID}, "not_types": []string{"m.room.member"}}), []string{custom}},
			{of(J{"types": []string{"m.room.message", "org.*"}, "not_senders": []string{alice.UserID}}), []string{custom}},
			{of(J{"types": []string{"m.room.message", "org.*"}, "contains_url": true}), []string{picture}},
			{of(J{"types": []string{"m.room.message", "org.*"}, "contains_url": false}), []string{text, custom}},
			{of(J{"rooms": []string{other}}), []string{}},
			{of(J{"not_rooms": []string{id}}), []string{}},
			{J{"room": J{"not_rooms": []string{id}}}, []string{}},
			{J{"room": J{"rooms": []string{other}}}, []string{}},
			{J{"room": J{"rooms": []string{}}}, []string{}},
		} {
			alice.SyncFrom("")
			if got := events(alice.Sync(Filter(test.filter))); !slices.Equal(got, test.want) {
				t.Errorf("filter %v: %v, want %v", test.filter, got, test.want)
			}
		}
		// A filter may be stored; only its owner has it.
		stored := alice.Must("POST", Path("/user/%s/filter", alice.UserID), of(J{"types": []string{"org.*"}})).JSON.Get("filter_id").Str
		alice.SyncFrom("")
		if got := events(alice.Sync(url.Values{"filter": {stored}})); !slices.Equal(got, []string{custom}) {
			t.Errorf("a stored filter lets through %v", got)
		}
		if got := alice.Must("GET", Path("/user/%s/filter/%s", alice.UserID, stored), nil); got.JSON.Get("room.timeline.types.0").Str != "org.*" {
			t.Errorf("the stored filter is %v", got)
		}
		bob.Refused(403, "M_FORBIDDEN", "GET", Path("/user/%s/filter/%s", alice.UserID, stored), nil)
		alice.Refused(404, "M_NOT_FOUND", "GET", Path("/user/%s/filter/%s", alice.UserID, "nosuchfilter"), nil)
		alice.Refused(400, "M_INVALID_PARAM", "GET", Path("/sync?filter=nosuchfilter"), nil)

		full := alice.Login()
		initial := func(filter J) gjson.Result {
			full.SyncFrom("")
			return full.Sync(Filter(filter))
		}
		r := initial(J{"room": J{"state": J{"types": []string{"m.room.create"}}, "timeline": J{"limit": 1}}})
		if state := room(r, id).Get("state.events").Array(); len(state) != 1 || state[0].Get("type").Str != "m.room.create" {
			t.Errorf("filtered state: %v", state)
		}
		r = initial(J{"room": J{"state": J{"not_types": []string{"m.room.*"}}, "timeline": J{"limit": 1}}})
		if state := room(r, id).Get("state.events").Array(); len(state) != 0 {
			t.Errorf("filtered state: %v", state)
		}
		types := func(events gjson.Result) (out []string) {
			for _, e := range events.Array() {
				out = append(out, e.Get("type").Str)
			}
			return out
		}
		r = initial(J{"account_data": J{"types": []string{"m.one"}}, "room": J{"account_data": J{"not_types": []string{"*"}}}})
		if got := types(r.Get("account_data.events")); !slices.Equal(got, []string{"m.one"}) {
			t.Errorf("filtered account data: %v", got)
		}
		if got := types(room(r, id).Get("account_data.events")); len(got) != 0 {
			t.Errorf("filtered account data of a room: %v", got)
		}
		r = initial(J{"account_data": J{"types": []string{}}})
		if got := types(r.Get("account_data.events")); len(got) != 0 {
			t.Errorf("no account data was asked for, and there is %v", got)
		}
		if got := types(room(r, id).Get("account_data.events")); !slices.Contains(got, "m.three") {
			t.Errorf("account data of a room: %v", got)
		}
		r = initial(J{"event_fields": []string{"type", "content.a.b"}, "room": J{"timeline": J{"types": []string{"org.*"}}}})
		if got := timeline(r, id).Raw; got != `[{"type":"org.example.custom","content":{"a":{"b":"c"}}}]` && got != `[{"content":{"a":{"b":"c"}},"type":"org.example.custom"}]` {
			t.Errorf("event_fields: %s", got)
		}
		r = initial(J{"event_format": "federation", "room": J{"timeline": J{"types": []string{"org.*"}}}})
		if got := timeline(r, id).Get("0"); !got.Get("auth_events").Exists() || !got.Get("hashes").Exists() {
			t.Errorf("federation format: %s", got)
		}

		// The same filter chooses events in /messages and /context.
		page := alice.Messages(id, "", "b", 10, url.Values{"filter": {`{"types":["m.room.message"]}`}})
		if len(page.Events) != 2 || page.Events[0].Get("event_id").Str != picture {
			t.Errorf("/messages with a filter: %v", page.Events)
		}
		around := alice.Must("GET", Path("/rooms/%s/context/%s?", id, picture)+url.Values{"filter": {`{"types":["org.*","m.room.message"]}`}}.Encode(), nil).JSON
		if got := IDs(around.Get("events_before")); !slices.Equal(got, []string{text}) {
			t.Errorf("/context with a filter: before %v", got)
		}
		if got := IDs(around.Get("events_after")); !slices.Equal(got, []string{custom}) {
			t.Errorf("/context with a filter: after %v", got)
		}
		alice.Refused(400, "M_NOT_JSON", "GET", Path("/rooms/%s/messages?dir=b&filter={", id), nil)
		alice.Refused(400, "M_BAD_JSON", "GET", Path("/rooms/%s/messages?dir=b&filter=", id)+url.QueryEscape(`{"types":1}`), nil)
	})
}

// On a server on which nothing has happened yet, a client waits as well.
func TestFirstUserWaits(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		alice.Sync(nil)
		begin := time.Now()
		if r := alice.Sync(url.Values{"timeout": {"150"}}); time.Since(begin) < 100*time.Millisecond {
			t.Errorf("a poll without news ended after %v: %s", time.Since(begin), r)
		}
		var group sync.WaitGroup
		defer group.Wait() // the room is told of before its creation is answered
		group.Go(func() {
			time.Sleep(50 * time.Millisecond)
			alice.Create(J{})
		})
		alice.Until("the first room", func(r gjson.Result) bool { return r.Get("rooms.join").Exists() })
	})
}

func TestLongPolling(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		for range 3 { // what the joining brought about is over
			bob.Sync(nil)
		}
		begin := time.Now()
		if r := bob.Sync(url.Values{"timeout": {"150"}}); r.Get("rooms").Exists() || time.Since(begin) < 100*time.Millisecond {
			t.Errorf("a poll without news ended after %v: %s", time.Since(begin), r)
		}
		for _, act := range []struct {
			what string
			do   func()
			in   string
		}{
			{"a message", func() { alice.Text(id, "news") }, "join"},
			{"a kick", func() { alice.Change("kick", id, bob.UserID) }, "leave"},
			{"an invite", func() { alice.Change("invite", id, bob.UserID) }, "invite"},
			{"a join", func() { bob.Join(id) }, "join"},
		} {
			var group sync.WaitGroup
			group.Go(func() {
				time.Sleep(50 * time.Millisecond)
				act.do()
			})
			begin := time.Now()
			r := bob.Sync(url.Values{"timeout": {"30000"}})
			for !Room(r, act.in, id).Exists() && time.Since(begin) < time.Minute {
				r = bob.Sync(url.Values{"timeout": {"30000"}})
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("%s woke the poll after %v: %s", act.what, took, r)
			}
			group.Wait() // what is done is told before it is answered
		}
	})
}
