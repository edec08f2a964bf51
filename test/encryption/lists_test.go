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
