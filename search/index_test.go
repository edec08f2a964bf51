package search

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const alice = "@alice:hs"

var schemas = []storage.Schema{roomserver.Schema, accounts.Schema, Schema}

// fixture is an API whose index nobody follows, with a room of alice's.
type fixture struct {
	t     testing.TB
	db    *storage.DB
	rooms *roomserver.Server
	api   *API
	room  string
}

func newFixture(t testing.TB, db *storage.DB) *fixture {
	f := &fixture{t: t, db: db, rooms: roomservertest.New(t, db)}
	f.api = New(Deps{
		DB: db, Rooms: f.rooms, Log: roomservertest.Log(),
		Ignored: func(context.Context, string) (map[string]bool, error) { return nil, nil },
	})
	version, _ := pdu.Lookup("12")
	var err error
	f.room, err = f.rooms.CreateRoom(context.Background(), roomserver.NewRoom{Creator: alice, Version: version, Preset: roomserver.PublicChat})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) send(text string) {
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	if err == nil {
		_, err = f.rooms.Send(context.Background(), f.room, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: content})
	}
	if err != nil {
		f.t.Error(err)
	}
}

// follow brings the index up to date, as after a start.
func (f *fixture) follow() {
	f.t.Helper()
	x := f.api.index
	x.forget()
	err := x.load(context.Background())
	if err == nil {
		err = x.pass(context.Background())
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) exec(sql string, args ...any) {
	f.t.Helper()
	err := f.db.Write(context.Background(), func(tx *storage.Tx) error {
		_, err := tx.Exec(sql, args...)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// settle lets PostgreSQL know what is in the tables, as autovacuum does for those that grow.
func (f *fixture) settle() {
	f.t.Helper()
	if f.db.Dialect() == storage.PostgreSQL {
		f.exec(`ANALYZE`)
	}
}

// count searches for a word and returns how often it is there.
func (f *fixture) count(word string) int {
	f.t.Helper()
	return f.search(word).Count
}

func (f *fixture) search(term string) *roomEvents {
	f.t.Helper()
	return f.searchFiltered(term, `{}`)
}

// searchFiltered searches with a filter, which is JSON.
func (f *fixture) searchFiltered(term, filter string) *roomEvents {
	f.t.Helper()
	in := &searchRequest{}
	if err := json.Unmarshal(fmt.Appendf(nil, `{"search_categories":{"room_events":{"search_term":%q,"filter":%s}}}`, term, filter), in); err != nil {
		f.t.Fatal(err)
	}
	out, err := f.api.search(context.Background(), &httpapi.Caller{UserID: alice}, in)
	if err != nil {
		f.t.Fatal(err)
	}
	return out.Categories.RoomEvents
}

// The index is made anew from the log, and goes on where it was interrupted.
func TestCatchUp(t *testing.T) {
	storagetest.Each(t, schemas, func(t *testing.T, db *storage.DB) {
		f := newFixture(t, db)
		const messages = 3*eventPage + 5
		for range messages {
			f.send("word")
		}
		f.follow()
		if n := f.count("word"); n != messages {
			t.Errorf("%d messages in the index, want %d", n, messages)
		}
		before := f.db.Head()
		f.send("later word")
		f.follow()
		if n := f.count("word"); n != messages+1 {
			t.Errorf("%d messages in the index after another one, want %d", n, messages+1)
		}
		clear := func() {
			f.exec(`DELETE FROM search_cursor`)
			f.exec(`DELETE FROM search_events`)
			f.exec(`DELETE FROM search_terms`)
		}
		clear()
		f.follow()
		if n := f.count("word"); n != messages+1 {
			t.Errorf("%d messages in the index made anew, want %d", n, messages+1)
		}
		// Interrupted before the last message.
		clear()
		room, err := f.rooms.Room(context.Background(), f.room)
		if err != nil {
			t.Fatal(err)
		}
		f.exec(`INSERT INTO search_progress (room, pos) VALUES ($1, $2)`, room.NID, before)
		f.follow()
		if n := f.count("word"); n != 1 {
			t.Errorf("%d messages in the index that went on, want 1", n)
		}
		var left int64
		if _, err := f.db.Get(context.Background(), `SELECT count(*) FROM search_progress`, nil, &left); err != nil || left != 0 {
			t.Errorf("%d rooms of progress are left (%v)", left, err)
		}
	})
}

// What took a place in the past of a room stays on a list until it is in the index.
func TestPastOfRooms(t *testing.T) {
	storagetest.Each(t, schemas, func(t *testing.T, db *storage.DB) {
		f := newFixture(t, db)
		const messages = maxPast + 5
		for range messages {
			f.send("word")
		}
		f.follow()
		// As if they had come without news in the log, and the server had stopped before they were looked at.
		f.exec(`DELETE FROM search_events`)
		f.exec(`DELETE FROM search_terms`)
		f.exec(`INSERT INTO search_past (event, room) SELECT nid, room FROM events WHERE anchor IS NOT NULL`)
		f.exec(`INSERT INTO search_past (event, room) VALUES (-1, -1)`)
		f.api.index.past++
		f.follow()
		if n := f.count("word"); n != messages {
			t.Errorf("%d messages in the index, want %d", n, messages)
		}
		var left int64
		if _, err := db.Get(context.Background(), `SELECT count(*) FROM search_past`, nil, &left); err != nil || left != 0 {
			t.Errorf("%d events are left on the list (%v)", left, err)
		}
	})
}

// An entry that is there already, which should not be, holds the index up once.
func TestEntryThatIsThere(t *testing.T) {
	storagetest.Each(t, schemas, func(t *testing.T, db *storage.DB) {
		f := newFixture(t, db)
		f.send("first")
		f.follow()
		f.send("second")
		f.exec(`INSERT INTO search_events (id, room, event, part, sender, state_before, words)
			SELECT anchor * 1048576, room, nid, 1, '', 0, 'stale' FROM events WHERE anchor = (SELECT max(anchor) FROM events)`)
		if err := f.api.index.pass(context.Background()); !errors.Is(err, storage.ErrConflict) {
			t.Fatalf("the pass over an entry that is there: %v, want a conflict", err)
		}
		f.follow()
		f.send("third")
		f.follow()
		for _, word := range []string{"first", "second", "third"} {
			if n := f.count(word); n != 1 {
				t.Errorf("%q is found %d times, want once", word, n)
			}
		}
	})
}

// The database has lost an event that memory still has: its purge goes on.
func TestPurgedEventsStayOut(t *testing.T) {
	storagetest.Each(t, schemas, func(t *testing.T, db *storage.DB) {
		f := newFixture(t, db)
		f.send("first")
		f.follow()
		f.send("sesame")
		end := f.api.Purging()
		f.exec(`DELETE FROM events WHERE anchor = (SELECT max(anchor) FROM events)`)
		if err := f.api.index.pass(context.Background()); err != nil {
			t.Fatal(err)
		}
		end()
		var left int64
		if _, err := db.Get(context.Background(), `SELECT count(*) FROM search_events`, nil, &left); err != nil || left != 1 {
			t.Errorf("%d entries are in the index, want that of the message that stays (%v)", left, err)
		}
	})
}

// A room is removed between being read for the index and being written.
func TestRemovedRoomsStayOut(t *testing.T) {
	storagetest.Each(t, schemas, func(t *testing.T, db *storage.DB) {
		f := newFixture(t, db)
		f.send("sesame")
		ctx := context.Background()
		room, err := f.rooms.Room(ctx, f.room)
		if err != nil {
			t.Fatal(err)
		}
		left := func() (n int64) {
			t.Helper()
			const sql = `SELECT (SELECT count(*) FROM search_events) + (SELECT count(*) FROM directory_rooms) + (SELECT count(*) FROM directory_open_rooms)
				+ (SELECT count(*) FROM directory_users) + (SELECT count(*) FROM directory_terms) + (SELECT count(*) FROM directory_removals)`
			if _, err := db.Get(ctx, sql, nil, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		x := f.api.index
		if err := x.load(ctx); err != nil {
			t.Fatal(err)
		}
		b := &batch{x: x, purges: x.purges.ended.Load(), doubt: true}
		if err := x.visit(ctx, b, []int64{room.NID}, 0, db.Head()); err != nil || len(b.entries) == 0 || len(b.users) == 0 || len(b.open) == 0 {
			t.Fatalf("%d entries, %d users and %d open rooms were read (%v)", len(b.entries), len(b.users), len(b.open), err)
		}
		f.remove(room)
		if err := b.finish(ctx, db.Head()); err != nil {
			t.Fatal(err)
		}
		if err := x.pass(ctx); err != nil {
			t.Fatal(err)
		}
		if n := left(); n != 0 {
			t.Errorf("%d rows of a removed room are in the index", n)
		}
	})
}

// Whoever was in a removed room, without a word of it in the log, is not found by it any more.
func TestMembersOfRemovedRooms(t *testing.T) {
	storagetest.Each(t, schemas, func(t *testing.T, db *storage.DB) {
		f := newFixture(t, db)
		ctx := context.Background()
		room, err := f.rooms.Room(ctx, f.room)
		if err != nil {
			t.Fatal(err)
		}
		private, err := f.rooms.CreateRoom(ctx, roomserver.NewRoom{Creator: alice, Version: room.Version, Preset: roomserver.PrivateChat})
		if err != nil {
			t.Fatal(err)
		}
		found := func(by string) int {
			t.Helper()
			term := "alice"
			out, err := f.api.searchUsers(ctx, &httpapi.Caller{UserID: by}, &usersRequest{Term: &term})
			if err != nil {
				t.Fatal(err)
			}
			return len(out.Results)
		}
		f.follow()
		if found("@stranger:hs") != 1 {
			t.Fatal("alice is not found by who is in no room with her while she is in an open one")
		}
		// Her leaving is not in the index when the room goes, like that of members who have not left.
		f.remove(room)
		f.follow()
		if found("@stranger:hs") != 0 {
			t.Error("she is found after that")
		}
		rest := func() (n int64) {
			t.Helper()
			if _, err := db.Get(ctx, `SELECT (SELECT count(*) FROM directory_users) + (SELECT count(*) FROM directory_terms)`, nil, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := rest(); n != 2 {
			t.Errorf("%d rows are about alice, who is in another room, want 2", n)
		}
		f.room = private
		if room, err = f.rooms.Room(ctx, private); err != nil {
			t.Fatal(err)
		}
		f.remove(room)
		f.follow()
		if n := rest(); n != 0 {
			t.Errorf("%d rows are about alice, who is in no room any more", n)
		}
	})
}

// remove removes the room, of which alice is the only member.
func (f *fixture) remove(room *roomserver.Room) {
	f.t.Helper()
	ctx := context.Background()
	defer f.api.Purging()()
	_, err := f.rooms.SetMembership(ctx, roomserver.MembershipChange{RoomID: f.room, Sender: alice, Target: alice, Membership: roomserver.Leave})
	if err == nil {
		err = f.rooms.Forget(ctx, alice, f.room)
	}
	var list []roomserver.Removal
	if err == nil {
		list, err = f.rooms.Removals(ctx, math.MaxInt64, 0, 10)
	}
	if err != nil || len(list) != 1 || list[0].NID != room.NID {
		f.t.Fatalf("what is to be removed: %v, %v", list, err)
	}
	if begun, err := f.rooms.BeginRemoval(ctx, list[0]); err != nil || !begun {
		f.t.Fatalf("the removal has begun: %t, %v", begun, err)
	}
	if err := f.rooms.Remove(ctx, list[0], []roomserver.RoomRows{RoomRemoved}, nil); err != nil {
		f.t.Fatal(err)
	}
}

// BenchmarkSearch searches 100,000 messages for words that are in all of them, in some and in few.
func BenchmarkSearch(b *testing.B) {
	for _, dialect := range storagetest.Dialects {
		b.Run(dialect.String(), func(b *testing.B) {
			f := newFixture(b, storagetest.Open(b, dialect, schemas...))
			const messages, senders = 100_000, 100
			var group sync.WaitGroup
			for s := range senders {
				group.Go(func() {
					for i := s; i < messages; i += senders {
						f.send(fmt.Sprintf("always the tenth%d and hundredth%d of the quick brown foxes thousandth%d number%d 東京の天気%d", i%10, i%100, i%1000, i, i%100))
					}
				})
			}
			group.Wait()
			f.follow()
			f.settle()
			for _, term := range []string{"always", "tenth4", "tenth4 hundredth14", "hundredth14", "thousandth514", "number4711", "nowhere", "東京", "天気14"} {
				b.Run(term, func(b *testing.B) {
					for b.Loop() {
						f.search(term)
					}
				})
			}
			for name, filter := range map[string]string{"room": fmt.Sprintf(`{"rooms":[%q]}`, f.room), "nobody": `{"senders":["@nobody:hs"]}`} {
				b.Run("always/"+name, func(b *testing.B) {
					for b.Loop() {
						f.searchFiltered("always", filter)
					}
				})
			}
		})
	}
}

// BenchmarkUsers searches a directory of 100,000 users, all of whom the searcher may see, or a few.
func BenchmarkUsers(b *testing.B) {
	for _, dialect := range storagetest.Dialects {
		b.Run(dialect.String(), func(b *testing.B) {
			f := newFixture(b, storagetest.Open(b, dialect, schemas...))
			f.follow()
			ctx := context.Background()
			batch := &batch{x: f.api.index, open: map[int64]bool{1: true}}
			for i := range int64(100_000) {
				u := batch.user(fmt.Sprintf("@user%d:remote", i))
				u.profile, u.name = true, fmt.Sprintf("%c%c%d Somebody%d", 'a'+i%26, 'a'+i/26%26, i/676, i%1000)
				u.rooms[1+i%2] = true
				if len(batch.users) >= 5000 {
					if err := batch.flush(ctx, &storage.Unit{}); err != nil {
						b.Fatal(err)
					}
				}
			}
			f.settle()
			for _, term := range []string{"s", "somebody", "somebody77", "ab3", "user4242", "@user4242:remote", "nobody"} {
				b.Run(term, func(b *testing.B) {
					for b.Loop() {
						if _, err := f.api.searchUsers(ctx, &httpapi.Caller{UserID: alice}, &usersRequest{Term: &term}); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		})
	}
}
