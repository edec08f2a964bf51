package stateres

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/snapshot"
)

// The scripts are explained in testdata/README.md.

const usualRoom = `C alice creates
AJ alice joins
PL alice power alice=100
JR alice rules public
BJ bob joins
CJ charlie joins`

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cases := strings.Split("\n"+string(raw), "\ncase ")
		for _, text := range cases[1:] {
			title, body, _ := strings.Cut(text, "\n")
			lines := strings.Split(strings.ReplaceAll(body, "\nroom\n", "\n"+usualRoom+"\n"), "\n")
			first, last := versionsOf(t, lines[0])
			for v := first; v <= last; v++ {
				t.Run(fmt.Sprintf("%s/%s/v%d", filepath.Base(file), title, v), func(t *testing.T) {
					runScript(t, lookup(t, v), lines[1:])
				})
			}
		}
	}
}

func versionsOf(t *testing.T, line string) (first, last int) {
	t.Helper()
	span, ok := strings.CutPrefix(line, "versions ")
	from, to, isSpan := strings.Cut(span, "-")
	if !isSpan {
		to = from
	}
	first, err := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	if !ok || err != nil || err2 != nil || first > last {
		t.Fatalf("not a line of versions: %q", line)
	}
	return first, last
}

// script is one case in one room version.
type script struct {
	t      *testing.T
	s      *server
	roomID string
	names  map[string]*record
	states map[string]snapshot.Ref
	last   string // name of the last event
	line   int
}

func runScript(t *testing.T, v *pdu.Version, lines []string) {
	sc := &script{t: t, s: newServer(t, v), roomID: "!room:test", names: map[string]*record{}, states: map[string]snapshot.Ref{}}
	var roots []snapshot.Ref
	expects := 0
	for _, line := range lines {
		sc.line++
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#":
		case words[0] == "state":
			sc.state(words[1:])
		case words[0] == "resolve":
			for _, name := range words[1:] {
				roots = append(roots, sc.root(name))
			}
		case words[0] == "expect":
			sc.expect(roots, strings.TrimPrefix(line, "expect "))
			expects++
		default:
			sc.event(words)
		}
	}
	if expects == 0 {
		t.Fatal("the case expects nothing")
	}
}

func (sc *script) find(name string) *record {
	sc.t.Helper()
	r := sc.names[name]
	if r == nil {
		sc.t.Fatalf("no event %s", name)
	}
	return r
}

func (sc *script) root(name string) snapshot.Ref {
	if root, ok := sc.states[name]; ok {
		return root
	}
	return sc.find(name).after
}

func userID(name string) string { return "@" + name + ":test" }

// placeOf reads TYPE/KEY.
func placeOf(s string) place {
	typ, key, has := strings.Cut(s, "/")
	if has {
		key = userID(key)
	}
	return place{"m.room." + typ, key}
}

// state reads NAME = NAME with NAME, without TYPE/KEY ….
func (sc *script) state(words []string) {
	sc.s.nid++
	pack := sc.s.nid
	e := sc.s.tree(sc.root(words[2])).Edit(pack)
	for i := 3; i+1 < len(words); i += 2 {
		arg := strings.TrimSuffix(words[i+1], ",")
		switch words[i] {
		case "with":
			r := sc.find(arg)
			e.Set(r.Type, *r.StateKey, r.nid)
		case "without":
			p := placeOf(arg)
			e.Delete(p.typ, p.key)
		default:
			sc.t.Fatalf("a state %s something", words[i])
		}
	}
	sc.states[words[0]] = sc.s.commit(e, pack)
}

// event reads NAME USER VERB … and takes the event in.
func (sc *script) event(words []string) {
	name, rejected := words[0], false
	d := draft{seed: name, sender: userID(words[1]), ts: int64(sc.line), prev: []string{}}
	if sc.last != "" {
		d.prev = []string{sc.find(sc.last).ID}
	}
	args := words[3:]
	for i, w := range args {
		if slices.Contains([]string{"after", "citing", "at", "rejected"}, w) {
			rejected = sc.options(&d, args[i:])
			args = args[:i]
			break
		}
	}
	sc.content(&d, words[2], args)
	d.depth = d.ts
	if d.auth == nil {
		d.auth = sc.s.authFor(sc.s.before(d.prev), &d)
	}
	ev := makeEvent(sc.t, sc.s.v, sc.roomID, d)
	sc.roomID = ev.RoomID
	r := sc.s.receive(ev)
	if r.rejected != rejected {
		sc.t.Fatalf("%s: rejected %v", strings.Join(words, " "), r.rejected)
	}
	sc.names[name], sc.last = r, name
}

