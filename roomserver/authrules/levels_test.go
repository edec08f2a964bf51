package authrules

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

func TestLevelForms(t *testing.T) {
	const no = math.MinInt64 + 1 // stands for "not a level"
	huge := "1" + strings.Repeat("0", 400)
	tests := []struct {
		token                                       string
		anyNumber, integersOrStrings, integersOnly_ int64
	}{
		{`0`, 0, 0, 0},
		{`50`, 50, 50, 50},
		{`-50`, -50, -50, -50},
		{`9007199254740991`, maxInteger, maxInteger, maxInteger},
		{`-9007199254740991`, -maxInteger, -maxInteger, -maxInteger},
		{`9007199254740992`, maxInteger + 1, maxInteger + 1, no},
		{`99999999999999999999`, math.MaxInt64, math.MaxInt64, no},
		{`-99999999999999999999`, math.MinInt64, math.MinInt64, no},
		{huge, no, no, no},
		{`50.57`, 50, no, no},
		{`-0.99`, 0, no, no},
		{`-50.57`, -50, no, no},
		{`5.114698E4`, 51146, no, no},
		{`1e3`, 1000, no, no},
		{`1e300`, math.MaxInt64, no, no},
		{`-1e300`, math.MinInt64, no, no},
		{`1e999`, no, no, no},
		{`"100"`, 100, 100, no},
		{`"000100"`, 100, 100, no},
		{`"+100"`, 100, 100, no},
		{`"-100"`, -100, -100, no},
		{`" -100 "`, -100, -100, no},
		{`" \t\n\r00100\u000b\u000c "`, 100, 100, no},
		{"\"\u00a0100\u2003\"", 100, 100, no},
		{`"99999999999999999999"`, math.MaxInt64, math.MaxInt64, no},
		{`""`, no, no, no},
		{`" "`, no, no, no},
		{`"+"`, no, no, no},
		{`"+-1"`, no, no, no},
		{`"- 1"`, no, no, no},
		{`"1 0"`, no, no, no},
		{`"1_0"`, no, no, no},
		{`"0x10"`, no, no, no},
		{`"5.5"`, no, no, no},
		{`"5e1"`, no, no, no},
		{`"Infinity"`, no, no, no},
		{`"NaN"`, no, no, no},
		{`"٣"`, no, no, no},
		{`true`, no, no, no},
		{`null`, no, no, no},
		{`{}`, no, no, no},
		{`[50]`, no, no, no},
	}
	for _, test := range tests {
		for form, want := range map[numberForm]int64{
			anyNumber: test.anyNumber, integersOrStrings: test.integersOrStrings, integersOnly: test.integersOnly_,
		} {
			got, ok := form.level([]byte(test.token))
			if ok != (want != no) || ok && got != want {
				t.Errorf("%.40s in form %d: %d, %v; want %d", test.token, form, got, ok, want)
			}
		}
	}
}

// levelsOf are the levels of a room of cases after some lines.
func levelsOf(t *testing.T, version int, lines ...string) *Levels {
	t.Helper()
	w := worldOf(t, version, lines...)
	return PowerLevels(w.state[StateKeyTuple{pdu.TypePowerLevels, ""}], w.state[StateKeyTuple{pdu.TypeCreate, ""}])
}

