package roomserver

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func relating(relType, target string) string {
	return fmt.Sprintf(`{"body":"*","m.relates_to":{"event_id":%q,"rel_type":%q}}`, target, relType)
}

// children lists the ids or numbers of what relates to an event, as a server tells it.
func children(t *testing.T, s *Server, room *Room, e *Event) string {
	t.Helper()
	list, err := s.Children(ctx, room, []*Event{e})
	if err != nil {
		t.Fatal(err)
	}
	var nids []int64
	for _, c := range list[0].List {
		nids = append(nids, c.NID)
	}
	return fmt.Sprint(nids)
}

func TestRelationBeforeItsTarget(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		s := testServer(t, db, "hs")
		for _, version := range []string{"1", "10", "12"} {
			w := newWorld(t, s, version)
			target := w.build(nil, "@a:remote", "m.room.message", "", text)
			apart := w.accept(w.build(nil, "@b:remote", "m.room.message", "", relating("m.thread", target.ID)))
			if got, want := children(t, s, w.room, w.accept(target)), fmt.Sprint([]int64{apart.NID}); got != want {
				t.Errorf("version %s: children %s, want %s", version, got, want)
			}

			// In one unit, and with a redaction of the child that came before it.
			target = w.build(nil, "@a:remote", "m.room.message", "", text)
			child := w.build(nil, "@b:remote", "m.room.message", "", relating("m.reference", target.ID))
			gone := w.build(nil, "@a:remote", "m.room.message", "", relating("m.reference", target.ID))
			w.accept(w.build(nil, "@a:remote", "m.room.redaction", gone.ID, `{}`))
			if _, err := receiveAll(s, w.room.ID, []*pdu.Event{gone, child, target}); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprint([]int64{w.event(child.ID).NID})
			if got := children(t, s, w.room, w.event(target.ID)); got != want {
				t.Errorf("version %s: children %s, want %s", version, got, want)
			}
			if got := children(t, testServer(t, db, "hs"), w.room, w.event(target.ID)); got != want {
				t.Errorf("version %s: children after a restart %s, want %s", version, got, want)
			}
			// Nobody hears of what is not in the timeline.
			root := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
			w.want(w.build(nil, "@nobody:remote", "m.room.message", "", relating("m.thread", root.ID)), Rejected)
			if got := children(t, s, w.room, root); got != "[]" {
				t.Errorf("version %s: a rejected event relates: %s", version, got)
			}
		}
	})
}

func TestTargetThatComesAfterARestart(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		w := newWorld(t, testServer(t, db, "hs"), "12")
		target := w.build(nil, "@a:remote", "m.room.message", "", text)
		child := w.accept(w.build(nil, "@b:remote", "m.room.message", "", relating("m.thread", target.ID)))
		w.s = testServer(t, db, "hs")
		var err error
		if w.room, err = w.s.Room(ctx, w.room.ID); err != nil {
			t.Fatal(err)
		}
		if got, want := children(t, w.s, w.room, w.accept(target)), fmt.Sprint([]int64{child.NID}); got != want {
			t.Errorf("children %s, want %s", got, want)
		}
	})
}

func TestMalformedRelationsAreIgnored(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "12")
		target := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
		long := strings.Repeat("x", maxRelationField+1)
		for _, relation := range []string{
			`null`, `[]`, `"m.thread"`, `{}`, `{"rel_type":"m.thread"}`,
			fmt.Sprintf(`{"event_id":%q}`, target.ID),
			fmt.Sprintf(`{"event_id":%q,"rel_type":1}`, target.ID),
			fmt.Sprintf(`{"event_id":%q,"rel_type":""}`, target.ID),
			fmt.Sprintf(`{"event_id":%q,"rel_type":%q}`, target.ID, long),
			fmt.Sprintf(`{"event_id":%q,"rel_type":"m.thread"}`, long),
			fmt.Sprintf(`{"event_id":[%q],"rel_type":"m.thread"}`, target.ID),
			fmt.Sprintf(`{"event_id":%q,"m.in_reply_to":{"event_id":%q}}`, target.ID, target.ID),
		} {
			w.accept(w.build(nil, "@b:remote", "m.room.message", "", `{"m.relates_to":`+relation+`}`))
		}
		self := w.accept(w.build(nil, "@b:remote", "m.room.message", "", `{"body":"*","m.relates_to":{"event_id":"$\u0000","rel_type":"m.thread"}}`))
		related, err := s.RelatedEvents(ctx, w.room, RelationQuery{Target: target.ID, High: EndOfHistory, Depth: 3, Limit: 100})
		if err != nil || len(related) > 0 {
			t.Errorf("relations %v, %v", ids(related), err)
		}
		if related, err = s.RelatedEvents(ctx, w.room, RelationQuery{Target: "$\u0000", High: EndOfHistory, Depth: 3, Limit: 100}); err != nil || len(related) != 1 || related[0].ID != self.ID {
			t.Errorf("relations of a strange id %v, %v", ids(related), err)
		}
	})
}

