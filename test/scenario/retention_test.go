package scenario

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
	. "github.com/myelin-im/myelin/test/harness"
)

// Messages that outlived the policy of their room are shown to nobody, whichever way they are asked for.
func TestExpiredMessagesAreHidden(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		id := alice.Create(J{"preset": "public_chat", "name": "kept"})
		bob.Join(id)
		root := alice.Text(id, "sesame and more")
		reply := alice.Event(id, "m.room.message", J{"msgtype": "m.text", "body": "sesame reply", "m.relates_to": J{"rel_type": "m.thread", "event_id": root}})
		topic := alice.State(id, "m.room.topic", "", J{"topic": "kept as well"})
		hits := func() int64 {
			return bob.Must("POST", Path("/search"), J{"search_categories": J{"room_events": J{"search_term": "sesame"}}}).JSON.Get("search_categories.room_events.results.#").Int()
		}
		wait(t, "both messages are found before they expire", func() bool { return hits() == 2 })
		alice.State(id, "m.room.retention", "", J{"max_lifetime": 1})
		time.Sleep(2 * time.Millisecond) // the lifetime of the last of them
		for _, message := range []string{root, reply} {
			bob.Refused(http.StatusNotFound, "M_NOT_FOUND", "GET", Path("/rooms/%s/event/%s", id, message), nil)
			bob.Refused(http.StatusNotFound, "M_NOT_FOUND", "GET", Path("/rooms/%s/context/%s", id, message), nil)
		}
		for _, dir := range []string{"b", "f"} {
			got := bob.Walk(id, "", dir, 3)
			if slices.Contains(got, root) || slices.Contains(got, reply) || !slices.Contains(got, topic) {
				t.Errorf("messages %s: %v", dir, got)
			}
		}
		timeline := IDs(Room(bob.Sync(nil), "join", id).Get("timeline.events"))
		if slices.Contains(timeline, root) || slices.Contains(timeline, reply) || !slices.Contains(timeline, topic) {
			t.Errorf("initial sync: %v", timeline)
		}
		for _, path := range []string{v1Path("/rooms/%s/threads", id), v1Path("/rooms/%s/relations/%s", id, root)} {
			a := bob.Do("GET", path, nil)
			if n := len(a.JSON.Get("chunk").Array()); n != 0 {
				t.Errorf("%s: %s", path, a)
			}
		}
		if n := hits(); n != 0 {
			t.Errorf("%d expired messages are found", n)
		}
		// As long as they are not purged, another policy brings them back.
		alice.State(id, "m.room.retention", "", J{"max_lifetime": time.Hour.Milliseconds()})
		bob.Must("GET", Path("/rooms/%s/event/%s", id, root), nil)
		if n := hits(); n != 2 {
			t.Errorf("%d messages are found when they have not expired, want 2", n)
		}
	})
}

// Expired messages are not unread any more, whether they were counted before they expired or not, and also after a restart.
func TestExpiredMessagesAreNotUnread(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		id := alice.Create(J{"preset": "public_chat"})
		bob.Join(id)
		carol.Join(id)
		alice.Text(id, "one")
		alice.Text(id, "two")
		unread := func(c *Client) int64 {
			t.Helper()
			c.SyncFrom("")
			return Room(c.Sync(nil), "join", id).Get("unread_notifications.notification_count").Int()
		}
		if n := unread(bob); n != 2 {
			t.Fatalf("%d messages are unread, want 2", n)
		}
		alice.State(id, "m.room.retention", "", J{"max_lifetime": 1})
		time.Sleep(2 * time.Millisecond) // the lifetime of the last of them
		for _, c := range []*Client{bob, carol} {
			if n := unread(c); n != 0 {
				t.Errorf("%s: %d expired messages are unread", c.UserID, n)
			}
		}
		s.Restart()
		if n := unread(bob); n != 0 {
			t.Errorf("after a restart: %d expired messages are unread", n)
		}
		alice.State(id, "m.room.retention", "", J{"max_lifetime": time.Hour.Milliseconds()})
		alice.Text(id, "three")
		if n := unread(bob); n < 1 {
			t.Errorf("a message that has not expired is not unread")
		}
	})
}

