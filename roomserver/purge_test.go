package roomserver_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const carol = "@carol:hs"

// aging is a roomserver whose clock the test sets.
type aging struct {
	*roomserver.Server
	t   *testing.T
	db  *storage.DB
	now *time.Time
}

// eachAging runs a test with such a roomserver on both databases, and checks each at the end.
func eachAging(t *testing.T, retention roomserver.Retention, fn func(t *testing.T, a *aging)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		a := &aging{t: t, db: db, now: &now}
		a.open(retention)
		fn(t, a)
		for _, s := range []*roomserver.Server{a.Server, newServer(t, db)} {
			if err := s.CheckConsistency(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
}

// open makes the roomserver, or another one on the same database.
func (a *aging) open(retention roomserver.Retention) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := roomserver.New(a.db, roomserver.Options{
		ServerName: "hs", KeyID: "ed25519:1", Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Log: logrus.NewEntry(log),
		Retention: retention, Now: func() time.Time { return *a.now },
	})
	if err != nil {
		a.t.Fatal(err)
	}
	a.Server = s
}

func (a *aging) pass(d time.Duration) { *a.now = a.now.Add(d) }

func (a *aging) room(id string) *roomserver.Room {
	a.t.Helper()
	room, err := a.Room(context.Background(), id)
	if err != nil {
		a.t.Fatal(err)
	}
	return room
}

func (a *aging) member(room, sender, target, membership string) {
	a.t.Helper()
	_, err := a.SetMembership(context.Background(), roomserver.MembershipChange{RoomID: room, Sender: sender, Target: target, Membership: membership})
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *aging) state(room, typ, content string) string {
	a.t.Helper()
	key := ""
	id, err := a.Send(context.Background(), room, roomserver.Draft{Sender: alice, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	if err != nil {
		a.t.Fatal(err)
	}
	return id
}

// bodies are the messages in the room's history, oldest first.
func (a *aging) bodies(id string) (out []string) {
	a.t.Helper()
	events, err := a.HistoryBefore(context.Background(), a.room(id), roomserver.EndOfHistory, 1000)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, e := range slices.Backward(events) {
		if body, ok := e.ContentString("body"); ok && !e.IsState() {
			out = append(out, body)
		}
	}
	return out
}

func (a *aging) count(sql string, args ...any) (n int64) {
	a.t.Helper()
	if _, err := a.db.Get(context.Background(), sql, args, &n); err != nil {
		a.t.Fatal(err)
	}
	return n
}

// longAgo fills a room with a history that has everything, and moves the clock on by a day. It returns the ids of messages.
func (a *aging) longAgo(id string) (messages []string) {
	a.t.Helper()
	ctx := context.Background()
	a.member(id, bob, bob, roomserver.Join)
	a.member(id, carol, carol, roomserver.Join)
	for i := range 120 { // more than one unit
		messages = append(messages, send(a.t, a.Server, id, alice, fmt.Sprintf("old %d", i)))
		if i%4 == 0 {
			a.state(id, "m.room.topic", fmt.Sprintf(`{"topic":"topic %d"}`, i))
		}
	}
	messages = append(messages, relate(a.t, a.Server, id, "m.thread", messages[0]))
	redacted := send(a.t, a.Server, id, bob, "redacted")
	redaction, err := a.Send(ctx, id, roomserver.Draft{Sender: bob, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: redacted})
	if err != nil {
		a.t.Fatal(err)
	}
	messages = append(messages, redacted, redaction)
	a.member(id, bob, bob, roomserver.Leave)
	a.pass(24 * time.Hour)
	return messages
}

func TestPurgeHistory(t *testing.T) {
	eachAging(t, roomserver.Retention{}, func(t *testing.T, a *aging) {
		ctx := context.Background()
		for _, version := range []string{"2", "10", "12"} {
			id := newRoom(t, a.Server, version, roomserver.PublicChat)
			old := a.longAgo(id)
			cut := a.now.UnixMilli()
			send(t, a.Server, id, alice, "new 1")
			relate(t, a.Server, id, "m.reference", old[3])
			send(t, a.Server, id, alice, "new 2")
			room := a.room(id)
			topic, err := a.StateEvent(ctx, room, room.Head().State, "m.room.topic", "")
			if err != nil || topic == nil {
				t.Fatalf("the topic: %v, %v", topic, err)
			}
			states := a.count(`SELECT count(*) FROM state_packs WHERE room = $1`, room.NID)

			units := 0
			purge := roomserver.Purge{Before: cut, Also: func(_ *storage.Tx, nid int64, purged []*roomserver.Event) error {
				units++
				if nid != room.NID || len(purged) == 0 || len(purged) > 100 {
					t.Errorf("a unit purges %d events of room %d", len(purged), nid)
				}
				return nil
			}}
			deleted, err := a.PurgeHistory(ctx, room, purge)
			if err != nil || deleted != len(old) || units < 2 {
				t.Fatalf("purged %d of %d messages in %d units: %v", deleted, len(old), units, err)
			}
			rows, err := a.SweepState(ctx, room, nil)
			if err != nil || rows == 0 || a.count(`SELECT count(*) FROM state_packs WHERE room = $1`, room.NID) != states-int64(rows) {
				t.Errorf("swept %d of %d rows of state: %v", rows, states, err)
			}
			if left := states - int64(rows); left > 20 {
				t.Errorf("%d rows of state are left for a handful of states", left)
			}
			for _, e := range old {
				if _, err := a.Event(ctx, room, e); !errors.Is(err, roomserver.ErrUnknownEvent) {
					t.Errorf("a purged message: %v", err)
				}
			}
			if got := a.bodies(id); !slices.Equal(got, []string{"new 1", "x", "new 2"}) {
				t.Errorf("messages left: %q", got)
			}
			now, err := a.StateEvent(ctx, room, room.Head().State, "m.room.topic", "")
			if err != nil || now == nil || now.ID != topic.ID {
				t.Errorf("the topic afterwards: %v, %v", now, err)
			}
			// What bob may read is what there was when he left.
			if e, err := a.StateEvent(ctx, room, room.Head().State, "m.room.member", bob); err != nil || e.StateBefore == 0 || e.Anchor == 0 {
				t.Errorf("the end of bob's stay: %v, %v", e, err)
			}
			mark, err := a.Purged(ctx, room)
			if err != nil || mark.Before != cut || mark.Floor.Anchor == 0 {
				t.Errorf("the mark: %+v, %v", mark, err)
			}
			if n := a.count(`SELECT count(*) FROM relations WHERE room = $1`, room.NID); n != 1 {
				t.Errorf("%d relations are left, want that of the new event", n)
			}
			// Again, it changes nothing, and the room goes on.
			if deleted, err := a.PurgeHistory(ctx, room, purge); err != nil || deleted != 0 {
				t.Errorf("purged again: %d, %v", deleted, err)
			}
			a.member(id, bob, bob, roomserver.Join)
			a.state(id, "m.room.topic", `{"topic":"after"}`)
			send(t, a.Server, id, bob, "new 3")
		}
	})
}

// The last event of a room stays, because the next one builds on it, and so does the room.
func TestPurgeOfEverything(t *testing.T) {
	eachAging(t, roomserver.Retention{}, func(t *testing.T, a *aging) {
		ctx := context.Background()
		id := newRoom(t, a.Server, "12", roomserver.PublicChat)
		a.longAgo(id)
		send(t, a.Server, id, alice, "last")
		a.pass(time.Hour)
		room := a.room(id)
		if _, err := a.PurgeHistory(ctx, room, roomserver.Purge{Before: a.now.UnixMilli()}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SweepState(ctx, room, nil); err != nil {
			t.Fatal(err)
		}
		if got := a.bodies(id); !slices.Equal(got, []string{"last"}) {
			t.Errorf("messages left: %q", got)
		}
		a.open(roomserver.Retention{})
		send(t, a.Server, id, carol, "after a restart")
		a.state(id, "m.room.topic", `{"topic":"after a restart"}`)
		if got := a.bodies(id); !slices.Equal(got, []string{"last", "after a restart"}) {
			t.Errorf("messages afterwards: %q", got)
		}
	})
}

// A purge that was interrupted between two units goes on with another process.
func TestPurgeGoesOnAfterRestart(t *testing.T) {
	eachAging(t, roomserver.Retention{}, func(t *testing.T, a *aging) {
		ctx := context.Background()
		id := newRoom(t, a.Server, "10", roomserver.PublicChat)
		old := a.longAgo(id)
		send(t, a.Server, id, alice, "new")
		stopped := errors.New("stopped")
		total := 0
		for range 20 {
			n, err := a.PurgeHistory(ctx, a.room(id), roomserver.Purge{Before: a.now.UnixMilli(), Pause: func(context.Context) error { return stopped }})
			if total += n; err == nil {
				break
			} else if !errors.Is(err, stopped) {
				t.Fatal(err)
			}
			a.open(roomserver.Retention{})
		}
		if total != len(old) {
			t.Errorf("purged %d of %d messages", total, len(old))
		}
		if _, err := a.SweepState(ctx, a.room(id), func(context.Context) error { return stopped }); !errors.Is(err, stopped) {
			t.Errorf("an interrupted sweep: %v", err)
		}
		a.open(roomserver.Retention{})
		if n, err := a.SweepState(ctx, a.room(id), nil); err != nil || n == 0 {
			t.Errorf("swept %d rows afterwards, %v", n, err)
		}
		if n, err := a.SweepState(ctx, a.room(id), nil); err != nil || n != 0 {
			t.Errorf("swept %d rows again, %v", n, err)
		}
	})
}

func TestRetentionPolicy(t *testing.T) {
	const day = 24 * time.Hour
	for _, test := range []struct {
		name   string
		policy roomserver.Retention
		event  string
		want   time.Duration
	}{
		{"off", roomserver.Retention{Default: day}, `{"max_lifetime":1000}`, 0},
		{"nothing", roomserver.Retention{Enabled: true}, "", 0},
		{"default", roomserver.Retention{Enabled: true, Default: day}, "", day},
		{"the room's", roomserver.Retention{Enabled: true, Default: day}, `{"max_lifetime":3600000}`, time.Hour},
		{"no number", roomserver.Retention{Enabled: true, Default: day}, `{"max_lifetime":"3600000"}`, day},
		{"negative", roomserver.Retention{Enabled: true, Default: day}, `{"max_lifetime":-1}`, day},
		{"null", roomserver.Retention{Enabled: true}, `{"max_lifetime":null,"min_lifetime":1}`, 0},
		{"contradiction", roomserver.Retention{Enabled: true, Default: day}, `{"max_lifetime":1000,"min_lifetime":2000}`, day},
		{"longer than possible", roomserver.Retention{Enabled: true, Default: day}, `{"max_lifetime":9007199254740991}`, 0},
		{"too short", roomserver.Retention{Enabled: true, AtLeast: time.Hour}, `{"max_lifetime":1000}`, time.Hour},
		{"too long", roomserver.Retention{Enabled: true, AtMost: time.Hour}, `{"max_lifetime":86400000}`, time.Hour},
		{"forever is too long", roomserver.Retention{Enabled: true, AtMost: time.Hour}, "", time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			storagetest.Each(t, []storage.Schema{roomserver.Schema}, func(t *testing.T, db *storage.DB) {
				now := time.Now()
				a := &aging{t: t, db: db, now: &now}
				a.open(test.policy)
				id := newRoom(t, a.Server, "10", roomserver.PublicChat)
				if test.event != "" {
					a.state(id, roomserver.TypeRetention, test.event)
				}
				if got, err := a.MaxLifetime(context.Background(), a.room(id)); err != nil || got != test.want {
					t.Errorf("messages live %s (%v), want %s", got, err, test.want)
				}
			})
		})
	}
}

// An expired message is seen by nobody, before anything is purged; state does not expire.
func TestExpiredIsHidden(t *testing.T) {
	eachAging(t, roomserver.Retention{Enabled: true}, func(t *testing.T, a *aging) {
		ctx := context.Background()
		id := newRoom(t, a.Server, "10", roomserver.PublicChat)
		a.state(id, roomserver.TypeRetention, `{"max_lifetime":60000}`)
		topic := a.state(id, "m.room.topic", `{"topic":"stays"}`)
		message := send(t, a.Server, id, alice, "goes")
		sees := func(event string, want bool) {
			t.Helper()
			room := a.room(id)
			e, err := a.Event(ctx, room, event)
			if err != nil {
				t.Fatal(err)
			}
			v, err := a.Viewer(ctx, room, alice, room.Head().Pos)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := v.Sees(ctx, e); err != nil || got != want {
				t.Errorf("sees %s: %v, %v; want %v", e.Type, got, err, want)
			}
		}
		a.pass(time.Minute)
		sees(message, true)
		a.pass(time.Millisecond)
		sees(message, false)
		sees(topic, true)
		nids, last, err := a.Retained(ctx, 0, 10)
		if err != nil || last != 0 || !slices.Equal(nids, []int64{a.room(id).NID}) {
			t.Errorf("rooms with expiring messages: %v, %d, %v", nids, last, err)
		}
	})
}

func TestRemoveRoom(t *testing.T) {
	eachAging(t, roomserver.Retention{}, func(t *testing.T, a *aging) {
		ctx := context.Background()
		other := newRoom(t, a.Server, "10", roomserver.PublicChat)
		id := newRoom(t, a.Server, "10", roomserver.PublicChat)
		a.longAgo(id)
		nid := a.room(id).NID
		forget := func(user string) {
			t.Helper()
			if err := a.Forget(ctx, user, id); err != nil {
				t.Fatal(err)
			}
		}
		candidates := func() []roomserver.Removal {
			t.Helper()
			a.pass(time.Second)
			list, err := a.Removals(ctx, a.now.UnixMilli(), 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		forget(bob)
		list := candidates()
		if len(list) != 1 || list[0].NID != nid || list[0].RoomID != id || list[0].Begun {
			t.Fatalf("candidates after bob forgot the room: %+v", list)
		}
		if begun, err := a.BeginRemoval(ctx, list[0]); begun || err != nil {
			t.Fatalf("began to remove a room with members: %v, %v", begun, err)
		}
		if list := candidates(); len(list) != 0 {
			t.Errorf("candidates afterwards: %+v", list)
		}
		a.member(id, alice, alice, roomserver.Leave)
		forget(alice)
		a.member(id, carol, carol, roomserver.Leave)
		if list = candidates(); len(list) != 1 {
			t.Fatalf("candidates: %+v", list)
		}
		if begun, err := a.BeginRemoval(ctx, list[0]); begun || err != nil {
			t.Fatalf("began to remove a room that carol has not forgotten: %v, %v", begun, err)
		}
		if err := a.LeaveAll(ctx, carol); err != nil { // her account ends
			t.Fatal(err)
		}
		const kept = 200
		err := a.db.Write(ctx, func(tx *storage.Tx) error {
			for i := range int64(kept) {
				if _, err := tx.Exec(`INSERT INTO outside_memberships (user_id, room_id, version, membership, sender, event_id, event, stripped, pos, forgotten)
					VALUES ($1, $2, $3, $4, $1, $2, $2, $2, $5, $6)`, alice, fmt.Sprint("!old", i), "10", roomserver.Leave, i-kept, true); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		list = candidates()
		if begun, err := a.BeginRemoval(ctx, list[0]); !begun || err != nil {
			t.Fatalf("begin to remove: %v, %v", begun, err)
		}
		left, err := a.OutsideOf(ctx, carol)
		if err != nil || len(left) != 1 || left[0].RoomID != id || left[0].NID != nid || left[0].Membership != roomserver.Leave || left[0].Event.Membership() != roomserver.Leave {
			t.Errorf("what is kept of carol's leave: %+v, %v", left, err)
		}
		var all, of int64
		if _, err := a.db.Get(ctx, `SELECT count(*), count(*) FILTER (WHERE room = $2) FROM outside_memberships WHERE user_id = $1`, []any{alice, nid}, &all, &of); err != nil {
			t.Fatal(err)
		}
		if all != kept || of != 1 {
			t.Errorf("of alice %d rooms are kept, %d of them this one", all, of)
		}
		if _, err := a.Room(ctx, id); !errors.Is(err, roomserver.ErrUnknownRoom) {
			t.Errorf("the room is still known: %v", err)
		}
		if rooms, err := a.UserRooms(ctx, alice); err != nil || len(rooms) != 1 || rooms[0].RoomID != other {
			t.Errorf("alice's rooms: %+v, %v", rooms, err)
		}
		if _, err := a.Send(ctx, id, roomserver.Draft{Sender: alice, Type: "m.room.message", Content: json.RawMessage(`{}`)}); err == nil {
			t.Error("sent to a room that is gone")
		}
		// The rest is deleted in small units, by another process as well.
		a.open(roomserver.Retention{})
		list, err = a.Removals(ctx, 0, 0, 10)
		if err != nil || len(list) != 1 || !list[0].Begun {
			t.Fatalf("removals after a restart: %+v, %v", list, err)
		}
		calls := 0
		others := []roomserver.RoomRows{func(_ *storage.Tx, room int64, roomID string, limit int) (int64, error) {
			if calls++; room != nid || roomID != id || limit < 1 {
				t.Errorf("asked to delete %d rows of %d, %s", limit, room, roomID)
			}
			return int64(2 - calls), nil
		}}
		stopped := errors.New("stopped")
		for range 100 {
			err := a.Remove(ctx, list[0], others, func(context.Context) error { return stopped })
			if err == nil {
				break
			} else if !errors.Is(err, stopped) {
				t.Fatal(err)
			}
		}
		if calls < 2 {
			t.Errorf("others were asked %d times", calls)
		}
		for _, table := range []string{"events", "state_packs", "state_log", "relations", "redactions", "room_members", "room_removals", "room_heads"} {
			if n := a.count(`SELECT count(*) FROM `+table+` WHERE room = $1`, nid); n != 0 {
				t.Errorf("%d rows are left in %s", n, table)
			}
		}
		if list := candidates(); len(list) != 0 {
			t.Errorf("candidates at the end: %+v", list)
		}
		send(t, a.Server, other, alice, "the other room is as it was")
	})
}
