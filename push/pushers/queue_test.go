package pushers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// notesAt are events at positions.
func notesAt(positions ...int64) (notes []note) {
	for _, pos := range positions {
		notes = append(notes, note{pos: pos, event: &roomserver.Event{}})
	}
	return notes
}

// positions are those of what waits in a queue.
func (q *queue) positions() (list []int64) {
	for _, n := range q.notes {
		list = append(list, n.pos)
	}
	return list
}

// holds checks what waits in a queue, and up to where its gateway was told.
func (q *queue) holds(t *testing.T, what string, told int64, want ...int64) {
	t.Helper()
	if got := q.positions(); !slices.Equal(got, want) || q.pusher.Told != told {
		t.Errorf("%s: %v wait and the gateway was told up to %d, want %v and %d", what, got, q.pusher.Told, want, told)
	}
}

func TestQueueKeepsItsPlace(t *testing.T) {
	now := time.Now()
	q := newQueue(&user{}, pusher{Told: 10})
	q.add(nil, 11, now)
	q.holds(t, "nothing that notifies", 11)
	q.add(notesAt(9, 11, 12, 13), 15, now)
	q.holds(t, "some were told before", 11, 12, 13)
	q.add(notesAt(12, 13, 16), 16, now)
	q.holds(t, "some are in the queue", 11, 12, 13, 16)
	q.done(note{pos: 12})
	q.holds(t, "the first is delivered", 12, 13, 16)
	if p, changed := q.place(); !changed || p.Told != 12 {
		t.Errorf("the place is %d, changed: %t", p.Told, changed)
	}
	if _, changed := q.place(); changed {
		t.Error("a place is written twice")
	}
	q.add(nil, 20, now)
	q.holds(t, "what came later notifies nobody", 12, 13, 16)
	q.done(note{pos: 13})
	q.done(note{pos: 16})
	q.holds(t, "all is delivered", 20)
	q.end()
	q.add(notesAt(21), 21, now)
	if _, changed := q.place(); changed {
		t.Error("the place of a pusher that is gone is written")
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue(&user{}, pusher{})
	for pos := int64(1); pos <= 1000; pos += 10 {
		q.add(notesAt(pos, pos+1, pos+2), pos+9, time.Now())
	}
	got := q.positions()
	if len(got) != maxWaiting || got[maxWaiting-1] != 993 || !slices.IsSorted(got) {
		t.Errorf("%d wait: %v, want the newest %d", len(got), got, maxWaiting)
	}
}

// A number follows an event that waits, which may be on its way with the number of before or be read until it is told.
func TestQueueOfNumbers(t *testing.T) {
	number := []note{{pos: 2}}
	for name, c := range map[string]struct {
		pusher  pusher
		waiting []note
		want    []int64
	}{
		"nothing waits":       {pusher{Kind: "http"}, nil, []int64{2}},
		"an event waits":      {pusher{Kind: "http"}, notesAt(1), []int64{1, 2}},
		"a number waits":      {pusher{Kind: "http"}, []note{{pos: 1}}, []int64{2}},
		"no badge wanted":     {pusher{Kind: "http", Data: json.RawMessage(`{"org.matrix.msc4076.disable_badge_count":true}`)}, nil, nil},
		"no badge, finally":   {pusher{Kind: "http", Data: json.RawMessage(`{"disable_badge_count":true}`)}, nil, nil},
		"a badge after all":   {pusher{Kind: "http", Data: json.RawMessage(`{"disable_badge_count":"true"}`)}, nil, []int64{2}},
		"e-mail has no badge": {pusher{Kind: kindEmail}, nil, nil},
	} {
		q := newQueue(&user{}, c.pusher)
		q.add(c.waiting, 1, time.Now())
		q.add(number, 2, time.Now())
		if got := q.positions(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v wait, want %v", name, got, c.want)
		}
	}
}

func TestQueueOfAChangedPusher(t *testing.T) {
	q := newQueue(&user{}, pusher{Told: 5, FailingSince: 7, Data: json.RawMessage(`{"url":"https://a/"}`)})
	q.change(pusher{Told: 3, Data: json.RawMessage(`{"url":"https://a/"}`), Lang: "de"})
	if q.pusher.Lang != "de" || q.pusher.Told != 5 || q.pusher.FailingSince != 7 {
		t.Errorf("set anew: %+v", q.pusher)
	}
	q.change(pusher{Data: json.RawMessage(`{"url":"https://b/"}`)})
	if q.pusher.FailingSince != 0 || q.pusher.Told != 5 || q.pusher.Badge != -1 {
		t.Errorf("with another gateway: %+v", q.pusher)
	}
}

// attempts is a gateway in memory that takes down when it is asked, and fails as often as it should.
type attempts struct {
	begin time.Time
	at    []time.Duration
	fail  func(attempt int) bool
}

func (g *attempts) RoundTrip(*http.Request) (*http.Response, error) {
	g.at = append(g.at, time.Since(g.begin))
	if g.fail(len(g.at)) {
		return nil, errors.New("no gateway")
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(`{"rejected":[]}`))}, nil
}