// Expired messages are shown to other servers as little as to users. State is.
func TestExpiredMessagesAreNotServed(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			peer := NewPeer(t, http.NotFoundHandler())
			s := Start(t, d, Federating(t))
			alice := s.Register(t, "alice")
			id := alice.Create(J{"preset": "public_chat"})
			w := enter(t, peer, s, id)
			first := w.tip[0].ID
			old := alice.Text(id, "sesame")
			topic := alice.State(id, "m.room.topic", "", J{"topic": "kept"})
			get := func(path string, status int) string {
				t.Helper()
				a := peer.Do(s, "GET", path, nil)
				if a.Status != status {
					t.Errorf("%s: %v", path, a)
				}
				return a.JSON.Raw
			}
			backfill := fed("/v1/backfill/%s?limit=20&v=", id) + url.QueryEscape(topic)
			get(fed("/v1/event/%s", old), 200)
			if answer := get(backfill, 200); !strings.Contains(answer, "sesame") {
				t.Errorf("before it expired: %s", answer)
			}
			alice.State(id, "m.room.retention", "", J{"max_lifetime": 1})
			time.Sleep(2 * time.Millisecond) // its lifetime
			get(fed("/v1/event/%s", old), 404)
			get(fed("/v1/event/%s", topic), 200)
			if answer := get(backfill, 200); strings.Contains(answer, "sesame") || !strings.Contains(answer, "kept") {
				t.Errorf("backfill: %s", answer)
			}
			missing := peer.Do(s, "POST", fed("/v1/get_missing_events/%s", id), J{"earliest_events": []string{first}, "latest_events": []string{topic}, "limit": 10})
			events := missing.JSON.Get("events").Array()
			if missing.Status != 200 || len(events) != 1 || events[0].Get("content").Raw != "{}" {
				t.Errorf("get_missing_events: %v", missing)
			}
		})
	}
}

// quick makes a server purge every second.
func quick(cfg *config.Config) {
	cfg.Retention.PurgeInterval, cfg.Retention.AbandonedRooms = time.Second, time.Millisecond
}

// Expired messages are deleted in the background; the room, its state and what came later stay, and its history ends
// where they were.
func TestExpiredMessagesArePurged(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := Start(t, d, quick)
			alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
			id := alice.Create(J{"preset": "public_chat", "name": "kept"})
			bob.Join(id)
			var old []string
			for i := range 30 {
				old = append(old, alice.Text(id, fmt.Sprintf("sesame %d", i)))
			}
			bob.Must("POST", Path("/rooms/%s/receipt/m.read/%s", id, old[10]), J{})
			bob.Sync(nil)
			gone := func() bool {
				alice.State(id, "m.room.retention", "", J{"max_lifetime": time.Hour.Milliseconds()})
				defer alice.State(id, "m.room.retention", "", J{"max_lifetime": 1})
				return bob.Do("GET", Path("/rooms/%s/event/%s", id, old[29]), nil).Status == http.StatusNotFound
			}
			wait(t, "expired messages are purged", gone)
			alice.State(id, "m.room.retention", "", J{})
			later := alice.Text(id, "sesame later")
			check := func() {
				t.Helper()
				back := bob.Walk(id, "", "b", 10)
				if len(back) == 0 || back[0] != later || slices.ContainsFunc(back, func(e string) bool { return slices.Contains(old, e) }) {
					t.Errorf("the history after the purge: %v", back)
				}
				if got := bob.Must("GET", Path("/rooms/%s/state/m.room.name/", id), nil).JSON.Get("name").Str; got != "kept" {
					t.Errorf("the name is %q", got)
				}
				wait(t, "only what came later is found", func() bool { return search(bob, "sesame", nil).Get("count").Int() == 1 })
			}
			check()
			bob.Until("the message after the purge", func(r gjson.Result) bool {
				return slices.Contains(IDs(Room(r, "join", id).Get("timeline.events")), later)
			})
			s.Restart()
			check()
			bob.Text(id, "and the room goes on")
		})
	}
}

