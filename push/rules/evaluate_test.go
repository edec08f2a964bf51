package rules

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
)

const alice, bob, roomA = "@alice:example.org", "@bob:example.org", "!a:example.org"

var group = &Room{MemberCount: 5}

func stateKey(s string) *string { return &s }

// message is an event of Bob's with the given type and content.
func message(typ, content string) *Event {
	return &Event{Type: typ, Sender: bob, RoomID: roomA, EventID: "$e", Content: []byte(content)}
}

func state(typ, key, content string) *Event {
	e := message(typ, content)
	e.StateKey = &key
	return e
}

func text(body string) *Event {
	b, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	return message("m.room.message", string(b))
}

func list(items ...string) (out []json.RawMessage) {
	for _, s := range items {
		out = append(out, json.RawMessage(s))
	}
	return out
}

// shape is what an outcome looks like in the tables.
func shape(a *Actions) string {
	if !a.Notify {
		return "silent"
	}
	s := "notify"
	if a.Highlight {
		s += " highlight"
	}
	if a.Sound != "" {
		s += " " + a.Sound
	}
	return s
}

// TestPredefinedRules goes through the definitions of "Predefined Rules", each with what it matches and a near miss.
func TestPredefinedRules(t *testing.T) {
	pair := &Room{MemberCount: 2}
	mention := func(m string) *Event {
		return message("m.room.message", `{"body":"hi","msgtype":"m.text","m.mentions":`+m+`}`)
	}
	for _, c := range []struct {
		name  string
		event *Event
		room  *Room
		want  string
	}{
		{"message", text("hi"), group, "notify"},
		{"message in a room of two", text("hi"), pair, "notify default"},
		{"encrypted", message("m.room.encrypted", `{}`), group, "notify"},
		{"encrypted in a room of two", message("m.room.encrypted", `{}`), pair, "notify default"},
		{"call", message("m.call.invite", `{}`), group, "notify ring"},
		{"call in a room of two", message("m.call.invite", `{}`), pair, "notify ring"},
		{"sticker has no rule", message("m.sticker", `{"body":"x"}`), pair, "silent"},
		{"topic has no rule", state("m.room.topic", "", `{"topic":"x"}`), pair, "silent"},

		{"notice", message("m.room.message", `{"msgtype":"m.notice","body":"x"}`), pair, "silent"},
		{"notice that mentions", message("m.room.message", `{"msgtype":"m.notice","body":"x","m.mentions":{"user_ids":["@alice:example.org"]}}`), group, "silent"},
		{"msgtype that is no string", message("m.room.message", `{"msgtype":["m.notice"],"body":"x"}`), group, "notify"},

		{"invite of the user", state("m.room.member", alice, `{"membership":"invite"}`), group, "notify default"},
		{"invite of another", state("m.room.member", "@carol:example.org", `{"membership":"invite"}`), group, "silent"},
		{"ban of the user", state("m.room.member", alice, `{"membership":"ban"}`), group, "silent"},
		{"join that mentions", state("m.room.member", bob, `{"membership":"join","m.mentions":{"user_ids":["@alice:example.org"]}}`), group, "silent"},

		{"mention", mention(`{"user_ids":["@carol:example.org","@alice:example.org"]}`), group, "notify highlight default"},
		{"mention of another", mention(`{"user_ids":["@carol:example.org"]}`), group, "notify"},
		{"mention differs in case", mention(`{"user_ids":["@Alice:example.org"]}`), group, "notify"},
		{"mention that is no list", mention(`{"user_ids":"@alice:example.org"}`), group, "notify"},
		{"mention in something else", message("m.sticker", `{"m.mentions":{"user_ids":["@alice:example.org"]}}`), group, "notify highlight default"},
		{"mention under an unescaped path", message("m.sticker", `{"m":{"mentions":{"user_ids":["@alice:example.org"]}}}`), group, "silent"},
		{"name in the body", text("hello alice, @alice:example.org"), group, "notify"},

		{"room mention", mention(`{"room":true}`), &Room{MemberCount: 5, SenderLevel: 50}, "notify highlight"},
		{"room mention by a creator", mention(`{"room":true}`), &Room{MemberCount: 5, SenderLevel: math.MaxInt64}, "notify highlight"},
		{"room mention without power", mention(`{"room":true}`), &Room{MemberCount: 5, SenderLevel: 49}, "notify"},
		{"room mention, level set", mention(`{"room":true}`), &Room{MemberCount: 5, SenderLevel: 0, NotificationLevels: map[string]int64{"room": 0}}, "notify highlight"},
		{"room mention, other level set", mention(`{"room":true}`), &Room{MemberCount: 5, SenderLevel: 0, NotificationLevels: map[string]int64{"x": 0}}, "notify"},
		{"room mention false", mention(`{"room":false}`), &Room{MemberCount: 5, SenderLevel: 100}, "notify"},
		{"room mention as a string", mention(`{"room":"true"}`), &Room{MemberCount: 5, SenderLevel: 100}, "notify"},
		{"@room in the body", text("hi @room"), &Room{MemberCount: 5, SenderLevel: 100}, "notify"},

		{"tombstone", state("m.room.tombstone", "", `{}`), group, "notify highlight"},
		{"tombstone with a state key", state("m.room.tombstone", "x", `{}`), group, "silent"},
		{"tombstone that is no state", message("m.room.tombstone", `{}`), group, "silent"},
		{"reaction", message("m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"$x","key":"+"}}`), pair, "silent"},
		{"server ACL that mentions", state("m.room.server_acl", "", `{"m.mentions":{"room":false}}`), pair, "silent"},
		{"edit", message("m.room.message", `{"body":"* x","m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`), pair, "silent"},
		{"edit that mentions anew", message("m.room.message", `{"body":"* x","m.mentions":{"user_ids":["@alice:example.org"]},"m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`), pair, "notify highlight default"},
		{"thread", message("m.room.message", `{"body":"x","m.relates_to":{"rel_type":"m.thread","event_id":"$x"}}`), group, "notify"},

		{"poll", message("org.matrix.msc3381.poll.start", `{}`), group, "notify"},
		{"poll in a room of two", message("org.matrix.msc3381.poll.start", `{}`), pair, "notify default"},
		{"end of a poll", message("org.matrix.msc3381.poll.end", `{}`), group, "notify"},
		{"end of a poll in a room of two", message("org.matrix.msc3381.poll.end", `{}`), pair, "notify default"},
		{"answer to a poll", message("org.matrix.msc3381.poll.response", `{}`), pair, "silent"},

		{"one's own message", &Event{Type: "m.room.message", Sender: alice, RoomID: roomA, Content: []byte(`{"m.mentions":{"user_ids":["@alice:example.org"]}}`)}, pair, "silent"},
		{"content of odd types", message("m.room.message", `{"body":{},"msgtype":1,"m.mentions":[],"m.relates_to":"x"}`), group, "notify"},
	} {
		got := Compile(&Overlay{}, alice).Evaluate(Prepare(c.event), c.room, "Alice")
		if shape(got) != c.want {
			t.Errorf("%s: %s, want %s", c.name, shape(got), c.want)
		}
	}
}

// holds tells whether an override rule with this condition matches.
func holds(condition string, e *Event, room *Room, displayName string) bool {
	o := &Overlay{}
	if err := o.Put(Override, Rule{ID: "x", Conditions: list(condition), Actions: list(`"notify"`, `{"set_tweak":"sound","value":"match"}`)}, "", ""); err != nil {
		panic(err)
	}
	return Compile(o, alice).Evaluate(Prepare(e), room, displayName).Sound == "match"
}

func TestConditions(t *testing.T) {
	odd := message("org.example", `{"a":{"b.c":"dot","d":{"e":"deep"}},"m\\foo":"slash","list":["x",1,true,null,1.5,["y"],{"z":1}],`+
		`"n":1,"f":1.5,"t":true,"nul":null,"big":9007199254740992,"edge":9007199254740991,"neg":-3,"x\\y":"kept","":"empty","dup":"first","dup":"last",`+
		`"body":"An example event.","s":"1"}`)
	for _, c := range []struct {
		condition string
		event     *Event
		want      bool
	}{
		{`{"kind":"event_match","key":"content.a.b\\.c","pattern":"DOT"}`, odd, true},
		{`{"kind":"event_match","key":"content.a.b.c","pattern":"dot"}`, odd, false},
		{`{"kind":"event_match","key":"content.a.d.e","pattern":"d*p"}`, odd, true},
		{`{"kind":"event_match","key":"content.a.d","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"content.m\\\\foo","pattern":"slash"}`, odd, true},
		{`{"kind":"event_match","key":"content.x\\y","pattern":"kept"}`, odd, true}, // other escapes are left as they are
		{`{"kind":"event_match","key":"content.","pattern":"empty"}`, odd, true},
		{`{"kind":"event_match","key":"content.dup","pattern":"last"}`, odd, true},
		{`{"kind":"event_match","key":"content","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"content.missing","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"content.missing","pattern":""}`, odd, false},
		{`{"kind":"event_match","key":"content.n","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"content.n","pattern":"1"}`, odd, false},
		{`{"kind":"event_match","key":"content.nul","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"content.list.0","pattern":"x"}`, odd, false},
		{`{"kind":"event_match","key":"content.a.*.e","pattern":"deep"}`, odd, false},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, odd, true},
		{`{"kind":"event_match","key":"content.body","pattern":"exam"}`, odd, false},
		{`{"kind":"event_match","key":"type","pattern":"org.*"}`, odd, true},
		{`{"kind":"event_match","key":"sender","pattern":"@BOB:*"}`, odd, true},
		{`{"kind":"event_match","key":"room_id","pattern":"!A:example.org"}`, odd, true},
		{`{"kind":"event_match","key":"event_id","pattern":"$e"}`, odd, true},
		{`{"kind":"event_match","key":"state_key","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"state_key","pattern":""}`, state("x", "", `{}`), true},
		{`{"kind":"event_match","key":"state_key","pattern":"[the user's Matrix ID]"}`, state("x", alice, `{}`), false},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, state("m.room.topic", "", `{"topic":"Lunch plans"}`), true},

		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, state("m.room.create", "", `{"m.federate":true}`), true},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, state("m.room.create", "", `{"m.federate":"true"}`), false},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, state("m.room.create", "", `{"m.federate":1}`), false},
		{`{"kind":"event_property_is","key":"content.n","value":1}`, odd, true},
		{`{"kind":"event_property_is","key":"content.n","value":"1"}`, odd, false},
		{`{"kind":"event_property_is","key":"content.s","value":1}`, odd, false},
		{`{"kind":"event_property_is","key":"content.neg","value":-3}`, odd, true},
		{`{"kind":"event_property_is","key":"content.f","value":1.5}`, odd, false},
		{`{"kind":"event_property_is","key":"content.edge","value":9007199254740991}`, odd, true},
		{`{"kind":"event_property_is","key":"content.big","value":9007199254740992}`, odd, false},
		{`{"kind":"event_property_is","key":"content.t","value":true}`, odd, true},
		{`{"kind":"event_property_is","key":"content.t","value":false}`, odd, false},
		{`{"kind":"event_property_is","key":"content.nul","value":null}`, odd, true},
		{`{"kind":"event_property_is","key":"content.missing","value":null}`, odd, false},
		{`{"kind":"event_property_is","key":"content.list","value":"x"}`, odd, false},
		{`{"kind":"event_property_is","key":"content.body","value":"An example event."}`, odd, true},
		{`{"kind":"event_property_is","key":"content.body","value":"an example event."}`, odd, false},
		{`{"kind":"event_property_is","key":"content.a","value":{"d":1}}`, odd, false},
		{`{"kind":"event_property_is","key":"content.nul"}`, odd, false},

		{`{"kind":"event_property_contains","key":"content.alt_aliases","value":"#myroom:example.com"}`, state("m.room.canonical_alias", "", `{"alt_aliases":["#somewhere:example.org","#myroom:example.com"]}`), true},
		{`{"kind":"event_property_contains","key":"content.alt_aliases","value":":example.com"}`, state("m.room.canonical_alias", "", `{"alt_aliases":["#somewhere:example.org","#myroom:example.com"]}`), false},
		{`{"kind":"event_property_contains","key":"content.list","value":"x"}`, odd, true},
		{`{"kind":"event_property_contains","key":"content.list","value":"X"}`, odd, false},
		{`{"kind":"event_property_contains","key":"content.list","value":1}`, odd, true},
		{`{"kind":"event_property_contains","key":"content.list","value":true}`, odd, true},
		{`{"kind":"event_property_contains","key":"content.list","value":false}`, odd, false},
		{`{"kind":"event_property_contains","key":"content.list","value":null}`, odd, true},
		{`{"kind":"event_property_contains","key":"content.list","value":"y"}`, odd, false},
		{`{"kind":"event_property_contains","key":"content.s","value":"1"}`, odd, false},
		{`{"kind":"event_property_contains","key":"content.missing","value":null}`, odd, false},

		{`{"kind":"org.example.unknown"}`, odd, false},
		{`{"Kind":"contains_display_name"}`, text("Alice"), false},
		{`{"kind":"event_match","key":"type"}`, odd, false},
		{`{"kind":"event_match","pattern":"*"}`, odd, false},
		{`{"kind":"event_match","key":"type","pattern":7}`, odd, false},
		{`{"kind":"event_match","key":["type"],"pattern":"*"}`, odd, false},
		{`{"kind":"sender_notification_permission"}`, odd, false},
	} {
		if got := holds(c.condition, c.event, group, "Alice"); got != c.want {
			t.Errorf("%s: holds = %v, want %v", c.condition, got, c.want)
		}
	}
}

