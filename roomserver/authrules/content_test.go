package authrules

import (
	"slices"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

func TestJoinRules(t *testing.T) {
	tests := []struct {
		line, rule string
		rooms      []string
	}{
		{`@a:one sets join_rules {"join_rule": "public"}`, JoinRulePublic, nil},
		{`@a:one sets join_rules {}`, JoinRuleInvite, nil},
		{`@a:one sets join_rules {"join_rule": 1}`, "", nil},
		{`@a:one sets join_rules {"join_rule": "org.example.rule"}`, "org.example.rule", nil},
		{
			`@a:one sets join_rules {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": "!a:one"}, ` +
				`{"type": "org.example", "room_id": "!b:one"}, {"type": "m.room_membership"}, {"room_id": "!c:one"}, ` +
				`{"type": "m.room_membership", "room_id": 1}, 5, {"type": "m.room_membership", "room_id": "!d:one", "more": 1}]}`,
			JoinRuleRestricted, []string{"!a:one", "!d:one"},
		},
		{`@a:one sets join_rules {"join_rule": "restricted", "allow": {"type": "m.room_membership", "room_id": "!a:one"}}`, JoinRuleRestricted, nil},
	}
	for _, test := range tests {
		w := worldOf(t, 10, test.line)
		ev := w.state[StateKeyTuple{pdu.TypeJoinRules, ""}]
		j := JoinRules(ev)
		if j.Rule != test.rule || !slices.Equal(j.Rooms, test.rooms) {
			t.Errorf("%s: %+v, want %s %v", test.line, j, test.rule, test.rooms)
		}
		if JoinRules(ev) != j {
			t.Errorf("%s: parsed again", test.line)
		}
	}
	if JoinRules(nil).Rule != JoinRuleInvite {
		t.Error("a room without join rules is not invite-only")
	}
}

func TestCreators(t *testing.T) {
	tests := []struct {
		version int
		line    string
		want    []string
	}{
		{1, `@a:one creates {"creator": "@b:one"}`, []string{"@b:one"}},
		{10, `@a:one creates {"creator": "@b:one"}`, []string{"@b:one"}},
		{10, `@a:one creates {"creator": 5}`, nil},
		{10, `@a:one creates content {}`, nil},
		{11, `@a:one creates {"creator": "@b:one", "additional_creators": ["@c:one"]}`, []string{"@a:one"}},
		{12, `@a:one creates {"creator": "@b:one", "additional_creators": ["@c:one", "@d:one"]}`, []string{"@a:one", "@c:one", "@d:one"}},
		{12, `@a:one creates`, []string{"@a:one"}},
	}
	for _, test := range tests {
		w := worldOf(t, test.version, test.line)
		if got := Creators(w.state[StateKeyTuple{pdu.TypeCreate, ""}]); !slices.Equal(got, test.want) {
			t.Errorf("version %d %s: %v, want %v", test.version, test.line, got, test.want)
		}
	}
	if len(Creators(nil)) != 0 {
		t.Error("a room without a create event has creators")
	}
}

// TestMisplacedEvents: an event of the wrong type says nothing.
func TestMisplacedEvents(t *testing.T) {
	w := worldOf(t, 12, "@a:one creates", `@a:one sets topic {"join_rule": "public"}`)
	topic := w.state[StateKeyTuple{"m.room.topic", ""}]
	if JoinRules(topic).Rule != JoinRuleInvite || Creators(topic) != nil || PowerLevels(nil, topic).User("@a:one") != 0 {
		t.Error("a topic was taken for something else")
	}
}

// TestUserIDSize: 255 bytes, which servers took for code points before version 11.
func TestUserIDSize(t *testing.T) {
	id := func(char string, n int) string { return "@" + strings.Repeat(char, n-len("@:one")) + ":one" }
	tests := []struct {
		id            string
		before, since bool
	}{
		{id("a", 255), true, true},
		{id("a", 256), false, false},
		{id("é", 200), true, false},
		{id("é", 255), true, false},
		{id("é", 256), false, false},
		{"@a\x00:one", false, false},
		{"@:one", true, true},
		{"a:one", false, false},
		{"", false, false},
	}
	for _, test := range tests {
		for version := 1; version <= newestList; version++ {
			want := test.before
			if version >= 11 {
				want = test.since
			}
			if got := validUserID(newWorld(version).v, test.id); got != want {
				t.Errorf("version %d: %.20q of %d bytes: %v", version, test.id, len(test.id), got)
			}
		}
	}
}
