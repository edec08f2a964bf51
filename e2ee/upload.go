package e2ee

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

const (
	// maxKey bounds one key object and maxDeviceKeys the keys of a device, in bytes.
	maxKey        = 4 << 10
	maxDeviceKeys = 32 << 10
	// maxOneTimeKeys bounds the unclaimed one-time keys of a device, maxFallbackKeys its fallback keys.
	maxOneTimeKeys  = 2000
	maxFallbackKeys = 10
	// maxKeyName bounds names of algorithms and keys, in bytes.
	maxKeyName = 255
)

var errNoDevice = mxerr.InvalidParam("This access token has no device")

type uploadRequest struct {
	DeviceKeys   json.RawMessage            `json:"device_keys"`
	OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
	FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
	// DraftFallbackKeys is the name from before MSC2732 was accepted.
	DraftFallbackKeys map[string]json.RawMessage `json:"org.matrix.msc2732.fallback_keys"`
}

type uploadResponse struct {
	Counts json.RawMessage `json:"one_time_key_counts"`
}

// upload: client-server API v1.19, POST /keys/upload.
func (a *API) upload(ctx context.Context, by *httpapi.Caller, in *uploadRequest) (*uploadResponse, error) {
	if by.DeviceID == "" {
		return nil, errNoDevice
	}
	if in.FallbackKeys == nil {
		in.FallbackKeys = in.DraftFallbackKeys
	}
	u := &keyUpload{user: by.UserID, device: by.DeviceID, now: a.nowMS()}
	if err := u.parse(in.DeviceKeys, in.OneTimeKeys, in.FallbackKeys); err != nil {
		return nil, err
	}
	var counts map[string]KeyCounts
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		known, err := accounts.HasDevice(tx, by.UserID, by.DeviceID)
		if err != nil {
			return err
		}
		if !known {
			return mxerr.UnknownToken(false) // it was just logged out
		}
		if err := u.write(tx); err != nil {
			return err
		}
		counts, err = countKeys(tx, by.UserID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store keys: %w", err)
	}
	return &uploadResponse{countsOf(counts, by.DeviceID).OneTime}, nil
}

// keyUpload is the keys that a device brings.
type keyUpload struct {
	user, device string
	now          int64
	identity     []byte // canonical JSON; nil: none
	oneTime      []oneTimeKey
	fallback     []oneTimeKey
}

// oneTimeKey is a one-time or fallback key: "algorithm:id" and canonical JSON.
type oneTimeKey struct {
	algorithm, id string
	content       []byte
}

// parse checks the keys of a request.
func (u *keyUpload) parse(identity json.RawMessage, oneTime, fallback map[string]json.RawMessage) (err error) {
	if len(identity) > 0 && string(identity) != "null" {
		if u.identity, err = checkDeviceKeys(identity, u.user, u.device); err != nil {
			return err
		}
	}
	if len(oneTime) > maxOneTimeKeys {
		return mxerr.TooLarge("There are too many one-time keys")
	}
	if len(fallback) > maxFallbackKeys {
		return mxerr.TooLarge("There are too many fallback keys")
	}
	if u.oneTime, err = parseOneTimeKeys(oneTime); err != nil {
		return err
	}
	if u.fallback, err = parseOneTimeKeys(fallback); err != nil {
		return err
	}
	for i := range u.fallback {
		for _, other := range u.fallback[:i] {
			if other.algorithm == u.fallback[i].algorithm {
				return mxerr.InvalidParam("There can be one fallback key for each algorithm")
			}
		}
	}
	return nil
}

