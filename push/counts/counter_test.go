package counts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/myelin-im/myelin/push/rules"
)

func TestCountsBeginAtTheJoin(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.say("")
	expect(t, c, l, "not a member", "0/0")
	l.join()
	expect(t, c, l, "joined", "0/0")
	l.say("")
	l.mention("")
	expect(t, c, l, "two messages", "2/1")
	l.leave()
	l.say("")
	expect(t, c, l, "left", "0/0")
	l.join()
	expect(t, c, l, "joined again", "0/0")
	l.say("")
	expect(t, c, l, "a message after the second join", "1/0")
	if u := ask(t, c, l.joins[0]+2); show(u) != "main {2 1} threads {}" {
		t.Errorf("at a position of the first stay: %s", show(u))
	}
	expect(t, c, l, "again at the head", "1/0")
	u, err := c.Unread(context.Background(), room, carol, l.head())
	if err != nil || u.Total() != (Counts{}) {
		t.Errorf("another user: %v, %v", u, err)
	}
}

// What the reader has answered, or has read, is not judged.
func TestWhatIsReadIsNotJudged(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	thread := "$A"
	for range 5 {
		l.say("")
		l.say(thread)
	}
	l.put(&Event{Sender: alice}, `{"body":"in the main timeline"}`)
	expect(t, c, l, "the main timeline is answered", "0/0 $A 5/0")
	if l.worked != 5 {
		t.Errorf("%d events were judged, want those of the thread", l.worked)
	}
	l.worked = 0
	l.say(thread)
	l.put(&Event{Sender: alice, Thread: thread}, `{"body":"in the thread"}`)
	l.mention("")
	expect(t, c, l, "the thread is answered, too", "1/1")
	if l.worked != 1 {
		t.Errorf("%d events were judged, want the mention", l.worked)
	}
	expect(t, New(l, Options{}), l, "counted by another", "1/1")
	if l.worked != 1 {
		t.Errorf("%d events were judged, want one that is known already", l.worked)
	}
}

// The example of "Threaded read receipts" in the specification: threads A (C, E, G, H) and B (D, F),
// the others in the main timeline.
func TestReceiptsOfTheSpecification(t *testing.T) {
	setup := func() (*fakeLog, *Counter, map[string]int64) {
		l, at := newFakeLog(), map[string]int64{}
		l.join()
		for _, e := range []struct{ name, thread string }{
			{"A", ""}, {"B", ""}, {"C", "$A"}, {"D", "$B"}, {"E", "$A"}, {"F", "$B"}, {"G", "$A"}, {"H", "$A"}, {"I", ""},
		} {
			at[e.name] = l.say(e.thread)
		}
		return l, New(l, Options{}), at
	}
	for _, c := range []struct{ name, thread, event, want string }{
		{"threaded, main, on I", Main, "I", "0/0 $A 4/0 $B 2/0"},
		{"threaded, in A, on E", "$A", "E", "3/0 $A 2/0 $B 2/0"},
		{"unthreaded on D", Unthreaded, "D", "1/0 $A 3/0 $B 1/0"},
		{"threaded, main, on A", Main, "A", "2/0 $A 4/0 $B 2/0"},
	} {
		for _, early := range []bool{true, false} {
			l, counter, at := setup()
			if early { // counted before the receipt, and after it only
				expect(t, counter, l, c.name+" (before)", "3/0 $A 4/0 $B 2/0")
			}
			l.receipts[c.thread] = at[c.event]
			expect(t, counter, l, c.name, c.want)
		}
	}
	l, counter, at := setup()
	expect(t, counter, l, "none", "3/0 $A 4/0 $B 2/0")
	if got := ask(t, counter, l.head()); got.Total() != (Counts{9, 0}) {
		t.Errorf("in total %v", got.Total())
	}
	l.receipts[Main] = at["I"]
	l.receipts["$A"] = at["E"]
	expect(t, counter, l, "two receipts", "0/0 $A 2/0 $B 2/0")
	l.receipts[Unthreaded] = at["I"]
	expect(t, counter, l, "all", "0/0")
}

