package encryption

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/roomserver/pdu"
	"github.com/myelin-im/myelin/storage/storagetest"

	. "github.com/myelin-im/myelin/test/harness"
)

// follow syncs until every one of the users was named in device_lists.changed; a change may come in several answers.
func follow(c *Client, what string, users ...string) {
	named := map[string]bool{}
	c.Until(what, func(r gjson.Result) bool {
		for _, user := range changed(r) {
			named[user] = true
		}
		return !slices.ContainsFunc(users, func(user string) bool { return !named[user] })
	})
}

// deviceIDs lists the devices that a user sees of another one.
func deviceIDs(c *Client, user string) []string {
	ids := []string{}
	query(c, user).Get("device_keys").Get(Key(user)).ForEach(func(k, _ gjson.Result) bool {
		ids = append(ids, k.Str)
		return true
	})
	slices.Sort(ids)
	return ids
}

func joinThrough(c *Client, room string, via *Server) {
	c.Must("POST", Path("/join/%s?", room)+url.Values{"server_name": {via.Name}}.Encode(), J{})
}

// TestEncryptionAcrossServers checks keys, claims, lists of devices and messages between two servers.
func TestEncryptionAcrossServers(t *testing.T) {
	EachFederation(t, 2, func(t *testing.T, servers []*Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		withKeys(t, alice)
		withKeys(t, bob)
		x := newCrossSigning(bob.UserID, "1")
		bob.Must("POST", deviceSigning, x.upload(t))
		bob.Must("POST", Path("/keys/upload"), J{"one_time_keys": oneTime(0, 1), "fallback_keys": J{"signed_curve25519:f": J{"key": "fallback"}}})

		// Without a shared room, each time from the other server.
		check := func(what string, want ...string) {
			t.Helper()
			waitFor(t, what, func() bool { return slices.Equal(deviceIDs(alice, bob.UserID), sorted(want)) })
		}
		check("strangers", bob.DeviceID)
		second := bob.Login()
		withKeys(t, second)
		check("strangers, later", bob.DeviceID, second.DeviceID)
		r := query(alice, bob.UserID, "@nobody:"+servers[1].Name, "@x:localhost:1")
		if !r.Get("master_keys").Get(Key(bob.UserID)).Exists() || !r.Get("self_signing_keys").Get(Key(bob.UserID)).Exists() || r.Get("user_signing_keys").Get(Key(bob.UserID)).Exists() {
			t.Errorf("cross-signing keys of bob: %s", r)
		}
		if f := r.Get("failures"); len(f.Map()) != 1 || !f.Get(Key("localhost:1")).IsObject() {
			t.Errorf("failures %s", f)
		}
		for _, want := range []string{"key 0", "fallback"} {
			if _, key := claim(alice, bob); key != want {
				t.Errorf("claimed %q, want %q", key, want)
			}
		}

		room := alice.Create(J{"preset": "public_chat"})
		alice.Sync(nil)
		bob.Sync(nil)
		joinThrough(bob, room, servers[0])
		follow(alice, "bob's devices", bob.UserID)
		follow(bob, "alice's devices", alice.UserID)
		check("in a room", bob.DeviceID, second.DeviceID)
		third := bob.Login()
		withKeys(t, third)
		follow(alice, "bob's third device", bob.UserID)
		check("a third device", bob.DeviceID, second.DeviceID, third.DeviceID)
		second.Must("POST", Path("/logout"), J{})
		follow(alice, "the logout", bob.UserID)
		check("a logout", bob.DeviceID, third.DeviceID)
		next := newCrossSigning(bob.UserID, "2")
		bob.Must("POST", deviceSigning, confirmed(bob, next.upload(t), bob.Do("POST", deviceSigning, next.upload(t))))
		follow(alice, "bob's new identity", bob.UserID)
		waitFor(t, "bob's new master key", func() bool {
			return query(alice, bob.UserID).Get("master_keys").Get(Key(bob.UserID)).Get("keys").Get(Key("ed25519:" + next.master.public)).Exists()
		})

		// What happens while the other server is away arrives when it is back, also if this one was away in between.
		servers[0].Stop()
		fourth := bob.Login()
		withKeys(t, fourth)
		send(bob, "away", J{alice.UserID: J{alice.DeviceID: J{"body": "while you were away"}}})
		servers[1].Restart()
		servers[0].Restart()
		bob.Text(room, "are you there?")
		var got []string
		named := false
		alice.Until("what happened meanwhile", func(r gjson.Result) bool {
			got = append(got, bodies(r.Get("to_device.events"))...)
			named = named || slices.Contains(changed(r), bob.UserID)
			return named && len(got) > 0
		})
		if !slices.Equal(got, []string{"while you were away"}) {
			t.Errorf("messages %v", got)
		}
		check("a fourth device", bob.DeviceID, third.DeviceID, fourth.DeviceID)

		// Messages in order, once, to one device and to all.
		phone := alice.Login()
		phone.Sync(nil)
		var want []string
		for i := range 30 {
			body := fmt.Sprint("message ", i)
			want = append(want, body)
			send(bob, fmt.Sprint(i), J{alice.UserID: J{"*": J{"body": body}}})
		}
		for _, c := range []*Client{alice, phone} {
			var got []string
			c.Until("all messages", func(r gjson.Result) bool {
				got = append(got, bodies(r.Get("to_device.events"))...)
				return len(got) >= len(want)
			})
			if !slices.Equal(got, want) {
				t.Errorf("messages %v", got)
			}
		}

		bob.Leave(room)
		alice.Until("that bob is gone", func(r gjson.Result) bool { return slices.Contains(left(r), bob.UserID) })
		fourth.Must("POST", Path("/logout"), J{})
		waitFor(t, "the list of somebody who is gone not to be trusted", func() bool {
			return slices.Equal(deviceIDs(alice, bob.UserID), sorted([]string{bob.DeviceID, third.DeviceID}))
		})
	})
}

