package encryption

import (
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/e2ee"
	. "github.com/myelin-im/myelin/test/harness"
)

// send sends messages, from user to device to content, in a transaction.
func send(c *Client, txn string, messages J) {
	c.Must("PUT", Path("/sendToDevice/%s/%s", "m.test", txn), J{"messages": messages})
}

// bodies lists what messages to a device say.
func bodies(events gjson.Result) []string {
	list := []string{}
	for _, e := range events.Array() {
		list = append(list, e.Get("content.body").Str)
	}
	return list
}

func inbox(c *Client) []string { return bodies(c.Sync(nil).Get("to_device.events")) }

func TestToDevice(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		tablet := bob.Login()
		bob.Sync(nil)
		send(alice, "1", J{bob.UserID: J{bob.DeviceID: J{"body": "one"}}})
		send(alice, "1", J{bob.UserID: J{bob.DeviceID: J{"body": "one"}}})
		send(alice.Login(), "1", J{bob.UserID: J{bob.DeviceID: J{"body": "two"}}}) // another device's transaction
		send(alice, "2", J{bob.UserID: J{"*": J{"body": "all"}}, alice.UserID: J{"NONE": J{}}, "@nobody:" + s.Name: J{"*": J{}}})
		send(alice, "3", J{bob.UserID: J{"*": J{"body": "others"}, bob.DeviceID: J{"body": "three"}}})
		before := bob.Since()
		r := bob.Sync(nil)
		want := []string{"one", "two", "all", "three"}
		if got := bodies(r.Get("to_device.events")); !slices.Equal(got, want) {
			t.Errorf("bob's inbox has %v, want %v", got, want)
		}
		if e := r.Get("to_device.events.0"); e.Get("sender").Str != alice.UserID || e.Get("type").Str != "m.test" || len(e.Map()) != 3 {
			t.Errorf("message %s", e)
		}
		// Until the token is used, they are there.
		after := bob.Since()
		bob.SyncFrom(before)
		if got := inbox(bob); !slices.Equal(got, want) {
			t.Errorf("once more: %v", got)
		}
		s.Restart()
		bob.SyncFrom(before)
		if got := inbox(bob); !slices.Equal(got, want) {
			t.Errorf("after a restart: %v", got)
		}
		bob.SyncFrom(after)
		if got := inbox(bob); len(got) != 0 {
			t.Errorf("acknowledged messages: %v", got)
		}
		bob.Until("the deletion of what was acknowledged", func(gjson.Result) bool {
			return !bob.Must("GET", Path("/sync?since=")+before, nil).JSON.Get("to_device").Exists()
		})
		if got := inbox(tablet); !slices.Equal(got, []string{"all", "others"}) {
			t.Errorf("the tablet's inbox has %v", got)
		}
		for _, bad := range []any{J{}, J{"messages": J{bob.UserID: J{bob.DeviceID: 1}}}, J{"messages": J{bob.UserID: 1}}} {
			if a := alice.Do("PUT", Path("/sendToDevice/m.test/9"), bad); a.Status != 400 {
				t.Errorf("%v: %v", bad, a)
			}
		}
	})
}

// TestToDeviceWakes checks that a message ends the long-poll of its device.
func TestToDeviceWakes(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		bob.Sync(nil)
		begun := time.Now()
		var group sync.WaitGroup
		group.Go(func() {
			r := bob.With(t).Sync(url.Values{"timeout": {"30000"}})
			if got := bodies(r.Get("to_device.events")); !slices.Equal(got, []string{"wake"}) {
				t.Errorf("the sync brought %v", got)
			}
		})
		send(alice, "1", J{bob.UserID: J{bob.DeviceID: J{"body": "wake"}}})
		group.Wait()
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestToDeviceBurst reads more than fits into one answer.
func TestToDeviceBurst(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		bob.Sync(nil)
		var want []string
		for i := range 250 {
			want = append(want, fmt.Sprint(i))
			send(alice, fmt.Sprint(i), J{bob.UserID: J{bob.DeviceID: J{"body": fmt.Sprint(i)}}})
		}
		var got []string
		for range 4 {
			got = append(got, inbox(bob)...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %d messages, or in another order", len(got))
		}
		bob.SyncFrom("")
		if again := inbox(bob); len(again) != 0 {
			t.Errorf("an initial sync after that brings %d", len(again))
		}
	})
}

// slide makes a request of sliding sync with the extensions of encryption.
func slide(c *Client, pos, since string) gjson.Result {
	body := J{"conn_id": "encryption", "extensions": J{"to_device": J{"enabled": true}, "e2ee": J{"enabled": true}}}
	if since != "" {
		body["extensions"].(J)["to_device"].(J)["since"] = since
	}
	path := "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0"
	if pos != "" {
		path += "&pos=" + pos
	}
	return c.Must("POST", path, body).JSON
}

