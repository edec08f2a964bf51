package encryption

import (
	"net/url"
	"slices"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// watcher is a device that hears of others' devices in three ways, which must agree.
type watcher struct {
	*Client
	t   *testing.T
	pos string
}

func watch(t *testing.T, c *Client) *watcher {
	c.Sync(nil)
	return &watcher{c, t, slide(c, "", "").Get("pos").Str}
}

// hears checks what the device hears since it was asked last.
func (w *watcher) hears(what string, wantChanged, wantLeft []string) {
	w.t.Helper()
	same := func(how string, lists gjson.Result) {
		w.t.Helper()
		c, l := texts(lists.Get("changed")), texts(lists.Get("left"))
		if !slices.Equal(c, sorted(wantChanged)) || !slices.Equal(l, sorted(wantLeft)) {
			w.t.Errorf("%s, by %s: changed %v and left %v, want %v and %v", what, how, c, l, wantChanged, wantLeft)
		}
	}
	from := w.Since()
	same("sync", w.Sync(nil).Get("device_lists"))
	same("/keys/changes", w.Must("GET", Path("/keys/changes?")+url.Values{"from": {from}, "to": {w.Since()}}.Encode(), nil).JSON)
	r := slide(w.Client, w.pos, "")
	w.pos = r.Get("pos").Str
	same("sliding sync", r.Get("extensions.e2ee.device_lists"))
}

func sorted(list []string) []string {
	list = append([]string{}, list...)
	slices.Sort(list)
	return list
}

func TestDeviceLists(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		users := func(list ...*Client) (ids []string) {
			for _, c := range list {
				ids = append(ids, c.UserID)
			}
			return ids
		}
		withKeys(t, bob)
		w := watch(t, alice)
		w.hears("nothing", nil, nil)
		withKeys(t, alice)
		w.hears("own keys", users(alice), nil)
		withKeys(t, carol)
		w.hears("a stranger's keys", nil, nil)

		one, two := alice.Create(J{"preset": "public_chat"}), alice.Create(J{"preset": "public_chat"})
		alice.Sync(nil)
		w.pos = slide(alice, w.pos, "").Get("pos").Str
		bob.Join(one)
		w.hears("the first shared room", users(bob), nil)
		bob.Join(two)
		w.hears("the second shared room", nil, nil)
		bob.Must("PUT", Path("/profile/%s/displayname", bob.UserID), J{"displayname": "Bob"})
		alice.Until("bob's name", func(r gjson.Result) bool { return Room(r, "join", two).Exists() })
		w.pos = slide(alice, w.pos, "").Get("pos").Str
		alice.Text(one, "hello")
		w.hears("a message", nil, nil)
		withKeys(t, bob.Login())
		w.hears("a new device", users(bob), nil)
		withKeys(t, bob)
		w.hears("the same keys again", nil, nil)
		bob.Must("POST", deviceSigning, newCrossSigning(bob.UserID, "1").upload(t))
		w.hears("cross-signing keys", users(bob), nil)
		bob.Must("PUT", Path("/devices/%s", bob.DeviceID), J{"display_name": "x"})
		w.hears("a device's name", users(bob), nil)
		s.Restart()
		w.hears("a restart", nil, nil)
		bob.Leave(one)
		w.hears("one of two shared rooms", nil, nil)
		bob.Leave(two)
		w.hears("the last shared room", nil, users(bob))
		withKeys(t, bob.Login())
		w.hears("the device of somebody who is gone", nil, nil)
		bob.Join(two)
		w.hears("back again", users(bob), nil)
		bob.Leave(two)
		bob.Join(two)
		w.hears("away in between", users(bob), nil)
		bob.Leave(two)
		bob.Join(one)
		w.hears("from one room to the other", nil, nil)
		carol.Join(one)
		carol.Leave(one)
		w.hears("a short visit", nil, nil)
		carol.Join(two)
		w.hears("another one", users(carol), nil)
		alice.Change("kick", one, bob.UserID)
		w.hears("a kick", nil, users(bob))
		alice.Leave(two)
		w.hears("leaving oneself", nil, users(carol))
		alice.Join(two)
		w.hears("entering oneself", users(alice, carol), nil)
		laptop := carol.Login()
		withKeys(t, laptop)
		alice.Sync(nil)
		w.pos = slide(alice, w.pos, "").Get("pos").Str
		laptop.Must("POST", Path("/logout"), J{})
		w.hears("a logout", users(carol), nil)
		carol.Login().Must("POST", Path("/logout"), J{})
		w.hears("a logout of a device without keys", nil, nil)
		w.Refused(400, "M_INVALID_PARAM", "GET", Path("/keys/changes?from=x&to=y"), nil)
	})
}

// TestKeysWake checks that a new device ends the long-polls of those who share a room.
func TestKeysWake(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.Create(J{"preset": "public_chat"})
		bob.Join(room)
		alice.Sync(nil)
		var group sync.WaitGroup
		group.Go(func() {
			r := alice.With(t).Sync(url.Values{"timeout": {"30000"}})
			if got := changed(r); !slices.Equal(got, []string{bob.UserID}) {
				t.Errorf("the sync names %v", got)
			}
		})
		withKeys(t, bob)
		group.Wait()
	})
}

