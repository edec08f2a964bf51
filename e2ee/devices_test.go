package e2ee

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
	"github.com/myelin-im/myelin/storage/storagetest"
)

// eachAPI runs fn as a subtest with the API on each kind of database.
func eachAPI(t *testing.T, fn func(t *testing.T, a *API)) {
	storagetest.Each(t, []storage.Schema{roomserver.Schema, accounts.Schema, Schema}, func(t *testing.T, db *storage.DB) { fn(t, newAPI(t, db)) })
}

// codeOf is the code of an error of the API, empty for success and "?" for errors without one.
func codeOf(err error) string {
	var e *mxerr.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	}
	return "?"
}

// device is one that signs.
type device struct {
	t   *testing.T
	api *API
	by  *httpapi.Caller
	key ed25519.PrivateKey
}

// stranger is a device that the server does not know.
func stranger(t *testing.T, a *API, user, id string) *device {
	seed := sha256.Sum256([]byte(user + id))
	return &device{t: t, api: a, by: &httpapi.Caller{UserID: user, DeviceID: id}, key: ed25519.NewKeyFromSeed(seed[:])}
}

// newDevice logs a device in, which has no keys yet.
func newDevice(t *testing.T, a *API, user, id string) *device {
	t.Helper()
	err := a.db.Write(t.Context(), func(tx *storage.Tx) error {
		_, err := a.accounts.AddDevice(tx, user, id, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return stranger(t, a, user, id)
}

// sign signs an object as a device, which need not be this one.
func (d *device) sign(user, id, object string) json.RawMessage {
	d.t.Helper()
	signed, err := signing.SignJSON([]byte(object), user, "ed25519:"+id, d.key)
	if err != nil {
		d.t.Fatal(err)
	}
	return signed
}

func (d *device) signed(object string) json.RawMessage {
	return d.sign(d.by.UserID, d.by.DeviceID, object)
}

// described are device keys of a user and device.
func (d *device) described(user, id string) string {
	return fmt.Sprintf(`{"user_id":%q,"device_id":%q,"algorithms":["m.megolm.v1.aes-sha2"],"keys":{"ed25519:%s":%q}}`,
		user, id, id, signing.EncodeBase64(d.key.Public().(ed25519.PublicKey)))
}

func (d *device) identity() json.RawMessage { return d.signed(d.described(d.by.UserID, d.by.DeviceID)) }

// keys makes signed one-time or fallback keys with these names.
func (d *device) keys(names ...string) map[string]json.RawMessage {
	d.t.Helper()
	out := map[string]json.RawMessage{}
	for _, name := range names {
		out[signedCurve25519+":"+name] = d.signed(fmt.Sprintf(`{"key":"key %s of %s"}`, name, d.by.DeviceID))
	}
	return out
}

// upload uploads keys and returns the counts, as JSON.
func (d *device) upload(in *uploadRequest) (string, error) {
	d.t.Helper()
	out, err := d.api.upload(d.t.Context(), d.by, in)
	if err != nil {
		return "", err
	}
	return string(out.Counts), nil
}

// uploads is upload that must succeed.
func (d *device) uploads(in *uploadRequest) {
	d.t.Helper()
	if _, err := d.upload(in); err != nil {
		d.t.Fatal(err)
	}
}

// has checks what the device is told of its keys.
func (d *device) has(what, oneTime, fallback string) {
	d.t.Helper()
	c, err := d.api.KeyCounts(d.t.Context(), d.by.UserID, d.by.DeviceID)
	if err != nil || string(c.OneTime) != oneTime || string(c.UnusedFallback) != fallback {
		d.t.Errorf("%s: keys %s, unused fallback keys %s, %v; want %s and %s", what, c.OneTime, c.UnusedFallback, err, oneTime, fallback)
	}
}

// published checks how many devices of a user have keys.
func published(t *testing.T, a *API, user string, want int) {
	t.Helper()
	out, err := a.query(t.Context(), &httpapi.Caller{UserID: user}, &queryRequest{DeviceKeys: queriedDevices{user: nil}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := out.AppendJSON(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	gjson.GetBytes(raw, "device_keys").ForEach(func(_, devices gjson.Result) bool {
		got += len(devices.Map())
		return true
	})
	if got != want {
		t.Errorf("%d devices of %s have keys, want %d: %s", got, user, want, raw)
	}
}
