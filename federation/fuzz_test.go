package federation

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/ephemeral"
	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/federation/inbox"
	"github.com/myelin-im/myelin/federation/keys"
	"github.com/myelin-im/myelin/federation/queue"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// newAPI makes an API that reaches no other server, and a public room of version 12 on it.
func newAPI(t testing.TB) (a *API, roomID string) {
	t.Helper()
	ctx := context.Background()
	log := logrus.New()
	log.SetOutput(io.Discard)
	entry := logrus.NewEntry(log)
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	db := storagetest.Open(t, storage.SQLite, roomserver.Schema, ephemeral.Schema, keys.Schema, queue.Schema, inbox.Schema)
	rooms, err := roomserver.New(db, roomserver.Options{ServerName: "hs", KeyID: "ed25519:1", Key: key, Log: entry})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{ServerName: "hs", KeyID: "ed25519:1", Key: key, Allowed: func(string) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.New(keys.Config{ServerName: "hs", KeyID: "ed25519:1", Key: key, DB: db, Client: c})
	if err != nil {
		t.Fatal(err)
	}
	typing, err := ephemeral.New(ephemeral.Config{}, ephemeral.Deps{DB: db, Rooms: rooms, Log: entry})
	if err != nil {
		t.Fatal(err)
	}
	a, err = New(Deps{Name: "hs", Policy: NewPolicy(nil, nil), DB: db, Rooms: rooms, Client: c, Keys: ring, Ephemeral: typing, Log: entry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.stop()
		a.lanes.Wait()
	})
	v, _ := pdu.Lookup("12")
	if roomID, err = rooms.CreateRoom(ctx, roomserver.NewRoom{Creator: "@creator:hs", Version: v, Preset: roomserver.PublicChat}); err != nil {
		t.Fatal(err)
	}
	return a, roomID
}

var fuzzed atomic.Int64

// FuzzTransaction sends transactions of any content. They are answered or refused, and never with an error that is not
// the sender's.
func FuzzTransaction(f *testing.F) {
	a, room := newAPI(f)
	event := fmt.Sprintf(`{"room_id":%q,"type":"m.room.message","sender":"@a:remote","content":{},"depth":1,"origin_server_ts":1,"prev_events":[],"auth_events":[],"hashes":{"sha256":"AAAA"},"signatures":{"remote":{"ed25519:1":"AAAA"}}}`, room)
	for _, seed := range []string{
		`{"pdus":[],"edus":[]}`, `{"pdus":[` + event + `]}`, `{"pdus":[{},null,1,"x",[]]}`, `{"edus":[{"edu_type":"m.typing","content":{}},{},null]}`,
		`{"origin":"other","pdus":[]}`, `{"pdus":[` + strings.Replace(event, `"depth":1`, `"depth":1e99`, 1) + `]}`,
		`{"pdus":[` + strings.Replace(event, `"prev_events":[]`, `"prev_events":["$x","$x"]`, 1) + `]}`,
		`{"pdus":[{"room_id":"!x:y","type":"m.room.member","state_key":"@creator:hs"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		in := &transactionRequest{}
		if json.Unmarshal(body, in) != nil {
			return
		}
		in.TxnID = fmt.Sprint(fuzzed.Add(1))
		_, err := a.transaction(context.Background(), &httpapi.Caller{Origin: "remote"}, in)
		if err != nil && mxerr.As(err) == nil {
			t.Errorf("%.500s: %v", body, err)
		}
	})
}

// FuzzJoinAnswer reads answers to a join of any content. None of them makes this server enter a room, because nothing in
// them is signed by a server whose key is known.
func FuzzJoinAnswer(f *testing.F) {
	a, _ := newAPI(f)
	v, _ := pdu.Lookup("11")
	user := "@creator:hs"
	event, err := a.rooms.Complete(v, &pdu.Proto{
		RoomID: "!room:remote", Sender: user, Type: "m.room.member", StateKey: &user, Content: json.RawMessage(`{"membership":"join"}`), Depth: 2,
	})
	if err != nil {
		f.Fatal(err)
	}
	create := `{"room_id":"!room:remote","type":"m.room.create","state_key":"","sender":"@a:remote","content":{"room_version":"11"},"depth":1,"origin_server_ts":1,"prev_events":[],"auth_events":[],"hashes":{"sha256":"AAAA"},"signatures":{}}`
	for _, seed := range []string{
		`{}`, `{"state":[],"auth_chain":[]}`, `{"state":[` + create + `],"auth_chain":[` + create + `]}`, `{"state":{},"auth_chain":1,"event":[]}`,
		`{"event":` + string(event.JSON()) + `,"state":[null,{},"x"]}`, `[1,2`, `{"state":[` + strings.Repeat("[", 100) + `]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if entry, err := a.entryOf(context.Background(), v, event, body); err == nil {
			t.Errorf("%.500s is taken for a room: %+v", body, entry)
		}
	})
}

// FuzzInvite reads invites of any content from another server.
func FuzzInvite(f *testing.F) {
	a, _ := newAPI(f)
	for _, seed := range []string{
		`{}`, `{"room_version":"12","event":{},"invite_room_state":[]}`, `{"room_version":"99","event":{}}`,
		`{"room_version":"1","event":{"event_id":"$x:remote","room_id":"!r:remote","type":"m.room.member","sender":"@a:remote","state_key":"@creator:hs","content":{"membership":"invite"},"depth":1,"origin_server_ts":1,"prev_events":[],"auth_events":[],"hashes":{"sha256":"AAAA"},"signatures":{}},"invite_room_state":[{"type":"m.room.name","state_key":"","sender":"@a:remote","content":{}},1,null]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		in := &invitedRequest{}
		if json.Unmarshal(body, in) != nil {
			return
		}
		in.RoomID, in.EventID = "!r:remote", "$x:remote"
		if _, err := a.invited(context.Background(), &httpapi.Caller{Origin: "remote"}, in); err == nil || mxerr.As(err) == nil {
			t.Errorf("%.500s: %v", body, err)
		}
	})
}

// FuzzStateAnswer takes events whose unknown past another server describes in any way: the events of its answer are
// signed as they must be, and are whatever they are. The room goes on with its m.room.create, and nothing of it is an
// error of this server.
func FuzzStateAnswer(f *testing.F) {
	a, roomID := newAPI(f)
	ctx := context.Background()
	room, err := a.rooms.Room(ctx, roomID)
	if err != nil {
		f.Fatal(err)
	}
	state, err := a.rooms.StateEvents(ctx, room, room.Head().State)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		`[]`, `[{"type":"m.room.topic","state_key":"","content":{"topic":"x"},"auth":[0,1,2,3]}]`,
		`[{"type":"m.room.member","state_key":"@creator:hs","content":{"membership":"leave"},"auth":[1,2]},{"type":"m.room.power_levels","state_key":"","content":{"users":{"@a:hs":1e9}},"auth":[0,1]}]`,
		`[{"type":"m.room.create","state_key":"","content":{}},{"type":"m.room.create","content":{"room_version":"1"},"auth":[0]}]`,
		`[{"type":"m.room.member","sender":"@x:hs","state_key":"@x:hs","content":{"membership":"join"},"auth":[1,2,3]},{"type":"m.room.member","sender":"@x:hs","state_key":"@x:hs","content":{"membership":"ban"},"auth":[9,9,-1]}]`,
		`[{"type":"","state_key":"` + strings.Repeat("k", 300) + `","auth":[0,0,0]},{"type":"m.room.join_rules","state_key":"","content":{"join_rule":[]},"prev":[5,6]}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		given := describedState(t, a, room, state, answer)
		lost := pdu.Ref{ID: "$" + strings.Repeat("A", 43)}
		p := localEvent(a, room, &pdu.Proto{Type: "m.room.message", PrevEvents: []pdu.Ref{lost}, AuthEvents: refsTo(state, []int{1, 2})})
		if p == nil {
			t.Fatal("the event cannot be built")
		}
		if _, err := a.rooms.Take(ctx, roomID, []roomserver.Incoming{{Event: p, Before: given}}); err != nil {
			t.Errorf("%.500s: %v", answer, err)
		}
		if err := a.rooms.Tidy(ctx, roomID); err != nil {
			t.Fatal(err)
		}
		if e, err := a.rooms.StateEvent(ctx, room, room.Head().State, "m.room.create", ""); err != nil || e == nil {
			t.Errorf("%.500s: the room has lost its beginning: %v", answer, err)
		}
	})
}

// describedState makes of an array of objects the events of an answer, each of which cites by number events of the room
// or earlier ones of the answer.
func describedState(t *testing.T, a *API, room *roomserver.Room, state []*roomserver.Event, answer []byte) *roomserver.Given {
	t.Helper()
	var list []struct {
		Type, Sender string
		Key          *string `json:"state_key"`
		Content      json.RawMessage
		Auth, Prev   []int
	}
	if json.Unmarshal(answer, &list) != nil {
		t.Skip()
	}
	known := state[:len(state):len(state)]
	given := &roomserver.Given{}
	var ids []string
	for _, e := range state {
		ids = append(ids, e.ID)
	}
	for _, one := range list[:min(len(list), 20)] {
		p := localEvent(a, room, &pdu.Proto{
			Type: one.Type, Sender: one.Sender, StateKey: one.Key, Content: one.Content, AuthEvents: refsTo(known, one.Auth), PrevEvents: refsTo(known, one.Prev),
		})
		if p == nil {
			continue
		}
		known = append(known, &roomserver.Event{Event: p})
		given.Events, ids = append(given.Events, p), append(ids, p.ID)
	}
	given.States = [][]string{ids}
	return given
}

// localEvent builds and signs an event of the room; nil if that is not possible.
func localEvent(a *API, room *roomserver.Room, p *pdu.Proto) *pdu.Event {
	if p.RoomID = room.ID; p.Sender == "" {
		p.Sender = "@creator:hs"
	}
	if len(p.Content) == 0 {
		p.Content = json.RawMessage(`{}`)
	}
	p.Depth, p.OriginServerTS = 100, fuzzed.Add(1)
	e, err := a.rooms.Complete(room.Version, p)
	if err != nil {
		return nil
	}
	return e
}

// refsTo cites events by their numbers in a list.
func refsTo(list []*roomserver.Event, numbers []int) (refs []pdu.Ref) {
	for _, n := range numbers[:min(len(numbers), pdu.MaxAuthEvents)] {
		if n >= 0 && n < len(list) {
			refs = append(refs, list[n].Ref())
		}
	}
	return refs
}
