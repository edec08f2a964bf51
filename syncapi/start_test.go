package syncapi

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// A server that has just started reads what relates to the events of many rooms at once. Its first answer tells of each room
// what it told before, also of more events than are read ahead.
func TestRelationsAfterAStart(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, db)
		type thread struct {
			room        *roomserver.Room
			root, reply string
		}
		var threads []thread
		for n := range 20 {
			room := w.room(alice)
			root := w.say(room, alice, "")
			reply := w.say(room, alice, root)
			w.send(room, alice, "m.room.message", map[string]any{"body": "* y", "m.new_content": map[string]any{"body": "y"},
				"m.relates_to": map[string]string{"rel_type": "m.replace", "event_id": reply}})
			for range n {
				w.say(room, alice, "")
			}
			threads = append(threads, thread{room, root, reply})
		}
		for _, limit := range []int{4, 10, 22} {
			path := "/sync?filter=" + url.QueryEscape(fmt.Sprintf(`{"room":{"timeline":{"limit":%d}}}`, limit))
			before, after := w.do(alice, "GET", path, ""), newWorld(t, db).do(alice, "GET", path, "")
			shown := 0
			for _, th := range threads {
				got, want := joined(after, th.room).Get("timeline"), joined(before, th.room).Get("timeline")
				if got.Raw != want.Raw {
					t.Errorf("limit %d: timeline %s, want %s", limit, got, want)
				}
				for _, e := range got.Get("events").Array() {
					if !got.Get("limited").Bool() || e.Get("event_id").Str != th.root {
						continue
					}
					shown++
					if latest := e.Get(`unsigned.m\.relations.m\.thread.latest_event.event_id`).Str; latest != th.reply {
						t.Errorf("limit %d: the latest event of a thread is %q, want %q", limit, latest, th.reply)
					}
				}
			}
			if shown == 0 {
				t.Errorf("limit %d: no thread is shown", limit)
			}
		}
	})
}
