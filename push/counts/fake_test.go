package counts

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/myelin-im/myelin/push/rules"
)

const (
	alice = "@alice:example.org" // the reader
	bob   = "@bob:example.org"
	carol = "@carol:example.org"
	room  = int64(7)
)

// fakeLog is a room in memory. The position of an event is its place in the slice plus one; a nil
// event is a position of something else.
type fakeLog struct {
	events   []*Event
	joins    []int64 // positions of Alice's joins; after each but the last there is one in leaves
	leaves   []int64
	receipts map[string]int64
	rules    []ruleVersion
	ignored  map[string]bool
	version  int64
	name     string
	// horizon is the time before which messages have expired; the time of an event is its position.
	horizon int64
	// redactedAt are the positions of redactions by those of their targets.
	redactedAt map[int64]int64

	asked   int // calls of Events
	scanned int // events returned
	worked  int // facts worked out
	full    bool
}

type ruleVersion struct {
	from int64
	c    *rules.Compiled
}

func newFakeLog() *fakeLog {
	return &fakeLog{receipts: map[string]int64{}, redactedAt: map[int64]int64{}, rules: []ruleVersion{{0, rules.Compile(&rules.Overlay{}, alice)}}}
}

func (l *fakeLog) head() int64 { return int64(len(l.events)) }

// put appends an event and returns its position.
func (l *fakeLog) put(e *Event, content string) int64 {
	e.Pos = l.head() + 1
	e.TS = e.Pos
	if e.Type == "" {
		e.Type = "m.room.message"
	}
	re := &rules.Event{Type: e.Type, Sender: e.Sender, Content: []byte(content)}
	if e.State {
		re.StateKey = new(string)
	}
	e.Facts = NewFacts(func(context.Context) (*rules.Prepared, *rules.Room, error) {
		l.worked++
		return rules.Prepare(re), &rules.Room{MemberCount: 3}, nil
	})
	l.events = append(l.events, e)
	return e.Pos
}

func (l *fakeLog) join() int64 {
	l.joins = append(l.joins, l.put(&Event{Type: "m.room.member", Sender: alice, State: true}, `{"membership":"join"}`))
	return l.head()
}

func (l *fakeLog) leave() {
	l.leaves = append(l.leaves, l.put(&Event{Type: "m.room.member", Sender: alice, State: true}, `{"membership":"leave"}`))
}

// say is a message of Bob's; thread is empty for the main timeline.
func (l *fakeLog) say(thread string) int64 {
	return l.put(&Event{Sender: bob, Thread: thread}, `{"body":"x"}`)
}

// mention is a message of Bob's that mentions Alice.
func (l *fakeLog) mention(thread string) int64 {
	return l.put(&Event{Sender: bob, Thread: thread}, `{"m.mentions":{"user_ids":["@alice:example.org"]}}`)
}

func (l *fakeLog) redact(target int64) {
	e := l.events[target-1]
	pos := l.put(&Event{Type: "m.room.redaction", Sender: bob, Redacts: target}, `{}`)
	if !e.Redacted {
		e.Redacted = true
		l.redactedAt[target] = pos
	}
}

func (l *fakeLog) changeRules(change func(*rules.Overlay) error) {
	o := &rules.Overlay{}
	if err := change(o); err != nil {
		panic(err)
	}
	l.events = append(l.events, nil)
	l.rules = append(l.rules, ruleVersion{l.head(), rules.Compile(o, alice)})
}

func (l *fakeLog) ignore(users ...string) {
	l.ignored = map[string]bool{}
	for _, u := range users {
		l.ignored[u] = true
	}
	l.version++
}

func (l *fakeLog) Events(ctx context.Context, r, after, upTo int64, skipMain bool, limit int) (out []*Event, err error) {
	l.asked++
	if r != room {
		return nil, fmt.Errorf("room %d", r)
	}
	if upTo > l.head() {
		return nil, fmt.Errorf("position %d is beyond the head", upTo)
	}
	for _, e := range l.events[after:upTo] {
		if e == nil || skipMain && !l.full && e.Thread == "" && e.Redacts == 0 {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, e)
	}
	l.scanned += len(out)
	return out, ctx.Err()
}

