package filter

import (
	"strings"
	"testing"

	"github.com/myelin-im/myelin/internal/mxerr"
)

func mustParse(t *testing.T, data string) *Filter {
	t.Helper()
	f, err := Parse([]byte(data))
	if err != nil {
		t.Fatalf("Parse(%s): %v", data, err)
	}
	return f
}

func TestEventFilterMatch(t *testing.T) {
	const msg, alice = "m.room.message", "@alice:a"
	tests := []struct {
		filter, eventType, sender string
		want                      bool
	}{
		{`{}`, msg, alice, true},
		{`{"types":null}`, msg, alice, true},
		{`{"types":[]}`, msg, alice, false},
		{`{"types":["m.room.message"]}`, msg, alice, true},
		{`{"types":["m.room.messages"]}`, msg, alice, false},
		{`{"types":["m.room.*"]}`, msg, alice, true},
		{`{"types":["m.room.*"]}`, "m.roomXmessage", alice, false},
		{`{"types":["*.message"]}`, msg, alice, true},
		{`{"types":["*"]}`, "", alice, true},
		{`{"types":["m.*.mess*e"]}`, msg, alice, true},
		{`{"types":["m.*room*room*"]}`, msg, alice, false},
		{`{"types":["m.room.message*message"]}`, msg, alice, false},
		{`{"types":["m.room.?essage"]}`, msg, alice, false},
		{`{"types":["m.room.*"],"not_types":["m.room.message"]}`, msg, alice, false},
		{`{"types":["m.room.message"],"not_types":["*mess*"]}`, msg, alice, false},
		{`{"not_types":["*"]}`, msg, alice, false},
		{`{"not_types":[]}`, msg, alice, true},
		{`{"senders":[]}`, msg, alice, false},
		{`{"senders":["@alice:a"]}`, msg, alice, true},
		{`{"senders":["@alice:a"]}`, msg, "@alice:b", false},
		{`{"senders":["@alice:a"],"not_senders":["@alice:a"]}`, msg, alice, false},
		{`{"not_senders":["@bob:a"]}`, msg, alice, true},
		{`{"senders":["@1:a","@2:a","@3:a","@4:a","@5:a","@6:a","@7:a","@8:a","@9:a"]}`, msg, "@9:a", true},
		{`{"senders":["@1:a","@2:a","@3:a","@4:a","@5:a","@6:a","@7:a","@8:a","@9:a"]}`, msg, "@10:a", false},
	}
	for _, tt := range tests {
		f := mustParse(t, `{"presence":`+tt.filter+`}`)
		if got := f.Presence.Match(tt.eventType, tt.sender); got != tt.want {
			t.Errorf("%s: Match(%q, %q) = %v", tt.filter, tt.eventType, tt.sender, got)
		}
		if f.Presence.None() && tt.want {
			t.Errorf("%s: None, though an event passes", tt.filter)
		}
	}
}

func TestRoomEventFilterMatch(t *testing.T) {
	event := Event{Type: "m.room.message", Sender: "@alice:a", RoomID: "!r:a", HasURL: true, RelType: "m.thread"}
	tests := []struct {
		filter    string
		want, all bool
	}{
		{`{}`, true, true},
		{`{"limit":3,"lazy_load_members":true}`, true, true},
		{`{"rooms":[]}`, false, false},
		{`{"rooms":["!r:a"]}`, true, false},
		{`{"rooms":["!r:a"],"not_rooms":["!r:a"]}`, false, false},
		{`{"not_rooms":["!domainless"]}`, true, false},
		{`{"contains_url":true}`, true, false},
		{`{"contains_url":false}`, false, false},
		{`{"types":["m.reaction"]}`, false, false},
		{`{"org.matrix.msc3874.rel_types":["m.thread"]}`, true, false},
		{`{"org.matrix.msc3874.rel_types":["m.replace"]}`, false, false},
		{`{"org.matrix.msc3874.not_rel_types":["m.thread"]}`, false, false},
		{`{"related_by_rel_types":["m.thread"]}`, true, false},
	}
	for _, tt := range tests {
		f, err := ParseRoomEvents([]byte(tt.filter))
		if err != nil {
			t.Fatalf("%s: %v", tt.filter, err)
		}
		if got := f.Match(&event); got != tt.want {
			t.Errorf("%s: Match = %v", tt.filter, got)
		}
		if got := f.MatchesAll(); got != tt.all {
			t.Errorf("%s: MatchesAll = %v", tt.filter, got)
		}
	}
	f, _ := ParseRoomEvents([]byte(`{"org.matrix.msc3874.not_rel_types":[""]}`))
	if !f.Match(&Event{Type: "m.room.message"}) {
		t.Error("not_rel_types excludes an event without a relation")
	}
}