// A room that everybody has left and forgotten goes, with its aliases.
func TestForgottenRoomsAreRemoved(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := Start(t, d, quick)
			alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
			alias := "#gone:" + s.Name
			id := alice.Create(J{"preset": "public_chat", "visibility": "public", "room_alias_name": "gone"})
			stays := alice.Create(J{"preset": "public_chat", "room_alias_name": "stays"})
			bob.Join(id)
			alice.Text(id, "sesame")
			alice.Sync(nil)
			for _, c := range []*Client{alice, bob} {
				c.Leave(id)
				c.Must("POST", Path("/rooms/%s/forget", id), J{})
			}
			alice.Leave(stays) // and does not forget it
			known := func() bool {
				return alice.Do("GET", Path("/directory/room/%s", alias), nil).Status != http.StatusNotFound
			}
			wait(t, "the room is removed", func() bool { return !known() })
			alice.Refused(http.StatusNotFound, "M_NOT_FOUND", "POST", Path("/join/%s", alias), J{})
			if rooms := bob.Must("GET", Path("/publicRooms"), nil).JSON.Get("chunk").Array(); len(rooms) != 0 {
				t.Errorf("public rooms: %v", rooms)
			}
			alice.Must("GET", Path("/directory/room/%s", "#stays:"+s.Name), nil)
			alice.Sync(nil)
			s.Restart()
			// The alias is free again.
			alice.Create(J{"room_alias_name": "gone"})
		})
	}
}

// Devices that were away hear that a room was left also when it has been removed meanwhile, and those that are new do not.
func TestRemovedRoomsAreTold(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			s := Start(t, d, quick)
			alice := s.Register(t, "alice")
			gone := alice.Create(J{"preset": "private_chat", "room_alias_name": "gone"})
			stays := alice.Create(J{"preset": "private_chat"})
			slide := func(pos string) gjson.Result {
				t.Helper()
				return alice.Must("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0&pos="+pos,
					J{"conn_id": "away", "lists": J{"all": J{"ranges": [][2]int{{0, 9}}, "timeline_limit": 1, "required_state": [][2]string{{"m.room.member", "$ME"}}}}}).JSON
			}
			sync := func(query string) gjson.Result {
				t.Helper()
				return alice.Must("GET", Path("/sync?timeout=0")+query, nil).JSON
			}
			since := sync("").Get("next_batch").Str
			slid := slide("")
			if slid.Get("rooms."+Key(gone)+".initial").Raw != "true" {
				t.Fatalf("sliding sync does not tell of the room: %s", slid)
			}
			alice.Leave(gone)
			alice.Must("POST", Path("/rooms/%s/forget", gone), J{})
			wait(t, "the room is removed", func() bool {
				return alice.Do("GET", Path("/directory/room/%s", "#gone:"+s.Name), nil).Status == http.StatusNotFound
			})
			for range 2 {
				told := sync("&since=" + since)
				leave := Room(told, "leave", gone).Get("timeline.events.0")
				if leave.Get("content.membership").Str != "leave" || leave.Get("state_key").Str != alice.UserID {
					t.Errorf("a device that was away is told %s", told.Get("rooms"))
				}
				if fresh := sync(""); Room(fresh, "leave", gone).Exists() || !Room(fresh, "join", stays).Exists() {
					t.Errorf("a new device is told %s", fresh.Get("rooms"))
				}
				if later := sync("&since=" + told.Get("next_batch").Str); later.Get("rooms").Exists() {
					t.Errorf("the device is told again: %s", later)
				}
				s.Restart()
			}
			slid = slide(slid.Get("pos").Str)
			end := slid.Get("rooms." + Key(gone) + ".required_state.0")
			if end.Get("content.membership").Str != "leave" || end.Get("state_key").Str != alice.UserID {
				t.Errorf("sliding sync tells %s", slid)
			}
			if slid = slide(slid.Get("pos").Str); slid.Get("rooms." + Key(gone)).Exists() {
				t.Errorf("sliding sync tells it again: %s", slid)
			}
		})
	}
}