// TestSlidingToDevice checks that messages go by the extension's own token and never by pos.
func TestSlidingToDevice(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		send(alice, "1", J{bob.UserID: J{bob.DeviceID: J{"body": "one"}}})
		r := slide(bob, "", "")
		read := func(r gjson.Result, want ...string) {
			t.Helper()
			if got := bodies(r.Get("extensions.to_device.events")); !slices.Equal(got, append([]string{}, want...)) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		read(r, "one")
		first := r.Get("extensions.to_device.next_batch").Str
		r = slide(bob, r.Get("pos").Str, "")
		read(r, "one") // pos says nothing about messages
		send(alice, "2", J{bob.UserID: J{bob.DeviceID: J{"body": "two"}}})
		r = slide(bob, r.Get("pos").Str, first)
		read(r, "two")
		since := r.Get("extensions.to_device.next_batch").Str
		r = slide(bob, "", first) // a new connection
		read(r, "two")
		r = slide(bob, r.Get("pos").Str, since)
		read(r)
		bob.Refused(400, "M_INVALID_PARAM", "POST", "/_matrix/client/v4/sync", J{"extensions": J{"to_device": J{"enabled": true, "since": "x"}}})
		e := r.Get("extensions.e2ee")
		if e.Get("device_one_time_keys_count.signed_curve25519").Raw != "0" || e.Get("device_unused_fallback_key_types").Raw != "[]" {
			t.Errorf("extension e2ee: %s", e)
		}
		bob.Must("POST", Path("/keys/upload"), J{"one_time_keys": oneTime(0, 4), "fallback_keys": J{"signed_curve25519:f": J{"key": "f"}}})
		e = slide(bob, r.Get("pos").Str, "").Get("extensions.e2ee")
		if e.Get("device_one_time_keys_count.signed_curve25519").Int() != 4 || e.Get("device_unused_fallback_key_types").Raw != `["signed_curve25519"]` {
			t.Errorf("extension e2ee: %s", e)
		}
	})
}

// TestSlidingToDeviceLimit checks that the client says how many messages it takes at once, as far as the server goes along.
func TestSlidingToDeviceLimit(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		const all = e2ee.MaxBatch + 5
		for i := range all {
			send(alice, fmt.Sprint(i), J{bob.UserID: J{bob.DeviceID: J{"body": fmt.Sprint(i)}}})
		}
		const path = "/_matrix/client/v4/sync"
		request := func(since string, limit any) J {
			x := J{"enabled": true, "limit": limit}
			if since != "" {
				x["since"] = since
			}
			return J{"conn_id": "limit", "timeout": 60_000, "extensions": J{"to_device": x}}
		}
		got, since := 0, ""
		for _, test := range []struct {
			limit any
			want  int
		}{{1, 1}, {2, 2}, {1000, e2ee.MaxBatch}, {nil, 2}} {
			x := bob.Must("POST", path, request(since, test.limit)).JSON.Get("extensions.to_device")
			since = x.Get("next_batch").Str
			for _, body := range bodies(x.Get("events")) {
				if body != fmt.Sprint(got) {
					t.Errorf("message %q instead of %d", body, got)
				}
				got++
			}
			if n := len(x.Get("events").Array()); n != test.want {
				t.Errorf("limit %v: %d messages, want %d", test.limit, n, test.want)
			}
		}
		for _, limit := range []any{0, -1} {
			bob.Refused(400, "M_INVALID_PARAM", "POST", path, request(since, limit))
		}
		bob.Refused(400, "M_BAD_JSON", "POST", path, request(since, "x"))
	})
}

// TestInboxEndsWithItsDevice checks that a device that logs in anew under an old id does not get old messages.
func TestInboxEndsWithItsDevice(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		send(alice, "1", J{bob.UserID: J{"*": J{"body": "one"}}})
		old := bob.DeviceID
		bob.Must("POST", Path("/logout"), J{})
		login := s.Client(t).Must("POST", Path("/login"), J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": "bob"}, "password": Password, "device_id": old})
		again := s.Client(t)
		again.UserID, again.DeviceID, again.Token = bob.UserID, old, login.JSON.Get("access_token").Str
		if got := inbox(again); len(got) != 0 {
			t.Errorf("the new device has %v", got)
		}
	})
}

