package encryption

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	. "github.com/myelin-im/myelin/test/harness"
)

// crossSigning are the three keys of a user.
type crossSigning struct {
	user              string
	master, self, our signer
}

func newCrossSigning(user, generation string) crossSigning {
	return crossSigning{user, newSigner("m" + generation + user), newSigner("s" + generation + user), newSigner("u" + generation + user)}
}

func (x crossSigning) key(s signer, usage string) J {
	return J{"user_id": x.user, "usage": []string{usage}, "keys": J{"ed25519:" + s.public: s.public}}
}

func (x crossSigning) upload(t testing.TB) J {
	return J{
		"master_key":       x.key(x.master, "master"),
		"self_signing_key": x.master.sign(t, x.user, x.master.public, x.key(x.self, "self_signing")),
		"user_signing_key": x.master.sign(t, x.user, x.master.public, x.key(x.our, "user_signing")),
	}
}

const deviceSigning = "/_matrix/client/v3/keys/device_signing/upload"

// confirmed is a request again with the password.
func confirmed(c *Client, body J, challenge *Answer) J {
	again := J{"auth": J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": c.UserID}, "password": Password, "session": challenge.JSON.Get("session").Str}}
	for k, v := range body {
		again[k] = v
	}
	return again
}

func TestCrossSigning(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		x := newCrossSigning(alice.UserID, "1")
		body := x.upload(t)
		alice.Refused(400, "M_MISSING_PARAM", "POST", deviceSigning, J{})
		alice.Refused(400, "M_MISSING_PARAM", "POST", deviceSigning, J{"self_signing_key": body["self_signing_key"]})
		forged := newSigner("forger").sign(t, alice.UserID, x.master.public, x.key(x.self, "self_signing"))
		alice.Refused(400, "M_INVALID_SIGNATURE", "POST", deviceSigning, J{"master_key": body["master_key"], "self_signing_key": forged})
		alice.Refused(400, "M_INVALID_PARAM", "POST", deviceSigning, J{"master_key": body["self_signing_key"]})
		bob.Refused(400, "M_INVALID_PARAM", "POST", deviceSigning, body)

		alice.Must("POST", deviceSigning, body) // the first keys need no password
		alice.Must("POST", deviceSigning, body) // nor do the same ones
		mine, others := query(alice, alice.UserID), query(bob, alice.UserID)
		for _, name := range []string{"master_keys", "self_signing_keys", "user_signing_keys"} {
			if !mine.Get(name).Get(Key(alice.UserID)).Exists() {
				t.Errorf("alice does not see her %s", name)
			}
			if got := others.Get(name).Get(Key(alice.UserID)).Exists(); got != (name != "user_signing_keys") {
				t.Errorf("bob sees alice's %s: %t", name, got)
			}
		}

		next := newCrossSigning(alice.UserID, "2")
		change := next.upload(t)
		challenge := alice.Do("POST", deviceSigning, change)
		if challenge.Status != 401 || !challenge.JSON.Get("flows").IsArray() {
			t.Fatalf("other keys without a password: %v", challenge)
		}
		// matrix-js-sdk asks at the path of the proposal, MSC1756, and with no keys to learn what it takes to change them.
		if probe := alice.Do("POST", "/_matrix/client/unstable/keys/device_signing/upload", J{}); probe.Status != 401 || !probe.JSON.Get("flows").IsArray() {
			t.Errorf("a question for the proof that other keys need: %v", probe)
		}
		alice.Must("POST", deviceSigning, confirmed(alice, change, challenge))
		if got := query(bob, alice.UserID).Get("master_keys").Get(Key(alice.UserID)).Get("keys").Raw; gjson.Get(got, Key("ed25519:"+next.master.public)).Str == "" {
			t.Errorf("the master key is %s", got)
		}
		// A new master key alone leaves the others, which it has not signed, without a meaning.
		last := newCrossSigning(alice.UserID, "3")
		alone := J{"master_key": last.upload(t)["master_key"]}
		alice.Must("POST", deviceSigning, confirmed(alice, alone, alice.Do("POST", deviceSigning, alone)))
		if got := query(alice, alice.UserID); got.Get("self_signing_keys").Raw != "{}" || got.Get("user_signing_keys").Raw != "{}" {
			t.Errorf("keys of the old master key are left: %s", got)
		}
	})
}

// TestNamesOfKeysAndDevices checks that no device has the name of a cross-signing key, whichever is there first.
func TestNamesOfKeysAndDevices(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice := s.Register(t, "alice")
		x, y := newCrossSigning(alice.UserID, "1"), newCrossSigning(alice.UserID, "2")
		login := func(user, device string) J {
			return J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": user}, "password": Password, "device_id": device}
		}
		s.Client(t).Must("POST", Path("/login"), login("alice", x.self.public))
		alice.Refused(403, "M_FORBIDDEN", "POST", deviceSigning, x.upload(t))
		alice.Must("POST", deviceSigning, y.upload(t))
		for _, key := range []signer{y.master, y.self, y.our} {
			s.Client(t).Refused(400, "M_INVALID_PARAM", "POST", Path("/login"), login("alice", key.public))
		}
		s.Register(t, "bob")
		s.Client(t).Must("POST", Path("/login"), login("bob", y.master.public)) // of another user
		alice.Refused(400, "M_INVALID_PARAM", "PUT", "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device", J{
			"device_id": y.self.public, "device_data": J{"algorithm": "x"}, "device_keys": J{"user_id": alice.UserID, "device_id": y.self.public,
				"algorithms": []string{}, "keys": J{}, "signatures": J{}}})
	})
}

