package syncapi

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/authrules"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

func roomsOf(t *testing.T, db *storage.DB, name string) *roomserver.Server {
	t.Helper()
	return roomservertest.New(t, db, func(o *roomserver.Options) { o.ServerName = name })
}

// Someone was invited from elsewhere, and then another user of this server joins the room: the invite is now part of the
// room's state here, where it has no place in the timeline.
func TestInviteOfARoomEnteredByAnother(t *testing.T) {
	ctx := context.Background()
	const bob = "@bob:hs"
	far := roomsOf(t, storagetest.Open(t, storage.SQLite, roomserver.Schema), "far")
	version, _ := pdu.Lookup("12")
	id, err := far.CreateRoom(ctx, roomserver.NewRoom{Creator: "@carol:far", Version: version, Preset: roomserver.PublicChat, Name: "N", Invite: []string{bob}})
	if err != nil {
		t.Fatal(err)
	}
	away, err := far.Room(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	var invite *pdu.Event
	entry := roomserver.Entry{RoomID: id, Version: version}
	state, err := far.StateEvents(ctx, away, away.Head().State)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range state {
		entry.State = append(entry.State, e.Event)
		if e.Is("m.room.member", bob) {
			invite = e.Event
		}
	}
	events, err := far.HistoryBefore(ctx, away, roomserver.EndOfHistory, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		entry.Auth = append(entry.Auth, e.Event)
	}
	alice := "@alice:hs"
	proto := &pdu.Proto{RoomID: id, Sender: alice, Type: "m.room.member", StateKey: &alice, Content: json.RawMessage(`{"membership":"join"}`), OriginServerTS: 1}
	for _, e := range away.Head().Extremities {
		proto.PrevEvents, proto.Depth = append(proto.PrevEvents, e.Ref()), e.Depth+1
	}
	for _, k := range authrules.Required(version, authrules.Header{Type: proto.Type, StateKey: &alice, Sender: alice, Content: proto.Content}) {
		if i := slices.IndexFunc(entry.State, func(p *pdu.Event) bool { return p.Is(k.Type, k.StateKey) }); i >= 0 {
			proto.AuthEvents = append(proto.AuthEvents, entry.State[i].Ref())
		}
	}
	if entry.Event, err = version.Build(proto, "hs", "ed25519:1", ed25519.NewKeyFromSeed(make([]byte, 32))); err != nil {
		t.Fatal(err)
	}

	db := storagetest.Open(t, storage.SQLite, roomserver.Schema)
	rooms := roomsOf(t, db, "hs")
	if err := rooms.PutOutside(ctx, roomserver.Outside{User: bob, RoomID: id, Version: version, Membership: roomserver.Invite, Event: invite}); err != nil {
		t.Fatal(err)
	}
	invited := db.Head()
	if _, err := rooms.Enter(ctx, entry); err != nil {
		t.Fatal(err)
	}
	mine, err := rooms.UserRooms(ctx, bob)
	if err != nil || len(mine) != 1 {
		t.Fatal(mine, err)
	}
	here, err := rooms.Room(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, since := range []int64{0, invited} {
		l := &look{api: &API{rooms: rooms, db: db}, user: bob, filter: noFilter, since: Token{Pos: since}, upTo: db.Head()}
		m, err := l.membershipIn(ctx, here, mine[0])
		if err != nil || m.now != roomserver.Invite || !m.changed {
			t.Errorf("since %d: %+v, %v", since, m, err)
		}
		stripped, err := rooms.Stripped(ctx, here, m.event)
		if err != nil || !slices.ContainsFunc(stripped, func(e *roomserver.Event) bool { return e.Is("m.room.name", "") }) {
			t.Errorf("the invite comes with %d events of state, without the room's name: %v", len(stripped), err)
		}
		if since > 0 {
			continue
		}
		var s sections
		if err := l.outside(ctx, &s, mine); err != nil || len(s[sectionInvite]) > 0 {
			t.Errorf("the invite is shown a second time: %s, %v", s[sectionInvite], err)
		}
	}
}
