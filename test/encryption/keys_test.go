// Package encryption tests what the server does for end-to-end encryption, as clients see it: keys, backups, messages to
// devices and lists of changed devices, on both databases and between servers.
package encryption

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/signing"

	. "github.com/myelin-im/myelin/test/harness"
)

// signer is an Ed25519 key of a test.
type signer struct {
	private ed25519.PrivateKey
	public  string
}

// newSigner makes the same key for the same name.
func newSigner(name string) signer {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	private := ed25519.NewKeyFromSeed(seed)
	return signer{private, signing.EncodeBase64(private.Public().(ed25519.PublicKey))}
}

// sign returns an object with a signature of the user.
func (s signer) sign(t testing.TB, user, keyID string, object any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signing.SignJSON(raw, user, "ed25519:"+keyID, s.private)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// deviceKeys are identity keys of a device, signed by itself.
func deviceKeys(t testing.TB, c *Client) (json.RawMessage, signer) {
	s := newSigner(c.UserID + c.DeviceID)
	return s.sign(t, c.UserID, c.DeviceID, J{
		"user_id": c.UserID, "device_id": c.DeviceID, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys": J{"ed25519:" + c.DeviceID: s.public, "curve25519:" + c.DeviceID: "curve of " + c.DeviceID},
	}), s
}

// withKeys uploads identity keys of a device.
func withKeys(t testing.TB, c *Client) signer {
	keys, s := deviceKeys(t, c)
	c.Must("POST", Path("/keys/upload"), J{"device_keys": keys})
	return s
}

// oneTime makes n one-time keys, numbered from first.
func oneTime(first, n int) J {
	keys := J{}
	for i := first; i < first+n; i++ {
		keys[fmt.Sprintf("signed_curve25519:%04d", i)] = J{"key": fmt.Sprint("key ", i), "signatures": J{}}
	}
	return keys
}

// claim claims a key of a device and returns its name and value.
func claim(c, of *Client) (name, key string) {
	a := c.Must("POST", Path("/keys/claim"), J{"one_time_keys": J{of.UserID: J{of.DeviceID: "signed_curve25519"}}})
	a.JSON.Get("one_time_keys").Get(Key(of.UserID)).Get(Key(of.DeviceID)).ForEach(func(k, v gjson.Result) bool {
		name, key = k.Str, v.Get("key").Str
		return false
	})
	return name, key
}

func query(c *Client, users ...string) gjson.Result {
	wanted := J{}
	for _, u := range users {
		wanted[u] = []string{}
	}
	return c.Must("POST", Path("/keys/query"), J{"device_keys": wanted}).JSON
}

// counts checks what a device is told of its keys by a sync.
func counts(t *testing.T, sync gjson.Result, oneTime int64, fallback string) {
	t.Helper()
	n, f := sync.Get("device_one_time_keys_count.signed_curve25519"), sync.Get("device_unused_fallback_key_types")
	if !n.Exists() || n.Int() != oneTime || f.Raw != fallback {
		t.Errorf("the sync has counts %s and unused fallback keys %s, want %d and %s", sync.Get("device_one_time_keys_count").Raw, f.Raw, oneTime, fallback)
	}
}

func TestDeviceKeys(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		keys, _ := deviceKeys(t, alice)
		a := alice.Must("POST", Path("/keys/upload"), J{"device_keys": keys, "one_time_keys": oneTime(0, 3)})
		if got := a.JSON.Get("one_time_key_counts").Raw; got != `{"signed_curve25519":3}` {
			t.Errorf("counts %s", got)
		}
		alice.Must("PUT", Path("/devices/%s", alice.DeviceID), J{"display_name": `the "phone"`})
		r := query(bob, alice.UserID, "@nobody:"+s.Name, bob.UserID)
		device := r.Get("device_keys").Get(Key(alice.UserID)).Get(Key(alice.DeviceID))
		if device.Get("keys.ed25519\\:"+alice.DeviceID).Str == "" || device.Get("unsigned.device_display_name").Str != `the "phone"` {
			t.Errorf("device %s", device)
		}
		for _, user := range []string{bob.UserID, "@nobody:" + s.Name} {
			if got := r.Get("device_keys").Get(Key(user)).Raw; got != "{}" {
				t.Errorf("devices of %s: %s", user, got)
			}
		}
		if r.Get("failures").Raw != "{}" {
			t.Errorf("failures %s", r.Get("failures"))
		}
		some := bob.Must("POST", Path("/keys/query"), J{"device_keys": J{alice.UserID: []string{"OTHER"}}}).JSON
		if got := some.Get("device_keys").Get(Key(alice.UserID)).Raw; got != "{}" {
			t.Errorf("keys of a device that does not exist: %s", got)
		}
		bob.Refused(400, "M_BAD_JSON", "POST", Path("/keys/query"), J{"device_keys": J{alice.UserID: J{"a": true}}})

		for _, bad := range []struct {
			code string
			keys any
		}{
			{"M_INVALID_PARAM", keys}, // of another user
			{"M_BAD_JSON", J{"user_id": bob.UserID, "device_id": bob.DeviceID}},
			{"M_BAD_JSON", 5},
			{"M_INVALID_PARAM", J{"user_id": bob.UserID, "device_id": "OTHER", "algorithms": []string{}, "keys": J{}, "signatures": J{}}},
			{"M_INVALID_PARAM", J{"user_id": bob.UserID, "device_id": bob.DeviceID, "algorithms": []string{}, "keys": J{"ed25519:OTHER": "x"}, "signatures": J{}}},
		} {
			bob.Refused(400, bad.code, "POST", Path("/keys/upload"), J{"device_keys": bad.keys})
		}
		alice.Must("POST", Path("/logout"), J{})
		if got := query(bob, alice.UserID).Get("device_keys").Get(Key(alice.UserID)).Raw; got != "{}" {
			t.Errorf("after the logout: %s", got)
		}
		if name, _ := claim(bob, alice); name != "" {
			t.Errorf("a key of a device that logged out: %s", name)
		}
	})
}