func TestReceiptsNeverMoveBack(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	first := l.say("")
	second := l.say("")
	l.say("")
	l.receipts[Unthreaded] = second
	expect(t, c, l, "read up to the second", "1/0")
	l.receipts[Unthreaded] = first
	if u := ask(t, c, l.head()); u.Main.Notifications != 1 {
		t.Errorf("after a receipt that went back: %d unread", u.Main.Notifications)
	}
}

// A receipt may be for an event beyond the position asked about.
func TestReceiptAheadOfThePosition(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	first := l.say("")
	l.say("$t")
	second := l.say("")
	l.receipts[Unthreaded] = second
	if u := ask(t, c, first); u.Total() != (Counts{}) {
		t.Errorf("at the first message: %v", u.Total())
	}
	l.say("")
	l.say("$t")
	expect(t, c, l, "later", "1/0 $t 1/0")
}

func TestOwnEventsRead(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	l.mention("")
	l.say("$t")
	l.say("$u")
	l.put(&Event{Sender: alice, Thread: "$t"}, `{}`)
	expect(t, c, l, "answered in a thread", "1/1 $u 1/0")
	l.put(&Event{Sender: alice, Type: "m.room.member", State: true}, `{"membership":"join","displayname":"A"}`)
	expect(t, c, l, "changed the profile", "1/1 $u 1/0")
	l.put(&Event{Sender: alice, Type: "m.reaction"}, `{}`)
	expect(t, c, l, "reacted in the main timeline", "0/0 $u 1/0")
	l.say("$t")
	expect(t, c, l, "the thread goes on", "0/0 $t 1/0 $u 1/0")
}

func TestRedactedEventsDoNotCount(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	first, second := l.mention(""), l.say("$t")
	expect(t, c, l, "before", "1/1 $t 1/0")
	l.redact(first)
	expect(t, c, l, "counted before the redaction", "0/0 $t 1/0")
	third := l.say("")
	l.redact(third)
	l.redact(second)
	expect(t, c, l, "redacted before it was counted", "0/0")
	l.redact(first)
	expect(t, c, l, "redacted again", "0/0")
	// The thread's message is redacted from the main timeline that is read.
	fourth := l.say("$t")
	expect(t, c, l, "a thread", "0/0 $t 1/0")
	l.redact(fourth)
	l.receipts[Main] = l.say("")
	expect(t, c, l, "redaction in what is read", "0/0")
}

func TestExpiredMessagesDoNotCount(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	first := l.say("")
	l.mention("$t")
	expect(t, c, l, "before", "1/0 $t 1/1")
	l.horizon = first + 1
	expect(t, c, l, "the first has expired", "0/0 $t 1/1")
	l.horizon = l.head() + 1
	expect(t, c, l, "both have", "0/0")
	tombstone := l.put(&Event{Type: "m.room.tombstone", Sender: bob, State: true}, `{"body":"moved"}`)
	l.say("")
	l.horizon = l.head()
	if got := ask(t, c, tombstone).Total(); got.Notifications != 1 {
		t.Errorf("at an earlier position: %v", got)
	}
	l.horizon = l.head() + 1
	expect(t, c, l, "state does not expire", "1/1")
	expect(t, New(l, Options{}), l, "counted afresh", "1/1")

	// Those of which only numbers are left go when the last of them has expired.
	l.receipts[Unthreaded] = l.head()
	begin := l.head()
	for range maxEntries + 10 {
		l.say("")
		l.say("$t")
	}
	l.horizon = begin
	ask(t, c, l.head())
	l.horizon = l.head() - 9
	expect(t, c, l, "all but ten of many", "5/0 $t 5/0")
}

func TestEditsAndReactionsDoNotCount(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	l.put(&Event{Sender: bob}, `{"m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`)
	l.put(&Event{Sender: bob, Type: "m.reaction"}, `{}`)
	l.put(&Event{Sender: bob}, `{"msgtype":"m.notice"}`)
	expect(t, c, l, "nothing of notice", "0/0")
}

