package e2ee

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/cache"
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

// size is about how many bytes of memory an identity takes.
func (i *identity) size() int {
	n := cache.Overhead + 256 + len(i.master) + len(i.selfSigning) + len(i.userSigning)
	for k := range i.devices {
		d := &i.devices[k]
		n += 64 + len(d.id) + len(d.keys) + len(d.name)
	}
	return n
}

// maxUsersPerRead bounds the users that one query of the database is about. It is a power of two.
const maxUsersPerRead = 256

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
	if len(missing) == 0 {
		return found, nil
	}
	asOf := a.db.Head()
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		for part := range slices.Chunk(missing, maxUsersPerRead) {
			read, err := readIdentities(tx, part, asOf)
			if err != nil {
				return err
			}
			maps.Copy(found, read)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	for _, user := range missing {
		a.identities.Put(user, found[user], found[user].size()) // if it has changed meanwhile, asOf tells
	}
	return found, nil
}

// What the rows of identityQueries are about.
const (
	rowKeys         int64 = iota // keys of a device: id, name if it is remote, content
	rowDevice                    // a local device, with or without keys: id, name
	rowCrossSigning              // usage, -, content
	rowSignature                 // target, key id, signature
	rowRemote                    // -, -, -, stream id, since or -1 if it is not fresh
)

// identityQueries are the queries for all that there is of 1, 2, 4, … maxUsersPerRead users. One statement is one round
// trip to PostgreSQL, and a few different ones are prepared once for good.
var identityQueries = func() (texts []string) {
	for n := 1; n <= maxUsersPerRead; n *= 2 {
		in := storage.In(n, 1)
		texts = append(texts, fmt.Sprintf(`SELECT %d, user_id, device_id, display_name, content, 0, 0 FROM device_keys WHERE user_id IN %s
			UNION ALL SELECT %d, user_id, device_id, display_name, NULL, 0, 0 FROM (%s) AS local
			UNION ALL SELECT %d, user_id, usage, NULL, content, 0, 0 FROM cross_signing_keys WHERE user_id IN %s
			UNION ALL SELECT %d, user_id, target, key_id, signature, 0, 0 FROM key_signatures WHERE signer = user_id AND user_id IN %s
			UNION ALL SELECT %d, user_id, NULL, NULL, NULL, stream_id, CASE WHEN fresh THEN since ELSE -1 END FROM remote_device_lists WHERE user_id IN %s`,
			rowKeys, in, rowDevice, accounts.DevicesOf(in), rowCrossSigning, in, rowSignature, in, rowRemote, in))
	}
	return texts
}()

// readIdentities reads the identities of up to maxUsersPerRead users. Local devices without keys are there as well,
// because other servers are told of them.
func readIdentities(tx *storage.Tx, users []string, asOf int64) (map[string]*identity, error) {
	out := make(map[string]*identity, len(users))
	for _, user := range users {
		out[user] = &identity{asOf: asOf}
	}
	power := bits.Len(uint(len(users) - 1))
	args := make([]any, 1<<power)
	for n := range args {
		args[n] = users[min(n, len(users)-1)] // the last one fills the list
	}
	var signatures []signature
	rows := tx.Query(identityQueries[power], args...)
	for rows.Next() {
		var kind, streamID, since int64
		var user, id, name sql.RawBytes
		var content []byte
		rows.Scan(&kind, &user, &id, &name, &content, &streamID, &since)
		i := out[string(user)]
		if i == nil { // a scan failed, which Close tells
			break
		}
		switch kind {
		case rowKeys, rowDevice:
			i.devices = append(i.devices, deviceKeys{string(id), content, string(name)})
		case rowCrossSigning:
			i.setKey(string(id), content)
		case rowSignature:
			signatures = append(signatures, signature{string(user), string(id), string(name), string(content)})
		case rowRemote:
			i.streamID, i.since, i.fresh = streamID, since, since >= 0
		}
	}
	if err := rows.Close(); err != nil {
		return nil, err
	}
	for _, i := range out {
		i.sortDevices()
	}
	for _, s := range signatures {
		out[s.user].sign(s)
	}
	return out, nil
}

// setKey sets the cross-signing key of a usage.
func (i *identity) setKey(usage string, key []byte) {
	switch usage {
	case usageMaster:
		i.master = key
	case usageSelfSigning:
		i.selfSigning = key
	case usageUserSigning:
		i.userSigning = key
	}
}

// sortDevices sorts the devices by id and puts together what two rows say of one.
func (i *identity) sortDevices() {
	slices.SortFunc(i.devices, func(a, b deviceKeys) int { return strings.Compare(a.id, b.id) })
	sorted := i.devices[:0]
	for _, d := range i.devices {
		last := len(sorted) - 1
		if last < 0 || sorted[last].id != d.id {
			sorted = append(sorted, d)
			continue
		}
		if d.keys != nil {
			sorted[last].keys = d.keys
		}
		if d.name != "" {
			sorted[last].name = d.name
		}
	}
	i.devices = sorted
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