func TestOneTimeKeys(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		counts(t, alice.Sync(nil), 0, "[]")
		upload := func(keys J) { alice.Must("POST", Path("/keys/upload"), J{"one_time_keys": keys}) }
		upload(oneTime(5, 1))
		upload(oneTime(1, 2))
		upload(oneTime(1, 3)) // two of them again
		counts(t, alice.Sync(nil), 4, "[]")
		alice.Refused(400, "M_INVALID_PARAM", "POST", Path("/keys/upload"), J{"one_time_keys": J{"signed_curve25519:0001": J{"key": "another", "signatures": J{}}}})
		alice.Refused(400, "M_INVALID_PARAM", "POST", Path("/keys/upload"), J{"one_time_keys": J{"nameless": J{"key": "x"}}})
		alice.Refused(400, "M_BAD_JSON", "POST", Path("/keys/upload"), J{"one_time_keys": J{"a:b": 1}})
		alice.Must("POST", Path("/keys/upload"), J{"one_time_keys": J{"other:1": "plain"}})
		alice.Must("POST", Path("/keys/upload"), J{"fallback_keys": J{"signed_curve25519:f": J{"key": "fallback", "fallback": true, "signatures": J{}}}})
		counts(t, alice.Sync(nil), 4, `["signed_curve25519"]`)
		if got := alice.Sync(nil).Get("device_one_time_keys_count.other").Int(); got != 1 {
			t.Errorf("%d keys of the other algorithm", got)
		}
		// In the order of the uploads, whatever their names.
		var got []string
		for range 4 {
			name, _ := claim(bob, alice)
			got = append(got, name)
		}
		want := []string{"signed_curve25519:0005", "signed_curve25519:0001", "signed_curve25519:0002", "signed_curve25519:0003"}
		slices.Sort(got[1:3])
		if !slices.Equal(got, want) {
			t.Errorf("claimed %v, want %v", got, want)
		}
		counts(t, alice.Sync(nil), 0, `["signed_curve25519"]`)
		// A repeated upload does not bring a claimed key back.
		upload(oneTime(1, 3))
		counts(t, alice.Sync(nil), 0, `["signed_curve25519"]`)
		for range 2 {
			if _, key := claim(bob, alice); key != "fallback" {
				t.Errorf("claimed %q, want the fallback key", key)
			}
			counts(t, alice.Sync(nil), 0, `[]`)
		}
		// The same fallback key stays used, another one is not.
		fallback := func(id, key string) {
			alice.Must("POST", Path("/keys/upload"), J{"fallback_keys": J{"signed_curve25519:" + id: J{"key": key, "fallback": true}}})
		}
		alice.Must("POST", Path("/keys/upload"), J{"fallback_keys": J{"signed_curve25519:f": J{"key": "fallback", "fallback": true, "signatures": J{}}}})
		counts(t, alice.Sync(nil), 0, `[]`)
		fallback("g", "next")
		counts(t, alice.Sync(nil), 0, `["signed_curve25519"]`)
		if _, key := claim(bob, alice); key != "next" {
			t.Errorf("claimed %q, want the new fallback key", key)
		}
		s.Restart()
		alice.Server, bob.Server = s, s
		counts(t, alice.Sync(nil), 0, `[]`)
		nobody := bob.Must("POST", Path("/keys/claim"), J{"one_time_keys": J{"@nobody:" + s.Name: J{"X": "signed_curve25519"}, alice.UserID: J{alice.DeviceID: "unknown"}}})
		if nobody.JSON.Get("one_time_keys").Raw != "{}" {
			t.Errorf("claimed %s", nobody)
		}
	})
}

