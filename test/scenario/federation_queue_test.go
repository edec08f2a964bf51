package scenario

import (
	"fmt"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/test/harness"
)

// bodies are the texts of the messages in a room's timeline of a sync.
func bodies(sync gjson.Result, room string) (texts []string) {
	for _, e := range harness.Room(sync, "join", room).Get("timeline.events").Array() {
		if e.Get("type").Str == "m.room.message" {
			texts = append(texts, e.Get("content.body").Str)
		}
	}
	return texts
}

// hears syncs until all texts have come, in this order.
func hears(c *harness.Client, room string, texts ...string) {
	c.Until(fmt.Sprintf("the messages %q", texts), func(sync gjson.Result) bool {
		for _, text := range bodies(sync, room) {
			if len(texts) > 0 && text == texts[0] {
				texts = texts[1:]
			}
		}
		return len(texts) == 0
	})
}

func TestMessagesReachOtherServers(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		joinThrough(t, bob, room, servers[0])
		bob.Sync(nil)
		alice.Text(room, "one")
		hears(bob, room, "one")
		alice.Sync(nil)
		bob.Text(room, "two")
		hears(alice, room, "two")
		for i := range 120 { // more than one transaction holds
			alice.Text(room, fmt.Sprint("n", i))
		}
		hears(bob, room, "n119")
		found := 0
		for _, e := range bob.Messages(room, "", "b", 130, nil).Events {
			if e.Get("type").Str == "m.room.message" {
				found++
			}
		}
		if found != 122 {
			t.Errorf("%d of 122 messages arrived", found)
		}
	})
}

// TestMessagesWhileAServerIsAway stops a server, and the one that sends as well: what was said meanwhile arrives.
func TestMessagesWhileAServerIsAway(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		other := alice.Create(harness.J{"preset": "public_chat"})
		joinThrough(t, bob, room, servers[0])
		joinThrough(t, bob, other, servers[0])
		bob.Sync(nil)
		servers[1].Stop()
		for i := range 5 {
			alice.Text(room, fmt.Sprint("away", i))
		}
		alice.Text(other, "elsewhere")
		servers[0].Restart()
		alice.Text(room, "last")
		servers[1].Restart()
		hears(bob, other, "elsewhere")
		begin := time.Now()
		for texts := bob.Messages(room, "", "b", 50, nil); time.Since(begin) < time.Minute; texts = bob.Messages(room, "", "b", 50, nil) {
			found := 0
			for _, e := range texts.Events {
				if e.Get("type").Str == "m.room.message" {
					found++
				}
			}
			if found == 6 {
				return
			}
			bob.Sync(nil)
		}
		t.Error("not all messages arrived")
	})
}

// TestTypingReceiptsAndPresenceOfOtherServers follows what is shown beside the timeline from one server to the other.
func TestTypingReceiptsAndPresenceOfOtherServers(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		joinThrough(t, bob, room, servers[0])
		event := alice.Text(room, "hello")
		hears(bob, room, "hello")
		alice.Sync(nil)

		typists := func(sync gjson.Result) (list []string, told bool) {
			for _, e := range harness.Room(sync, "join", room).Get("ephemeral.events").Array() {
				if e.Get("type").Str == "m.typing" {
					for _, user := range e.Get("content.user_ids").Array() {
						list = append(list, user.Str)
					}
					told = true
				}
			}
			return list, told
		}
		bob.Must("PUT", harness.Path("/rooms/%s/typing/%s", room, bob.UserID), harness.J{"typing": true, "timeout": 60_000})
		alice.Until("that bob types", func(sync gjson.Result) bool {
			list, _ := typists(sync)
			return len(list) == 1 && list[0] == bob.UserID
		})
		bob.Must("PUT", harness.Path("/rooms/%s/typing/%s", room, bob.UserID), harness.J{"typing": false})
		alice.Until("that bob stops typing", func(sync gjson.Result) bool {
			list, told := typists(sync)
			return told && len(list) == 0
		})

		bob.Must("POST", harness.Path("/rooms/%s/receipt/m.read/%s", room, event), harness.J{})
		alice.Until("bob's receipt", func(sync gjson.Result) bool {
			for _, e := range harness.Room(sync, "join", room).Get("ephemeral.events").Array() {
				if e.Get("type").Str == "m.receipt" && e.Get("content").Get(harness.Key(event)).Get("m\\.read").Get(harness.Key(bob.UserID)).Exists() {
					return true
				}
			}
			return false
		})

		bob.Must("PUT", harness.Path("/presence/%s/status", bob.UserID), harness.J{"presence": "unavailable", "status_msg": "having lunch"})
		alice.Until("bob's presence", func(sync gjson.Result) bool {
			for _, e := range sync.Get("presence.events").Array() {
				if e.Get("sender").Str == bob.UserID && e.Get("content.status_msg").Str == "having lunch" {
					return true
				}
			}
			return false
		})
		if seen := alice.Must("GET", harness.Path("/presence/%s/status", bob.UserID), nil); seen.JSON.Get("status_msg").Str != "having lunch" {
			t.Errorf("bob's presence: %v", seen)
		}
	})
}

