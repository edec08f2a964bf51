package pdu

import (
	"crypto/ed25519"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/signing"
)

// SigningBytes is what the event's signatures cover: the canonical redacted
// form without signatures.
func (e *Event) SigningBytes() []byte {
	return e.appendSigned(make([]byte, 0, len(e.json)))
}

// Signatures lists the signatures that a server (or all, for "") made of the
// event, unchecked. Malformed ones and other algorithms are left out.
func (e *Event) Signatures(server string) []signing.Signature {
	return signing.Signatures(e.signatures, server)
}

// VerifySignature checks the signature a server made with a key. keyID is the
// whole key identifier ("ed25519:a_b"). The error wraps signing.ErrMissing or
// signing.ErrInvalid.
func (e *Event) VerifySignature(server, keyID string, key ed25519.PublicKey) error {
	made := e.Signatures(server)
	i := slices.IndexFunc(made, func(s signing.Signature) bool { return s.KeyID == keyID })
	if i < 0 {
		return fmt.Errorf("%w: %s by %s", signing.ErrMissing, keyID, server)
	}
	buf := getBuffer()
	defer buf.put()
	buf.b = e.appendSigned(buf.b)
	return signing.Verify(buf.b, made[i].Value, key)
}

// Sign returns the event with a signature of another server (that of the
// invited user, or of the user who authorises a restricted join) added. The
// error wraps ErrTooLarge.
func (e *Event) Sign(server, keyID string, key ed25519.PrivateKey) (*Event, error) {
	buf := getBuffer()
	defer buf.put()
	buf.b = e.appendSigned(buf.b)
	return e.AddSignature(server, keyID, signing.Sign(buf.b, key))
}

// AddSignature returns the event with a signature added that another server
// supplied. It is not checked. The error wraps ErrTooLarge.
func (e *Event) AddSignature(server, keyID, signature string) (*Event, error) {
	own, err := signing.AddSignature(e.json, server, keyID, signature)
	if err != nil {
		return nil, fmt.Errorf("%w: add a signature: %w", ErrBadJSON, err)
	}
	if len(own) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes with one more signature", ErrTooLarge, len(own))
	}
	return FromStore(e.version, own, e.ID, e.Redacted)
}

// RequiredSigners lists the servers without whose valid signature the event is
// dropped: the sender's, unless it is an invite that a third-party invite gave
// rise to; that of the event ID in versions 1 and 2; and that of the user named
// in join_authorised_via_users_server from version 8. An entry that is no
// server name can never be satisfied.
//
// spec: server-server-api v1.19 "Validating hashes and signatures on received
// events"; rooms/v8 "Authorisation rules" 4.2
func (e *Event) RequiredSigners() []string {
	servers := make([]string, 0, 2)
	add := func(server string) {
		if !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	if !(e.membership == "invite" && e.ContentField("third_party_invite") != nil) {
		add(e.SenderServer())
	}
	if e.version.EventFormat == 1 {
		add(ServerOf(e.ID))
	}
	if e.version.RestrictedJoins && e.IsState() && e.Type == TypeMember {
		if user, present := e.AuthorisedVia(); present {
			add(ServerOf(user))
		}
	}
	return servers
}
