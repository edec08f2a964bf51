package roomserver_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// relate sends a message that relates to another one and returns its id.
func relate(t testing.TB, s *roomserver.Server, room, relType, target string) string {
	t.Helper()
	content, err := json.Marshal(map[string]any{"body": "x", "m.relates_to": map[string]any{"rel_type": relType, "event_id": target}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Send(context.Background(), room, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: content})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestThreadRoot(t *testing.T) {
	each(t, func(t *testing.T, s *roomserver.Server) {
		ctx, id := context.Background(), newRoom(t, s, "12", roomserver.PrivateChat)
		room, err := s.Room(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		root := send(t, s, id, alice, "root")
		reply := relate(t, s, id, "m.thread", root)
		edit := relate(t, s, id, "m.replace", reply)
		react := relate(t, s, id, "m.annotation", edit)
		far := relate(t, s, id, "m.annotation", react)
		on := relate(t, s, id, "m.annotation", root)
		for _, c := range []struct{ name, event, want string }{
			{"no relation", root, ""},
			{"in the thread", reply, root},
			{"in a thread whose root is unknown", relate(t, s, id, "m.thread", "$unknown"), "$unknown"},
			{"a reaction to the root", on, ""},
			{"one hop", edit, root},
			{"two hops", react, root},
			{"three hops", far, root},
			{"four hops", relate(t, s, id, "m.annotation", far), ""},
			{"an unknown parent", relate(t, s, id, "m.annotation", "$unknown"), ""},
			{"no event", relate(t, s, id, "m.thread", ""), ""},
			{"no type", relate(t, s, id, "", reply), ""},
			{"a relation of the root's relation", relate(t, s, id, "m.annotation", on), ""},
		} {
			e, err := s.Event(ctx, room, c.event)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.ThreadRoot(ctx, room, e); got != c.want || err != nil {
				t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
			}
		}
	})
}

// eachDB runs a test on both databases; newServer makes a roomserver that remembers nothing.
func eachDB(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, fn)
}

func TestRedactedEventsKeepTheirRelation(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		ctx, id := context.Background(), newRoom(t, s, "12", roomserver.PrivateChat)
		reply := relate(t, s, id, "m.thread", send(t, s, id, alice, "root"))
		redaction, err := s.Send(ctx, id, roomserver.Draft{Sender: alice, Type: "m.room.redaction", Redacts: reply,
			Content: json.RawMessage(`{"redacts":"` + reply + `"}`)})
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []string{"memory", "database"} {
			room, err := s.Room(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			e, err := s.Event(ctx, room, reply)
			if err != nil {
				t.Fatal(err)
			}
			if !e.Redacted || e.Relation().Type != "m.thread" {
				t.Errorf("from %s: redacted %v, relation %v", from, e.Redacted, e.Relation())
			}
			by, err := s.Event(ctx, room, redaction)
			if err != nil {
				t.Fatal(err)
			}
			target, err := s.RedactionTarget(ctx, room, by)
			if err != nil || target == nil || target.ID != reply {
				t.Errorf("from %s: the redaction's target is %v, %v", from, target, err)
			}
			if target, err = s.RedactionTarget(ctx, room, e); target != nil || err != nil {
				t.Errorf("a message redacts %v, %v", target, err)
			}
			s = newServer(t, db)
		}
	})
}

func TestArrived(t *testing.T) {
	eachDB(t, func(t *testing.T, db *storage.DB) {
		s := newServer(t, db)
		ctx, id := context.Background(), newRoom(t, s, "12", roomserver.PrivateChat)
		var want []string
		for range 70 { // more than a room that was just loaded has at hand
			want = append(want, send(t, s, id, alice, "x"))
		}
		for _, from := range []string{"memory", "database"} {
			room, err := s.Room(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			head := room.Head().Pos
			ids := func(after, upTo int64, limit int) (out []string) {
				events, err := s.Arrived(ctx, room, after, upTo, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					out = append(out, e.ID)
				}
				return out
			}
			for _, n := range []int64{5, 70} {
				if got := ids(head-n, head, 100); !slices.Equal(got, want[70-n:]) {
					t.Errorf("from %s: %q, want %q", from, got, want[70-n:])
				}
				if got := ids(head-n, head-1, 2); !slices.Equal(got, want[70-n:72-n]) {
					t.Errorf("from %s, the first two: %q, want %q", from, got, want[70-n:72-n])
				}
			}
			if got := ids(head, head, 10); len(got) != 0 {
				t.Errorf("from %s, nothing: %q", from, got)
			}
			if e := room.Latest(head); e == nil || e.ID != want[69] {
				t.Errorf("from %s: latest %v", from, e)
			}
			if e := room.Latest(head + 1); e != nil {
				t.Errorf("from %s: beyond the head is %v", from, e)
			}
			s = newServer(t, db)
		}
	})
}
