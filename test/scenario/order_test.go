package scenario

import (
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"

	. "github.com/myelin-im/myelin/test/harness"
)

// Many senders at once in one room: whichever way the room is read, there is one order with every event once.
func TestOneOrderUnderParallelSenders(t *testing.T) {
	senders, each := 50, 20 // no more than one timeline holds, however late the watcher is
	if testing.Short() {    // under the race detector, which the interleaving matters to and not the number
		senders, each = 50, 8
	}
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		id := alice.Create(J{"preset": "public_chat"})
		var clients []*Client
		var group sync.WaitGroup
		for i := range senders {
			c := s.Register(t, fmt.Sprint("user", i))
			clients = append(clients, c)
			group.Go(func() { c.Join(id) })
		}
		group.Wait()
		alice.Sync(nil)
		watcher := &feed{Client: clients[0]}
		watcher.sync(t, id)
		begin := len(watcher.ids)
		var mu sync.Mutex
		sent := map[string]bool{}
		for i, c := range clients {
			group.Go(func() {
				for n := range each {
					a, err := c.Send("PUT", Path("/rooms/%s/send/m.room.message/%s", id, fmt.Sprint(n)), J{"msgtype": "m.text", "body": fmt.Sprint(i, " ", n)})
					if err != nil || a.Status != 200 {
						t.Errorf("send: %v %v", a, err)
						return
					}
					mu.Lock()
					sent[a.JSON.Get("event_id").Str] = true
					mu.Unlock()
				}
			})
		}
		done := make(chan struct{})
		go func() { group.Wait(); close(done) }()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			q := url.Values{"filter": {`{"room":{"timeline":{"limit":1000}}}`}, "timeout": {"50"}}
			part := room(watcher.Sync(q), id)
			if part.Get("timeline.limited").Bool() {
				t.Error("a gap in a timeline that may hold a thousand events")
			}
			watcher.ids = append(watcher.ids, IDs(part.Get("timeline.events"))...)
		}
		if len(sent) != senders*each {
			t.Fatalf("%d events were sent", len(sent))
		}
		live := watcher.ids[begin:]
		if len(live) != len(sent) {
			t.Fatalf("sync showed %d events of %d", len(live), len(sent))
		}
		for _, e := range live {
			if !sent[e] {
				t.Fatalf("sync showed %s twice, or it was not sent", e)
			}
			delete(sent, e)
		}
		for _, dir := range []string{"b", "f"} {
			for _, limit := range []int{7, 97, 1000} {
				got := alice.Walk(id, "", dir, limit)
				if dir == "b" {
					slices.Reverse(got)
				}
				if len(got) < len(live) || !slices.Equal(got[len(got)-len(live):], live) {
					t.Errorf("/messages dir=%s limit=%d has %d events in another order than sync", dir, limit, len(got))
				}
			}
		}
		// A limited sync says where its gap begins, and /messages fills it exactly.
		part := room(alice.Sync(nil), id)
		tail := IDs(part.Get("timeline.events"))
		if !part.Get("timeline.limited").Bool() || len(tail) != 10 || !slices.Equal(tail, live[len(live)-10:]) {
			t.Fatalf("the limited timeline is %v", tail)
		}
		gap := alice.Walk(id, part.Get("timeline.prev_batch").Str, "b", 61)
		slices.Reverse(gap)
		if all := append(gap, tail...); !slices.Equal(all[len(all)-len(live):], live) {
			t.Error("/messages from prev_batch does not continue the timeline")
		}
		// /context around events anywhere has their true neighbours.
		for _, at := range []int{0, 5, 177, len(live) - 3} {
			r := alice.Must("GET", Path("/rooms/%s/context/%s?limit=11", id, live[at]), nil).JSON
			before, after := IDs(r.Get("events_before")), IDs(r.Get("events_after"))
			slices.Reverse(before)
			all := append(append(before, r.Get("event.event_id").Str), after...)
			low, high := max(0, at-5), min(len(live), at+7)
			if at < 5 {
				all = all[len(all)-(high-low):]
			}
			if !slices.Equal(all, live[low:high]) {
				t.Errorf("context of event %d: %v, want %v", at, all, live[low:high])
			}
			if at == 177 {
				on := alice.Messages(id, r.Get("end").Str, "f", 3, nil)
				if on.Events[0].Get("event_id").Str != live[high] {
					t.Error("/messages does not go on where /context ends")
				}
				back := alice.Messages(id, r.Get("start").Str, "b", 3, nil)
				if back.Events[0].Get("event_id").Str != live[low-1] {
					t.Error("/messages does not go on where /context begins")
				}
			}
		}
	})
}