// worldOf is a room with the events that some lines describe.
func worldOf(t *testing.T, version int, lines ...string) *world {
	t.Helper()
	w := newWorld(version)
	r := &room{}
	for i, text := range lines {
		r.events = append(r.events, line{t.Name(), i, text})
	}
	if err := w.build(r, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestLevelDefaults(t *testing.T) {
	for version := 1; version <= newestList; version++ {
		for _, content := range []string{"", "@alice:one sets power_levels content {}"} {
			lines := []string{"@alice:one creates"}
			if content != "" {
				lines = append(lines, content)
			}
			l := levelsOf(t, version, lines...)
			got := []int64{
				l.Event("m", false), l.Event("m", true), l.Invite(), l.Kick(), l.Ban(), l.Redact(), l.User("@bob:one"),
			}
			if want := []int64{0, 50, 0, 50, 50, 50, 0}; !slices.Equal(got, want) {
				t.Errorf("version %d %q: %v, want %v", version, content, got, want)
			}
			creator := int64(0)
			switch {
			case version >= 12:
				creator = Infinite
			case content == "":
				creator = 100
			}
			if l.User("@alice:one") != creator {
				t.Errorf("version %d %q: the creator has %d, want %d", version, content, l.User("@alice:one"), creator)
			}
		}
	}
}

func TestLevelsStated(t *testing.T) {
	for version := 1; version <= newestList; version++ {
		l := levelsOf(t, version, "@alice:one creates",
			`@alice:one sets power_levels {"users_default": 1, "events_default": 2, "state_default": 3, "ban": 4, "redact": 5, "kick": 6, "invite": 7, `+
				`"users": {"@bob:one": 8, "@a\"b:one": 9}, "events": {"m.a": 10, "m.a.b": 11}, "notifications": {"room": 12}}`)
		got := []int64{
			l.User("@x:one"), l.Event("m.x", false), l.Event("m.x", true), l.Ban(), l.Redact(), l.Kick(), l.Invite(),
			l.User("@bob:one"), l.User(`@a"b:one`), l.Event("m.a", false), l.Event("m.a.b", true), l.Notifications()["room"],
		}
		if want := []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}; !slices.Equal(got, want) {
			t.Errorf("version %d: %v, want %v", version, got, want)
		}
	}
}

// TestLevelsUnreadable: levels that were accepted with what nobody can read count as absent.
func TestLevelsUnreadable(t *testing.T) {
	l := levelsOf(t, 6, "@alice:one creates",
		`@alice:one sets power_levels {"users_default": [], "ban": "x", "kick": null, "users": {"@bob:one": {}, "@c:one": 1}, "events": 7, "notifications": null}`)
	got := []int64{l.User("@bob:one"), l.User("@c:one"), l.Ban(), l.Kick(), l.Event("m", true)}
	if want := []int64{0, 1, 50, 50, 50}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestLevelsAreParsedOnce(t *testing.T) {
	w := worldOf(t, 12, "@alice:one creates", `@alice:one sets power_levels {"users": {"@bob:one": 50}}`)
	power, create := w.state[StateKeyTuple{pdu.TypePowerLevels, ""}], w.state[StateKeyTuple{pdu.TypeCreate, ""}]
	first := PowerLevels(power, create)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if l := PowerLevels(power, create); l != first {
				t.Error("parsed again")
			}
		})
	}
	wg.Wait()
	if allocs := testing.AllocsPerRun(100, func() { PowerLevels(power, create); PowerLevels(nil, create); PowerLevels(nil, nil) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}

	// Another create event makes other levels and does not spoil the first ones.
	other := w.copyOf(create, func(m map[string]any) { m["sender"] = "@carol:one" })
	if l := PowerLevels(power, other); l.User("@alice:one") != 0 || l.User("@carol:one") != Infinite || l.User("@bob:one") != 50 {
		t.Error("levels with another create event are those of the first")
	}
	if first.User("@alice:one") != Infinite || PowerLevels(power, create).User("@alice:one") != Infinite {
		t.Error("the levels of the first create event changed")
	}
}

func TestLevelsWithoutCreateEvent(t *testing.T) {
	l := PowerLevels(nil, nil)
	if l.User("@alice:one") != 0 || l.Ban() != 50 {
		t.Error("levels of nothing are not the defaults")
	}
}

func TestChanges(t *testing.T) {
	old := entries{{"a", 1}, {"b", 2}, {"d", 4}}
	next := entries{{"b", 2}, {"c", 3}, {"d", 5}, {"e", 6}}
	var got []string
	for _, c := range changes(old, next) {
		got = append(got, fmt.Sprint(c))
	}
	want := []string{"{a 1 0 true false}", "{c 0 3 false true}", "{d 4 5 true true}", "{e 0 6 false true}"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
