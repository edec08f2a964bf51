package e2ee

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
)

// crossSigningKey is a checked master, self-signing or user-signing key.
type crossSigningKey struct {
	usage, public string
	content       []byte // canonical JSON
}

type crossSigningShape struct {
	UserID     string                       `json:"user_id"`
	Usage      []string                     `json:"usage"`
	Keys       map[string]string            `json:"keys"`
	Signatures map[string]map[string]string `json:"signatures"`
}

// checkCrossSigningKey checks the form of a key: whose it is, what for, and that it is one Ed25519 key.
func checkCrossSigningKey(raw []byte, user, usage string) (k crossSigningKey, err error) {
	if len(raw) > maxDeviceKeys {
		return k, mxerr.TooLarge("A cross-signing key is too large")
	}
	var shape crossSigningShape
	if err := json.Unmarshal(raw, &shape); err != nil {
		return k, mxerr.BadJSON("A cross-signing key is not as it should be").With(err)
	}
	if shape.UserID != user {
		return k, mxerr.InvalidParam("A cross-signing key belongs to another user")
	}
	if !slices.Contains(shape.Usage, usage) {
		return k, mxerr.InvalidParam("A cross-signing key is not for " + usage)
	}
	if len(shape.Keys) != 1 {
		return k, mxerr.InvalidParam("A cross-signing key must have exactly one key")
	}
	for name, value := range shape.Keys {
		decoded, err := signing.DecodeBase64(value)
		if name != signing.Algorithm+value || err != nil || len(decoded) != ed25519.PublicKeySize {
			return k, mxerr.InvalidParam("A cross-signing key is no Ed25519 key named by itself")
		}
		k.public = value
	}
	k.usage = usage
	k.content, err = canonicalOf(raw)
	return k, err
}

func putCrossSigningKey(tx *storage.Tx, user string, k crossSigningKey) error {
	_, err := tx.Exec(`INSERT INTO cross_signing_keys (user_id, usage, public_key, content) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, content = excluded.content`, user, k.usage, k.public, k.content)
	return err
}

// crossSigningKeys reads a user's keys by usage.
func crossSigningKeys(tx *storage.Tx, user string) (map[string]crossSigningKey, error) {
	keys := map[string]crossSigningKey{}
	rows := tx.Query(`SELECT usage, public_key, content FROM cross_signing_keys WHERE user_id = $1`, user)
	for rows.Next() {
		var k crossSigningKey
		rows.Scan(&k.usage, &k.public, &k.content)
		keys[k.usage] = k
	}
	return keys, rows.Close()
}

type crossSigningParams struct {
	Master      json.RawMessage `json:"master_key,omitempty"`
	SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
	UserSigning json.RawMessage `json:"user_signing_key,omitempty"`
}

type crossSigningRequest struct {
	Auth json.RawMessage `json:"auth"`
	crossSigningParams
}

// uploadCrossSigning: client-server API v1.19, POST /keys/device_signing/upload. The first keys of a user need no
// proof of who they are, nor do those that are there already.
func (a *API) uploadCrossSigning(ctx context.Context, by *httpapi.Caller, in *crossSigningRequest) (*httpapi.Empty, error) {
	keys, err := in.parse(by.UserID)
	if err != nil {
		return nil, err
	}
	var known map[string]crossSigningKey
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		known, err = crossSigningKeys(tx, by.UserID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read cross-signing keys: %w", err)
	}
	fresh := newKeys(keys, known)
	if len(keys) > 0 && len(fresh) == 0 {
		return nil, nil
	}
	confirmed := by.Appservice != nil
	if _, has := known[usageMaster]; has && !confirmed {
		c := accounts.Challenge{Operation: "POST /keys/device_signing/upload", Auth: in.Auth, Params: &in.crossSigningParams}
		if err := a.accounts.Confirm(ctx, by, c); err != nil {
			return nil, err
		}
		confirmed = true
		if keys, err = in.parse(by.UserID); err != nil { // they may be those of the first attempt
			return nil, err
		}
	}
	if len(keys) == 0 {
		return nil, mxerr.MissingParam("There are no keys in the request")
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error { return writeCrossSigning(tx, by.UserID, keys, confirmed) })
	if errors.Is(err, errNeedsProof) {
		return a.uploadCrossSigning(ctx, by, in) // another request was faster; now there is something to protect
	}
	if err != nil {
		return nil, fmt.Errorf("store cross-signing keys: %w", err)
	}
	return nil, nil
}