func TestContainsDisplayName(t *testing.T) {
	const condition = `{"kind":"contains_display_name"}`
	for _, c := range []struct {
		name, body string
		want       bool
	}{
		{"Alice", "hello alice!", true},
		{"Alice", "malice", false},
		{"", "hello", false},
		{"*", "hello", false},
		{"a*e", "alice", false},
		{"[x] A?b", "see [x] a?b there", true},
		{"Ålice M", "thanks ÅLICE M", true},
	} {
		if got := holds(condition, text(c.body), group, c.name); got != c.want {
			t.Errorf("name %q in %q: %v, want %v", c.name, c.body, got, c.want)
		}
	}
	o := &Overlay{}
	if Compile(o, alice).NeedsDisplayName() {
		t.Error("the predefined rules need no name")
	}
	if err := o.Put(Override, Rule{ID: "x", Conditions: list(condition)}, "", ""); err != nil {
		t.Fatal(err)
	}
	if !Compile(o, alice).NeedsDisplayName() {
		t.Error("a rule with the condition needs the name")
	}
	if holds(condition, message("m.room.message", `{"body":["Alice"]}`), group, "Alice") {
		t.Error("matches a body that is no string")
	}
}

func TestRoomMemberCount(t *testing.T) {
	for _, c := range []struct {
		is   string
		want []int64 // of 0 to 4
	}{
		{"2", []int64{2}}, {"==2", []int64{2}}, {"<2", []int64{0, 1}}, {"<=2", []int64{0, 1, 2}},
		{">2", []int64{3, 4}}, {">=2", []int64{2, 3, 4}}, {"02", []int64{2}},
		{"", nil}, {"==", nil}, {"=2", nil}, {"!=2", nil}, {"-1", nil}, {"+2", nil}, {" 2", nil}, {"2 ", nil}, {">= 2", nil}, {"two", nil}, {"2.0", nil}, {"99999999999999999999", nil},
	} {
		var got []int64
		for n := range int64(5) {
			if holds(fmt.Sprintf(`{"kind":"room_member_count","is":%q}`, c.is), text("x"), &Room{MemberCount: n}, "") {
				got = append(got, n)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("is %q: matches %v, want %v", c.is, got, c.want)
		}
	}
	if holds(`{"kind":"room_member_count","is":2}`, text("x"), &Room{MemberCount: 2}, "") {
		t.Error("a number for is matches")
	}
}

func TestSenderNotificationPermission(t *testing.T) {
	const condition = `{"kind":"sender_notification_permission","key":"org.example"}`
	for _, c := range []struct {
		room Room
		want bool
	}{
		{Room{SenderLevel: 49}, false},
		{Room{SenderLevel: 50}, true},
		{Room{SenderLevel: 9, NotificationLevels: map[string]int64{"org.example": 10}}, false},
		{Room{SenderLevel: 10, NotificationLevels: map[string]int64{"org.example": 10}}, true},
		{Room{SenderLevel: -1, NotificationLevels: map[string]int64{"org.example": -1}}, true},
	} {
		if got := holds(condition, text("x"), &c.room, ""); got != c.want {
			t.Errorf("%+v: %v, want %v", c.room, got, c.want)
		}
	}
}

// A rule is put under each kind with its own sound; which sound is heard tells the order.
func TestOrderOfKinds(t *testing.T) {
	o := &Overlay{}
	put := func(k Kind, r Rule) {
		t.Helper()
		r.Actions = list(`"notify"`, fmt.Sprintf(`{"set_tweak":"sound","value":%q}`, k.String()))
		if err := o.Put(k, r, "", ""); err != nil {
			t.Fatal(err)
		}
	}
	put(Override, Rule{ID: "o"})
	put(Content, Rule{ID: "c", Pattern: "hello"})
	put(RoomSpecific, Rule{ID: roomA})
	put(SenderSpecific, Rule{ID: bob})
	put(Underride, Rule{ID: "u"})
	for _, k := range []Kind{Override, Content, RoomSpecific, SenderSpecific, Underride} {
		if got := Compile(o, alice).Evaluate(Prepare(text("hello")), group, ""); got.Sound != k.String() {
			t.Errorf("heard %q, want %q", got.Sound, k)
		}
		id := map[Kind]string{Override: "o", Content: "c", RoomSpecific: roomA, SenderSpecific: bob, Underride: "u"}[k]
		if err := o.SetEnabled(k, id, false); err != nil {
			t.Fatal(err)
		}
	}
	if got := Compile(o, alice).Evaluate(Prepare(text("hello")), group, ""); shape(got) != "notify" {
		t.Errorf("with all own rules disabled: %s", shape(got))
	}
}

func TestOwnRulesStandBeforePredefined(t *testing.T) {
	o := &Overlay{}
	// A rule without conditions always matches.
	if err := o.Put(Override, Rule{ID: "all", Actions: list()}, "", ""); err != nil {
		t.Fatal(err)
	}
	mention := message("m.room.message", `{"m.mentions":{"user_ids":["@alice:example.org"]}}`)
	if got := Compile(o, alice).Evaluate(Prepare(mention), group, ""); shape(got) != "silent" {
		t.Errorf("own override rule: %s", shape(got))
	}
	o = &Overlay{}
	if err := o.Put(Underride, Rule{ID: "all", Actions: list(`"notify"`, `{"set_tweak":"highlight"}`)}, "", ""); err != nil {
		t.Fatal(err)
	}
	if got := Compile(o, alice).Evaluate(Prepare(text("x")), group, ""); shape(got) != "notify highlight" {
		t.Errorf("own underride rule: %s", shape(got))
	}
}

func TestMasterStandsAboveAll(t *testing.T) {
	o := &Overlay{}
	if err := o.Put(Override, Rule{ID: "all", Actions: list(`"notify"`)}, "", ""); err != nil {
		t.Fatal(err)
	}
	if err := o.SetEnabled(Override, ".m.rule.master", true); err != nil {
		t.Fatal(err)
	}
	if got := Compile(o, alice).Evaluate(Prepare(text("x")), group, ""); got.Notify {
		t.Error("the master rule does not silence the user's override rule")
	}
}

func TestChangedPredefinedRules(t *testing.T) {
	o := &Overlay{}
	if err := o.SetActions(Underride, ".m.rule.message", list(`"notify"`, `{"set_tweak":"sound","value":"pling"}`)); err != nil {
		t.Fatal(err)
	}
	if err := o.SetEnabled(Override, ".m.rule.suppress_edits", false); err != nil {
		t.Fatal(err)
	}
	if got := Compile(o, alice).Evaluate(Prepare(text("x")), group, ""); shape(got) != "notify pling" {
		t.Errorf("message: %s", shape(got))
	}
	edit := message("m.room.message", `{"m.relates_to":{"rel_type":"m.replace"}}`)
	if got := Compile(o, alice).Evaluate(Prepare(edit), group, ""); shape(got) != "notify pling" {
		t.Errorf("edit: %s", shape(got))
	}
	if got := Compile(&Overlay{}, bob).Evaluate(Prepare(&Event{Type: "m.room.message", Sender: alice}), group, ""); shape(got) != "notify" {
		t.Errorf("another user's message: %s", shape(got))
	}
}

func TestActions(t *testing.T) {
	for _, c := range []struct{ in, kept, shape string }{
		{`["notify"]`, `["notify"]`, "notify"},
		{`[]`, `[]`, "silent"},
		{`["dont_notify"]`, `["dont_notify"]`, "silent"},
		{`["coalesce","notify"]`, `["coalesce","notify"]`, "notify"},
		{`["notify",{"set_tweak":"highlight"}]`, `["notify",{"set_tweak":"highlight"}]`, "notify highlight"},
		{`["notify",{"set_tweak":"highlight","value":true}]`, `["notify",{"set_tweak":"highlight","value":true}]`, "notify highlight"},
		{`["notify",{"set_tweak":"highlight","value":false}]`, `["notify",{"set_tweak":"highlight","value":false}]`, "notify"},
		{`["notify",{"set_tweak":"highlight"},{"set_tweak":"highlight","value":false}]`, `["notify",{"set_tweak":"highlight"},{"set_tweak":"highlight","value":false}]`, "notify"},
		{`["notify",{"set_tweak":"sound","value":"cake.wav"}]`, `["notify",{"set_tweak":"sound","value":"cake.wav"}]`, "notify cake.wav"},
		{`["notify",{"set_tweak":"sound","value":7}]`, `["notify",{"set_tweak":"sound","value":7}]`, "notify"},
		{`["notify",{"set_tweak":"org.light", "value":{"flash": [1, 2]}}]`, `["notify",{"set_tweak":"org.light","value":{"flash":[1,2]}}]`, "notify"},
		{`[{"set_tweak":"highlight"}]`, `[{"set_tweak":"highlight"}]`, "silent"},
		{`["shout"]`, "", ""},
		{`[null]`, "", ""},
		{`[1]`, "", ""},
		{`[["notify"]]`, "", ""},
		{`[{"sound":"x"}]`, "", ""},
		{`[{"set_tweak":1}]`, "", ""},
	} {
		var in []json.RawMessage
		if err := json.Unmarshal([]byte(c.in), &in); err != nil {
			t.Fatal(err)
		}
		out, err := ParseActions(in)
		if err != nil {
			if c.kept != "" {
				t.Errorf("%s: %v", c.in, err)
			}
			continue
		}
		if kept := string(appendList(nil, out)); kept != c.kept {
			t.Errorf("%s: kept %s, want %s", c.in, kept, c.kept)
		}
		if got := shape(compileActions(out)); got != c.shape {
			t.Errorf("%s: %s, want %s", c.in, got, c.shape)
		}
	}
}

// Many readers may ask one Prepared at once, also about properties that are looked up on demand.
func TestPreparedIsShared(t *testing.T) {
	e := message("x", `{"a":{"b":"c"},"m.mentions":{"user_ids":[`+strings.Repeat(`"@x:y",`, 100)+`"@alice:example.org"]}}`)
	p := Prepare(e)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			o := &Overlay{}
			for j := range 20 {
				condition := fmt.Sprintf(`{"kind":"event_match","key":"content.k%d","pattern":"*"}`, i*20+j)
				if err := o.Put(Override, Rule{ID: fmt.Sprint(j), Conditions: list(condition)}, "", ""); err != nil {
					t.Error(err)
				}
			}
			if got := Compile(o, alice).Evaluate(p, group, ""); shape(got) != "notify highlight default" {
				t.Errorf("%s", shape(got))
			}
		})
	}
	wg.Wait()
}