// waitFor waits for something that no sync tells.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute is not enough for %s", what)
		}
	}
}

// stranger is a server played by the test, with a user in a room of a real one.
type stranger struct {
	*Peer
	user string

	mu      sync.Mutex
	devices string     // the answer about the user's devices; guarded by mu
	asked   int        // how often it was asked for; guarded by mu
	edus    []received // guarded by mu
}

type received struct {
	typ     string
	content gjson.Result
}

// ServeHTTP answers as another server.
func (s *stranger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case strings.Contains(r.URL.Path, "/user/devices/"):
		s.asked++
		fmt.Fprint(w, s.devices)
	case strings.Contains(r.URL.Path, "/federation/v1/send/"):
		var body json.RawMessage
		if json.NewDecoder(r.Body).Decode(&body) == nil {
			for _, e := range gjson.GetBytes(body, "edus").Array() {
				s.edus = append(s.edus, received{e.Get("edu_type").Str, e.Get("content")})
			}
		}
		fmt.Fprint(w, `{"pdus":{}}`)
	default:
		w.WriteHeader(404)
		fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"no"}`)
	}
}

// publish says what the user's devices are at a version.
func (s *stranger) publish(stream int, devices ...string) {
	list := []J{}
	for _, id := range devices {
		list = append(list, J{"device_id": id, "keys": s.keys(id)})
	}
	raw, err := json.Marshal(J{"user_id": s.user, "stream_id": stream, "devices": list})
	if err != nil {
		panic(err) // it is JSON
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices = string(raw)
}

func (s *stranger) keys(id string) J {
	return J{"user_id": s.user, "device_id": id, "algorithms": []string{}, "signatures": J{}, "keys": J{"ed25519:" + id: "key of " + id}}
}

func (s *stranger) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// of lists the EDUs of a type that came.
func (s *stranger) of(typ string) (list []gjson.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.edus {
		if e.typ == typ {
			list = append(list, e.content)
		}
	}
	return list
}

// sends sends an EDU.
func (s *stranger) sends(t *testing.T, to *Server, typ string, content J) {
	t.Helper()
	a := s.Do(to, "PUT", "/_matrix/federation/v1/send/"+Txn(), J{"origin": s.Name, "origin_server_ts": time.Now().UnixMilli(), "pdus": []J{}, "edus": []J{{"edu_type": typ, "content": content}}})
	if a.Status != 200 {
		t.Fatalf("send %s: %v", typ, a)
	}
}

// newStranger makes a server whose user joins a room.
func newStranger(t *testing.T, to *Server, room string) *stranger {
	t.Helper()
	s := &stranger{}
	s.Peer = NewPeer(t, s)
	s.user = "@stranger:" + s.Name
	s.joins(t, to, room, s.user)
	return s
}

// joins lets a user of the server join a room.
func (s *stranger) joins(t *testing.T, to *Server, room, user string) {
	t.Helper()
	path := func(format string, segments ...string) string {
		return strings.Replace(Path(format, segments...), "/_matrix/client/v3", "/_matrix/federation", 1)
	}
	made := s.Do(to, "GET", path("/v1/make_join/%s/%s?ver=12&ver=11&ver=10", room, user), nil)
	v, ok := pdu.Lookup(made.JSON.Get("room_version").Str)
	if !ok {
		t.Fatalf("make_join: %v", made)
	}
	proto, err := pdu.ParseTemplate(v, []byte(made.JSON.Get("event").Raw))
	if err != nil {
		t.Fatal(err)
	}
	proto.OriginServerTS = time.Now().UnixMilli()
	join, err := v.Build(proto, s.Name, s.KeyID, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	if sent := s.Do(to, "PUT", path("/v2/send_join/%s/%s", room, join.ID), json.RawMessage(join.JSON())); sent.Status != 200 {
		t.Fatalf("send_join: %v", sent)
	}
}

// TestManyUsersOfAServer asks for the keys of more users at once than are asked for one by one. Of each of them clients hear
// when their server tells of them for the first time after that.
func TestManyUsersOfAServer(t *testing.T) {
	server := Start(t, storagetest.Dialects[0], Federating(t))
	alice := server.Register(t, "alice")
	room := alice.Create(J{"preset": "public_chat"})
	s := newStranger(t, server, room)
	users := []string{s.user}
	for i := range 24 {
		user := fmt.Sprintf("@user%d:%s", i, s.Name)
		s.joins(t, server, room, user)
		users = append(users, user)
	}
	alice.Sync(nil)
	query(alice, users...) // the server says nothing of use
	for _, user := range users {
		s.sends(t, server, "m.device_list_update", J{"user_id": user, "device_id": "NEW", "stream_id": 1, "prev_id": []int{}})
	}
	follow(alice, "all users", users...)
}

// TestFollowingARemoteUser checks when another server is believed, and when asked.
func TestFollowingARemoteUser(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := Start(t, d, Federating(t))
			alice := server.Register(t, "alice")
			room := alice.Create(J{"preset": "public_chat"})
			alice.Sync(nil)
			s := newStranger(t, server, room)
			s.publish(5, "A")
			follow(alice, "the stranger", s.user)
			check := func(what string, asked int, want ...string) {
				t.Helper()
				waitFor(t, what, func() bool { return slices.Equal(deviceIDs(alice, s.user), want) })
				if got := s.times(); got != asked {
					t.Errorf("%s: the server was asked %d times, want %d", what, got, asked)
				}
			}
			check("the first time", 1, "A")
			check("once more", 1, "A")
			update := func(stream int, prev []int, id string, more J) {
				content := J{"user_id": s.user, "device_id": id, "stream_id": stream, "prev_id": prev, "keys": s.keys(id)}
				for k, v := range more {
					content[k] = v
				}
				s.sends(t, server, "m.device_list_update", content)
			}
			update(6, []int{5}, "B", nil)
			follow(alice, "an update", s.user)
			check("an update", 1, "A", "B")
			update(7, []int{6}, "A", J{"deleted": true, "keys": nil})
			follow(alice, "a deletion", s.user)
			check("a deletion", 1, "B")
			s.publish(9, "B", "C")
			update(9, []int{8}, "C", nil) // 8 was lost
			follow(alice, "an update after a gap", s.user)
			check("a gap", 2, "B", "C")
			server.Restart()
			check("a restart", 2, "B", "C")
			update(10, []int{9}, "D", J{"keys": J{"user_id": alice.UserID, "device_id": "D", "algorithms": []string{}, "signatures": J{}, "keys": J{}}})
			s.publish(10, "B", "C")
			follow(alice, "an update with somebody else's keys", s.user)
			check("keys of another user", 3, "B", "C")
			// Some servers say of no update what came before it, only that there was one.
			s.publish(11, "B", "C", "E")
			s.sends(t, server, "m.device_list_update", J{"user_id": s.user, "device_id": "dummy", "stream_id": 1, "prev_id": []int{}})
			follow(alice, "an update without a predecessor", s.user)
			check("an update without a predecessor", 4, "B", "C", "E")
			update(12, []int{}, "E", nil) // an introduction with what is known
			update(13, []int{12}, "F", nil)
			s.publish(13, "B", "C", "E", "F")
			follow(alice, "an update that goes on from an introduction", s.user)
			check("an update that goes on from an introduction", 5, "B", "C", "E", "F")
			x := newCrossSigning(s.user, "1")
			s.sends(t, server, "m.signing_key_update", J{"user_id": s.user, "master_key": x.key(x.master, "master")})
			follow(alice, "a master key", s.user)
			waitFor(t, "the master key", func() bool { return query(alice, s.user).Get("master_keys").Get(Key(s.user)).Exists() })

			// Nobody speaks for others' users.
			s.sends(t, server, "m.device_list_update", J{"user_id": alice.UserID, "device_id": alice.DeviceID, "stream_id": 1, "deleted": true})
			message := J{"sender": s.user, "type": "m.test", "message_id": "one", "messages": J{alice.UserID: J{"*": J{"body": "hello"}}}}
			forged := J{"sender": alice.UserID, "type": "m.test", "message_id": "two", "messages": J{alice.UserID: J{"*": J{"body": "forged"}}}}
			s.sends(t, server, "m.direct_to_device", forged)
			strange := J{"sender": s.user, "type": "m.test", "message_id": "three", "messages": J{alice.UserID: J{"*": J{"body": json.RawMessage(strings.Repeat("9", 400))}}}}
			s.sends(t, server, "m.direct_to_device", strange) // clients whose parsers know doubles only would lose the sync around it
			for range 3 {
				s.sends(t, server, "m.direct_to_device", message)
			}
			s.sends(t, server, "m.direct_to_device", J{"sender": s.user, "type": "m.test", "message_id": "last", "messages": J{alice.UserID: J{alice.DeviceID: J{"body": "last"}}}})
			var got []string
			alice.Until("the last message", func(r gjson.Result) bool {
				got = append(got, bodies(r.Get("to_device.events"))...)
				return slices.Contains(got, "last")
			})
			if !slices.Equal(got, []string{"hello", "last"}) {
				t.Errorf("messages %v", got)
			}
		})
	}
}

// TestIntroduction checks that clients hear once of somebody who joins, although the join tells of them and so does their
// server; and again if their server could not be asked in between.
func TestIntroduction(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := Start(t, d, Federating(t))
			alice := server.Register(t, "alice")
			room := alice.Create(J{"preset": "public_chat"})
			alice.Sync(nil)
			s := newStranger(t, server, room)
			follow(alice, "the stranger", s.user)
			introduce := func(s *stranger, stream int, prev ...int) {
				t.Helper()
				s.sends(t, server, "m.device_list_update", J{"user_id": s.user, "device_id": "A", "stream_id": stream, "prev_id": append([]int{}, prev...), "keys": s.keys("A")})
			}
			// named counts how often the stranger is named until a later message of theirs has come.
			named := func(s *stranger, id string) (n int) {
				t.Helper()
				s.sends(t, server, "m.direct_to_device", J{"sender": s.user, "type": "m.test", "message_id": id, "messages": J{alice.UserID: J{"*": J{"body": id}}}})
				alice.Until("the message "+id, func(r gjson.Result) bool {
					if slices.Contains(changed(r), s.user) {
						n++
					}
					return slices.Contains(bodies(r.Get("to_device.events")), id)
				})
				return n
			}
			introduce(s, 1)
			if n := named(s, "introduced"); n != 0 {
				t.Errorf("after the introduction the stranger is named %d times more", n)
			}
			introduce(s, 2, 1)
			if n := named(s, "changed"); n != 1 {
				t.Errorf("after a change the stranger is named %d times", n)
			}

			other := newStranger(t, server, room)
			follow(alice, "the other one", other.user)
			if got := deviceIDs(alice, other.user); len(got) != 0 { // the answer is empty, which is none
				t.Errorf("devices %v", got)
			}
			introduce(other, 1)
			if n := named(other, "introduced too"); n != 1 {
				t.Errorf("after a query that failed the introduction names the other one %d times", n)
			}
		})
	}
}

// TestUpdatesForOtherServers checks what another server is told of a local user's devices.
func TestUpdatesForOtherServers(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := Start(t, d, Federating(t))
			owner, alice := server.Register(t, "owner"), server.Register(t, "alice")
			room := owner.Create(J{"preset": "public_chat"})
			s := newStranger(t, server, room)
			withKeys(t, alice)
			// Each update goes on from the one before. How many there are, depends on what is told together: a device and its
			// keys, for example. Those whose answer is lost when the server restarts come twice.
			told := 0
			var last gjson.Result
			until := func(what, from string, done func(u gjson.Result) bool) {
				t.Helper()
				var updates []gjson.Result
				waitFor(t, what, func() bool {
					updates = updates[:0]
					for _, u := range s.of("m.device_list_update") {
						again := slices.ContainsFunc(updates, func(o gjson.Result) bool { return o.Raw == u.Raw })
						if u.Get("user_id").Str == alice.UserID && !again {
							updates = append(updates, u)
						}
					}
					return len(updates) > told && done(updates[len(updates)-1])
				})
				for _, u := range updates[told:] {
					if u.Get("prev_id").Raw != from {
						t.Errorf("%s: %s does not go on from %s", what, u, from)
					}
					from, last = "["+u.Get("stream_id").Raw+"]", u
				}
				told = len(updates)
			}
			keysOf := func(device string) func(u gjson.Result) bool {
				return func(u gjson.Result) bool {
					return u.Get("device_id").Str == device && u.Get("keys.user_id").Str == alice.UserID
				}
			}
			stream := func() string { return "[" + last.Get("stream_id").Raw + "]" }
			alice.Join(room)
			until("the devices of somebody who joins", "[]", keysOf(alice.DeviceID))
			if last.Get("device_display_name").Exists() {
				t.Errorf("first update %s", last)
			}
			phone := alice.Login()
			withKeys(t, phone)
			until("a new device", stream(), keysOf(phone.DeviceID))
			server.Restart()
			phone.Must("POST", Path("/logout"), J{})
			until("a logout", stream(), func(u gjson.Result) bool { return u.Get("device_id").Str == phone.DeviceID && u.Get("deleted").Bool() })
			alice.Must("POST", deviceSigning, newCrossSigning(alice.UserID, "1").upload(t))
			waitFor(t, "the signing keys", func() bool { return len(s.of("m.signing_key_update")) == 1 })
			if u := s.of("m.signing_key_update")[0]; u.Get("user_id").Str != alice.UserID || !u.Get("master_key").Exists() || !u.Get("self_signing_key").Exists() || u.Get("user_signing_key").Exists() {
				t.Errorf("signing keys %s", u)
			}
			// What a server reads at once is the version that the next update goes on from.
			devices := s.Do(server, "GET", "/_matrix/federation/v1/user/devices/"+url.PathEscape(alice.UserID), nil).JSON
			if n := len(devices.Get("devices").Array()); n != 1 || !devices.Get("master_key").Exists() {
				t.Errorf("devices %s", devices)
			}
			other := alice.Login()
			withKeys(t, other)
			until("another device", "["+devices.Get("stream_id").Raw+"]", keysOf(other.DeviceID))
		})
	}
}

// TestServerThatWasApart checks that a server which shared no room with a user for a while is told anew of all devices, and
// does not take what comes then for what follows from what it knew.
func TestServerThatWasApart(t *testing.T) {
	for _, d := range storagetest.Dialects {
		t.Run(d.String(), func(t *testing.T) {
			server := Start(t, d, Federating(t))
			owner, alice := server.Register(t, "owner"), server.Register(t, "alice")
			one, two := owner.Create(J{"preset": "public_chat"}), owner.Create(J{"preset": "public_chat"})
			apart, always := newStranger(t, server, one), newStranger(t, server, two)
			withKeys(t, alice)
			alice.Join(one)
			alice.Join(two)
			// until waits for updates with the keys of devices and returns all that came of alice's.
			until := func(what string, s *stranger, devices ...string) (updates []gjson.Result) {
				t.Helper()
				waitFor(t, what, func() bool {
					updates = updates[:0]
					named := map[string]bool{}
					for _, u := range s.of("m.device_list_update") {
						if u.Get("user_id").Str == alice.UserID {
							updates = append(updates, u)
							named[u.Get("device_id").Str] = u.Get("keys").IsObject()
						}
					}
					return !slices.ContainsFunc(devices, func(id string) bool { return !named[id] })
				})
				return updates
			}
			before := len(until("the devices of somebody who joins", apart, alice.DeviceID))
			alice.Leave(one)
			phone := alice.Login()
			withKeys(t, phone)
			until("a new device, where a room is shared", always, phone.DeviceID)
			alice.Join(one)
			updates := until("the devices of somebody who is back", apart, phone.DeviceID)[before:]
			if got := updates[0].Get("prev_id").Raw; got != "[]" {
				t.Errorf("the first update after the return goes on from %s", got)
			}
		})
	}
}

// TestRemoteUserBetweenRooms checks that somebody of another server who leaves one room and enters another is named, since
// their devices may have changed in between.
func TestRemoteUserBetweenRooms(t *testing.T) {
	EachFederation(t, 2, func(t *testing.T, servers []*Server) {
		alice, bob := servers[0].Register(t, "alice"), servers[1].Register(t, "bob")
		withKeys(t, bob)
		one, two := alice.Create(J{"preset": "public_chat"}), alice.Create(J{"preset": "public_chat"})
		alice.Sync(nil)
		joinThrough(bob, one, servers[0])
		follow(alice, "bob", bob.UserID)
		deviceIDs(alice, bob.UserID) // from now on they are kept
		watcher := alice.Login()     // hears of what alice has heard already
		watcher.Sync(nil)
		bob.Leave(one)
		alice.Until("that bob is gone", func(r gjson.Result) bool { return slices.Contains(left(r), bob.UserID) })
		joinThrough(bob, two, servers[0])
		follow(alice, "bob in the other room", bob.UserID)
		if got := changed(watcher.Sync(nil)); !slices.Contains(got, bob.UserID) {
			t.Errorf("a device that slept meanwhile hears of %v", got)
		}
	})
}
