package authrules

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
)

// The scripts in testdata are explained in testdata/README.md. This file reads and runs them;
// world_test.go makes the events they describe.

// script is one file of cases.
type script struct {
	name  string
	rooms map[string]*room
	cases []*testCase
}

// room is a named state.
type room struct {
	from   *room
	events []line
}

// testCase is one case and what its lines ask for.
type testCase struct {
	line     line
	versions []int
	room     *room
	changes  []line // given and without, in order
	when     line
	after    []string // nil without the line
	roomID   string
	citing   []string // nil without the line
	verdicts []verdict
}

type verdict struct {
	line     line
	allow    bool
	rule     string
	versions []int
}

// line is a line of a script.
type line struct {
	file   string
	number int
	text   string
}

func (l line) String() string { return fmt.Sprintf("%s:%d: %s", l.file, l.number, l.text) }

// readScript parses a file; it knows the rooms of shared already.
func readScript(t *testing.T, path string, shared map[string]*room) *script {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := &scriptReader{t: t, s: &script{name: filepath.Base(path), rooms: map[string]*room{}}}
	for name, r := range shared {
		p.s.rooms[name] = r
	}
	p.versions = parseVersions([]string{"1-12"})
	scanner := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; scanner.Scan(); n++ {
		text := scanner.Text()
		if strings.TrimSpace(text) == "" || strings.HasPrefix(text, "#") {
			continue
		}
		p.line(line{p.s.name, n, text})
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return p.s
}

type scriptReader struct {
	t        *testing.T
	s        *script
	versions []int
	current  *room // the room being described, and that of the next cases
	c        *testCase
}

func (p *scriptReader) line(l line) {
	p.t.Helper()
	if strings.HasPrefix(l.text, "  ") {
		l.text = strings.TrimSpace(l.text)
		p.current.events = append(p.current.events, l)
		return
	}
	word, rest, _ := strings.Cut(l.text, " ")
	words := strings.Fields(rest)
	switch word {
	case "versions":
		p.versions = parseVersions(words)
	case "room":
		if known, ok := p.s.rooms[words[0]]; ok {
			p.current = known
			return
		}
		p.current = &room{}
		if len(words) == 3 && words[1] == "from" {
			p.current.from = p.room(l, words[2])
		}
		p.s.rooms[words[0]] = p.current
	case "case":
		p.c = &testCase{line: l, versions: p.versions, room: p.current}
		p.s.cases = append(p.s.cases, p.c)
	case "in":
		p.c.room = p.room(l, words[0])
		if len(words) > 1 {
			p.c.versions = parseVersions(words[1:])
		}
	case "given", "without":
		p.c.changes = append(p.c.changes, l)
	case "when":
		l.text = rest
		p.c.when = l
	case "after":
		p.c.after = words
	case "room_id":
		p.c.roomID = rest
	case "citing":
		p.c.citing = words
	case "then":
		p.verdict(l, words)
	default:
		p.t.Fatalf("%s: unknown line", l)
	}
}

func (p *scriptReader) room(l line, name string) *room {
	p.t.Helper()
	r, ok := p.s.rooms[name]
	if !ok {
		p.t.Fatalf("%s: unknown room", l)
	}
	return r
}

func (p *scriptReader) verdict(l line, words []string) {
	p.t.Helper()
	v := verdict{line: l, allow: words[0] == "allow", versions: p.c.versions}
	if words[0] != "allow" && words[0] != "reject" {
		p.t.Fatalf("%s: neither allow nor reject", l)
	}
	if i := slices.Index(words, "in"); i >= 0 {
		v.versions = parseVersions(words[i+1:])
		words = words[:i]
	}
	if len(words) > 1 {
		v.rule = words[1]
	}
	p.c.verdicts = append(p.c.verdicts, v)
}

// parseVersions reads numbers and ranges.
func parseVersions(words []string) []int {
	var list []int
	for _, w := range words {
		from, to, ok := strings.Cut(w, "-")
		if !ok {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil {
			panic("not a range of room versions: " + w)
		}
		for n := a; n <= b; n++ {
			list = append(list, n)
		}
	}
	return list
}

// verdictFor finds the verdict on a room version; there must be exactly one.
func (c *testCase) verdictFor(version int) (verdict, error) {
	var found []verdict
	for _, v := range c.verdicts {
		if slices.Contains(v.versions, version) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		return verdict{}, fmt.Errorf("%d verdicts on version %d", len(found), version)
	}
	return found[0], nil
}

// hit is one way in which a rule decided in a room version.
type hit struct {
	rule    rule
	version int
	outcome outcome
}

func TestScripts(t *testing.T) {
	shared := readScript(t, "testdata/rooms.txt", nil).rooms
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	hits := map[hit]bool{}
	for _, path := range files {
		s := readScript(t, path, shared)
		t.Run(strings.TrimSuffix(s.name, ".txt"), func(t *testing.T) {
			for _, c := range s.cases {
				for _, version := range c.versions {
					c.run(t, version, hits)
				}
			}
		})
	}
	t.Run("every rule was exercised", func(t *testing.T) {
		for r := noRule + 1; r < rules; r++ {
			for version := 1; version <= newestList; version++ {
				if r.number(version) == "" {
					continue
				}
				for _, o := range []outcome{rejects, allows} {
					if ruleTable[r].outcomes&o != 0 && !hits[hit{r, version, o}] {
						t.Errorf("no case in version %d where %s (%s) %s", version, r, r.number(version), map[outcome]string{rejects: "rejects", allows: "allows"}[o])
					}
				}
			}
		}
	})
}

func (c *testCase) run(t *testing.T, version int, hits map[hit]bool) {
	t.Helper()
	want, err := c.verdictFor(version)
	if err != nil {
		t.Fatalf("%s: %v", c.line, err)
	}
	w := newWorld(version)
	if err := w.build(c.room, c.changes); err != nil {
		t.Fatalf("%s: %v", c.line, err)
	}
	var r rule
	if c.citing != nil {
		r, err = c.judgeCitations(w)
	} else {
		r, err = c.judge(w)
	}
	var refused *Error
	if err != nil && !errors.As(err, &refused) {
		t.Fatalf("%s: version %d: %v", c.line, version, err)
	}
	got := "allow " + r.String()
	outcome := allows
	if err != nil {
		got, outcome = "reject "+refused.Name, rejects
		if refused.Name != r.String() || refused.Rule != r.number(version) || refused.Rule == "" || refused.Reason == "" {
			t.Errorf("%s: version %d: error %+v of rule %s", c.line, version, refused, r)
		}
	}
	hits[hit{r, version, outcome}] = true
	expected := "reject " + want.rule
	if want.allow {
		expected = "allow " + want.rule
	}
	if got != expected {
		t.Errorf("%s: version %d: got %q, want %q (%v)", c.line, version, got, expected, err)
	}
}

func (c *testCase) judge(w *world) (rule, error) {
	ev, err := w.event(c.when, eventOptions{after: c.after, roomID: c.roomID})
	if err != nil {
		return noRule, fmt.Errorf("%s: %w", c.when, err)
	}
	r, err := decide(ev, w)
	// The exported function says the same.
	if again := Check(ev, w); (again == nil) != (err == nil) {
		return noRule, fmt.Errorf("Check says %q and decide %q", fmt.Sprint(again), fmt.Sprint(err))
	}
	return r, err
}

// judgeCitations runs the rules on auth_events. An entry with a prefix takes the place of the same
// entry without, unless the prefix is "other".
func (c *testCase) judgeCitations(w *world) (rule, error) {
	ev, err := w.event(c.when, eventOptions{})
	if err != nil {
		return noRule, fmt.Errorf("%s: %w", c.when, err)
	}
	var cited []*pdu.Event
	rejected := map[string]bool{}
	for _, word := range c.citing {
		if word == "required" {
			for _, k := range Required(w.v, Header{ev.Type, ev.StateKey, ev.Sender, ev.Content()}) {
				if a := w.state[k]; a != nil {
					cited = append(cited, a)
				}
			}
			continue
		}
		if word == "create?" {
			if w.v.RoomIDIsCreateHash {
				continue
			}
			word = "create"
		}
		prefix, place, ok := strings.Cut(word, ":")
		if !ok || !slices.Contains([]string{"rejected", "foreign", "other", "message"}, prefix) {
			prefix, place = "", word
		}
		typ, key, _ := strings.Cut(place, "/")
		k := StateKeyTuple{fullType(typ), key}
		a, original := w.state[k], w.state[k]
		if a == nil && prefix != "message" {
			return noRule, fmt.Errorf("nothing to cite for %s", word)
		}
		switch prefix {
		case "rejected":
			rejected[a.ID] = true
		case "foreign":
			a = w.copyOf(a, func(m map[string]any) { m["room_id"] = foreignRoomID })
		case "other":
			a = w.copyOf(a, func(m map[string]any) { m["origin_server_ts"] = 2 })
		case "message":
			a = w.copyOf(w.state[StateKeyTuple{pdu.TypePowerLevels, ""}], func(m map[string]any) { delete(m, "state_key") })
		}
		if i := slices.Index(cited, original); i >= 0 && (prefix == "rejected" || prefix == "foreign") {
			cited[i] = a
		} else {
			cited = append(cited, a)
		}
	}
	ids := make([]string, len(cited))
	for i, a := range cited {
		ids[i] = a.ID
	}
	if ev, err = w.event(c.when, eventOptions{authEvents: ids}); err != nil {
		return noRule, err
	}
	r, err := decideAuthEvents(ev, cited, func(id string) bool { return rejected[id] })
	if again := CheckStateIndependent(ev, cited, func(id string) bool { return rejected[id] }); (again == nil) != (err == nil) {
		return noRule, fmt.Errorf("CheckStateIndependent says %q and decideAuthEvents %q", fmt.Sprint(again), fmt.Sprint(err))
	}
	return r, err
}
