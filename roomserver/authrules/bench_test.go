package authrules

import (
	"fmt"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

// benchRoom is a room with a hundred users in its power levels.
func benchRoom(b *testing.B) *world {
	b.Helper()
	w := newWorld(12)
	var users []string
	for i := range 100 {
		users = append(users, fmt.Sprintf(`"@mod%d:one": 50`, i))
	}
	r := &room{}
	for _, text := range []string{
		"@creator:one creates", "@creator:one joins", "@user:one joins", "@mod50:one joins",
		`@creator:one sets power_levels {"users": {` + strings.Join(users, ",") + `}, "events": {"m.room.name": 50, "m.room.power_levels": 100}}`,
		`@creator:one sets join_rules {"join_rule": "restricted"}`,
	} {
		r.events = append(r.events, line{text: text})
	}
	if err := w.build(r, nil); err != nil {
		b.Fatal(err)
	}
	return w
}

func BenchmarkCheck(b *testing.B) {
	w := benchRoom(b)
	for name, text := range map[string]string{
		"message":        "@user:one sends m.room.message",
		"state":          "@mod50:one sets name",
		"join":           "@user:one joins",
		"restrictedJoin": `@new:two joins {"join_authorised_via_users_server": "@mod50:one", "displayname": "New"}`,
		"kick":           "@mod50:one kicks @user:one",
	} {
		ev := mustEvent(b, w, text)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(ev, w); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("powerLevels", func(b *testing.B) {
		ev := mustEvent(b, w, `@creator:one changes power_levels users {"@user:one": 50}`)
		b.ReportAllocs()
		for b.Loop() {
			if err := Check(ev, w); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rejectedMessage", func(b *testing.B) {
		ev := mustEvent(b, w, "@stranger:one sends m.room.message")
		b.ReportAllocs()
		for b.Loop() {
			if err := Check(ev, w); err == nil {
				b.Fatal("allowed")
			}
		}
	})
}

func BenchmarkParsePowerLevels(b *testing.B) {
	w := benchRoom(b)
	ev := w.state[StateKeyTuple{pdu.TypePowerLevels, ""}]
	b.ReportAllocs()
	for b.Loop() {
		parsePower(ev.Version(), ev.Content())
	}
}

func BenchmarkRequired(b *testing.B) {
	w := benchRoom(b)
	b.ReportAllocs()
	for b.Loop() {
		Required(w.v, Header{Type: "m.room.message", Sender: "@user:one"})
	}
}

// TestCheckDoesNotAllocate: judging a message or a join costs no memory once power levels and join
// rules are parsed.
func TestCheckDoesNotAllocate(t *testing.T) {
	w := worldOf(t, 12, publicRoom...)
	for _, text := range []string{"@user:one sends m.room.message", "@user:one joins", "@mod:one kicks @user:one"} {
		ev := mustEvent(t, w, text)
		if allocs := testing.AllocsPerRun(100, func() { _ = Check(ev, w) }); allocs != 0 {
			t.Errorf("%s: %v allocations", text, allocs)
		}
	}
}
