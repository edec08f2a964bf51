// Package signing signs JSON objects and checks such signatures, and encodes
// binary data the way Matrix does.
//
// spec: appendices v1.19 "Signing JSON", "Unpadded Base64"
package signing

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	fast "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// Algorithm is the prefix of the identifiers of all keys that are understood.
const Algorithm = "ed25519:"

var (
	// ErrMissing is wrapped by errors about an object that lacks the signature
	// asked for.
	ErrMissing = errors.New("no such signature")
	// ErrInvalid is wrapped by errors about a signature that does not match,
	// or cannot be decoded.
	ErrInvalid = errors.New("invalid signature")
)

// EncodeBase64 returns the unpadded standard encoding.
func EncodeBase64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// DecodeBase64 decodes with or without padding, and either alphabet.
func DecodeBase64(s string) ([]byte, error) {
	encoding := base64.RawStdEncoding
	if strings.ContainsAny(s, "-_") {
		encoding = base64.RawURLEncoding
	}
	return encoding.DecodeString(strings.TrimRight(s, "="))
}

// Sign returns the encoded signature of a message, which for JSON is its
// canonical form without signatures and unsigned data.
func Sign(message []byte, key ed25519.PrivateKey) string {
	return EncodeBase64(Bytes(message, key))
}

// Bytes returns the signature of a message as it is. It is the one that crypto/ed25519 makes, in two thirds of the
// time, most of what building an event takes. Checking stays with crypto/ed25519: what it accepts is what other servers do.
func Bytes(message []byte, key ed25519.PrivateKey) []byte {
	return fast.Sign(fast.PrivateKey(key), message)
}

// Verify checks an encoded signature of a message. The error wraps ErrInvalid.
func Verify(message []byte, signature string, key ed25519.PublicKey) error {
	sig, err := DecodeBase64(signature)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(key) != ed25519.PublicKeySize || len(sig) != ed25519.SignatureSize || !ed25519.Verify(key, message, sig) {
		return ErrInvalid
	}
	return nil
}

// SignJSON returns the canonical form of a JSON object with a signature of the
// named entity added. keyID is the whole key identifier ("ed25519:a_b"). Other
// signatures and the unsigned member are kept and not covered.
func SignJSON(obj []byte, entity, keyID string, key ed25519.PrivateKey) ([]byte, error) {
	canon, err := canonical(obj)
	if err != nil {
		return nil, err
	}
	sig := Sign(Message(nil, canon), key)
	return AddSignature(canon, entity, keyID, sig)
}

// VerifyJSON checks the signature that the entity made of a JSON object with
// the given key. The error wraps ErrMissing or ErrInvalid, or is about JSON.
func VerifyJSON(obj []byte, entity, keyID string, key ed25519.PublicKey) error {
	canon, err := canonical(obj)
	if err != nil {
		return err
	}
	for _, s := range Signatures(canonicaljson.Member(canon, "signatures"), entity) {
		if s.KeyID == keyID {
			return Verify(Message(nil, canon), s.Value, key)
		}
	}
	return fmt.Errorf("%w: %s by %s", ErrMissing, keyID, entity)
}

func canonical(obj []byte) ([]byte, error) {
	// Objects that are not events may hold any numbers.
	canon, err := canonicaljson.Canonical(obj, canonicaljson.Lax)
	if err != nil {
		return nil, err
	}
	if canon[0] != '{' {
		return nil, fmt.Errorf("%w: not an object", canonicaljson.ErrSyntax)
	}
	return canon, nil
}

// Message appends what a signature of the canonical object covers: all of it but
// the members signatures and unsigned.
func Message(dst, canonical []byte) []byte {
	dst = append(dst, '{')
	start := len(dst)
	for w := canonicaljson.Walk(canonical); w.Next(); {
		if name := string(w.Name); name == "signatures" || name == "unsigned" {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), w.Name...), '"', ':')
		dst = append(dst, w.Value...)
	}
	return append(dst, '}')
}

// Signature is one entry of a signatures object.
type Signature struct {
	Entity string // who signed: a server name or a user ID
	KeyID  string // with its algorithm: "ed25519:a_b"
	Value  string // encoded
}

// Signatures lists the entries that the entity (or everyone, for "") has in a
// canonical signatures object, in the object's order. Entries that are not
// strings, or of other algorithms, are left out.
func Signatures(signatures []byte, entity string) []Signature {
	var list []Signature
	for w := canonicaljson.Walk(signatures); w.Next(); {
		who, ok := w.DecodedName()
		if !ok || entity != "" && string(who) != entity || w.Value[0] != '{' {
			continue
		}
		for k := canonicaljson.Walk(w.Value); k.Next(); {
			id, ok := k.DecodedName()
			value, isString := canonicaljson.DecodeString(k.Value)
			if ok && isString && bytes.HasPrefix(id, []byte(Algorithm)) {
				list = append(list, Signature{Entity: string(who), KeyID: string(id), Value: string(value)})
			}
		}
	}
	return list
}

// AddSignature returns the canonical object with one more signature in its
// signatures member. An entry with the same entity and key is replaced. The
// signature is not checked.
func AddSignature(canonical []byte, entity, keyID, signature string) ([]byte, error) {
	var existing, of []byte
	if existing = canonicaljson.Member(canonical, "signatures"); len(existing) == 0 || existing[0] != '{' {
		existing = []byte("{}")
	}
	for w := canonicaljson.Walk(existing); w.Next(); {
		if name, ok := w.DecodedName(); ok && string(name) == entity && w.Value[0] == '{' {
			of = w.Value
		}
	}
	// The last of several members with one name is the one that counts, so that
	// writing the new ones at the end replaces the old ones.
	inner := appendMember(of, keyID, canonicaljson.AppendString(nil, signature))
	outer := appendMember(existing, entity, inner)
	return canonicaljson.Canonical(appendMember(canonical, "signatures", outer), canonicaljson.Lax)
}

// appendMember returns a copy of an object with a member written at its end.
func appendMember(obj []byte, name string, value []byte) []byte {
	out := make([]byte, 0, len(obj)+len(name)+len(value)+8)
	if len(obj) > 2 {
		out = append(append(out, obj[:len(obj)-1]...), ',')
	} else {
		out = append(out, '{')
	}
	out = append(canonicaljson.AppendString(out, name), ':')
	return append(append(out, value...), '}')
}