// The cost of one message to a room of 200 local users: Prepare once, Evaluate for each.
func BenchmarkMessage200Users(b *testing.B) {
	e := message("m.room.message", `{"body":"The quick brown fox jumps over the lazy dog, and Alice is looking at it","msgtype":"m.text","m.mentions":{"user_ids":["@user17:example.org"]}}`)
	bench := func(b *testing.B, o func(i int) *Overlay) {
		var users []*Compiled
		for i := range 200 {
			users = append(users, Compile(o(i), fmt.Sprintf("@user%d:example.org", i)))
		}
		b.ReportAllocs()
		for b.Loop() {
			p := Prepare(e)
			for _, u := range users {
				u.Evaluate(p, group, "")
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200, "ns/user")
	}
	b.Run("predefined", func(b *testing.B) { bench(b, func(int) *Overlay { return &Overlay{} }) })
	b.Run("30 own rules", func(b *testing.B) {
		bench(b, func(u int) *Overlay {
			o := &Overlay{}
			for i := range 10 {
				_ = o.Put(Content, Rule{ID: fmt.Sprint(i), Pattern: fmt.Sprintf("word%d", i)}, "", "")
				_ = o.Put(Override, Rule{ID: fmt.Sprint(i), Conditions: list(fmt.Sprintf(`{"kind":"event_match","key":"room_id","pattern":"!room%d%d:example.org"}`, u, i))}, "", "")
				_ = o.Put(RoomSpecific, Rule{ID: fmt.Sprintf("!x%d%d:example.org", u, i)}, "", "")
			}
			return o
		})
	})
}

func BenchmarkPrepare(b *testing.B) {
	e := message("m.room.message", `{"body":"The quick brown fox jumps over the lazy dog, and Alice is looking at it","msgtype":"m.text","m.mentions":{"user_ids":["@user17:example.org"]}}`)
	b.ReportAllocs()
	for b.Loop() {
		Prepare(e)
	}
}