// "Each event is judged with the rules at its position."
func TestRulesOfThePosition(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	l.say("")
	l.changeRules(func(o *rules.Overlay) error { return o.SetEnabled(rules.Override, ".m.rule.master", true) })
	l.say("")
	expect(t, c, l, "silenced", "1/0")
	l.changeRules(func(o *rules.Overlay) error {
		return o.Put(rules.Override, rules.Rule{ID: "name", Conditions: []json.RawMessage{json.RawMessage(`{"kind":"contains_display_name"}`)},
			Actions: []json.RawMessage{json.RawMessage(`"notify"`), json.RawMessage(`{"set_tweak":"highlight"}`)}}, "", "")
	})
	l.name = "Al"
	l.say("")
	l.put(&Event{Sender: bob}, `{"body":"al, listen"}`)
	expect(t, c, l, "by name", "3/1")
	expect(t, New(l, Options{}), l, "counted afresh", "3/1")
}

func TestIgnoredUsers(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	l.say("")
	l.put(&Event{Sender: carol}, `{}`)
	l.put(&Event{Sender: bob, Type: "m.room.tombstone", State: true}, `{}`)
	expect(t, c, l, "before", "3/1")
	l.ignore(bob)
	expect(t, c, l, "ignored; state events still count", "2/1")
	l.say("")
	expect(t, c, l, "ignored", "2/1")
	l.ignore()
	expect(t, c, l, "no longer ignored", "4/1")
}

