package keys

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
)

const (
	// maxDocument bounds a key document, in bytes, and maxKeys the keys in it.
	maxDocument = 64 << 10
	maxKeys     = 100
	maxKeyID    = len("ed25519:") + 200
)

var keyID = regexp.MustCompile(`^ed25519:[a-zA-Z0-9_.-]+$`)

// isKeyID tells whether id may name a key.
func isKeyID(id string) bool { return len(id) <= maxKeyID && keyID.MatchString(id) }

// document is a server's key document, or one key of it as it was read from the table.
type document struct {
	raw        []byte // canonical
	validUntil int64  // in milliseconds
	keys       map[string]publicKey
}

// publicKey is one key of a server.
type publicKey struct {
	key        ed25519.PublicKey
	validUntil int64 // what its document says, in milliseconds
	fetched    int64 // when that was read
	expired    int64 // of an old key: when it expired; 0 for a current one
	raw        []byte
}

// week is how far ahead of the time it was read a document is believed.
//
// spec: server-server-api v1.19 "Publishing Keys", valid_until_ts
const week = 7 * 24 * 3600 * 1000

// until is the last time at which the key is valid: for signing requests and events if it is current, only for events
// if it is old.
func (k *publicKey) until() int64 {
	if k.expired != 0 {
		return k.expired
	}
	return min(k.validUntil, k.fetched+week)
}

// validAt tells whether the key may have signed something at a time, as in Ring.Key.
func (k *publicKey) validAt(at, now int64) bool {
	switch at {
	case Whenever:
		return true
	case Now:
		return k.expired == 0 && now <= k.until()
	}
	return at <= k.until()
}

// errDocument is wrapped by what is wrong with a key document.
var errDocument = errors.New("bad key document")

// parseDocument reads the key document of a server and checks that it is of this server and signed with a key of its
// own. Without the first check any server could publish keys in the name of another.
func parseDocument(raw []byte, server string, now int64) (*document, error) {
	if len(raw) > maxDocument {
		return nil, fmt.Errorf("%w: too large", errDocument)
	}
	canonical, err := canonicaljson.Canonical(raw, canonicaljson.Lax)
	if err != nil || canonical[0] != '{' {
		return nil, fmt.Errorf("%w: not a JSON object", errDocument)
	}
	name, ok := canonicaljson.DecodeString(canonicaljson.Member(canonical, "server_name"))
	if !ok || string(name) != server {
		return nil, fmt.Errorf("%w: it is of %.100q and not of %q", errDocument, name, server)
	}
	until := gjson.ParseBytes(canonicaljson.Member(canonical, "valid_until_ts"))
	if until.Type != gjson.Number || until.Num < 0 || until.Num > 1<<53 {
		return nil, fmt.Errorf("%w: no valid_until_ts", errDocument)
	}
	d := &document{raw: bytes.Clone(canonical), validUntil: int64(until.Num), keys: make(map[string]publicKey)}
	d.read(canonicaljson.Member(canonical, "old_verify_keys"), true, now)
	d.read(canonicaljson.Member(canonical, "verify_keys"), false, now)
	if len(d.keys) > maxKeys {
		return nil, fmt.Errorf("%w: too many keys", errDocument)
	}
	message := signing.Message(nil, canonical)
	for _, s := range signing.Signatures(canonicaljson.Member(canonical, "signatures"), server) {
		if k, known := d.keys[s.KeyID]; known && k.expired == 0 && signing.Verify(message, s.Value, k.key) == nil {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%w: not signed with a key of its own", errDocument)
}

// read takes the keys of verify_keys or old_verify_keys; what is no key is passed over.
func (d *document) read(list []byte, old bool, now int64) {
	if len(list) == 0 || list[0] != '{' {
		return
	}
	for w := canonicaljson.Walk(list); w.Next() && len(d.keys) <= maxKeys; {
		id, ok := w.DecodedName()
		if !ok || !isKeyID(string(id)) || w.Value[0] != '{' {
			continue
		}
		encoded, ok := canonicaljson.DecodeString(canonicaljson.Member(w.Value, "key"))
		if !ok {
			continue
		}
		key, err := signing.DecodeBase64(string(encoded))
		if err != nil || len(key) != ed25519.PublicKeySize {
			continue
		}
		k := publicKey{key: key, validUntil: d.validUntil, fetched: now, raw: d.raw}
		if old {
			expired := gjson.ParseBytes(canonicaljson.Member(w.Value, "expired_ts"))
			if expired.Type != gjson.Number || expired.Num <= 0 || expired.Num > 1<<53 {
				continue
			}
			k.expired = int64(expired.Num)
		}
		d.keys[string(id)] = k
	}
}

// ownLifetime is how long our own document is valid, in milliseconds. It is made anew when half of that is over.
const ownLifetime = 24 * 3600 * 1000

// Own returns this server's key document, signed.
func (r *Ring) Own() (json.RawMessage, error) {
	now := r.now()
	r.ownMu.Lock()
	defer r.ownMu.Unlock()
	if r.own != nil && now < r.ownFrom+ownLifetime/2 {
		return r.own, nil
	}
	type verifyKey struct {
		Key     string `json:"key"`
		Expired int64  `json:"expired_ts,omitempty"`
	}
	content := struct {
		Server     string               `json:"server_name"`
		Keys       map[string]verifyKey `json:"verify_keys"`
		Old        map[string]verifyKey `json:"old_verify_keys"`
		ValidUntil int64                `json:"valid_until_ts"`
	}{r.cfg.ServerName, map[string]verifyKey{r.cfg.KeyID: {Key: signing.EncodeBase64(r.cfg.Key.Public().(ed25519.PublicKey))}}, map[string]verifyKey{}, now + ownLifetime}
	for _, old := range r.cfg.Old {
		content.Old[old.ID] = verifyKey{signing.EncodeBase64(old.Key), old.Expired}
	}
	raw, err := json.Marshal(content)
	if err == nil {
		raw, err = signing.SignJSON(raw, r.cfg.ServerName, r.cfg.KeyID, r.cfg.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("make the key document: %w", err)
	}
	r.own, r.ownFrom = raw, now
	return raw, nil
}