func TestDehydratedDevice(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		const path = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		alice.Refused(404, "M_NOT_FOUND", "GET", path, nil)
		alice.Refused(404, "M_NOT_FOUND", "DELETE", path, nil)
		put := func(id string) {
			t.Helper()
			a := alice.Must("PUT", path, J{"device_id": id, "device_data": J{"algorithm": "m.dehydration.v2", "id": id}, "initial_device_display_name": "asleep",
				"device_keys":   J{"user_id": alice.UserID, "device_id": id, "dehydrated": true, "algorithms": []string{}, "keys": J{"ed25519:" + id: "key"}, "signatures": J{}},
				"fallback_keys": J{"signed_curve25519:f": J{"key": "fallback"}}, "one_time_keys": oneTime(0, 1)})
			if a.JSON.Get("device_id").Str != id {
				t.Errorf("PUT: %v", a)
			}
		}
		put("FIRST")
		put("SECOND")
		if a := alice.Must("GET", path, nil).JSON; a.Get("device_id").Str != "SECOND" || a.Get("device_data.id").Str != "SECOND" {
			t.Errorf("GET: %s", a)
		}
		devices := query(bob, alice.UserID).Get("device_keys").Get(Key(alice.UserID))
		if len(devices.Map()) != 1 || !devices.Get("SECOND.dehydrated").Bool() || devices.Get("SECOND.unsigned.device_display_name").Str != "asleep" {
			t.Errorf("keys %s", devices)
		}
		second := *alice
		second.DeviceID = "SECOND"
		for _, want := range []string{"key 0", "fallback"} {
			if _, key := claim(bob, &second); key != want {
				t.Errorf("claimed %q, want %q", key, want)
			}
		}
		var want []string
		for i := range 150 {
			want = append(want, fmt.Sprint(i))
			send(bob, fmt.Sprint(i), J{alice.UserID: J{"SECOND": J{"body": fmt.Sprint(i)}}})
		}
		for range 2 { // nothing is deleted by reading
			var got []string
			for from := ""; ; {
				r := alice.Must("GET", path+"/SECOND/events?from="+from, nil).JSON
				got = append(got, bodies(r.Get("events"))...)
				if from = r.Get("next_batch").Str; from == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d messages, want %d in order", len(got), len(want))
			}
		}
		draft := alice.Must("POST", path+"/SECOND/events", J{}).JSON
		draft = alice.Must("POST", path+"/SECOND/events", J{"next_batch": draft.Get("next_batch").Str}).JSON
		if n := len(draft.Get("events").Array()); n != 50 || draft.Get("next_batch").Str == "" {
			t.Errorf("the second part has %d messages", n)
		}
		alice.Refused(403, "M_FORBIDDEN", "GET", path+"/FIRST/events", nil)
		bob.Refused(403, "M_FORBIDDEN", "GET", path+"/SECOND/events", nil)
		if a := alice.Must("DELETE", path, nil).JSON; a.Get("device_id").Str != "SECOND" {
			t.Errorf("DELETE: %s", a)
		}
		alice.Refused(404, "M_NOT_FOUND", "GET", path, nil)
		if got := query(bob, alice.UserID).Get("device_keys").Get(Key(alice.UserID)).Raw; got != "{}" {
			t.Errorf("keys after the deletion: %s", got)
		}
	})
}

// TestInboxByBothSyncs checks a device that looks into its inbox by /sync and by sliding sync: each goes by its own token, and
// what either has acknowledged is gone.
func TestInboxByBothSyncs(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		bob.Sync(nil)
		pos := slide(bob, "", "").Get("pos").Str
		send(alice, "1", J{bob.UserID: J{bob.DeviceID: J{"body": "one"}}})
		sliding := func(since string, want ...string) (next string) {
			t.Helper()
			r := slide(bob, pos, since)
			pos = r.Get("pos").Str
			if got := bodies(r.Get("extensions.to_device.events")); !slices.Equal(got, append([]string{}, want...)) {
				t.Errorf("sliding sync brings %v, want %v", got, want)
			}
			return r.Get("extensions.to_device.next_batch").Str
		}
		usual := func(want ...string) {
			t.Helper()
			if got := inbox(bob); !slices.Equal(got, append([]string{}, want...)) {
				t.Errorf("/sync brings %v, want %v", got, want)
			}
		}
		usual("one")
		since := sliding("", "one")
		send(alice, "2", J{bob.UserID: J{bob.DeviceID: J{"body": "two"}}})
		since = sliding(since, "two") // acknowledges the first
		usual("two")                  // so does this token
		usual()                       // and this one the second
		sliding(since)
		send(alice, "3", J{bob.UserID: J{bob.DeviceID: J{"body": "three"}}})
		since = sliding(since, "three")
		sliding(since)
		usual() // what sliding sync has acknowledged does not come twice
	})
}