func (l *fakeLog) JoinedSince(_ context.Context, _ int64, user string, at int64) (int64, bool, error) {
	since := int64(0)
	for i, pos := range l.joins {
		if pos <= at {
			since = pos
			if i < len(l.leaves) && l.leaves[i] <= at {
				since = 0
			}
		}
	}
	return since, user == alice && since > 0, nil
}

func (l *fakeLog) ReadUpTo(_ context.Context, _ int64, _, thread string) (int64, error) {
	return l.receipts[thread], nil
}

func (l *fakeLog) RulesSpan(_ context.Context, _ string, pos int64) (*rules.Compiled, int64, error) {
	for i := len(l.rules) - 1; ; i-- {
		if l.rules[i].from <= pos {
			until := l.head()
			if i+1 < len(l.rules) {
				until = l.rules[i+1].from - 1
			}
			return l.rules[i].c, until, nil
		}
	}
}

func (l *fakeLog) DisplayName(context.Context, int64, string, int64) (string, error) {
	return l.name, nil
}

func (l *fakeLog) Horizon(context.Context, int64) (int64, error) { return l.horizon, nil }

func (l *fakeLog) Ignored(context.Context, string) (map[string]bool, int64, error) {
	return l.ignored, l.version, nil
}

// naive counts by the definition: every event of the membership, against everything that reads it.
// Redactions and Alice's own events after knownUpTo are left out of account.
func (l *fakeLog) naive(at, knownUpTo int64) *Unread {
	since, joined, _ := l.JoinedSince(context.Background(), room, alice, at)
	out := &Unread{}
	if !joined {
		return out
	}
	own := map[string]int64{}
	for _, e := range l.events[since:knownUpTo] {
		if e != nil && e.Sender == alice && e.Type != "m.room.member" {
			own[e.Thread] = e.Pos
		}
	}
	threads := map[string]int{}
	for _, e := range l.events[since:at] {
		if e == nil || e.Redacted && l.redactedAt[e.Pos] <= knownUpTo || e.Pos <= own[e.Thread] || e.Pos <= l.receipts[Unthreaded] {
			continue
		}
		if (l.ignored[e.Sender] || e.TS < l.horizon) && !e.State {
			continue
		}
		if e.Thread == "" && e.Pos <= l.receipts[Main] || e.Thread != "" && e.Pos <= l.receipts[e.Thread] {
			continue
		}
		c, _, _ := l.RulesSpan(context.Background(), alice, e.Pos)
		prepared, room, _ := e.Facts.get(context.Background())
		a := c.Evaluate(prepared, room, l.name)
		if !a.Notify {
			continue
		}
		counts := Counts{Notifications: 1}
		if a.Highlight {
			counts.Highlights = 1
		}
		if e.Thread == "" {
			out.Main.add(counts)
			continue
		}
		i, ok := threads[e.Thread]
		if !ok {
			i = len(out.Threads)
			threads[e.Thread] = i
			out.Threads = append(out.Threads, Thread{Root: e.Thread})
		}
		out.Threads[i].Counts.add(counts)
	}
	return out
}

// show writes counts as "main 2/1 $t 1/0".
func show(u *Unread) string {
	threads := map[string]Counts{}
	for _, t := range u.Threads {
		threads[t.Root] = t.Counts
	}
	b, _ := json.Marshal(threads) // sorted
	return fmt.Sprintf("main %v threads %s", u.Main, b)
}

func ask(t interface {
	Helper()
	Fatal(...any)
}, c *Counter, at int64) *Unread {
	t.Helper()
	u, err := c.Unread(context.Background(), room, alice, at)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// expect asks at the head and compares with main and thread notifications/highlights.
func expect(t *testing.T, c *Counter, l *fakeLog, what, want string) {
	t.Helper()
	u := ask(t, c, l.head())
	got := fmt.Sprintf("%d/%d", u.Main.Notifications, u.Main.Highlights)
	for _, th := range u.Threads {
		got += fmt.Sprintf(" %s %d/%d", th.Root, th.Notifications, th.Highlights)
	}
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
	if show(u) != show(l.naive(l.head(), l.head())) {
		t.Errorf("%s: %s, but by the definition %s", what, show(u), show(l.naive(l.head(), l.head())))
	}
}