// wait polls until something is so, for at most a minute.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// A room of several servers goes on after each of them has purged its history, which is not fetched again; and one that
// a server has removed can be joined again.
func TestPurgeInFederatedRooms(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			servers := Federation(t, d, 2, quick)
			alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
			id := alice.Create(J{"preset": "public_chat", "name": "The room"})
			joinThrough(t, bob, id, servers[0])
			var old []string
			for i := range 15 {
				old = append(old, alice.Text(id, fmt.Sprint("old ", i)))
			}
			shown := func(c *Client, event string) bool {
				return c.Do("GET", Path("/rooms/%s/event/%s", id, event), nil).Status == http.StatusOK
			}
			wait(t, "bob has the last message", func() bool { return shown(bob, old[14]) })
			retention := func(content J) {
				set := alice.State(id, "m.room.retention", "", content)
				wait(t, "bob's server knows the policy", func() bool { return shown(bob, set) })
			}
			wait(t, "both servers have purged", func() bool {
				retention(J{})
				defer retention(J{"max_lifetime": 1})
				return !shown(alice, old[14]) && !shown(bob, old[14])
			})
			retention(J{})
			later := alice.Text(id, "later")
			wait(t, "bob has what came later", func() bool { return shown(bob, later) })
			answer := bob.Text(id, "answer")
			wait(t, "alice has the answer", func() bool { return shown(alice, answer) })
			for _, c := range []*Client{alice, bob} {
				got := c.Walk(id, "", "b", 10)
				if !slices.Contains(got, later) || slices.ContainsFunc(got, func(e string) bool { return slices.Contains(old, e) }) {
					t.Errorf("the history of %s after the purge: %v", c.UserID, got)
				}
			}

			bob.Leave(id)
			wait(t, "alice's server knows that bob has left", func() bool { return membership(alice, id, bob.UserID) == "leave" })
			bob.Must("POST", Path("/rooms/%s/forget", id), J{})
			wait(t, "the room is removed from bob's server", func() bool {
				return bob.Do("GET", Path("/directory/list/room/%s", id), nil).Status == http.StatusNotFound
			})
			joinThrough(t, bob, id, servers[0])
			again := bob.Text(id, "here again")
			wait(t, "alice has bob's message", func() bool { return shown(alice, again) })
			if got, want := members(bob, id), sorted(alice.UserID, bob.UserID); !slices.Equal(got, want) {
				t.Errorf("the members: %v, want %v", got, want)
			}
		})
	}
}

// TestRetentionConfiguration checks what clients are told of the server's policy (MSC1763).
func TestRetentionConfiguration(t *testing.T) {
	const path = "/_matrix/client/unstable/org.matrix.msc1763/retention/configuration"
	for name, c := range map[string]struct {
		policy func(r *config.Retention)
		want   string
	}{
		"as it comes": {func(*config.Retention) {}, `{"policies":{},"limits":{}}`},
		"off":         {func(r *config.Retention) { r.Enabled, r.Default, r.AtMost = false, time.Hour, time.Hour }, `{"policies":{},"limits":{}}`},
		"a default":   {func(r *config.Retention) { r.Default = time.Hour }, `{"policies":{"*":{"max_lifetime":3600000}},"limits":{}}`},
		"limits": {func(r *config.Retention) { r.Default, r.AtLeast, r.AtMost = 3*time.Hour, time.Hour, 2*time.Hour },
			`{"policies":{"*":{"max_lifetime":7200000}},"limits":{"max_lifetime":{"min":3600000,"max":7200000}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			alice := Start(t, storage.SQLite, func(cfg *config.Config) { c.policy(&cfg.Retention) }).Register(t, "alice")
			if a := alice.Must("GET", path, nil); string(a.Body) != c.want {
				t.Errorf("%s, want %s", a.Body, c.want)
			}
		})
	}
}
