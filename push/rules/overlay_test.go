package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func ids(list []Rule) (out []string) {
	for _, r := range list {
		out = append(out, r.ID)
	}
	return out
}

// The predefined rules are those of the specification, in its order, and those for polls (MSC3930).
func TestPredefinedOrder(t *testing.T) {
	want := [kinds][]string{
		Override: {".m.rule.master", ".m.rule.suppress_notices", ".m.rule.invite_for_me", ".m.rule.member_event",
			".m.rule.is_user_mention", ".m.rule.is_room_mention", ".m.rule.tombstone", ".m.rule.reaction",
			".m.rule.room.server_acl", ".org.matrix.msc3930.rule.poll_response", ".m.rule.suppress_edits"},
		Underride: {".m.rule.call", ".m.rule.encrypted_room_one_to_one", ".m.rule.room_one_to_one", ".m.rule.message", ".m.rule.encrypted",
			".org.matrix.msc3930.rule.poll_start_one_to_one", ".org.matrix.msc3930.rule.poll_start",
			".org.matrix.msc3930.rule.poll_end_one_to_one", ".org.matrix.msc3930.rule.poll_end"},
	}
	got := new(Overlay).Ruleset(alice)
	for k := range Kind(kinds) {
		if !slices.Equal(ids(got[k]), want[k]) {
			t.Errorf("%s: %v, want %v", k, ids(got[k]), want[k])
		}
		for _, r := range got[k] {
			if r.Enabled != (r.ID != ".m.rule.master") {
				t.Errorf("%s: enabled = %v", r.ID, r.Enabled)
			}
		}
	}
	if len(predefined) > 32 {
		t.Error("a ruleSet has 32 bits")
	}
}

// No condition of a predefined rule may be one that never matches: that would be a spelling mistake.
func TestPredefinedConditionsAreKnown(t *testing.T) {
	for _, d := range predefined {
		for _, c := range append(slices.Clone(d.static), d.dynamic...) {
			if c.op == opNever {
				t.Errorf("%s has an unknown condition", d.rule.ID)
			}
			if c.slot == slotOther && c.op != opMemberCount && c.op != opSenderPermission && c.op != opThread {
				t.Errorf("%s looks up %q for every event", d.rule.ID, c.key)
			}
		}
	}
}

