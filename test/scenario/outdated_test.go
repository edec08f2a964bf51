package scenario

import (
	"net/url"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

// A state event that loses state resolution stands last in the timeline, where clients take it to be current. The answer
// after it puts them right.
func TestStateThatLostInTimeline(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := Start(t, d, Federating(t))
			alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
			id := alice.Create(J{"preset": "public_chat", "room_version": "12", "power_level_content_override": J{"events": J{"m.room.topic": 0}}})
			bob.Join(id)
			w := enter(t, NewPeer(t, nil), s, id)
			empty := ""
			lost := w.build("m.room.topic", &empty, J{"topic": "of the peer"}, func(p *pdu.Proto) { p.OriginServerTS = 1000 })
			views := map[string]*view{}
			for name, query := range map[string]url.Values{"all": {}, "after": {"use_state_after": {"true"}}, "one": Filter(J{"room": J{"timeline": J{"limit": 1}}})} {
				views[name] = &view{c: bob.With(t), query: query, rooms: map[string]*roomView{}}
				views[name].sync()
			}
			current := alice.State(id, "m.room.topic", "", J{"topic": "of alice"})
			views["knows"] = &view{c: bob.With(t), query: url.Values{}, rooms: map[string]*roomView{}}
			views["knows"].sync()
			w.send(lost)
			alice.Until("what the peer sent", func(gjson.Result) bool {
				return alice.Do("GET", Path("/rooms/%s/event/%s", id, lost.ID), nil).Status == 200
			})
			views["new"] = &view{c: bob.With(t), query: url.Values{}, rooms: map[string]*roomView{}}
			if got := alice.Must("GET", Path("/rooms/%s/state/m.room.topic/", id), nil).JSON.Get("topic").Str; got != "of alice" {
				t.Fatalf("the topic is %q", got)
			}
			for name, v := range views {
				r := Room(v.c.Sync(v.query), "join", id)
				if last := r.Get("timeline.events.@reverse.0"); last.Get("event_id").Str != lost.ID {
					t.Errorf("%s: the timeline ends with %s", name, last.Raw)
				}
				since := v.c.Since()
				for range 2 { // the same, if the answer is lost
					v.c.SyncFrom(since)
					r = Room(v.c.Sync(v.query), "join", id)
					if name == "after" {
						if r.Exists() {
							t.Errorf("with state_after: %s", r.Raw)
						}
						continue
					}
					if got := Find(r.Get("state.events"), "m.room.topic", ""); got.Get("event_id").Str != current {
						t.Errorf("%s: the answer after it has %s", name, r.Raw)
					}
				}
				if r = Room(v.c.Sync(v.query), "join", id); r.Exists() {
					t.Errorf("%s: it is told again: %s", name, r.Raw)
				}
			}
		})
	}
}

// A filter hides the newest event of a place in the state and shows an older one. The newest one is not put into the
// timeline against the filter, but into the next answer's state, unless that is filtered, too.
func TestFilterHidesNewestState(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "power_level_content_override": J{"events": J{"m.room.topic": 0}}})
		bob.Join(id)
		notAlice := J{"not_senders": []string{alice.UserID}}
		for name, filter := range map[string]J{"timeline": {"timeline": notAlice}, "both": {"timeline": notAlice, "state": notAlice}} {
			c, query := bob.With(t), Filter(J{"room": filter})
			c.SyncFrom("")
			c.Sync(query)
			c.State(id, "m.room.topic", "", J{"topic": "old " + name})
			current := alice.State(id, "m.room.topic", "", J{"topic": "new " + name})
			r := Room(c.Sync(query), "join", id)
			if n := len(r.Get("timeline.events").Array()); n != 1 || Find(r.Get("timeline.events"), "m.room.topic", "").Get("event_id").Str == current {
				t.Errorf("%s: the timeline is %s", name, r.Get("timeline").Raw)
			}
			want := current
			if name == "both" {
				want = ""
			}
			r = Room(c.Sync(query), "join", id)
			if got := Find(r.Get("state.events"), "m.room.topic", "").Get("event_id").Str; got != want {
				t.Errorf("%s: the next answer has %s", name, r.Raw)
			}
			if r = Room(c.Sync(query), "join", id); r.Exists() {
				t.Errorf("%s: it is told again: %s", name, r.Raw)
			}
		}
	})
}

// What lowers the number of unread messages is hidden by a filter. The number is told all the same.
func TestHiddenEventsLowerUnread(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "power_level_content_override": J{"events": J{"m.room.topic": 0}}})
		bob.Join(id)
		query := Filter(J{"room": J{"timeline": J{"types": []string{"m.room.message"}}, "state": J{"types": []string{}}}})
		bob.Sync(query)
		for name, lower := range map[string]func(message string){
			"redaction": func(message string) {
				alice.Must("PUT", Path("/rooms/%s/redact/%s/%s", id, message, Txn()), J{})
			},
			"own event": func(string) { bob.State(id, "m.room.topic", "", J{"topic": "something else"}) },
		} {
			message := alice.Text(id, "hello")
			const count = "unread_notifications.notification_count"
			if n := Room(bob.Sync(query), "join", id).Get(count); n.Int() != 1 {
				t.Fatalf("%s: %s unread before", name, n.Raw)
			}
			lower(message)
			if r := Room(bob.Sync(query), "join", id); r.Get(count).Raw != "0" {
				t.Errorf("%s: told %s", name, r.Raw)
			}
			if r := Room(bob.Sync(query), "join", id); r.Exists() {
				t.Errorf("%s: told again %s", name, r.Raw)
			}
		}
	})
}