// In the first room versions servers choose event ids, so relations may form a loop.
func TestLoopOfRelations(t *testing.T) {
	eachServer(t, func(t *testing.T, s *Server) {
		w := newWorld(t, s, "1")
		a := w.build(nil, "@a:remote", "m.room.message", "", relating("r", "$b:remote"))
		b := w.build(nil, "@a:remote", "m.room.message", "", relating("r", "$a:remote"))
		a.ID, b.ID = "$a:remote", "$b:remote"
		w.accept(a)
		w.accept(b)
		related, err := s.RelatedEvents(ctx, w.room, RelationQuery{Target: "$a:remote", High: EndOfHistory, Depth: 4, Limit: 100})
		if err != nil || len(related) != 2 {
			t.Errorf("relations %v, %v", ids(related), err)
		}
	})
}

// A full cache forgets, and then the database has to be asked; it must not take what it forgot for nothing.
func TestForgottenRelations(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		s := testServer(t, db, "hs")
		w := newWorld(t, s, "12")
		target := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
		quiet := w.accept(w.build(nil, "@a:remote", "m.room.message", "", text))
		first := w.accept(w.build(nil, "@a:remote", "m.room.message", "", relating("m.thread", target.ID)))
		for i := range s.relations.shards {
			shard := &s.relations.shards[i]
			shard.mu.Lock()
			shard.bytes = shardBytes
			shard.put(relationKey{-1, "another"}, &relationEntry{})
			if len(shard.entries) != 1 {
				t.Errorf("a full shard keeps %d entries", len(shard.entries))
			}
			shard.mu.Unlock()
		}
		if got, want := children(t, s, w.room, target), fmt.Sprint([]int64{first.NID}); got != want {
			t.Errorf("children %s, want %s", got, want)
		}
		second := w.accept(w.build(nil, "@a:remote", "m.room.message", "", relating("m.thread", target.ID)))
		if got, want := children(t, s, w.room, target), fmt.Sprint([]int64{first.NID, second.NID}); got != want {
			t.Errorf("children %s, want %s", got, want)
		}
		if got := children(t, s, w.room, quiet); got != "[]" {
			t.Errorf("children %s of an event without any", got)
		}
	})
}

// Readers meanwhile must not leave behind an older list than what was written.
func TestReadingRelationsWhileWriting(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		s := testServer(t, db, "hs")
		id, err := s.CreateRoom(ctx, NewRoom{Creator: creator, Version: defaultVersion(t), Preset: PublicChat})
		if err != nil {
			t.Fatal(err)
		}
		room, err := s.Room(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		send := func(content string) *Event {
			events, err := s.Turn(ctx, id, func(t *Turn) error {
				_, err := t.Append(Draft{Sender: creator, Type: "m.room.message", Content: []byte(content)})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return events[0]
		}
		target := send(text)
		s.relations.init(math.MaxInt64 - 1) // nothing counts as fresh
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := s.Children(ctx, room, []*Event{target}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		var want []int64
		for i := range 60 {
			e := send(relating("m.reference", target.ID))
			if i%3 == 0 {
				if _, err := s.Send(ctx, id, Draft{Sender: creator, Type: "m.room.redaction", Content: []byte(`{}`), Redacts: e.ID}); err != nil {
					t.Fatal(err)
				}
			} else {
				want = append(want, e.NID)
			}
			if got := children(t, s, room, target); got != fmt.Sprint(want) {
				t.Errorf("after %d: children %s, want %d", i, got, want)
				break
			}
		}
		close(stop)
		readers.Wait()
	})
}

func defaultVersion(t *testing.T) *pdu.Version {
	t.Helper()
	v, ok := pdu.Lookup(pdu.DefaultVersion)
	if !ok {
		t.Fatal("no default room version")
	}
	return v
}
