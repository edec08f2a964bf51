package scenario

import (
	"encoding/json"
	"net/url"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage/storagetest"
	"github.com/myelin-im/myelin/test/harness"
)

// template asks a server for a membership event of the peer's user, and completes it.
func template(t *testing.T, peer *harness.Peer, server *harness.Server, what, room, user string) *pdu.Event {
	t.Helper()
	q := url.Values{"ver": {"1", "6", "10", "11", "12"}}
	made := peer.Do(server, "GET", fed("/v1/make_"+what+"/%s/%s?", room, user)+q.Encode(), nil)
	v, ok := pdu.Lookup(made.JSON.Get("room_version").Str)
	if made.Status != 200 || !ok {
		t.Fatalf("make_%s: %v", what, made)
	}
	proto, err := pdu.ParseTemplate(v, []byte(made.JSON.Get("event").Raw))
	if err != nil {
		t.Fatal(err)
	}
	proto.OriginServerTS = 1
	p, err := v.Build(proto, peer.Name, peer.KeyID, peer.Key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Servers that do not have the newer endpoints join and leave by the first ones, whose answers are pairs of a status and
// an object.
func TestJoinAndLeaveOfOldServers(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := harness.Start(t, d, harness.Federating(t))
			alice := server.Register(t, "alice")
			peer := harness.NewPeer(t, nil)
			user := "@old:" + peer.Name
			for _, version := range []string{"1", "6", "12"} {
				room := alice.Create(harness.J{"preset": "public_chat", "room_version": version})
				join := template(t, peer, server, "join", room, user)
				leave := peer.Do(server, "PUT", fed("/v1/send_leave/%s/%s", room, join.ID), json.RawMessage(join.JSON()))
				if leave.Status != 400 {
					t.Errorf("version %s: a join for a leave: %v", version, leave)
				}
				joined := pair(t, peer.Do(server, "PUT", fed("/v1/send_join/%s/%s", room, join.ID), json.RawMessage(join.JSON())))
				if harness.Find(joined.Get("state"), "m.room.create", "").Get("sender").Str != alice.UserID || len(joined.Get("auth_chain").Array()) == 0 {
					t.Errorf("version %s: send_join has the answer %s", version, joined.Raw)
				}
				if got := members(alice, room); len(got) != 2 {
					t.Errorf("version %s: members %v", version, got)
				}
				p := template(t, peer, server, "leave", room, user)
				left := pair(t, peer.Do(server, "PUT", fed("/v1/send_leave/%s/%s", room, p.ID), json.RawMessage(p.JSON())))
				if !left.IsObject() || len(left.Map()) != 0 {
					t.Errorf("version %s: send_leave has the answer %s", version, left.Raw)
				}
				if got := members(alice, room); len(got) != 1 {
					t.Errorf("version %s: members after the leave %v", version, got)
				}
			}
		})
	}
}

// pair reads [200, {…}].
func pair(t *testing.T, a *harness.Answer) gjson.Result {
	t.Helper()
	list := a.JSON.Array()
	if a.Status != 200 || len(list) != 2 || list[0].Raw != "200" {
		t.Fatalf("the answer is %v", a)
	}
	return list[1]
}