// TestClaimRace claims fifty keys a hundred times at once: each is given out once, and then the fallback key.
func TestClaimRace(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		alice.Must("POST", Path("/keys/upload"), J{"one_time_keys": oneTime(0, 50),
			"fallback_keys": J{"signed_curve25519:f": J{"key": "fallback", "fallback": true, "signatures": J{}}}})
		var mu sync.Mutex
		claimed := map[string]int{}
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() {
				_, key := claim(bob, alice)
				mu.Lock()
				defer mu.Unlock()
				claimed[key]++
			})
		}
		group.Wait()
		if claimed["fallback"] != 50 || len(claimed) != 51 {
			t.Errorf("claimed %d different keys, the fallback key %d times", len(claimed), claimed["fallback"])
		}
		for key, n := range claimed {
			if key != "fallback" && n != 1 {
				t.Errorf("%q was claimed %d times", key, n)
			}
		}
	})
}

// TestNewIdentity checks that one-time keys of an identity go with it.
func TestNewIdentity(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		upload := func(key string) J {
			return J{"user_id": alice.UserID, "device_id": alice.DeviceID, "algorithms": []string{}, "signatures": J{}, "keys": J{"ed25519:" + alice.DeviceID: key}}
		}
		alice.Must("POST", Path("/keys/upload"), J{"device_keys": upload("one"), "one_time_keys": oneTime(0, 2)})
		alice.Must("POST", Path("/keys/upload"), J{"device_keys": upload("one")})
		counts(t, alice.Sync(nil), 2, "[]")
		alice.Must("POST", Path("/keys/upload"), J{"device_keys": upload("two"), "one_time_keys": oneTime(7, 1)})
		counts(t, alice.Sync(nil), 1, "[]")
		if name, _ := claim(bob, alice); name != "signed_curve25519:0007" {
			t.Errorf("claimed %s", name)
		}
	})
}

// TestSignedKeys checks that a device hears of a wrong signature, before others turn away from its keys.
func TestSignedKeys(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		keys, device := deviceKeys(t, alice)
		forger := newSigner("forger")
		oneTimeBy := func(by signer, id string) J {
			return J{"signed_curve25519:" + id: by.sign(t, alice.UserID, alice.DeviceID, J{"key": "key " + id})}
		}
		fallbackBy := func(by signer) J {
			return J{"signed_curve25519:f": by.sign(t, alice.UserID, alice.DeviceID, J{"key": "fallback", "fallback": true})}
		}
		var unsigned J
		if err := json.Unmarshal(keys, &unsigned); err != nil {
			t.Fatal(err)
		}
		delete(unsigned, "signatures")
		upload := Path("/keys/upload")
		refused := func(body J) {
			t.Helper()
			alice.Refused(400, "M_INVALID_SIGNATURE", "POST", upload, body)
		}
		refused(J{"device_keys": forger.sign(t, alice.UserID, alice.DeviceID, unsigned)})
		refused(J{"device_keys": keys, "one_time_keys": oneTimeBy(forger, "1")})
		refused(J{"device_keys": keys, "fallback_keys": fallbackBy(forger)})
		if got := query(bob, alice.UserID).Get("device_keys").Get(Key(alice.UserID)).Raw; got != "{}" {
			t.Errorf("a refused upload left %s", got)
		}
		alice.Must("POST", upload, J{"one_time_keys": oneTimeBy(forger, "0")}) // by what key, nobody knows yet
		alice.Must("POST", upload, J{"device_keys": keys, "one_time_keys": oneTimeBy(device, "1"), "fallback_keys": fallbackBy(device)})
		refused(J{"one_time_keys": oneTimeBy(forger, "2")})
		refused(J{"fallback_keys": fallbackBy(forger)})
		alice.Refused(400, "M_BAD_JSON", "POST", upload, J{"one_time_keys": J{"signed_curve25519:3": "nothing to sign"}})
		alice.Must("POST", upload, J{"one_time_keys": oneTimeBy(device, "2")})
		counts(t, alice.Sync(nil), 3, `["signed_curve25519"]`)

		// The same keys with more signatures, as after cross-signing, are no new identity: what was uploaded stays.
		x := newCrossSigning(alice.UserID, "1")
		alice.Must("POST", upload, J{"device_keys": x.self.sign(t, alice.UserID, x.self.public, keys)})
		counts(t, alice.Sync(nil), 3, `["signed_curve25519"]`)
	})
}
