package relations_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/myelin-im/myelin/relations"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// benchRoom is a room with a thread of so many replies, then twenty messages to which nothing relates.
func benchRoom(b *testing.B, db *storage.DB, replies int) (c *chat, root *roomserver.Event, quiet []*roomserver.Event) {
	b.Helper()
	s := roomservertest.New(b, db)
	c = newChat(b, s, 1)
	post := func(content string) *roomserver.Event {
		events, err := s.Turn(ctx, c.room.ID, func(t *roomserver.Turn) error {
			_, err := t.Append(roomserver.Draft{Sender: users[0], Type: "m.room.message", Content: []byte(content)})
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		return events[0]
	}
	root = post(`{}`)
	_, err := s.Turn(ctx, c.room.ID, func(t *roomserver.Turn) error {
		for range replies {
			content := fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root.ID)
			if _, err := t.Append(roomserver.Draft{Sender: users[0], Type: "m.room.message", Content: []byte(content)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for range 20 {
		quiet = append(quiet, post(`{}`))
	}
	return c, root, quiet
}

func benchView(b *testing.B, s *roomserver.Server, room *roomserver.Room) *relations.View {
	b.Helper()
	viewer, err := s.Viewer(ctx, room, users[1], room.Head().Pos)
	if err != nil {
		b.Fatal(err)
	}
	return &relations.View{
		Rooms: s, Room: room, User: users[1], Viewer: viewer,
		Ignored: func(context.Context) (map[string]bool, error) { return nil, nil },
	}
}

func BenchmarkBundle(b *testing.B) {
	db := storagetest.Open(b, storage.SQLite, roomserver.Schema)
	const replies = 1000
	c, root, quiet := benchRoom(b, db, replies)
	run := func(name string, s func() *roomserver.Server, events []*roomserver.Event) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				b.StopTimer()
				v := benchView(b, s(), c.room)
				b.StartTimer()
				if err := v.Bundle(ctx, &roomserver.Reader{}, events); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	warm := func() *roomserver.Server { return c.s }
	cold := func() *roomserver.Server { return roomservertest.New(b, db) }
	run("20 fresh events", warm, quiet)
	run("20 events after a start", cold, quiet)
	run("thread of 1000", warm, []*roomserver.Event{root})
	run("thread of 1000 after a start", cold, []*roomserver.Event{root})
}

// BenchmarkRecurse reads the newest page of everything in a thread, as clients do that show one.
func BenchmarkRecurse(b *testing.B) {
	for _, d := range []storage.Dialect{storage.SQLite, storage.PostgreSQL} {
		b.Run(d.String(), func(b *testing.B) {
			c, root, _ := benchRoom(b, storagetest.Open(b, d, roomserver.Schema), 1000)
			q := roomserver.RelationQuery{Target: root.ID, High: roomserver.EndOfHistory, Depth: 4, Limit: 21}
			b.ResetTimer()
			for range b.N {
				events, err := c.s.RelatedEvents(ctx, c.room, q)
				if err != nil || len(events) != q.Limit {
					b.Fatal(len(events), err)
				}
			}
		})
	}
}
