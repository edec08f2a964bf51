package e2ee

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
)

// deviceKeysShape is what device keys must have.
type deviceKeysShape struct {
	UserID     *string                       `json:"user_id"`
	DeviceID   *string                       `json:"device_id"`
	Algorithms *[]string                     `json:"algorithms"`
	Keys       *map[string]string            `json:"keys"`
	Signatures *map[string]map[string]string `json:"signatures"`
}

// checkDeviceKeys checks the identity keys of a device and returns them in canonical form, without what servers add.
func checkDeviceKeys(raw []byte, user, device string) ([]byte, error) {
	if len(raw) > maxDeviceKeys {
		return nil, mxerr.TooLarge("The keys of a device are too large")
	}
	var shape deviceKeysShape
	if err := json.Unmarshal(raw, &shape); err != nil {
		return nil, mxerr.BadJSON("device_keys is not as it should be").With(err)
	}
	if shape.UserID == nil || shape.DeviceID == nil || shape.Algorithms == nil || shape.Keys == nil || shape.Signatures == nil {
		return nil, mxerr.BadJSON("device_keys must have user_id, device_id, algorithms, keys and signatures")
	}
	if *shape.UserID != user || *shape.DeviceID != device {
		return nil, mxerr.InvalidParam("device_keys belong to another user or device")
	}
	for name := range *shape.Keys {
		if _, id, ok := strings.Cut(name, ":"); !ok || id != device {
			return nil, mxerr.InvalidParam("A key in device_keys is not named algorithm:device_id")
		}
	}
	return withoutUnsigned(raw)
}

// withoutUnsigned returns the canonical form of an object without its member "unsigned".
func withoutUnsigned(raw []byte) ([]byte, error) {
	canon, err := canonicaljson.Canonical(raw, canonicaljson.Lax)
	if err != nil || canon[0] != '{' {
		return nil, mxerr.BadJSON("A key is not as it should be").With(err)
	}
	out := []byte{'{'}
	for w := canonicaljson.Walk(canon); w.Next(); {
		if string(w.Name) == "unsigned" {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), w.Name...), '"', ':')
		out = append(out, w.Value...)
	}
	return append(out, '}'), nil
}

// signingKey is the Ed25519 key of a device in its checked identity keys, with which it signs; nil if it has none that can
// be used.
func signingKey(identity []byte, device string) ed25519.PublicKey {
	for w := canonicaljson.Walk(canonicaljson.Member(identity, "keys")); w.Next(); {
		name, ok := w.DecodedName()
		value, isText := canonicaljson.DecodeString(w.Value)
		if ok && isText && string(name) == signing.Algorithm+device {
			return decodeKey(string(value))
		}
	}
	return nil
}

// checkSigned checks the signature that a device made of something in canonical form. Whoever wants a session with the
// device checks it as well and turns away, so that the device had better hear of one that is wrong. There may be none:
// what is not signed is worth nothing to others, but does no harm.
func checkSigned(object []byte, user, device string, key ed25519.PublicKey) error {
	if key == nil {
		return nil
	}
	for _, s := range signing.Signatures(canonicaljson.Member(object, "signatures"), user) {
		if s.KeyID == signing.Algorithm+device {
			return signing.Verify(signing.Message(nil, object), s.Value, key)
		}
	}
	return nil
}

// writeIdentity stores the identity keys, if they are new. One-time keys that another identity signed are of no use to
// anybody.
func (u *keyUpload) writeIdentity(tx *storage.Tx) error {
	var old []byte
	found, err := tx.Get(`SELECT content FROM device_keys WHERE user_id = $1 AND device_id = $2`, []any{u.user, u.device}, &old)
	if err != nil || found && bytes.Equal(old, u.identity) {
		return err
	}
	_, err = tx.Exec(`INSERT INTO device_keys (user_id, device_id, content) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, device_id) DO UPDATE SET content = excluded.content`, u.user, u.device, u.identity)
	if err != nil {
		return err
	}
	if found && !bytes.Equal(canonicaljson.Member(old, "keys"), canonicaljson.Member(u.identity, "keys")) {
		for _, table := range []string{"one_time_keys", "fallback_keys"} {
			if _, err := tx.Exec(`DELETE FROM `+table+` WHERE user_id = $1 AND device_id = $2`, u.user, u.device); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`DELETE FROM key_signatures WHERE user_id = $1 AND target = $2`, u.user, u.device); err != nil {
			return err
		}
		tx.Notice(storage.Notice{Kind: storage.OneTimeKeys, User: u.user})
	}
	return noteNews(tx, u.user, u.device)
}

// canonicalOf returns a copy of the canonical form of an object.
func canonicalOf(rawObject []byte) ([]byte, error) {
	canon, err := canonicaljson.Canonical(rawObject, canonicaljson.Lax)
	if err != nil || canon[0] != '{' {
		return nil, mxerr.BadJSON("A key is not as it should be").With(err)
	}
	return append([]byte(nil), canon...), nil
}
