package e2ee

import (
	"context"
	"database/sql"
	"fmt"
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

// keyless tells that nothing can be encrypted for the user yet.
func (i *identity) keyless() bool {
	return i.master == nil && !slices.ContainsFunc(i.devices, func(d deviceKeys) bool { return d.keys != nil })
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
		var local, remote []string
		for _, user := range missing {
			found[user] = &identity{asOf: asOf}
			if a.isLocal(user) {
				local = append(local, user)
			} else {
				remote = append(remote, user)
			}
		}
		if err := readLocal(tx, local, found); err != nil {
			return err
		}
		return readRemote(tx, remote, found)
	})
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	for _, user := range missing {
		a.identities.Put(user, found[user], found[user].size()) // if it has changed meanwhile, asOf tells
	}
	return found, nil
}

// What the rows of a usersQuery are about.
const (
	rowDevice       int64 = iota // id, name, keys or NULL
	rowCrossSigning              // usage, NULL, key
	rowSignature                 // target, key id, signature
)

// usersQuery is a query for what there is of 1, 2, 4, … maxUsersPerRead users. One statement is one round trip to
// PostgreSQL, and a few different ones are prepared once for good.
type usersQuery []string

func newUsersQuery(text func(in string) string) (q usersQuery) {
	for n := 1; n <= maxUsersPerRead; n *= 2 {
		q = append(q, text(storage.In(n, 1)))
	}
	return q
}

// of returns the query for users, and its arguments.
func (q usersQuery) of(users []string) (sql string, args []any) {
	power := bits.Len(uint(len(users) - 1))
	args = make([]any, 1<<power)
	for n := range args {
		args[n] = users[min(n, len(users)-1)] // the last one fills the list
	}
	return q[power], args
}

var (
	localKeys = newUsersQuery(func(in string) string {
		return fmt.Sprintf(`SELECT %d, d.user_id, d.device_id, d.display_name, k.content FROM (%s) AS d
				LEFT JOIN device_keys k ON k.user_id = d.user_id AND k.device_id = d.device_id
			UNION ALL SELECT %d, user_id, usage, NULL, content FROM cross_signing_keys WHERE user_id IN %s
			UNION ALL SELECT %d, user_id, target, key_id, signature FROM key_signatures WHERE signer = user_id AND user_id IN %s`,
			rowDevice, accounts.DevicesOf(in), rowCrossSigning, in, rowSignature, in)
	})
	remoteKeys = newUsersQuery(func(in string) string {
		return fmt.Sprintf(`SELECT %d, user_id, device_id, display_name, content FROM device_keys WHERE user_id IN %s
			UNION ALL SELECT %d, user_id, usage, NULL, content FROM cross_signing_keys WHERE user_id IN %s`,
			rowDevice, in, rowCrossSigning, in)
	})
	remoteLists = newUsersQuery(func(in string) string {
		return `SELECT user_id, stream_id, fresh, since FROM remote_device_lists WHERE user_id IN ` + in
	})
)

// readLocal reads the identities of local users into out, which has an entry for each. Devices without keys are there as
// well, because other servers are told of them.
func readLocal(tx *storage.Tx, users []string, out map[string]*identity) error {
	for part := range slices.Chunk(users, maxUsersPerRead) {
		if err := readKeys(tx, localKeys, part, out); err != nil {
			return err
		}
	}
	return nil
}

// localIdentity reads the identity of a local user.
func localIdentity(tx *storage.Tx, user string) (*identity, error) {
	i := &identity{}
	return i, readLocal(tx, []string{user}, map[string]*identity{user: i})
}

// readRemote reads what is stored of users of other servers into out, which has an entry for each.
func readRemote(tx *storage.Tx, users []string, out map[string]*identity) error {
	for part := range slices.Chunk(users, maxUsersPerRead) {
		if err := readKeys(tx, remoteKeys, part, out); err != nil {
			return err
		}
		sql, args := remoteLists.of(part)
		rows := tx.Query(sql, args...)
		for rows.Next() {
			var user string
			var list identity
			rows.Scan(&user, &list.streamID, &list.fresh, &list.since)
			if i := out[user]; i != nil {
				i.streamID, i.fresh, i.since = list.streamID, list.fresh, list.since
			}
		}
		if err := rows.Close(); err != nil {
			return err
		}
	}
	return nil
}

// readKeys reads the keys of up to maxUsersPerRead users.
func readKeys(tx *storage.Tx, query usersQuery, users []string, out map[string]*identity) error {
	text, args := query.of(users)
	var signatures []signature
	rows := tx.Query(text, args...)
	for rows.Next() {
		var kind int64
		var user, id, name sql.RawBytes
		var content []byte
		rows.Scan(&kind, &user, &id, &name, &content)
		i := out[string(user)]
		if i == nil { // the scan failed, which Close tells
			continue
		}
		switch kind {
		case rowDevice:
			i.devices = append(i.devices, deviceKeys{string(id), content, string(name)})
		case rowCrossSigning:
			i.setKey(string(id), content)
		case rowSignature:
			signatures = append(signatures, signature{string(user), string(id), string(name), string(content)})
		}
	}
	if err := rows.Close(); err != nil {
		return err
	}
	for _, user := range users {
		slices.SortFunc(out[user].devices, func(a, b deviceKeys) int { return strings.Compare(a.id, b.id) })
	}
	for _, s := range signatures {
		out[s.user].sign(s)
	}
	return nil
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