func TestPositionsBeforeTheCheckpoint(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	join := l.join()
	a := l.say("")
	b := l.mention("$t")
	l.say("")
	expect(t, c, l, "head", "2/0 $t 1/1")
	asked := l.asked
	for at, want := range map[int64]string{join: "main {0 0} threads {}", a: "main {1 0} threads {}", b: `main {1 0} threads {"$t":{"Notifications":1,"Highlights":1}}`} {
		if got := show(ask(t, c, at)); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
	if l.asked != asked {
		t.Error("the log is read for what the checkpoint knows")
	}
}

// Asking again reads nothing, and one more event costs one event.
func TestCheckpointIsExtended(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	for range 1000 {
		l.say("")
	}
	expect(t, c, l, "first", "1000/0")
	l.scanned = 0
	expect(t, c, l, "again", "1000/0")
	l.say("")
	expect(t, c, l, "one more", "1001/0")
	if l.scanned != 1 {
		t.Errorf("%d events were read for one more", l.scanned)
	}
	// A reader of the main timeline alone: what is read there is not looked at for threads.
	l.receipts[Main] = l.head()
	l.say("$t")
	l.scanned = 0
	expect(t, New(l, Options{}), l, "main read", "0/0 $t 1/0")
	if l.scanned != 1 {
		t.Errorf("%d events were read for one thread", l.scanned)
	}
	l.receipts[Unthreaded] = l.head()
	l.scanned = 0
	expect(t, New(l, Options{}), l, "all read", "0/0")
	if l.scanned != 0 {
		t.Errorf("%d events were read where all is read", l.scanned)
	}
}

// Beyond maxEntries the oldest unread events are numbers only.
func TestManyUnread(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	threads := 2 * maxOldThreads
	for i := range 5000 {
		l.say("")
		l.mention(fmt.Sprint("$t", i%threads))
		if i%700 == 0 {
			ask(t, c, l.head())
		}
	}
	u := ask(t, c, l.head())
	if u.Total() != (Counts{10000, 5000}) {
		t.Errorf("in total %v", u.Total())
	}
	s, _ := c.slots.Get(place{room, alice})
	if n := len(s.cp.entries); n > maxEntries {
		t.Errorf("%d entries", n)
	}
	if n := s.cp.size(); n > 128<<10 {
		t.Errorf("the checkpoint takes %d bytes", n)
	}
	// A position among the numbers is counted afresh.
	if got, want := show(ask(t, c, 101)), show(l.naive(101, 101)); got != want {
		t.Errorf("at 101: %s, want %s", got, want)
	}
	// So is a receipt among them.
	l.receipts[Unthreaded] = 9000
	if got := ask(t, c, l.head()).Total(); got.Notifications != l.head()-9000 {
		t.Errorf("after a receipt at 9000: %v", got)
	}
	l.receipts[Unthreaded] = l.head() - 10
	if got := ask(t, c, l.head()).Total(); got.Notifications != 10 {
		t.Errorf("after the last receipt: %v", got)
	}
	l.receipts[Unthreaded] = l.head()
	expect(t, c, l, "all read", "0/0")
	if n := len(s.cp.scopes); n > 32 {
		t.Errorf("%d threads are remembered with nothing unread", n)
	}
}

// A thread's receipt among the numbers is applied once, not at each question.
func TestOldThreadReceipt(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	for range 3000 {
		l.say("$t")
	}
	expect(t, c, l, "before", "0/0 $t 3000/0")
	l.receipts["$t"] = 101
	expect(t, c, l, "read up to 101", "0/0 $t 2900/0")
	l.scanned = 0
	expect(t, c, l, "again", "0/0 $t 2900/0")
	if l.scanned != 0 {
		t.Errorf("%d events were read again", l.scanned)
	}
}

func TestCanceledCountGoesOn(t *testing.T) {
	l := newFakeLog()
	c := New(l, Options{})
	l.join()
	for range 3 * batch {
		l.say("")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Unread(ctx, room, alice, l.head()); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	expect(t, c, l, "afterwards", fmt.Sprintf("%d/0", 3*batch))
}

// memoryStore keeps checkpoints for a second Counter.
type memoryStore struct {
	mu    sync.Mutex
	saved map[place][]byte
	saves int
}

func (s *memoryStore) Load(_ context.Context, room int64, user string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved[place{room, user}], nil
}

func (s *memoryStore) Save(room int64, user string, checkpoint []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saved == nil {
		s.saved = map[place][]byte{}
	}
	s.saved[place{room, user}] = checkpoint
	s.saves++
}

func TestCheckpointsSurviveRestarts(t *testing.T) {
	l, store := newFakeLog(), &memoryStore{}
	c := New(l, Options{Store: store})
	l.join()
	for range saveAfter - 10 {
		l.say("")
	}
	expect(t, c, l, "few events", fmt.Sprintf("%d/0", saveAfter-10))
	if store.saves != 0 {
		t.Error("a checkpoint of few events is saved")
	}
	for i := range 2000 {
		l.mention([]string{"", "$t", "$u"}[i%3])
	}
	u := ask(t, c, l.head())
	for range 10 {
		l.say("")
	}
	l.scanned = 0
	restarted := New(l, Options{Store: store})
	if got := ask(t, restarted, l.head()).Total(); got.Notifications != u.Total().Notifications+10 {
		t.Errorf("after a restart %v, before %v", got, u.Total())
	}
	if l.scanned != 10 {
		t.Errorf("%d events were read after a restart, want the 10 new ones", l.scanned)
	}
	size := len(store.saved[place{room, alice}])
	t.Logf("%d bytes for %d unread", size, u.Total().Notifications)
	if size > 8*maxEntries {
		t.Errorf("%d bytes", size)
	}
	// What cannot be read is counted again.
	for _, nonsense := range [][]byte{{}, {9}, {encodingVersion}, store.saved[place{room, alice}][:size-1]} {
		store.saved[place{room, alice}] = nonsense
		if got := ask(t, New(l, Options{Store: store}), l.head()).Total(); got.Notifications != u.Total().Notifications+10 {
			t.Errorf("with a damaged checkpoint: %v", got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	cp := newCheckpoint(1, 2)
	cp.add(5, 1, cp.scopeOf("$t"), true)
	cp.add(6, never, 0, false)
	f.Add(cp.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if cp := decode(b); cp != nil {
			cp.unread()
			cp.before(3)
			if again := decode(cp.encode()); again == nil {
				t.Fatal("what was decoded cannot be decoded again")
			}
		}
	})
}

// Whatever happens in a room and whenever one asks, the checkpoint gives what the definition gives.
func TestAgreesWithDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newFakeLog()
		l.full = rapid.Bool().Draw(t, "full")
		store := &memoryStore{}
		c := New(l, Options{Store: store})
		thread := func() string {
			return rapid.SampledFrom([]string{"", "", "$t", "$u", "$v"}).Draw(t, "thread")
		}
		recent := func() int64 {
			return rapid.Int64Range(max(1, l.head()-300), max(1, l.head())).Draw(t, "position")
		}
		l.join()
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 15).Draw(t, "step") {
			case 0, 1:
				l.say(thread())
			case 2:
				l.mention(thread())
			case 3:
				l.put(&Event{Sender: carol, Thread: thread()}, `{}`)
			case 4:
				l.put(&Event{Sender: alice, Thread: thread()}, `{}`)
			case 5:
				if pos := recent(); l.events[pos-1] != nil && l.events[pos-1].Type == "m.room.message" {
					l.redact(pos)
				}
			case 6, 7:
				scope := rapid.SampledFrom([]string{Unthreaded, Main, "$t", "$u"}).Draw(t, "receipt")
				l.receipts[scope] = max(l.receipts[scope], recent())
			case 8:
				on := rapid.Bool().Draw(t, "master")
				l.changeRules(func(o *rules.Overlay) error { return o.SetEnabled(rules.Override, ".m.rule.master", on) })
			case 9:
				l.ignore(rapid.SampledFrom([]string{bob, carol, "@nobody:x"}).Draw(t, "ignored"))
			case 10:
				if len(l.joins) > len(l.leaves) {
					l.leave()
				} else {
					l.join()
				}
			case 11:
				for range rapid.IntRange(1, 700).Draw(t, "burst") {
					if l.head()%3 == 0 {
						l.mention("$t")
					} else {
						l.say("")
					}
				}
			case 12:
				c = New(l, Options{Store: store, Bytes: rapid.SampledFrom([]int{1, 1 << 20}).Draw(t, "bytes")})
			case 13:
				at := recent()
				got := ask(t, c, at)
				// Own events and redactions after the position may or may not be known already.
				most, least := l.naive(at, at).Total(), l.naive(at, l.head()).Total()
				if n := got.Total().Notifications; n > most.Notifications || n < least.Notifications {
					t.Fatalf("at %d of %d: %s, want %v to %v", at, l.head(), show(got), least, most)
				}
			default:
				at := l.head()
				if got, want := show(ask(t, c, at)), show(l.naive(at, at)); got != want {
					t.Fatalf("at the head %d: %s, want %s", at, got, want)
				}
			}
		}
		if got, want := show(ask(t, c, l.head())), show(l.naive(l.head(), l.head())); got != want {
			t.Fatalf("at the end: %s, want %s", got, want)
		}
	})
}

