package roomserver

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// invitation is an invite of @guest:away in a room of another server.
func invitation(t *testing.T) (w *world, invite *pdu.Event) {
	t.Helper()
	w = newWorld(t, testServer(t, storagetest.Open(t, storage.SQLite, Schema), "hs"), "12")
	return w, w.accept(w.build(nil, "@a:remote", "m.room.member", "@guest:away", `{"membership":"invite"}`)).Event
}

// outside returns the user's only record.
func outside(t *testing.T, s *Server) Outside {
	t.Helper()
	all, err := s.OutsideOf(ctx, "@guest:away")
	if err != nil || len(all) != 1 {
		t.Fatalf("records %v, %v; want one", all, err)
	}
	return all[0]
}

func TestOutsideInvite(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		w, invite := invitation(t)
		away := testServer(t, db, "away")
		put := func() {
			t.Helper()
			err := away.PutOutside(ctx, Outside{
				User: "@guest:away", RoomID: w.room.ID, Version: w.room.Version, Membership: Invite, Event: invite,
				Stripped: json.RawMessage(`[ {"type":"m.room.name","state_key":"","sender":"@a:remote","content":{"name":"N"}} ]`),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		put()
		if o := outside(t, away); o.Membership != Invite || o.Event.ID != invite.ID || o.Pos != db.Head() {
			t.Fatalf("record %+v", o)
		}
		// Someone else's leave, or one that does not cite the invite, ends nothing.
		w.accept(w.build(nil, "@b:remote", "m.room.message", "", text))
		other := w.build(nil, "@b:remote", "m.room.member", "@guest:away", `{"membership":"leave"}`)
		if e := mxerr.As(away.RescindOutside(ctx, "@guest:away", other)); e == nil || e.Code != "M_FORBIDDEN" {
			t.Errorf("a rescission by another sender gives %v", e)
		}
		rescind := w.build(nil, "@a:remote", "m.room.member", "@guest:away", `{"membership":"leave"}`)
		if err := away.RescindOutside(ctx, "@guest:away", rescind); err != nil {
			t.Fatal(err)
		}
		if o := outside(t, away); o.Membership != Leave || o.Event.ID != rescind.ID {
			t.Errorf("after the rescission: %+v", o)
		}
		// Invited again, the user rejects; the servers of the room need not be reachable.
		put()
		if ok, err := away.LeaveOutside(ctx, "@guest:away", w.room.ID, nil); !ok || err != nil {
			t.Fatalf("reject: %v, %v", ok, err)
		}
		if err := away.Forget(ctx, "@guest:away", w.room.ID); err != nil {
			t.Fatal(err)
		}
		if o := outside(t, away); o.Membership != Leave || !o.Forgotten {
			t.Errorf("after rejecting and forgetting: %+v", o)
		}
		if ok, err := away.LeaveOutside(ctx, "@guest:away", w.room.ID, nil); ok || err != nil {
			t.Errorf("rejecting twice: %v, %v", ok, err)
		}
		put()
		if o := outside(t, away); o.Membership != Invite || o.Forgotten {
			t.Errorf("invited again: %+v", o)
		}
	})
}

// TestKnockWhileTheLastOneIsRefused: the refusal of a knock is judged, and the user knocks again before it is written down.
func TestKnockWhileTheLastOneIsRefused(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		w, first := invitation(t)
		away := testServer(t, db, "away")
		put := func(knock *pdu.Event) error {
			return away.PutOutside(ctx, Outside{User: "@guest:away", RoomID: w.room.ID, Version: w.room.Version, Membership: Knock, Event: knock})
		}
		if err := put(first); err != nil {
			t.Fatal(err)
		}
		refusal := w.accept(w.build(nil, "@a:remote", "m.room.member", "@guest:away", `{"membership":"leave"}`)).Event
		second := w.accept(w.build(nil, "@a:remote", "m.room.member", "@guest:away", `{"membership":"invite"}`)).Event
		release := hold(away)
		again, refused := make(chan error, 1), make(chan error, 1)
		go func() { again <- put(second) }()
		time.Sleep(50 * time.Millisecond) // until it waits to be written
		go func() { refused <- away.RescindOutside(ctx, "@guest:away", refusal) }()
		time.Sleep(50 * time.Millisecond)
		release()
		if err := <-again; err != nil {
			t.Fatal(err)
		}
		if err := <-refused; err != nil && mxerr.As(err) == nil {
			t.Fatal(err)
		}
		if o := outside(t, away); o.Membership != Knock || o.Event.ID != second.ID {
			t.Errorf("after the second knock: %+v", o)
		}
	})
}

func TestOutsideBecomesMembership(t *testing.T) {
	storagetest.Each(t, []storage.Schema{Schema}, func(t *testing.T, db *storage.DB) {
		w, invite := invitation(t)
		away := testServer(t, db, "away")
		err := away.PutOutside(ctx, Outside{User: "@guest:away", RoomID: w.room.ID, Version: w.room.Version, Membership: Invite, Event: invite})
		if err != nil {
			t.Fatal(err)
		}
		join := w.accept(w.build(nil, "@guest:away", "m.room.member", "@guest:away", `{"membership":"join"}`))
		if _, err := away.Enter(ctx, w.entry(join)); err != nil {
			t.Fatal(err)
		}
		if all, err := away.OutsideOf(ctx, "@guest:away"); err != nil || len(all) != 0 {
			t.Errorf("records %v, %v; want none", all, err)
		}
		rooms, err := away.UserRooms(ctx, "@guest:away")
		if err != nil || len(rooms) != 1 || rooms[0].Membership != Join {
			t.Errorf("rooms %+v, %v; want the joined one", rooms, err)
		}
	})
}

func TestForgetAfterABanFromOutside(t *testing.T) {
	w, invite := invitation(t)
	away := testServer(t, storagetest.Open(t, storage.SQLite, Schema), "away")
	err := away.PutOutside(ctx, Outside{User: "@guest:away", RoomID: w.room.ID, Version: w.room.Version, Membership: Invite, Event: invite})
	if err != nil {
		t.Fatal(err)
	}
	ban := w.build(nil, "@a:remote", "m.room.member", "@guest:away", `{"membership":"ban"}`)
	if err := away.RescindOutside(ctx, "@guest:away", ban); err != nil {
		t.Fatal(err)
	}
	if err := away.Forget(ctx, "@guest:away", w.room.ID); err != nil {
		t.Error(err)
	}
}