func TestRulesetJSON(t *testing.T) {
	o := &Overlay{}
	for _, err := range []error{
		o.Put(Override, Rule{ID: "a", Conditions: list(`{"kind":"org.example","x":[1]}`), Actions: list()}, "", ""),
		o.Put(Content, Rule{ID: "cake", Pattern: `c"é*`, Actions: list(`"notify"`)}, "", ""),
		o.Put(RoomSpecific, Rule{ID: roomA, Actions: list()}, "", ""),
		o.SetEnabled(Content, "cake", false),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := o.Ruleset(`@q"uote:example.org`).AppendJSON(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string][]map[string]any
	if err := json.Unmarshal(got, &out); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if len(out) != 5 {
		t.Errorf("kinds: %d, want all 5", len(out))
	}
	check := func(kind string, i int, want string) {
		t.Helper()
		var w map[string]any
		if err := json.Unmarshal([]byte(want), &w); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(out[kind][i], w) {
			t.Errorf("%s %d: %v, want %v", kind, i, out[kind][i], w)
		}
	}
	check("override", 0, `{"rule_id":".m.rule.master","default":true,"enabled":false,"conditions":[],"actions":[]}`)
	check("override", 1, `{"rule_id":"a","default":false,"enabled":true,"conditions":[{"kind":"org.example","x":[1]}],"actions":[]}`)
	check("override", 3, `{"rule_id":".m.rule.invite_for_me","default":true,"enabled":true,"conditions":[
		{"kind":"event_match","key":"type","pattern":"m.room.member"},{"kind":"event_match","key":"content.membership","pattern":"invite"},
		{"kind":"event_match","key":"state_key","pattern":"@q\"uote:example.org"}],"actions":["notify",{"set_tweak":"sound","value":"default"}]}`)
	check("content", 0, `{"rule_id":"cake","default":false,"enabled":false,"pattern":"c\"é*","actions":["notify"]}`)
	check("room", 0, `{"rule_id":"!a:example.org","default":false,"enabled":true,"actions":[]}`)
	if strings.Contains(string(got), userPlaceholder) {
		t.Error("the placeholder is shown")
	}
	if len(out["sender"]) != 0 || out["sender"] == nil {
		t.Error("a kind without rules is not an empty list")
	}
}

func TestPut(t *testing.T) {
	for _, c := range []struct {
		name, id, before, after string
		want                    string
		err                     error
	}{
		{name: "new on top", id: "x", want: "x a b c"},
		{name: "before", id: "x", before: "b", want: "a x b c"},
		{name: "before the first", id: "x", before: "a", want: "x a b c"},
		{name: "after", id: "x", after: "b", want: "a b x c"},
		{name: "after the last", id: "x", after: "c", want: "a b c x"},
		{name: "before wins over after", id: "x", before: "b", after: "c", want: "a x b c"},
		{name: "replaced in its place", id: "b", want: "a b c"},
		{name: "replaced and moved down", id: "a", after: "b", want: "b a c"},
		{name: "replaced and moved up", id: "c", before: "a", want: "c a b"},
		{name: "unknown before", id: "x", before: "y", want: "a b c", err: ErrNeighbour},
		{name: "unknown after", id: "x", after: "y", want: "a b c", err: ErrNeighbour},
		{name: "before itself", id: "b", before: "b", want: "a b c", err: ErrNeighbour},
		{name: "before a predefined rule", id: "x", before: ".m.rule.master", want: "a b c", err: ErrNeighbour},
		{name: "after a predefined rule", id: "x", after: ".m.rule.master", want: "a b c", err: ErrNeighbour},
		{name: "predefined", id: ".m.rule.master", want: "a b c", err: ErrPredefined},
		{name: "a dot", id: ".x", want: "a b c", err: ErrPredefined},
	} {
		o := &Overlay{}
		for _, id := range []string{"c", "b", "a"} {
			if err := o.Put(Override, Rule{ID: id}, "", ""); err != nil {
				t.Fatal(err)
			}
		}
		err := o.Put(Override, Rule{ID: c.id, Actions: list(`"notify"`)}, c.before, c.after)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
		}
		if got := strings.Join(ids(o.own[Override]), " "); got != c.want {
			t.Errorf("%s: order %q, want %q", c.name, got, c.want)
		}
		if err == nil {
			if r, _ := o.Rule(alice, Override, c.id); len(r.Actions) != 1 || !r.Enabled || r.Default {
				t.Errorf("%s: stored %+v", c.name, r)
			}
		}
	}
}

