package roomserver

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// overheard are the notices of events since they were last taken.
type overheard struct {
	mu      sync.Mutex
	notices []storage.Notice
}

// overhear listens to a database that nobody writes yet.
func overhear(db *storage.DB) *overheard {
	o := &overheard{}
	db.Subscribe(func(batch []storage.Notice, _ int64) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, n := range batch {
			if n.Kind == storage.Event {
				o.notices = append(o.notices, n)
			}
		}
	})
	return o
}

func (o *overheard) take() []storage.Notice {
	o.mu.Lock()
	defer o.mu.Unlock()
	taken := o.notices
	o.notices = nil
	return taken
}

// want checks what was said of the events since the last call, and that none is private that another server is to be sent.
func (o *overheard) want(t *testing.T, s *Server, room *Room, what string, private bool) {
	t.Helper()
	notices := o.take()
	if len(notices) == 0 {
		t.Errorf("%s: no events", what)
		return
	}
	events, err := s.Arrived(ctx, room, notices[0].Pos-1, notices[len(notices)-1].Pos, len(notices)+1)
	if err != nil || len(events) != len(notices) {
		t.Fatalf("%s: %d notices of %d events (%v)", what, len(notices), len(events), err)
	}
	for i, n := range notices {
		servers, err := s.Recipients(ctx, room, events[i])
		if err != nil {
			t.Fatal(err)
		}
		if n.Private && len(servers) > 0 {
			t.Errorf("%s: a %s that is to be sent to %v is private", what, events[i].Type, servers)
		}
		if n.Private != private {
			t.Errorf("%s: a %s is private: %t", what, events[i].Type, n.Private)
		}
	}
}

// member sets a membership.
func (w *world) member(sender, target, membership string) {
	w.t.Helper()
	if _, err := w.s.SetMembership(ctx, MembershipChange{RoomID: w.room.ID, Sender: sender, Target: target, Membership: membership}); err != nil {
		w.t.Fatal(err)
	}
}

// send sends an event of the creator's, a state event if it is not a message.
func (w *world) send(typ, content string) {
	w.t.Helper()
	d := Draft{Sender: creator, Type: typ, Content: []byte(content)}
	if typ != "m.room.message" {
		d.StateKey = new(string)
	}
	if _, err := w.s.Send(ctx, w.room.ID, d); err != nil {
		w.t.Fatal(err)
	}
}

// TestPrivate: what no other server is sent is told as private, and nothing else.
func TestPrivate(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		heard := overhear(db)
		s := testServer(t, db, "hs")
		w := newWorld(t, s, "11")
		heard.take()
		for _, step := range []struct {
			what    string
			private bool
			do      func()
		}{
			{"a message to members of others", false, func() { w.send("m.room.message", text) }},
			{"some of them leave", false, func() {
				w.accept(w.build(nil, "@d:remote", "m.room.member", "@d:remote", `{"membership":"leave"}`))
				w.member(creator, "@b:remote", Leave)
				w.member(creator, "@c:remote", Ban)
			}},
			{"a message to the last of them", false, func() { w.send("m.room.message", text) }},
			{"that one is kicked", false, func() { w.member(creator, "@a:remote", Leave) }},
			{"a message to nobody", true, func() { w.send("m.room.message", text) }},
			{"another of our users", true, func() { w.member("@other:hs", "@other:hs", Join) }},
			{"a tombstone", true, func() { w.send("m.room.tombstone", `{"body":"gone","replacement_room":"!x:hs"}`) }},
			{"a redaction", true, func() {
				last := w.event(w.timeline()[len(w.timeline())-1])
				if _, err := s.Send(ctx, w.room.ID, Draft{Sender: creator, Type: "m.room.redaction", Redacts: last.ID, Content: fmt.Appendf(nil, `{"redacts":%q}`, last.ID)}); err != nil {
					t.Fatal(err)
				}
			}},
			{"an invite of another server's user", false, func() { w.member(creator, "@e:remote", Invite) }},
			{"a message while they are invited", true, func() { w.send("m.room.message", text) }},
			{"their invite is withdrawn", false, func() { w.member(creator, "@e:remote", Leave) }},
			{"knocks are allowed", true, func() { w.send("m.room.join_rules", `{"join_rule":"knock"}`) }},
			{"a knock", false, func() { w.accept(w.build(nil, "@k:remote", "m.room.member", "@k:remote", `{"membership":"knock"}`)) }},
			{"it is refused", false, func() { w.member(creator, "@k:remote", Leave) }},
			{"a join that we relay", false, func() {
				w.send("m.room.join_rules", `{"join_rule":"public"}`)
				heard.take()
				in := Incoming{Event: w.build(nil, "@f:remote", "m.room.member", "@f:remote", `{"membership":"join"}`), Relay: true}
				if out, err := s.Take(ctx, w.room.ID, []Incoming{in}); err != nil || out[0].Outcome != Accepted {
					t.Fatalf("%+v, %v", out, err)
				}
			}},
			{"a message and a kick in one unit", false, func() {
				_, err := s.Turn(ctx, w.room.ID, func(t *Turn) error {
					_, err := t.Append(Draft{Sender: creator, Type: "m.room.message", Content: []byte(text)})
					if err == nil {
						user := "@f:remote"
						_, err = t.Append(Draft{Sender: creator, Type: pdu.TypeMember, StateKey: &user, Content: []byte(`{"membership":"leave"}`)})
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}},
			{"our last users leave", true, func() {
				w.member("@other:hs", "@other:hs", Leave)
				w.member(creator, creator, Leave)
			}},
		} {
			step.do()
			heard.want(t, s, w.room, step.what, step.private)
		}
	})
}

// TestPrivateOnForks has more forward extremities than an event may cite: those that are cited do not know of a kick.
func TestPrivateOnForks(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		heard := overhear(db)
		s := testServer(t, db, "hs")
		w := newWorld(t, s, "11")
		base := w.room.Head().Extremities
		for range pdu.MaxPrevEvents {
			w.accept(w.build(base, "@a:remote", "m.room.message", "", text))
		}
		for _, u := range []string{"@a:remote", "@b:remote", "@c:remote", "@d:remote"} {
			w.accept(w.build(base, u, "m.room.member", u, `{"membership":"leave"}`))
		}
		for range pdu.MaxPrevEvents {
			w.accept(w.build(base, creator, "m.room.message", "", text))
		}
		if servers := w.room.Servers(); !slices.Equal(servers, []string{"hs"}) {
			t.Fatalf("servers in the room: %v", servers)
		}
		heard.take()
		w.send("m.room.message", text)
		heard.want(t, s, w.room, "a message on some of the extremities", false)
	})
}

// TestPrivateNotWhilePartial: nobody knows who is in the room.
func TestPrivateNotWhilePartial(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		heard := overhear(db)
		w := newWorld(t, testServer(t, storagetest.Open(t, storage.SQLite, Schema), "hs"), "12")
		p := w.enterPartially(testServer(t, db, "away"), "@u:away")
		heard.want(t, p.away, p.at, "the room is entered", false)
		if _, err := p.away.Send(ctx, p.at.ID, Draft{Sender: "@u:away", Type: "m.room.message", Content: []byte(text)}); err != nil {
			t.Fatal(err)
		}
		heard.want(t, p.away, p.at, "a message", false)
	})
}
