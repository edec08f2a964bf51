package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// roomsToPreload makes more rooms than are read at once, with more or less in them than is read ahead.
func roomsToPreload(t *testing.T, s *Server) {
	t.Helper()
	v, _ := pdu.Lookup("12")
	for n := range preloadBatch + 5 {
		id, err := s.CreateRoom(ctx, NewRoom{Creator: creator, Version: v, Preset: PrivateChat, Name: fmt.Sprint("room ", n)})
		if err != nil {
			t.Fatal(err)
		}
		var said string
		for i := range 30 * (n % 4) {
			if said, err = say(s, id, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range n % 3 * 40 {
			key := fmt.Sprint(i)
			if _, err := s.Send(ctx, id, Draft{Sender: creator, Type: "org.example", StateKey: &key, Content: []byte(`{}`)}); err != nil {
				t.Fatal(err)
			}
		}
		if said != "" {
			redact(t, s, id, said)
		}
		relate(t, s, id)
	}
}

func redact(t *testing.T, s *Server, room, event string) {
	t.Helper()
	if _, err := s.Send(ctx, room, Draft{Sender: creator, Type: "m.room.redaction", Content: []byte(`{}`), Redacts: event}); err != nil {
		t.Fatal(err)
	}
}

// relatedEvents is how many events relate adds to a room: one to which others relate, of which the last is redacted.
const relatedEvents = 5

func relate(t *testing.T, s *Server, room string) {
	t.Helper()
	root, err := say(s, room, "root")
	if err != nil {
		t.Fatal(err)
	}
	var last string
	for _, relType := range []string{"m.thread", "m.reference", "m.reference"} {
		last, err = s.Send(ctx, room, Draft{Sender: creator, Type: "m.room.message", Content: []byte(relating(relType, root))})
		if err != nil {
			t.Fatal(err)
		}
	}
	redact(t, s, room, last)
}

// shown is what readers find in a room.
func shown(t *testing.T, s *Server, r UserRoom) (out []string) {
	t.Helper()
	room, err := s.Room(ctx, r.RoomID)
	if err != nil {
		t.Fatal(err)
	}
	head := room.Head()
	joined, invited := room.MemberCounts()
	out = append(out, fmt.Sprint(head.Pos, head.State, len(head.Extremities), head.Extremities[0].ID, joined, invited, room.LocalMembers(nil), room.Servers()))
	events, more, err := s.Timeline(ctx, room, 0, s.db.Head(), ringSize+10)
	if err != nil {
		t.Fatal(err)
	}
	state, err := s.StateEvents(ctx, room, head.State)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(state, func(a, b *Event) int { return int(a.NID - b.NID) })
	children, err := s.Children(ctx, room, events)
	if err != nil {
		t.Fatal(err)
	}
	out = append(out, fmt.Sprint(more, len(events)), fmt.Sprint(children))
	for _, e := range append(slices.Clone(events), state...) {
		b, err := s.AppendClientEvent(ctx, nil, room, e, &Reader{User: creator})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(e.Token(), string(b)))
	}
	return out
}

// TestVisit compares rooms that were read together with the same rooms read one by one.
func TestVisit(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		roomsToPreload(t, testServer(t, db, "hs"))
		single, together := testServer(t, db, "hs"), testServer(t, db, "hs")
		rooms, err := together.UserRooms(ctx, creator)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		err = together.Visit(ctx, rooms, maxPreloadedParents, func(r UserRoom) error {
			if r != rooms[i] {
				t.Errorf("room %d is %s, want %s", i, r.RoomID, rooms[i].RoomID)
			}
			room := together.ActiveRoom(r.NID)
			if room == nil || !room.recent.loaded {
				t.Fatalf("room %d was not read ahead", i)
			}
			if got, want := shown(t, together, r), shown(t, single, r); !slices.Equal(got, want) {
				t.Errorf("room %d: %q, want %q", i, got, want)
			}
			i++
			return nil
		})
		if err != nil || i != len(rooms) {
			t.Errorf("%d of %d rooms were visited: %v", i, len(rooms), err)
		}
		if got, want := together.rooms.recent.Load(), single.rooms.recent.Load(); got != want {
			t.Errorf("%d bytes of recent events are counted, want %d", got, want)
		}
	})
}

