package e2ee

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
)

// The usages of cross-signing keys.
const (
	usageMaster      = "master"
	usageSelfSigning = "self_signing"
	usageUserSigning = "user_signing"
)

// identity is what is known of a user's keys: of a local one, all there is; of a remote one, what was stored. It is
// immutable.
type identity struct {
	// asOf is a position up to which all changes are in it.
	asOf    int64
	devices []deviceKeys // by id
	// The cross-signing keys with the owner's signatures; nil where there is none.
	master, selfSigning, userSigning []byte
	// fresh tells, of a remote user, that the keys are the current ones, as long as a room has been shared since the
	// position since; streamID is their version.
	fresh    bool
	since    int64
	streamID int64
}

// deviceKeys are the keys of one device.
type deviceKeys struct {
	id string
	// keys is canonical JSON with the owner's signatures and without "unsigned"; nil for a device without keys.
	keys []byte
	name string // empty: none
}

// signature is one that a user made and uploaded.
type signature struct{ user, target, keyID, value string }

// device finds a device.
func (i *identity) device(id string) *deviceKeys {
	for n := range i.devices {
		if i.devices[n].id == id {
			return &i.devices[n]
		}
	}
	return nil
}

// append appends a device's keys, with its name.
func (d *deviceKeys) append(b []byte) []byte {
	if d.name == "" {
		return append(b, d.keys...)
	}
	b = append(b, d.keys[:len(d.keys)-1]...)
	b = append(b, `,"unsigned":{"device_display_name":`...)
	return append(canonicaljson.AppendString(b, d.name), '}', '}')
}

// maxUsersPerRead bounds the users that one query of the database is about.
const maxUsersPerRead = 100

// identitiesOf returns the identities of users, from memory or the database. Each of them has an entry.
func (a *API) identitiesOf(ctx context.Context, users []string) (map[string]*identity, error) {
	found := make(map[string]*identity, len(users))
	var missing []string
	for _, user := range users {
		if i, ok := a.identities.Get(user); ok && a.changes.unchanged(user, i.asOf) {
			found[user] = i
		} else if _, twice := found[user]; !twice {
			found[user] = nil
			missing = append(missing, user)
		}
	}
	for len(missing) > 0 {
		n := min(len(missing), maxUsersPerRead)
		asOf := a.db.Head()
		var read map[string]*identity
		err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
			read, err = a.readIdentities(tx, missing[:n], asOf)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read keys: %w", err)
		}
		for user, i := range read {
			found[user] = i
			a.identities.Put(user, i, 1) // if it has changed meanwhile, asOf tells
		}
		missing = missing[n:]
	}
	return found, nil
}

// readIdentities reads the identities of up to maxUsersPerRead users.
func (a *API) readIdentities(tx *storage.Tx, users []string, asOf int64) (map[string]*identity, error) {
	out := make(map[string]*identity, len(users))
	args := make([]any, len(users))
	for n, user := range users {
		out[user], args[n] = &identity{asOf: asOf}, user
	}
	in := storage.In(len(users), 1)
	if err := a.readDevices(tx, users, in, args, out); err != nil {
		return nil, err
	}
	rows := tx.Query(`SELECT user_id, usage, content FROM cross_signing_keys WHERE user_id IN `+in, args...)
	for rows.Next() {
		var user, usage string
		var content []byte
		rows.Scan(&user, &usage, &content)
		switch usage {
		case usageMaster:
			out[user].master = content
		case usageSelfSigning:
			out[user].selfSigning = content
		case usageUserSigning:
			out[user].userSigning = content
		}
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	rows = tx.Query(`SELECT user_id, target, key_id, signature FROM key_signatures WHERE signer = user_id AND user_id IN `+in, args...)
	for rows.Next() {
		var s signature
		rows.Scan(&s.user, &s.target, &s.keyID, &s.value)
		out[s.user].sign(s)
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	rows = tx.Query(`SELECT user_id, stream_id, fresh, since FROM remote_device_lists WHERE user_id IN `+in, args...)
	for rows.Next() {
		var user string
		var streamID, since int64
		var fresh bool
		rows.Scan(&user, &streamID, &fresh, &since)
		out[user].streamID, out[user].fresh, out[user].since = streamID, fresh, since
	}
	return out, rows.Close()
}

// readDevices reads devices with their keys. Local devices without keys are there as well, because other servers are
// told of them.
func (a *API) readDevices(tx *storage.Tx, users []string, in string, args []any, out map[string]*identity) error {
	rows := tx.Query(`SELECT user_id, device_id, content, display_name FROM device_keys WHERE user_id IN `+in+` ORDER BY user_id, device_id`, args...)
	for rows.Next() {
		var user string
		var d deviceKeys
		var name *string
		rows.Scan(&user, &d.id, &d.keys, &name)
		if name != nil {
			d.name = *name
		}
		out[user].devices = append(out[user].devices, d)
	}
	if err := rows.Close(); err != nil {
		return err
	}
	local := make([]string, 0, len(users))
	for _, user := range users {
		if a.isLocal(user) {
			local = append(local, user)
		}
	}
	if len(local) == 0 {
		return nil
	}
	return accounts.EachDevice(tx, local, func(user string, d accounts.Device) {
		i := out[user]
		known := i.device(d.ID)
		if known == nil {
			i.devices = append(i.devices, deviceKeys{id: d.ID})
			known = &i.devices[len(i.devices)-1]
		}
		if d.DisplayName != nil {
			known.name = *d.DisplayName
		}
	})
}

// sign adds a signature of the owner to the key that it is for.
func (i *identity) sign(s signature) {
	add := func(key *[]byte) {
		if signed, err := signing.AddSignature(*key, s.user, s.keyID, s.value); err == nil {
			*key = signed
		}
	}
	if d := i.device(s.target); d != nil && d.keys != nil {
		add(&d.keys)
		return
	}
	if i.master != nil && publicKey(i.master) == s.target {
		add(&i.master)
	}
}

// publicKey is the public key of a cross-signing key in canonical JSON, which has exactly one.
func publicKey(key []byte) string {
	for w := canonicaljson.Walk(canonicaljson.Member(key, "keys")); w.Next(); {
		if value, ok := canonicaljson.DecodeString(w.Value); ok {
			return string(value)
		}
	}
	return ""
}

// readSignatures reads what signatures a local user made of others' keys, by whose keys they are.
func (a *API) readSignatures(ctx context.Context, signer string) (by map[string][]signature, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		by = map[string][]signature{}
		rows := tx.Query(`SELECT user_id, target, key_id, signature FROM key_signatures WHERE signer = $1 AND user_id <> $1`, signer)
		for rows.Next() {
			var s signature
			rows.Scan(&s.user, &s.target, &s.keyID, &s.value)
			by[s.user] = append(by[s.user], s)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("read signatures of %s: %w", signer, err)
	}
	return by, nil
}