func TestMembersOfFilter(t *testing.T) {
	f := mustParse(t, `{
		"event_format": "federation", "unknown": {"a": 1},
		"room": {
			"rooms": ["!a:x", "!b:x"], "not_rooms": ["!b:x"], "include_leave": true,
			"timeline": {"limit": 7, "unread_thread_notifications": true, "related_by_senders": ["@a:x"], "related_by_rel_types": ["m.annotation"]},
			"state": {"lazy_load_members": true, "include_redundant_members": true},
			"ephemeral": {"types": ["m.typing"]},
			"account_data": {"not_types": ["m.tag"]}
		},
		"account_data": {"limit": 0}
	}`)
	r := &f.Room
	for name, ok := range map[string]bool{
		"event_format":     f.Federation,
		"rooms":            r.Allows("!a:x") && !r.Allows("!c:x"),
		"not_rooms wins":   !r.Allows("!b:x"),
		"include_leave":    r.IncludeLeave,
		"timeline.limit":   r.Timeline.Limit(10, 100) == 7 && r.Timeline.Limit(10, 5) == 5,
		"default limit":    r.State.Limit(10, 100) == 10,
		"limit 0":          f.AccountData.Limit(10, 100) == 0,
		"threads":          r.Timeline.UnreadThreadNotifications && !r.State.UnreadThreadNotifications,
		"related by":       r.Timeline.RelatedBySenders[0] == "@a:x" && r.Timeline.RelatedByRelTypes[0] == "m.annotation",
		"lazy":             r.State.LazyLoadMembers && r.State.IncludeRedundantMembers && !r.Timeline.LazyLoadMembers,
		"ephemeral":        r.Ephemeral.MatchType("m.typing") && !r.Ephemeral.MatchType("m.receipt"),
		"room accountdata": !r.AccountData.MatchType("m.tag"),
		"no fields":        f.Fields == nil,
	} {
		if !ok {
			t.Errorf("%s: not as written", name)
		}
	}
	if f := mustParse(t, `{"event_format":"client"}`); f.Federation || f.Room.IncludeLeave || !f.Room.Allows("!a:x") {
		t.Error("defaults do not hold")
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ filter, code string }{
		{``, "M_NOT_JSON"},
		{`{`, "M_NOT_JSON"},
		{`[]`, "M_BAD_JSON"},
		{`"a"`, "M_BAD_JSON"},
		{`{"presence":"x"}`, "M_BAD_JSON"},
		{`{"account_data":[]}`, "M_BAD_JSON"},
		{`{"room":1}`, "M_BAD_JSON"},
		{`{"room":{"timeline":"x"}}`, "M_BAD_JSON"},
		{`{"room":{"state":"x"}}`, "M_BAD_JSON"},
		{`{"room":{"ephemeral":"x"}}`, "M_BAD_JSON"},
		{`{"room":{"account_data":"x"}}`, "M_BAD_JSON"},
		{`{"room":{"include_leave":"true"}}`, "M_BAD_JSON"},
		{`{"room":{"rooms":["@a:b"]}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"rooms":"x"}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"not_rooms":"x"}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"senders":"x"}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"not_senders":"x"}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"types":"x"}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"not_types":{}}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"types":[1]}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"rooms":["not_a_room_id"]}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"senders":["not_a_sender_id"]}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"limit":"10"}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"limit":-1}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"limit":1.5}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"limit":99999999999999999999}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"contains_url":1}}}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"lazy_load_members":"yes"}}}`, "M_BAD_JSON"},
		{`{"event_format":"xml"}`, "M_BAD_JSON"},
		{`{"event_format":{}}`, "M_BAD_JSON"},
		{`{"event_fields":["a",1]}`, "M_BAD_JSON"},
		{`{"event_fields":"a"}`, "M_BAD_JSON"},
		{`{"presence":{"types":[` + strings.Repeat(`"a*",`, maxWildcards) + `"b*"]}}`, "M_BAD_JSON"},
		{`{"a":"` + strings.Repeat("x", MaxBytes) + `"}`, "M_TOO_LARGE"},
	}
	for _, tt := range tests {
		_, err := Parse([]byte(tt.filter))
		if e := mxerr.As(err); e == nil || e.Code != tt.code {
			t.Errorf("Parse(%.60s) = %v, want %s", tt.filter, err, tt.code)
		}
	}
}

