package scenario

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/test/harness"
)

// delivery is one transaction that a peer was sent.
type delivery struct {
	id, body string
	status   int
}

// mailbox takes the transactions of a peer.
type mailbox struct {
	mu     sync.Mutex
	status int           // to answer
	hang   chan struct{} // not nil: answers wait for it
	got    []delivery
	open   int // requests that wait for an answer
	most   int // the most of these at once
}

func (m *mailbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/send/")
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"errcode":"M_NOT_FOUND","error":"not here"}`)
		return
	}
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	status, hang := m.status, m.hang
	m.got = append(m.got, delivery{id, string(body), status})
	m.open++
	m.most = max(m.most, m.open)
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.open--
		m.mu.Unlock()
	}()
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}
	w.WriteHeader(status)
	io.WriteString(w, `{"pdus":{}}`)
}

func (m *mailbox) answer(status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = status
}

func (m *mailbox) list() []delivery {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

// texts are the messages in transactions that were answered with 200, in order.
func (m *mailbox) texts() (list []string) {
	for _, d := range m.list() {
		if d.status == 200 {
			for _, p := range gjson.Get(d.body, "pdus").Array() {
				if p.Get("type").Str == "m.room.message" {
					list = append(list, p.Get("content.body").Str)
				}
			}
		}
	}
	return list
}

// within waits for a condition, at most a minute.
func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// wakeUp makes a request of a peer, so that the server knows that it is there. One that has just started may not have read yet
// what it owes to whom, and one that is trying just then goes by how that ends: it is for repeating.
func wakeUp(peer *harness.Peer, s *harness.Server) {
	peer.Do(s, "GET", "/_matrix/federation/v1/query/something", nil)
}

// TestHangingServersCostOthersNothing has many servers in a room that accept transactions and never answer.
func TestHangingServersCostOthersNothing(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		s := servers[0]
		alice := s.Register(t, "alice")
		room := alice.Create(harness.J{"preset": "public_chat"})
		hang := make(chan struct{})
		defer close(hang)
		good := &mailbox{status: 200}
		enter(t, harness.NewPeer(t, good), s, room)
		measure := func(prefix string, n int) (worst time.Duration) {
			t.Helper()
			for i := range n {
				text := fmt.Sprint(prefix, i)
				begin := time.Now()
				alice.Text(room, text)
				within(t, "the message "+text, func() bool { return slices.Contains(good.texts(), text) })
				worst = max(worst, time.Since(begin))
			}
			return worst
		}
		before := measure("alone", 10)
		var stuck []*mailbox
		for range 20 {
			m := &mailbox{status: 200, hang: hang}
			enter(t, harness.NewPeer(t, m), s, room)
			stuck = append(stuck, m)
		}
		after := measure("among", 10)
		t.Logf("slowest delivery to a good server: %v alone, %v among 20 that hang", before, after)
		if after > 30*time.Second { // half of what a server may take to answer
			t.Errorf("a message took %v to a good server, while others hang", after)
		}
		for _, m := range stuck {
			m.mu.Lock()
			if m.most > 1 {
				t.Errorf("a server had %d transactions at once", m.most)
			}
			m.mu.Unlock()
		}
	})
}

// TestUnansweredTransactionIsRepeated refuses a transaction, restarts the server, and looks at what comes then.
func TestUnansweredTransactionIsRepeated(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		s := servers[0]
		alice := s.Register(t, "alice")
		room := alice.Create(harness.J{"preset": "public_chat"})
		box := &mailbox{status: 500}
		peer := harness.NewPeer(t, box)
		enter(t, peer, s, room)
		alice.Text(room, "first")
		within(t, "a transaction", func() bool { return len(box.list()) > 0 })
		first := box.list()[0]
		alice.Text(room, "second")
		s.Restart()
		alice.Text(room, "third")
		box.answer(200)
		within(t, "all messages", func() bool {
			wakeUp(peer, s)
			return slices.Contains(box.texts(), "third")
		})
		for _, d := range box.list() {
			if d.status == 200 {
				if d.id != first.id || d.body != first.body {
					t.Errorf("the transaction %s %s was repeated as %s %s", first.id, first.body, d.id, d.body)
				}
				break
			}
		}
		// It may have been about alice's devices, which the server hears of if it joins soon after her. Then the messages
		// waited behind it, and after an outage the last one is enough.
		begins := strings.Contains(first.body, `"first"`)
		if texts := box.texts(); begins && texts[0] != "first" || slices.Index(texts, "third") != len(texts)-1 {
			t.Errorf("messages in the order %q", texts)
		}
		ids := map[string]string{}
		for _, d := range box.list() {
			if body, ok := ids[d.id]; ok && body != d.body {
				t.Errorf("two contents under one id: %s and %s", body, d.body)
			}
			ids[d.id] = d.body
		}
	})
}

// TestCatchUpWithTheLatestEvents keeps a server away for more messages than are kept in memory, in two rooms.
func TestCatchUpWithTheLatestEvents(t *testing.T) {
	s := harness.Federation(t, storage.SQLite, 1)[0]
	alice := s.Register(t, "alice")
	busy, quiet := alice.Create(harness.J{"preset": "public_chat"}), alice.Create(harness.J{"preset": "public_chat"})
	box := &mailbox{status: 503}
	peer := harness.NewPeer(t, box)
	enter(t, peer, s, busy)
	enter(t, peer, s, quiet)
	alice.Text(busy, "unanswered")
	within(t, "a transaction", func() bool { return len(box.list()) > 0 })
	alice.Text(quiet, "quiet")
	for i := range 600 {
		alice.Text(busy, fmt.Sprint("m", i))
	}
	s.Restart() // with a list that is too long for memory
	box.answer(200)
	within(t, "the last messages of both rooms", func() bool {
		wakeUp(peer, s)
		texts := box.texts()
		return slices.Contains(texts, "m599") && slices.Contains(texts, "quiet")
	})
	if n := len(box.texts()); n > 60 {
		t.Errorf("%d messages were sent to catch up", n)
	}
	// Then everything is as usual, as soon as the server knows that its list has arrived: until then, only the last message of
	// a room is put on it.
	round := 0
	within(t, "two messages in a row", func() bool {
		round++
		first, second := fmt.Sprint("first ", round), fmt.Sprint("second ", round)
		alice.Text(busy, first)
		alice.Text(busy, second)
		within(t, second, func() bool { return slices.Contains(box.texts(), second) })
		return slices.Contains(box.texts(), first)
	})
}

// TestWhoIsSentAnEvent looks at what reaches servers that come and go.
func TestWhoIsSentAnEvent(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		s := servers[0]
		alice := s.Register(t, "alice")
		room := alice.Create(harness.J{"preset": "public_chat"})
		alice.Text(room, "before anyone")
		boxA, boxB := &mailbox{status: 200}, &mailbox{status: 200}
		enter(t, harness.NewPeer(t, boxA), s, room)
		b := enter(t, harness.NewPeer(t, boxB), s, room)
		sent := func(m *mailbox, typ, key string) bool {
			for _, d := range m.list() {
				for _, p := range gjson.Get(d.body, "pdus").Array() {
					if p.Get("type").Str == typ && p.Get("state_key").Str == key {
						return true
					}
				}
			}
			return false
		}
		// The join that this server accepted is for the others in the room and not for the one who joined.
		within(t, "the second join at the first server", func() bool { return sent(boxA, "m.room.member", b.user) })
		alice.Text(room, "both")
		for _, m := range []*mailbox{boxA, boxB} {
			within(t, "a message for both", func() bool { return slices.Contains(m.texts(), "both") })
		}
		if sent(boxB, "m.room.member", b.user) {
			t.Error("a server was sent its own join")
		}
		// Who is kicked hears of it, and of nothing after.
		alice.Change("kick", room, b.user)
		within(t, "the kick", func() bool { return sent(boxB, "m.room.member", b.user) })
		alice.Text(room, "after the kick")
		within(t, "a message after the kick", func() bool { return slices.Contains(boxA.texts(), "after the kick") })
		for _, text := range append(boxA.texts(), boxB.texts()...) {
			if text == "before anyone" {
				t.Error("a message from before the join was sent")
			}
		}
		if slices.Contains(boxB.texts(), "after the kick") {
			t.Error("a message was sent to a server that is not in the room any more")
		}
	})
}
