package scenario

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/test/harness"
)

// foreign is a room of a peer that this server is not in.
type foreign struct {
	t      *testing.T
	peer   *harness.Peer
	v      *pdu.Version
	room   string
	create *pdu.Event
}

func newForeign(t *testing.T, peer *harness.Peer, version, purpose string) *foreign {
	t.Helper()
	f := &foreign{t: t, peer: peer}
	f.v, _ = pdu.Lookup(version)
	if !f.v.RoomIDIsCreateHash {
		f.room = "!" + purpose + version + ":" + peer.Name
	}
	f.create = f.state("m.room.create", "", harness.J{"room_version": version, "purpose": purpose})
	f.room = f.create.RoomID
	return f
}

// state makes a state event of the peer's user.
func (f *foreign) state(typ, key string, content any) *pdu.Event {
	f.t.Helper()
	proto := &pdu.Proto{
		RoomID: f.room, Sender: "@peer:" + f.peer.Name, Type: typ, StateKey: &key, Content: mustJSON(f.t, content), OriginServerTS: time.Now().UnixMilli(),
	}
	p, err := f.v.Build(proto, f.peer.Name, f.peer.KeyID, f.peer.Key)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// invite sends the server an invite of a user with this state.
func (f *foreign) invite(server *harness.Server, user string, state ...any) *harness.Answer {
	f.t.Helper()
	invite := f.state("m.room.member", user, harness.J{"membership": "invite"})
	return f.peer.Do(server, "PUT", fed("/v2/invite/%s/%s", f.room, invite.ID), harness.J{
		"room_version": f.v.ID, "event": json.RawMessage(invite.JSON()), "invite_room_state": state,
	})
}

// TestStateOfInvites sends invites with state that introduces the room in all the forms that servers give it.
//
// spec: server-server-api v1.19 "PUT /v2/invite"
func TestStateOfInvites(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		s, peer := servers[0], harness.NewPeer(t, nil)
		alice := s.Register(t, "alice")
		for _, version := range []string{"11", "12"} {
			f, other := newForeign(t, peer, version, "invites"), newForeign(t, peer, version, "other")
			event := func(p *pdu.Event) json.RawMessage { return p.JSON() }
			name := f.state("m.room.name", "", harness.J{"name": "Foreign"})
			bare := harness.J{"type": "m.room.name", "state_key": "", "sender": "@peer:" + peer.Name, "content": harness.J{"name": "Foreign"}}
			var forged map[string]any
			if err := json.Unmarshal(name.JSON(), &forged); err != nil {
				t.Fatal(err)
			}
			forged["origin_server_ts"] = 1
			for _, c := range []struct {
				what   string
				state  []any
				strict bool // refused from version 12 on
				named  bool // the name is let through
			}{
				{"events", []any{event(f.create), event(name)}, false, true},
				{"state as clients get it, without m.room.create", []any{bare}, false, true},
				{"nothing", nil, false, false},
				{"events without m.room.create", []any{event(name)}, true, true},
				{"a forged event", []any{event(f.create), forged}, true, false},
				{"an event of another room", []any{event(f.create), event(other.state("m.room.topic", "", harness.J{"topic": "Other"})), event(name)}, true, true},
				{"an event and state as clients get it", []any{event(f.create), bare}, true, true},
			} {
				alice.SyncFrom("")
				got := f.invite(s, alice.UserID, c.state...)
				if c.strict && f.v.RoomIDIsCreateHash {
					if got.Status != 400 || got.JSON.Get("errcode").Str != "M_INVALID_PARAM" {
						t.Errorf("version %s, %s: %v", version, c.what, got)
					}
					continue
				}
				if got.Status != 200 {
					t.Errorf("version %s, %s: %v", version, c.what, got)
					continue
				}
				shown := invited(alice, f.room)
				if named := harness.Find(shown, "m.room.name", "").Get("content.name").Str == "Foreign"; named != c.named {
					t.Errorf("version %s, %s: the invite shows %s", version, c.what, shown.Raw)
				}
				alice.Leave(f.room)
				alice.Until("the rejection", func(r gjson.Result) bool { return !harness.Room(r, "invite", f.room).Exists() })
			}
		}
	})
}