func TestProject(t *testing.T) {
	const event = `{"type":"m.x","content":{"body":"b","m.relates_to":{"rel_type":"r","event_id":"$1"},"a\\b":1,"n":[{"body":2}]},"sender":"@a:b"}`
	tests := []struct{ fields, want string }{
		{`["type"]`, `{"type":"m.x"}`},
		{`[]`, `{}`},
		{`["sender","type"]`, `{"type":"m.x","sender":"@a:b"}`},
		{`["content.body"]`, `{"content":{"body":"b"}}`},
		{`["content.m\\.relates_to.rel_type"]`, `{"content":{"m.relates_to":{"rel_type":"r"}}}`},
		{`["content.m.relates_to"]`, `{"content":{}}`},
		{`["content.a\\\\b"]`, `{"content":{"a\\b":1}}`},
		{`["content.body","content"]`, `{"content":{"body":"b","m.relates_to":{"rel_type":"r","event_id":"$1"},"a\\b":1,"n":[{"body":2}]}}`},
		{`["type.x","content.n.body"]`, `{"content":{}}`},
	}
	for _, tt := range tests {
		f := mustParse(t, `{"event_fields":`+tt.fields+`}`)
		if got := string(f.Fields.Project(nil, []byte(event))); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.fields, got, tt.want)
		}
	}
	var all *Fields
	if got := string(all.Project([]byte("x"), []byte(event))); got != "x"+event {
		t.Errorf("nil Fields: %s", got)
	}
	if got := splitPath(`a\xb.c\`); len(got) != 2 || got[0] != `a\xb` || got[1] != `c\` {
		t.Errorf("splitPath keeps other escapes: %q", got)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	f, _ := ParseRoomEvents([]byte(`{"types":["m.room.*","a","b"],"not_types":["*.x"],"not_senders":["@z:z"],"contains_url":false}`))
	e := &Event{Type: "m.room.message", Sender: "@alice:a", RoomID: "!r:a"}
	if n := testing.AllocsPerRun(100, func() { f.Match(e) }); n != 0 {
		t.Errorf("%v allocations a match", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"room":{"timeline":{"types":["a*b"],"limit":1}},"event_fields":["a\\.b.c"]}`, `{"type":"m.x","content":{"a":1}}`)
	f.Fuzz(func(t *testing.T, filter, event string) {
		c, err := Parse([]byte(filter))
		if err != nil {
			if mxerr.As(err) == nil {
				t.Fatalf("not a Matrix error: %v", err)
			}
			return
		}
		c.Room.Timeline.Match(&Event{Type: event, Sender: event, RoomID: event})
		c.Fields.Project(nil, []byte(event))
	})
}