// parseOneTimeKeys checks the form of one-time keys and sorts them, so that the same request always does the same.
func parseOneTimeKeys(keys map[string]json.RawMessage) ([]oneTimeKey, error) {
	list := make([]oneTimeKey, 0, len(keys))
	for name, raw := range keys {
		k := oneTimeKey{}
		var ok bool
		if k.algorithm, k.id, ok = strings.Cut(name, ":"); !ok || k.algorithm == "" || k.id == "" || len(name) > maxKeyName {
			return nil, mxerr.InvalidParam("The name of a one-time key is not algorithm:id")
		}
		if len(raw) > maxKey {
			return nil, mxerr.TooLarge("A one-time key is too large")
		}
		canon, err := canonicaljson.Canonical(raw, canonicaljson.Lax)
		if err != nil {
			return nil, mxerr.BadJSON("A one-time key is not as it should be").With(err)
		}
		if canon[0] != '"' && (canon[0] != '{' || !isString(canonicaljson.Member(canon, "key"))) {
			return nil, mxerr.BadJSON("A one-time key must be a string or an object with a key")
		}
		k.content = bytes.Clone(canon)
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b oneTimeKey) int {
		if c := strings.Compare(a.algorithm, b.algorithm); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return list, nil
}

func isString(token []byte) bool { return len(token) > 0 && token[0] == '"' }

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

// write stores the keys.
func (u *keyUpload) write(tx *storage.Tx) error {
	if err := tx.Lock("keys " + u.user); err != nil {
		return err
	}
	if u.identity != nil {
		if err := u.writeIdentity(tx); err != nil {
			return err
		}
	}
	if len(u.oneTime) == 0 && len(u.fallback) == 0 {
		return nil
	}
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	if err := u.writeOneTime(tx, pos); err != nil {
		return err
	}
	for _, k := range u.fallback {
		// The same key again does not make it unused.
		_, err := tx.Exec(`INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, content, used) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, content = excluded.content, used = excluded.used
			WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.content <> excluded.content`,
			u.user, u.device, k.algorithm, k.id, k.content, false)
		if err != nil {
			return err
		}
	}
	tx.Notice(storage.Notice{Pos: pos, Kind: storage.OneTimeKeys, User: u.user})
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

// oneTimeKeysPerInsert bounds the keys of one statement.
const oneTimeKeysPerInsert = 100

// errKeyExists is about a key with the name of another.
var errKeyExists = errors.New("another key of this name exists")

// writeOneTime stores one-time keys. A key that is there already, or was and has been claimed, is passed over; another
// key of the same name is refused.
func (u *keyUpload) writeOneTime(tx *storage.Tx, pos int64) error {
	if len(u.oneTime) == 0 {
		return nil
	}
	if _, err := tx.Exec(`DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed_ts < $3`,
		u.user, u.device, u.now-claimedFor.Milliseconds()); err != nil {
		return err
	}
	for keys := range slices.Chunk(u.oneTime, oneTimeKeysPerInsert) {
		sql := []byte(`INSERT INTO one_time_keys (user_id, device_id, seq, algorithm, key_id, content) VALUES `)
		args := append(make([]any, 0, 3+3*len(keys)), u.user, u.device, pos)
		for i, k := range keys {
			if i > 0 {
				sql = append(sql, ',')
			}
			sql = fmt.Appendf(sql, "($1,$2,$3,$%d,$%d,$%d)", len(args)+1, len(args)+2, len(args)+3)
			args = append(args, k.algorithm, k.id, k.content)
		}
		n, err := tx.Exec(string(append(sql, ` ON CONFLICT DO NOTHING`...)), args...)
		if err != nil {
			return err
		}
		if n == int64(len(keys)) {
			continue
		}
		if err := u.compare(tx, keys); err != nil {
			return err
		}
	}
	var held int64
	if _, err := tx.Get(`SELECT count(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed_ts IS NULL`, []any{u.user, u.device}, &held); err != nil {
		return err
	}
	if held > maxOneTimeKeys {
		return mxerr.TooLarge("The device has too many one-time keys")
	}
	return nil
}

// compare checks that the stored keys are those uploaded.
func (u *keyUpload) compare(tx *storage.Tx, keys []oneTimeKey) error {
	for _, k := range keys {
		var content []byte
		_, err := tx.Get(`SELECT content FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4`,
			[]any{u.user, u.device, k.algorithm, k.id}, &content)
		if err != nil {
			return err
		}
		if !sameKey(content, k.content) {
			return mxerr.InvalidParam("There is another one-time key " + k.algorithm + ":" + k.id + " already").With(errKeyExists)
		}
	}
	return nil
}

// sameKey tells whether two one-time keys are the same. Signatures may differ.
func sameKey(a, b []byte) bool {
	if a[0] == '{' && b[0] == '{' {
		return bytes.Equal(canonicaljson.Member(a, "key"), canonicaljson.Member(b, "key"))
	}
	return bytes.Equal(a, b)
}