func TestReplacingKeepsEnabled(t *testing.T) {
	o := &Overlay{}
	for _, err := range []error{
		o.Put(Content, Rule{ID: "x", Pattern: "a"}, "", ""),
		o.SetEnabled(Content, "x", false),
		o.Put(Content, Rule{ID: "x", Pattern: "b"}, "", ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if r, _ := o.Rule(alice, Content, "x"); r.Enabled || r.Pattern != "b" {
		t.Errorf("%+v", r)
	}
	// A deleted rule leaves nothing behind for the next one of its name.
	if err := o.Delete(Content, "x"); err != nil {
		t.Fatal(err)
	}
	if err := o.Put(Content, Rule{ID: "x"}, "", ""); err != nil {
		t.Fatal(err)
	}
	if r, _ := o.Rule(alice, Content, "x"); !r.Enabled {
		t.Error("a new rule is not enabled")
	}
}

func TestUnknownRules(t *testing.T) {
	o := &Overlay{}
	if err := o.Put(Content, Rule{ID: "x"}, "", ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind Kind
		id   string
	}{{Override, "x"}, {Content, "y"}, {Underride, ".m.rule.master"}, {Override, ".m.rule.nothing"}} {
		if _, err := o.Rule(alice, c.kind, c.id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Rule %s %s: %v", c.kind, c.id, err)
		}
		if err := o.SetEnabled(c.kind, c.id, true); !errors.Is(err, ErrNotFound) {
			t.Errorf("SetEnabled %s %s: %v", c.kind, c.id, err)
		}
		if err := o.SetActions(c.kind, c.id, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("SetActions %s %s: %v", c.kind, c.id, err)
		}
		if err := o.Delete(c.kind, c.id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Delete %s %s: %v", c.kind, c.id, err)
		}
	}
	if err := o.Delete(Override, ".m.rule.master"); !errors.Is(err, ErrPredefined) {
		t.Errorf("delete a predefined rule: %v", err)
	}
}

func TestOverlayTooLarge(t *testing.T) {
	o := &Overlay{}
	if err := o.Put(Content, Rule{ID: "x", Pattern: strings.Repeat("a", MaxOverlay)}, "", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Encode(); !errors.Is(err, ErrOverlayTooLarge) {
		t.Errorf("error %v", err)
	}
}

// Whatever was changed comes back from storage.
func TestOverlayRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &Overlay{}
		for range rapid.IntRange(0, 12).Draw(t, "steps") {
			k := Kind(rapid.IntRange(0, kinds-1).Draw(t, "kind"))
			id := rapid.SampledFrom([]string{"a", "b", "c", `é"`, ".m.rule.master", ".m.rule.message"}).Draw(t, "id")
			actions := list(rapid.SampledFrom([]string{`"notify"`, `{"set_tweak":"highlight"}`}).Draw(t, "action"))
			switch rapid.IntRange(0, 4).Draw(t, "deed") {
			case 0, 1:
				r := Rule{ID: id, Actions: actions}
				if k == Content {
					r.Pattern = "p" + id
				}
				if k.hasConditions() {
					r.Conditions = list(`{"kind":"contains_display_name"}`)
				}
				_ = o.Put(k, r, rapid.SampledFrom([]string{"", "", "a"}).Draw(t, "before"), "")
			case 2:
				_ = o.SetEnabled(k, id, rapid.Bool().Draw(t, "enabled"))
			case 3:
				_ = o.SetActions(k, id, actions[:rapid.IntRange(0, 1).Draw(t, "n")])
			case 4:
				_ = o.Delete(k, id)
			}
		}
		stored, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeOverlay(stored)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := o.Ruleset(alice).AppendJSON(nil)
		b, _ := back.Ruleset(alice).AppendJSON(nil)
		if string(a) != string(b) {
			t.Fatalf("stored %s\nwas  %s\nback %s", stored, a, b)
		}
	})
}

func TestDecodeOverlayRefusesNonsense(t *testing.T) {
	for _, s := range []string{``, `[]`, `{"own":{"nonsense":[{"id":"x"}]}}`} {
		if _, err := DecodeOverlay([]byte(s)); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
	// Rules that are no longer predefined are ignored.
	o, err := DecodeOverlay([]byte(`{"predefined":{".m.rule.roomnotif":{"enabled":false}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := Compile(o, alice).Evaluate(Prepare(text("x")), group, ""); shape(got) != "notify" {
		t.Error(shape(got))
	}
}

func TestParseConditions(t *testing.T) {
	good, err := ParseConditions(list(`{"kind": "org.example", "x": 1}`))
	if err != nil || string(good[0]) != `{"kind":"org.example","x":1}` {
		t.Errorf("%s, %v", good, err)
	}
	many := slices.Repeat(list(`{"kind":"x"}`), maxConditions+1)
	for _, bad := range [][]json.RawMessage{list(`"kind"`), list(`{}`), list(`{"kind":1}`), list(`null`), list(`[{"kind":"x"}]`), many} {
		if _, err := ParseConditions(bad); !errors.Is(err, ErrCondition) {
			t.Errorf("%.60s: %v", fmt.Sprint(bad), err)
		}
	}
}
