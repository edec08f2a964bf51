package e2ee

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/myelin-im/myelin/accounts"
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
	if err := a.checkUpload(ctx, u); err != nil {
		return nil, err
	}
	var counts json.RawMessage
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
		var held int64
		if counts, held, err = countDevice(tx, by.UserID, by.DeviceID); err == nil && held > maxOneTimeKeys {
			err = mxerr.TooLarge("The device has too many one-time keys")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store keys: %w", err)
	}
	return &uploadResponse{counts}, nil
}

// checkUpload checks what the device has signed.
func (a *API) checkUpload(ctx context.Context, u *keyUpload) error {
	identity := u.identity
	if identity == nil && len(u.oneTime)+len(u.fallback) > 0 {
		known, err := a.identitiesOf(ctx, []string{u.user})
		if err != nil {
			return err
		}
		if d := known[u.user].device(u.device); d != nil {
			identity = d.keys
		}
	}
	return u.checkSignatures(signingKey(identity, u.device))
}

// keyUpload is the keys that a device brings.
type keyUpload struct {
	user, device string
	now          int64
	identity     []byte // canonical JSON; nil: none
	oneTime      []oneTimeKey
	fallback     []oneTimeKey
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