func TestParallelReaders(t *testing.T) {
	l := newFakeLog()
	l.join()
	for i := range 600 {
		l.say([]string{"", "$t"}[i%2])
	}
	shared := &lockedLog{Log: l}
	c := New(shared, Options{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for at := int64(i + 1); at <= 600; at += 50 {
				if _, err := c.Unread(context.Background(), room, alice, at); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	expect(t, c, l, "afterwards", "300/0 $t 300/0")
}

// lockedLog lets one reader at a time into a fakeLog, which counts its calls.
type lockedLog struct {
	Log
	mu sync.Mutex
}

func (l *lockedLog) Events(ctx context.Context, r, after, upTo int64, skipMain bool, limit int) ([]*Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Log.Events(ctx, r, after, upTo, skipMain, limit)
}

// BenchmarkOneMore is what a new message costs one reader who has a checkpoint.
func BenchmarkOneMore(b *testing.B) {
	l := newFakeLog()
	l.join()
	for range 50 {
		l.say("")
	}
	c := New(l, Options{})
	ask(b, c, l.head())
	message := l.events[1]
	b.ReportAllocs()
	for b.Loop() {
		next := *message
		next.Pos = l.head() + 1
		l.events = append(l.events, &next)
		ask(b, c, l.head())
	}
}

// BenchmarkNothingNew is what asking again costs.
func BenchmarkNothingNew(b *testing.B) {
	l := newFakeLog()
	l.join()
	for range 50 {
		l.say("")
	}
	c := New(l, Options{})
	b.ReportAllocs()
	for b.Loop() {
		ask(b, c, l.head())
	}
}

// BenchmarkFirstCount is the first count of 10,000 unread messages.
func BenchmarkFirstCount(b *testing.B) {
	l := newFakeLog()
	l.join()
	for range 10000 {
		l.say("")
	}
	b.ReportAllocs()
	for b.Loop() {
		ask(b, New(l, Options{}), l.head())
	}
}
