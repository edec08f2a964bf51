package e2ee

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// signedCurve25519 is the algorithm of the one-time keys of Olm.
const signedCurve25519 = "signed_curve25519"

// oneTimeKey is a one-time or fallback key: "algorithm:id" and canonical JSON.
type oneTimeKey struct {
	algorithm, id string
	content       []byte
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
		isObject := canon[0] == '{' && isString(canonicaljson.Member(canon, "key"))
		if !isObject && (canon[0] != '"' || k.algorithm == signedCurve25519) {
			return nil, mxerr.BadJSON("A one-time key must be a string or, signed or not, an object with a key")
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

// checkSignatures checks what the device signed with its key, which is nil if it is not known: of the one-time keys the first.
// A device that signs wrongly does so with all of them, and whoever claims one checks it.
func (u *keyUpload) checkSignatures(key ed25519.PublicKey) error {
	if u.identity != nil && checkSigned(u.identity, u.user, u.device, key) != nil {
		return mxerr.New(400, "M_INVALID_SIGNATURE", "The device keys are not signed by the device's Ed25519 key")
	}
	for _, k := range slices.Concat(u.oneTime[:min(1, len(u.oneTime))], u.fallback) {
		if k.content[0] == '{' && checkSigned(k.content, u.user, u.device, key) != nil {
			return mxerr.New(400, "M_INVALID_SIGNATURE", "The key "+k.algorithm+":"+k.id+" is not signed by the device's Ed25519 key")
		}
	}
	return nil
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