// Of rooms that were read together it is in memory what relates to as many of their newest events as are shown, and to no
// others.
func TestVisitReadsRelations(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		s := testServer(t, db, "hs")
		for range preloadBatch + 5 {
			id, err := s.CreateRoom(ctx, NewRoom{Creator: creator, Version: defaultVersion(t), Preset: PrivateChat})
			if err != nil {
				t.Fatal(err)
			}
			relate(t, s, id)
		}
		s = testServer(t, db, "hs")
		rooms, err := s.UserRooms(ctx, creator)
		if err != nil {
			t.Fatal(err)
		}
		const copies = maxChildren + 100
		repeatReply(t, db, rooms[0].NID, copies)
		ended, end := context.WithCancel(ctx)
		end() // no query succeeds
		err = s.Visit(ctx, rooms, relatedEvents, func(r UserRoom) error {
			room := s.ActiveRoom(r.NID)
			events, _ := room.recent.last(relatedEvents+1, s.db.Head())
			if _, err := s.Children(ended, room, events[:1]); !errors.Is(err, context.Canceled) {
				t.Errorf("more than is shown was read: %v", err)
			}
			lists, err := s.Children(ended, room, events[1:])
			if err != nil {
				return err
			}
			listed, replies := 2, 1
			if r == rooms[0] {
				listed, replies = maxChildren, 1+copies
			}
			for i, l := range lists {
				if i > 0 {
					listed, replies = 0, 0
				}
				got := l.OlderReplies
				for _, c := range l.List {
					if c.Kind == ThreadReply {
						got++
					}
				}
				if len(l.List) != listed || got != replies {
					t.Errorf("event %d: %d children are listed and %d replies counted, want %d and %d", i, len(l.List), got, listed, replies)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// repeatReply makes many of the one reply in a thread that a room has.
func repeatReply(t *testing.T, db *storage.DB, room int64, copies int) {
	t.Helper()
	err := db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`INSERT INTO relations (room, target, anchor, sub, child, event_id, kind, rel_type, type, sender)
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $3)
			SELECT room, target, anchor, sub + i, child, event_id, kind, rel_type, type, sender FROM relations, n WHERE room = $1 AND kind = $2`,
			room, int64(ThreadReply), int64(copies))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Who reads rooms together meets others who do, who load one of them, and who write: each room is in memory once, with all
// that was written.
func TestVisitsAtTheSameTime(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		roomsToPreload(t, testServer(t, db, "hs"))
		s := testServer(t, db, "hs")
		rooms, err := s.UserRooms(ctx, creator)
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for n := range 3 {
			all.Go(func() {
				seen := 0
				err := s.Visit(ctx, rooms, maxPreloadedParents, func(r UserRoom) error {
					seen++
					_, err := s.Room(ctx, r.RoomID)
					return err
				})
				if err != nil || seen != len(rooms) {
					t.Errorf("%d of %d rooms were visited: %v", seen, len(rooms), err)
				}
			})
			all.Go(func() {
				for _, r := range slices.Backward(rooms) {
					said, err := say(s, r.RoomID, fmt.Sprint("at the same time ", n))
					if err == nil {
						_, err = s.Send(ctx, r.RoomID, Draft{Sender: creator, Type: "m.room.message", Content: []byte(relating("m.reference", said))})
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		fresh := testServer(t, db, "hs")
		for _, r := range rooms {
			if got, want := shown(t, s, r), shown(t, fresh, r); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", r.RoomID, got, want)
			}
		}
	})
}

// A room that somebody else is loading holds nobody up who only reads ahead, and a visit that ends early leaves nothing
// behind.
func TestVisitBesideALoad(t *testing.T) {
	onSQLite(t, func(t *testing.T, s *Server) {
		roomsToPreload(t, s)
		s = testServer(t, s.db, "hs")
		rooms, err := s.UserRooms(ctx, creator)
		if err != nil {
			t.Fatal(err)
		}
		unlock := s.rooms.load.lock(rooms[1].RoomID)
		stop := errors.New("enough")
		err = s.Visit(ctx, rooms, maxPreloadedParents, func(r UserRoom) error {
			if got, want := s.ActiveRoom(r.NID) != nil, r != rooms[1]; got != want {
				t.Errorf("in memory: %v, want %v", got, want)
			}
			if r == rooms[2] {
				return stop
			}
			return nil
		})
		unlock()
		if !errors.Is(err, stop) {
			t.Errorf("the visit ended with %v", err)
		}
		if len(s.rooms.load.locks) > 0 {
			t.Errorf("%d rooms are still being loaded", len(s.rooms.load.locks))
		}
	})
}
