// Package crash kills servers while clients talk, and asks what is left of the conversation.
package crash

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

const (
	senders  = 50
	rooms    = 5
	kills    = 3
	lifetime = 500 * time.Millisecond // of the server, between two kills
)

// sender is a client that sends numbered messages to one room, one after the other.
type sender struct {
	*harness.Client
	room string
	next int
	// sent is what was answered with 200: the body to the event. Each of them must be in the room for good.
	sent map[string]string
}

// run sends until the server does not answer. The message in flight is sent again by the next run, with the same
// transaction id.
func (s *sender) run(t *testing.T) {
	for {
		body := fmt.Sprintf("%s %d", s.UserID, s.next)
		a, err := s.Send("PUT", harness.Path("/rooms/%s/send/m.room.message/%s", s.room, fmt.Sprint("t", s.next)), harness.J{"msgtype": "m.text", "body": body})
		if err != nil {
			return
		}
		if a.Status != 200 {
			t.Errorf("send: %v", a)
			return
		}
		s.sent[body] = a.JSON.Get("event_id").Str
		s.next++
	}
}

// reader is a client that follows one room by syncing.
type reader struct {
	*harness.Client
	room  string
	since string
	seen  []string
}

// run syncs until the server does not answer, or once.
func (r *reader) run(t *testing.T, once bool) {
	for {
		q := url.Values{"timeout": {"200"}, "since": {r.since}, "filter": {`{"room":{"timeline":{"limit":1000}}}`}}
		a, err := r.Send("GET", harness.Path("/sync?")+q.Encode(), nil)
		if err != nil {
			return
		}
		if a.Status != 200 {
			t.Errorf("sync: %v", a)
			return
		}
		next := a.JSON.Get("next_batch").Str
		if position(t, next) < position(t, r.since) {
			t.Errorf("the position went back from %s to %s", r.since, next)
		}
		timeline := harness.Room(a.JSON, "join", r.room).Get("timeline")
		if timeline.Get("limited").Bool() {
			t.Error("a gap in the timeline")
		}
		r.since, r.seen = next, append(r.seen, harness.IDs(timeline.Get("events"))...)
		if once {
			return
		}
	}
}

// position is the log position in a sync token.
func position(t *testing.T, token string) int64 {
	parts := strings.Split(token, "_")
	if len(parts) < 3 {
		t.Fatalf("the token %q has no position", token)
	}
	n, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestKill kills a server while fifty clients send. What was answered is there afterwards, once; what was under way
// can be sent again without doubling; readers go on where they were.
func TestKill(t *testing.T) {
	program := harness.Build(t)
	for _, dialect := range storagetest.Dialects {
		t.Run(dialect.String(), func(t *testing.T) { testKill(t, program, dialect) })
	}
}

func testKill(t *testing.T, program string, dialect storage.Dialect) {
	p := harness.StartProcess(t, program, dialect)
	owner := p.Register(t, "owner")
	all, readers := prepare(t, p, owner)
	for round := range kills {
		var group sync.WaitGroup
		for _, s := range all {
			group.Go(func() { s.run(t) })
		}
		for _, r := range readers {
			group.Go(func() { r.run(t, false) })
		}
		time.Sleep(lifetime)
		p.Kill()
		group.Wait()
		p.Run()
		for _, r := range readers {
			r.run(t, true)
		}
		if round < kills-1 {
			check(t, owner, all, readers, false)
		}
	}
	// All that was in flight at the last kill, once more.
	for _, s := range all {
		body := fmt.Sprintf("%s %d", s.UserID, s.next)
		a := s.Must("PUT", harness.Path("/rooms/%s/send/m.room.message/%s", s.room, fmt.Sprint("t", s.next)), harness.J{"msgtype": "m.text", "body": body})
		s.sent[body] = a.JSON.Get("event_id").Str
	}
	for _, r := range readers {
		r.run(t, true)
	}
	check(t, owner, all, readers, true)
	p.End()
}

// prepare makes rooms, senders in them, and a reader in each.
func prepare(t *testing.T, p *harness.Process, owner *harness.Client) (all []*sender, readers []*reader) {
	var ids []string
	for range rooms {
		ids = append(ids, owner.Create(harness.J{"preset": "public_chat"}))
	}
	all, readers = make([]*sender, senders), make([]*reader, rooms)
	var group sync.WaitGroup
	for i := range all {
		group.Go(func() {
			c := p.Register(t, fmt.Sprint("sender", i))
			c.Join(ids[i%rooms])
			all[i] = &sender{Client: c, room: ids[i%rooms], sent: map[string]string{}}
		})
	}
	for i := range readers {
		group.Go(func() {
			c := p.Register(t, fmt.Sprint("reader", i))
			c.Join(ids[i])
			readers[i] = &reader{Client: c, room: ids[i]}
		})
	}
	group.Wait()
	for _, r := range readers {
		r.since = r.Sync(nil).Get("next_batch").Str
	}
	return all, readers
}

// check compares what senders were told and readers have seen with what the rooms hold. Not all need be known to a
// sender before the messages in flight were sent again.
func check(t *testing.T, owner *harness.Client, all []*sender, readers []*reader, complete bool) {
	t.Helper()
	count := 0
	for _, r := range readers {
		bodies, order := history(t, owner, r.room)
		known := 0
		for _, s := range all {
			if s.room != r.room {
				continue
			}
			for body, id := range s.sent {
				if got := bodies[body]; len(got) != 1 || got[0] != id {
					t.Errorf("%q was answered with %s, the room has %v", body, id, got)
				}
			}
			known += len(s.sent)
		}
		if complete && known != len(order) {
			t.Errorf("%d messages were sent, the room has %d", known, len(order))
		}
		if !slices.Equal(r.seen, order) {
			t.Errorf("a reader saw %d messages, the room has %d, or in another order", len(r.seen), len(order))
		}
		count += len(order)
	}
	t.Logf("%d messages", count)
}

// history reads a room's messages: the events of each body, and the order of all.
func history(t *testing.T, c *harness.Client, room string) (bodies map[string][]string, order []string) {
	bodies = map[string][]string{}
	seen := map[string]bool{}
	from := ""
	for {
		page := c.Messages(room, from, "f", 501, nil)
		for _, e := range page.Events {
			if e.Get("type").Str != "m.room.message" {
				continue
			}
			id, body := e.Get("event_id").Str, e.Get("content.body")
			if body.Type != gjson.String || seen[id] {
				t.Errorf("the history has %s twice", e)
			}
			seen[id] = true
			bodies[body.Str] = append(bodies[body.Str], id)
			order = append(order, id)
		}
		if page.End == "" {
			return bodies, order
		}
		from = page.End
	}
}