// options reads what follows the verb and its arguments.
func (sc *script) options(d *draft, words []string) (rejected bool) {
	what := ""
	for _, w := range words {
		switch {
		case w == "rejected":
			rejected = true
		case w == "after":
			what, d.prev = w, []string{}
		case w == "citing":
			what, d.auth = w, []string{}
		case w == "at":
			what = w
		case what == "after":
			d.prev = append(d.prev, sc.find(w).ID)
		case what == "citing":
			if w != "C" || !sc.s.v.RoomIDIsCreateHash {
				d.auth = append(d.auth, sc.find(w).ID)
			}
		default:
			ts, err := strconv.Atoi(w)
			if err != nil {
				sc.t.Fatalf("at %q", w)
			}
			d.ts = int64(ts)
		}
	}
	return rejected
}

// content reads a verb with its arguments.
func (sc *script) content(d *draft, verb string, args []string) {
	empty := ""
	d.typ, d.key = pdu.TypeMember, &d.sender
	memberships := map[string]string{
		"joins": "join", "leaves": "leave", "knocks": "knock", "invites": "invite", "kicks": "leave", "unbans": "leave", "bans": "ban",
	}
	switch verb {
	case "creates":
		d.typ, d.key, d.content = pdu.TypeCreate, &empty, map[string]any{"creator": d.sender}
	case "power":
		users := map[string]any{}
		for _, a := range args {
			who, level, named := strings.Cut(a, "=")
			n, err := strconv.Atoi(level)
			if !named {
				continue
			}
			if err != nil {
				sc.t.Fatalf("power %q", a)
			}
			if who != "alice" || !sc.s.v.CreatorsPrivileged {
				users[userID(who)] = n
			}
		}
		d.typ, d.key, d.content = pdu.TypePowerLevels, &empty, map[string]any{"users": users}
	case "rules":
		d.typ, d.key, d.content = pdu.TypeJoinRules, &empty, map[string]any{"join_rule": args[0]}
	case "topic", "name":
		d.typ, d.key, d.content = "m.room."+verb, &empty, map[string]any{verb: strings.Join(args, " ")}
	case "says":
		d.typ, d.key, d.content = "m.room.message", nil, map[string]any{"body": strings.Join(args, " ")}
	default:
		if memberships[verb] == "" {
			sc.t.Fatalf("unknown verb %q", verb)
		}
		d.content = map[string]any{"membership": memberships[verb]}
		if len(args) > 0 {
			who := userID(args[0])
			d.key = &who
		}
	}
}

// expect resolves the states in every order and compares with the line and the oracle.
func (sc *script) expect(roots []snapshot.Ref, line string) {
	t := sc.t
	states := make([]stateMap, len(roots))
	for i, r := range roots {
		states[i] = sc.s.stateOf(r)
	}
	want := (&oracle{t, sc.s.v, sc.s.byID}).resolve(states)
	nameOf := func(id string) string {
		for name, r := range sc.names {
			if r.ID == id {
				return name
			}
		}
		return "-"
	}
	for _, order := range permutations(len(roots)) {
		var in []snapshot.Ref
		for _, i := range order {
			in = append(in, roots[i])
		}
		got := sc.s.stateOf(sc.s.resolve(in))
		if !maps.Equal(got, want) {
			t.Errorf("differs from the oracle: %v, want %v", got, want)
		}
		for _, e := range strings.Split(line, ", ") {
			at, name, ok := strings.Cut(strings.TrimSpace(e), " ")
			if !ok {
				t.Fatalf("expect %q", e)
			}
			if found := nameOf(got[placeOf(at)]); found != name {
				t.Errorf("%s is %s, want %s", at, found, name)
			}
		}
	}
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var out [][]int
	for _, p := range permutations(n - 1) {
		for i := range n {
			out = append(out, slices.Insert(slices.Clone(p), i, n-1))
		}
	}
	return out
}
