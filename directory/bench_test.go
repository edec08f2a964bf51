package directory

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/roomserver/roomservertest"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

const alice = "@alice:hs"

// world is a server with a space of public rooms.
func world(b *testing.B, rooms int) (a *API, s *roomserver.Server, space, last string) {
	b.Helper()
	db := storagetest.Open(b, storage.SQLite, roomserver.Schema, Schema)
	s = roomservertest.New(b, db)
	a = New(db, s, nil, nil)
	ctx := context.Background()
	v, _ := pdu.Lookup(pdu.DefaultVersion)
	var err error
	children := make([]roomserver.StateDraft, 0, rooms)
	for i := range rooms {
		last, err = s.CreateRoom(ctx, roomserver.NewRoom{
			Creator: alice, Version: v, Preset: roomserver.PublicChat, Public: true,
			Name: fmt.Sprint("Room number ", i), Topic: "What this room is about is said here at some length",
		})
		if err != nil {
			b.Fatal(err)
		}
		children = append(children, roomserver.StateDraft{Type: "m.space.child", StateKey: last, Content: json.RawMessage(`{"via":["hs"]}`)})
	}
	space, err = s.CreateRoom(ctx, roomserver.NewRoom{
		Creator: alice, Version: v, Preset: roomserver.PublicChat, InitialState: children,
		CreationContent: map[string]json.RawMessage{"type": json.RawMessage(`"m.space"`)},
	})
	if err != nil {
		b.Fatal(err)
	}
	return a, s, space, last
}

const benchRooms = 1000

// BenchmarkPublicRooms measures a search among listed rooms: all being quiet, and one having changed.
func BenchmarkPublicRooms(b *testing.B) {
	a, s, _, last := world(b, benchRooms)
	ctx := context.Background()
	in := &searchPublicRoomsRequest{Limit: 20, Filter: publicFilter{Term: "number 99"}}
	search := func() {
		out, err := a.publicRooms(ctx, in)
		if err != nil || out.Total == 0 {
			b.Fatal(out, err)
		}
	}
	search()
	b.Run("quiet", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			search()
		}
	})
	room, err := s.Room(ctx, last)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.index.committed([]storage.Notice{{Kind: storage.Event, Room: room.NID}}, 0)
			search()
		}
	})
}

// BenchmarkHierarchy measures the first and the last page of a large space.
func BenchmarkHierarchy(b *testing.B) {
	a, _, space, _ := world(b, benchRooms)
	ctx := context.Background()
	by := &httpapi.Caller{UserID: alice}
	var lastPage string
	for from := ""; ; {
		out, err := a.hierarchy(ctx, by, &hierarchyRequest{RoomID: space, Limit: 50, From: from})
		if err != nil {
			b.Fatal(err)
		}
		if from = out.NextBatch; from == "" {
			break
		}
		lastPage = from
	}
	for name, from := range map[string]string{"first": "", "last": lastPage} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if out, err := a.hierarchy(ctx, by, &hierarchyRequest{RoomID: space, Limit: 50, From: from}); err != nil || len(out.Rooms) == 0 {
					b.Fatal(out, err)
				}
			}
		})
	}
}