// parse checks the keys of the request.
func (p *crossSigningParams) parse(user string) (keys []crossSigningKey, err error) {
	for _, part := range []struct {
		usage string
		raw   json.RawMessage
	}{{usageMaster, p.Master}, {usageSelfSigning, p.SelfSigning}, {usageUserSigning, p.UserSigning}} {
		if len(part.raw) == 0 || string(part.raw) == "null" {
			continue
		}
		k, err := checkCrossSigningKey(part.raw, user, part.usage)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// newKeys returns those that are not stored like this already.
func newKeys(keys []crossSigningKey, known map[string]crossSigningKey) (fresh []crossSigningKey) {
	for _, k := range keys {
		if old, ok := known[k.usage]; !ok || !sameSigned(old.content, k.content) {
			fresh = append(fresh, k)
		}
	}
	return fresh
}

// sameSigned tells whether two objects are equal but for their signatures.
func sameSigned(a, b []byte) bool {
	return bytes.Equal(signing.Message(nil, a), signing.Message(nil, b))
}

var errNeedsProof = errors.New("there are cross-signing keys now")

// writeCrossSigning stores keys. Without the user's confirmation it may only be the first ones.
func writeCrossSigning(tx *storage.Tx, user string, keys []crossSigningKey, confirmed bool) error {
	if err := tx.Lock("keys " + user); err != nil {
		return err
	}
	known, err := crossSigningKeys(tx, user)
	if err != nil {
		return err
	}
	fresh := newKeys(keys, known)
	if len(fresh) == 0 {
		return nil
	}
	master, has := known[usageMaster]
	if has && !confirmed {
		return errNeedsProof
	}
	replaced := false
	if fresh[0].usage == usageMaster {
		replaced, master, has = has, fresh[0], true
	}
	if !has {
		return mxerr.MissingParam("There is no master signing key")
	}
	for _, k := range fresh {
		if err := checkNewKey(tx, user, &k, &master); err != nil {
			return err
		}
		if err := putCrossSigningKey(tx, user, k); err != nil {
			return err
		}
		// What was said of the key before this one is not said of it.
		if old, ok := known[k.usage]; ok && old.public != k.public {
			if _, err := tx.Exec(`DELETE FROM key_signatures WHERE user_id = $1 AND target = $2`, user, old.public); err != nil {
				return err
			}
		}
	}
	if replaced {
		if err := dropUnsigned(tx, user, keys, known, &master); err != nil {
			return err
		}
	}
	return noteNews(tx, user, "")
}

// checkNewKey checks that a key's name is not that of a device and that the master key has signed it.
func checkNewKey(tx *storage.Tx, user string, k, master *crossSigningKey) error {
	taken, err := accounts.HasDevice(tx, user, k.public)
	if err != nil {
		return err
	}
	if taken {
		return mxerr.Forbidden("That key is the id of a device")
	}
	if k.usage == usageMaster {
		return nil
	}
	if verify(k.content, user, master.public) != nil {
		return mxerr.New(400, "M_INVALID_SIGNATURE", "The "+k.usage+" key is not signed by the master key")
	}
	return nil
}

// verify checks the signature that a user made of an object with an Ed25519 key named by itself.
func verify(obj []byte, user, public string) error {
	key, err := signing.DecodeBase64(public)
	if err != nil {
		return err
	}
	return signing.VerifyJSON(obj, user, signing.Algorithm+public, key)
}

// dropUnsigned deletes the keys that a replaced master key leaves without a signature.
func dropUnsigned(tx *storage.Tx, user string, given []crossSigningKey, known map[string]crossSigningKey, master *crossSigningKey) error {
	for _, usage := range []string{usageSelfSigning, usageUserSigning} {
		old, ok := known[usage]
		if !ok || slices.ContainsFunc(given, func(k crossSigningKey) bool { return k.usage == usage }) || verify(old.content, user, master.public) == nil {
			continue
		}
		if _, err := tx.Exec(`DELETE FROM cross_signing_keys WHERE user_id = $1 AND usage = $2`, user, usage); err != nil {
			return err
		}
	}
	return nil
}