// TestEndOfAnAccount checks what is left of somebody who deactivates their account.
func TestEndOfAnAccount(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		withKeys(t, bob)
		bob.Must("POST", deviceSigning, newCrossSigning(bob.UserID, "1").upload(t))
		bob.Must("POST", Path("/keys/upload"), J{"one_time_keys": oneTime(0, 3)})
		bob.Must("POST", Path("/account/deactivate"), J{"auth": J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": bob.UserID}, "password": Password}})
		r := query(alice, bob.UserID)
		if r.Get("device_keys").Get(Key(bob.UserID)).Raw != "{}" || r.Get("master_keys").Raw != "{}" || r.Get("self_signing_keys").Raw != "{}" {
			t.Errorf("keys are left: %s", r)
		}
		if name, _ := claim(alice, bob); name != "" {
			t.Errorf("claimed %s", name)
		}
		send(alice, "1", J{bob.UserID: J{"*": J{"body": "x"}}})
	})
}

// TestDeviceListsBetweenTokens asks what changed between tokens that are long past: nothing that came later counts.
func TestDeviceListsBetweenTokens(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob, carol, dora := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol"), s.Register(t, "dora")
		room := bob.Create(J{"preset": "public_chat"})
		dora.Join(room)
		other := alice.Create(J{"preset": "public_chat"})
		carol.Join(other)
		alice.Sync(nil)
		tokens := []string{alice.Since()}
		step := func(do func()) {
			do()
			alice.Sync(nil)
			tokens = append(tokens, alice.Since())
		}
		step(func() { alice.Join(room) })
		step(func() { carol.Join(room); bob.Leave(room) })
		step(func() { withKeys(t, carol.Login()); carol.Leave(other) })
		step(func() {
			alice.Leave(room)
			alice.Must("POST", Path("/rooms/%s/forget", room), J{})
		})
		check := func(from, to int, wantChanged, wantLeft []string) {
			t.Helper()
			r := alice.Must("GET", Path("/keys/changes?")+url.Values{"from": {tokens[from]}, "to": {tokens[to]}}.Encode(), nil).JSON
			if c, l := texts(r.Get("changed")), texts(r.Get("left")); !slices.Equal(c, sorted(wantChanged)) || !slices.Equal(l, sorted(wantLeft)) {
				t.Errorf("from %d to %d: changed %v and left %v, want %v and %v", from, to, c, l, wantChanged, wantLeft)
			}
		}
		for range 2 {
			check(0, 0, nil, nil)
			check(0, 1, []string{alice.UserID, bob.UserID, dora.UserID}, nil)
			check(1, 2, nil, []string{bob.UserID})
			check(0, 2, []string{alice.UserID, dora.UserID}, nil)
			check(2, 3, []string{carol.UserID}, nil)
			check(3, 4, nil, []string{carol.UserID, dora.UserID})
			check(0, 4, nil, []string{carol.UserID})
			check(4, 0, nil, nil)
			s.Restart() // nothing of it is in memory any more
		}
		alice.SyncFrom(tokens[3])
		if got := left(alice.Sync(nil)); !slices.Equal(got, sorted([]string{carol.UserID, dora.UserID})) {
			t.Errorf("left by sync after forgetting the room: %v", got)
		}
	})
}

// TestEndOfADevice checks what goes with a device, in each way that it may end, and what stays.
func TestEndOfADevice(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		alice.Must("POST", backups+"/version", J{"algorithm": "a", "auth_data": J{}})
		alice.Must("POST", deviceSigning, newCrossSigning(alice.UserID, "1").upload(t))
		room := bob.Create(J{"preset": "public_chat"})
		alice.Join(room)
		password := func(c *Client, method, path string, body J) {
			t.Helper()
			c.Must(method, path, confirmed(alice, body, c.Do(method, path, body)))
		}
		for _, way := range []struct {
			name string
			end  func(d *Client)
		}{
			{"logout", func(d *Client) { d.Must("POST", Path("/logout"), J{}) }},
			{"deletion by another device", func(d *Client) { password(alice, "DELETE", Path("/devices/%s", d.DeviceID), J{}) }},
			{"deletion of several", func(d *Client) { password(alice, "POST", Path("/delete_devices"), J{"devices": []string{d.DeviceID}}) }},
			{"logout everywhere", func(d *Client) { d.Must("POST", Path("/logout/all"), J{}) }},
		} {
			d := alice.Login()
			withKeys(t, d)
			d.Must("POST", Path("/keys/upload"), J{"one_time_keys": oneTime(0, 2), "fallback_keys": J{"signed_curve25519:f": J{"key": "f"}}})
			send(bob, Txn(), J{alice.UserID: J{d.DeviceID: J{"body": "lost"}}})
			bob.Sync(nil)
			way.end(d)
			if got := changed(bob.Sync(nil)); !slices.Equal(got, []string{alice.UserID}) {
				t.Errorf("%s: bob hears of changed devices of %v", way.name, got)
			}
			d.Refused(401, "M_UNKNOWN_TOKEN", "GET", Path("/account/whoami"), nil)
			if query(bob, alice.UserID).Get("device_keys").Get(Key(alice.UserID)).Get(Key(d.DeviceID)).Exists() {
				t.Errorf("%s: the device's keys are left", way.name)
			}
			if name, _ := claim(bob, d); name != "" {
				t.Errorf("%s: claimed %s", way.name, name)
			}
			again := s.Client(t).Must("POST", Path("/login"), J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": "alice"}, "password": Password, "device_id": d.DeviceID})
			reborn := *d
			reborn.Token = again.JSON.Get("access_token").Str
			reborn.SyncFrom("")
			r := reborn.Sync(nil)
			counts(t, r, 0, "[]")
			if got := bodies(r.Get("to_device.events")); len(got) != 0 {
				t.Errorf("%s: the device of the same name has %v", way.name, got)
			}
			if !query(&reborn, alice.UserID).Get("master_keys").Get(Key(alice.UserID)).Exists() {
				t.Errorf("%s: the master key is gone", way.name)
			}
			reborn.Must("GET", backups+"/version", nil)
			reborn.Must("POST", Path("/logout"), J{})
		}
	})
}