func TestSignatures(t *testing.T) {
	Each(t, func(t *testing.T, s *Server) {
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		phone := alice.Login()
		withKeys(t, alice)
		alicesDevice := newSigner(alice.UserID + alice.DeviceID)
		keys, _ := deviceKeys(t, phone)
		phone.Must("POST", Path("/keys/upload"), J{"device_keys": keys})
		x, y := newCrossSigning(alice.UserID, "1"), newCrossSigning(bob.UserID, "1")
		alice.Must("POST", deviceSigning, x.upload(t))
		bob.Must("POST", deviceSigning, y.upload(t))
		room := alice.Create(J{"preset": "public_chat"})
		bob.Join(room)
		alice.Sync(nil)
		bob.Sync(nil)
		upload := func(c *Client, body J) gjson.Result {
			return c.Must("POST", Path("/keys/signatures/upload"), body).JSON.Get("failures")
		}
		code := func(failures gjson.Result, user, target string) string {
			return failures.Get(Key(user)).Get(Key(target)).Get("errcode").Str
		}
		// Own devices with the self-signing key, the own master key with a device.
		signed := J{
			phone.DeviceID:  x.self.sign(t, alice.UserID, x.self.public, keys),
			x.master.public: alicesDevice.sign(t, alice.UserID, alice.DeviceID, x.key(x.master, "master")),
		}
		if f := upload(alice, J{alice.UserID: signed}); f.Raw != "{}" {
			t.Fatalf("failures %s", f)
		}
		r := query(bob, alice.UserID)
		device := r.Get("device_keys").Get(Key(alice.UserID)).Get(Key(phone.DeviceID))
		if got := device.Get("signatures").Get(Key(alice.UserID)); !got.Get(Key("ed25519:"+x.self.public)).Exists() || !got.Get(Key("ed25519:"+phone.DeviceID)).Exists() {
			t.Errorf("signatures of the device: %s", device)
		}
		master := r.Get("master_keys").Get(Key(alice.UserID))
		if !master.Get("signatures").Get(Key(alice.UserID)).Get(Key("ed25519:" + alice.DeviceID)).Exists() {
			t.Errorf("signatures of the master key: %s", master)
		}
		if got := changed(bob.Sync(nil)); !slices.Equal(got, []string{alice.UserID}) {
			t.Errorf("bob hears of changed devices of %v", got)
		}
		// The same once more is fine: clients send what they have.
		if f := upload(alice, J{alice.UserID: signed}); f.Raw != "{}" {
			t.Errorf("failures of the repetition: %s", f)
		}

		// Others' master keys with the user-signing key, which only the signer sees.
		alice.Sync(nil)
		bob.Sync(nil)
		if f := upload(alice, J{bob.UserID: J{y.master.public: x.our.sign(t, alice.UserID, x.our.public, y.key(y.master, "master"))}}); f.Raw != "{}" {
			t.Fatalf("failures %s", f)
		}
		// Her other devices must fetch bob's key again to see that he is verified.
		if got := changed(alice.Sync(nil)); !slices.Equal(got, []string{alice.UserID, bob.UserID}) {
			t.Errorf("alice's devices hear of changes of %v", got)
		}
		if got := changed(bob.Sync(nil)); slices.Contains(got, bob.UserID) {
			t.Errorf("bob hears of changes of %v", got)
		}
		sees := func(c *Client) bool {
			return query(c, bob.UserID).Get("master_keys").Get(Key(bob.UserID)).Get("signatures").Get(Key(alice.UserID)).Exists()
		}
		if !sees(alice) || !sees(phone) || sees(bob) {
			t.Errorf("alice's signature of bob's key is seen by alice %t, her phone %t, bob %t", sees(alice), sees(phone), sees(bob))
		}

		wrong := J{"user_id": alice.UserID, "device_id": phone.DeviceID, "algorithms": []string{}, "keys": J{}}
		forged, err := json.Marshal(J{"user_id": bob.UserID, "usage": []string{"master"}, "keys": y.key(y.master, "master")["keys"],
			"signatures": J{alice.UserID: J{"ed25519:" + x.our.public: "AAAA"}}})
		if err != nil {
			t.Fatal(err)
		}
		f := upload(alice, J{
			alice.UserID: J{phone.DeviceID: x.self.sign(t, alice.UserID, x.self.public, wrong), "UNKNOWN": J{}, alice.DeviceID: x.our.sign(t, alice.UserID, x.our.public, deviceOf(t, alice))},
			bob.UserID:   J{y.master.public: json.RawMessage(forged)},
		})
		for _, want := range []struct{ user, target, code string }{
			{alice.UserID, phone.DeviceID, "M_INVALID_SIGNATURE"}, {alice.UserID, "UNKNOWN", "M_NOT_FOUND"},
			{alice.UserID, alice.DeviceID, "M_INVALID_SIGNATURE"}, {bob.UserID, y.master.public, "M_INVALID_SIGNATURE"},
		} {
			if got := code(f, want.user, want.target); got != want.code {
				t.Errorf("signature of %s %s: %q, want %s", want.user, want.target, got, want.code)
			}
		}
		alice.Refused(400, "M_BAD_JSON", "POST", Path("/keys/signatures/upload"), J{alice.UserID: 7})
	})
}

func deviceOf(t testing.TB, c *Client) json.RawMessage {
	keys, _ := deviceKeys(t, c)
	return keys
}

// changed and left are the users in a sync's device_lists.
func changed(sync gjson.Result) []string { return texts(sync.Get("device_lists.changed")) }
func left(sync gjson.Result) []string    { return texts(sync.Get("device_lists.left")) }

func texts(array gjson.Result) []string {
	list := []string{}
	for _, s := range array.Array() {
		list = append(list, s.Str)
	}
	return list
}