// TestWhoIsThereWhenSomebodyComes has somebody of another server join a room where somebody is online.
func TestWhoIsThereWhenSomebodyComes(t *testing.T) {
	harness.EachFederation(t, 2, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		alice.Must("PUT", harness.Path("/presence/%s/status", alice.UserID), harness.J{"presence": "online", "status_msg": "here"})
		bob.Sync(nil)
		joinThrough(t, bob, room, servers[0])
		bob.Until("alice's presence", func(sync gjson.Result) bool {
			for _, e := range sync.Get("presence.events").Array() {
				if e.Get("sender").Str == alice.UserID && e.Get("content.status_msg").Str == "here" {
					return true
				}
			}
			return false
		})
	})
}

// TestOneServerDoesNotSpeakForUsersOfAnother sends EDUs about other servers' users.
func TestOneServerDoesNotSpeakForUsersOfAnother(t *testing.T) {
	harness.EachFederation(t, 1, func(t *testing.T, servers []*harness.Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[0].Register(t, "bob")
		room := alice.Create(harness.J{"preset": "public_chat"})
		bob.Join(room)
		event := alice.Text(room, "hello")
		alice.Sync(nil)
		peer := harness.NewPeer(t, nil)
		sent := peer.Do(servers[0], "PUT", "/_matrix/federation/v1/send/one", harness.J{
			"origin": peer.Name, "origin_server_ts": time.Now().UnixMilli(), "pdus": []any{}, "edus": []any{
				harness.J{"edu_type": "m.typing", "content": harness.J{"room_id": room, "user_id": bob.UserID, "typing": true}},
				harness.J{"edu_type": "m.receipt", "content": harness.J{room: harness.J{"m.read": harness.J{bob.UserID: harness.J{"event_ids": []string{event}, "data": harness.J{"ts": 1}}}}}},
				harness.J{"edu_type": "m.presence", "content": harness.J{"push": []any{harness.J{"user_id": bob.UserID, "presence": "online", "status_msg": "forged", "last_active_ago": 1}}}},
				harness.J{"edu_type": "m.typing", "content": harness.J{"room_id": room, "user_id": "@nobody:" + peer.Name, "typing": true}},
				harness.J{"edu_type": "m.unknown", "content": harness.J{}}, 5, "x", nil,
			},
		})
		if sent.Status != 200 {
			t.Fatalf("the transaction: %v", sent)
		}
		alice.Text(room, "after")
		alice.Until("the message after", func(sync gjson.Result) bool {
			for _, e := range harness.Room(sync, "join", room).Get("ephemeral.events").Array() {
				t.Errorf("an EDU about another server's user was believed: %s", e.Raw)
			}
			for _, e := range sync.Get("presence.events").Array() {
				if e.Get("content.status_msg").Str == "forged" {
					t.Errorf("presence of another server's user was believed: %s", e.Raw)
				}
			}
			return len(bodies(sync, room)) > 0
		})
	})
}