// tell lets a queue with notes tell a gateway until nothing is left.
func (g *attempts) tell(q *queue, notes int) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	a := &API{http: &http.Client{Transport: g}, now: time.Now, slots: make(chan struct{}, 1), log: logrus.NewEntry(log)}
	for range notes {
		q.add([]note{{pos: q.seen + 1, outside: &roomserver.Outside{RoomID: "!r", Event: &pdu.Event{ID: "$e"}}}}, q.seen+1, a.now())
	}
	g.begin = a.now()
	q.deliver(context.Background(), a)
	q.deliver(context.Background(), a) // is delivering already
	a.deliveries.Wait()
}

// about tells whether a pause is that long or up to a quarter longer.
func about(pause, want time.Duration) bool { return pause >= want && pause <= want+want/4+1 }

const idOnly = `{"url":"https://gateway/","format":"event_id_only"}`

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const failures = 14
		u := &user{}
		q := newQueue(u, pusher{Data: json.RawMessage(idOnly)})
		q.change(q.pusher) // as when it is set
		g := &attempts{fail: func(n int) bool { return n <= failures || n == failures+2 }}
		g.tell(q, 2)
		if len(g.at) != failures+3 {
			t.Fatalf("%d attempts, want %d", len(g.at), failures+3)
		}
		want := firstRetry
		for i := range failures {
			if pause := g.at[i+1] - g.at[i]; !about(pause, want) {
				t.Errorf("pause %d is %v, want %v", i+1, pause, want)
			}
			want = min(2*want, lastRetry)
		}
		if want != lastRetry {
			t.Errorf("the longest pause is not reached with %d failures", failures)
		}
		if pause := g.at[failures+2] - g.at[failures+1]; !about(pause, firstRetry) {
			t.Errorf("the first pause after a success is %v", pause)
		}
		q.holds(t, "in the end", 2)
		if q.pusher.FailingSince != 0 || q.running {
			t.Errorf("failing since %d, running: %t", q.pusher.FailingSince, q.running)
		}
	})
}

func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(&user{}, pusher{Data: json.RawMessage(idOnly)})
		g := &attempts{fail: func(int) bool { return true }}
		g.tell(q, 3)
		if last := g.at[len(g.at)-1]; last <= giveUp || last > giveUp+2*lastRetry {
			t.Errorf("given up after %v", last)
		}
		q.holds(t, "given up", 3)
		if q.pusher.FailingSince == 0 {
			t.Error("the gateway is not known to fail")
		}
		// It is tried again with what comes next.
		g.at, g.fail = nil, func(int) bool { return false }
		g.tell(q, 1)
		q.holds(t, "back again", 4)
		if len(g.at) != 1 || q.pusher.FailingSince != 0 {
			t.Errorf("attempts: %v, failing since %d", g.at, q.pusher.FailingSince)
		}
	})
}

// A gateway that is failing is tried at once if the pusher is set anew.
func TestSetWhileItRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pusher{Data: json.RawMessage(idOnly)}
		q := newQueue(&user{}, p)
		begin := time.Now()
		g := &attempts{fail: func(int) bool { return time.Since(begin) < 40*time.Second }}
		go func() {
			time.Sleep(40 * time.Second) // between the sixth attempt and the seventh
			q.change(p)
		}()
		g.tell(q, 1)
		if last := g.at[len(g.at)-1]; last != 40*time.Second || len(g.at) != 7 {
			t.Errorf("attempts at %v, want the seventh after 40 s", g.at)
		}
	})
}

// A pusher that is gone ends its goroutine, wherever that is.
func TestEndWhileItRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(&user{}, pusher{Data: json.RawMessage(idOnly)})
		g := &attempts{fail: func(int) bool { return true }}
		go func() {
			time.Sleep(time.Minute)
			q.end()
		}()
		g.tell(q, 1)
		if took := time.Since(g.begin); took != time.Minute {
			t.Errorf("it ended after %v", took)
		}
	})
}
