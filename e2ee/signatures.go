package e2ee

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
)

// maxSignatures bounds the signed objects of one request.
const maxSignatures = 5000

type signaturesRequest struct {
	Body json.RawMessage `body:"raw"`
}

// signatureError is why a signed object was not accepted.
type signatureError struct {
	Code string `json:"errcode"`
	Text string `json:"error"`
}

type signaturesResponse struct {
	Failures map[string]map[string]signatureError `json:"failures"`
}

func (r *signaturesResponse) fail(user, target string, err error) {
	e := signatureError{"M_UNKNOWN", "The signature could not be processed"}
	if known := mxerr.As(err); known != nil {
		e = signatureError{known.Code, known.Text}
	}
	if r.Failures[user] == nil {
		r.Failures[user] = map[string]signatureError{}
	}
	r.Failures[user][target] = e
}

var errBadSignature = mxerr.New(400, "M_INVALID_SIGNATURE", "The signature does not match")

// uploadSignatures: client-server API v1.19, POST /keys/signatures/upload. Users sign their own devices with the
// self-signing key, their own master key with their devices, and others' master keys with the user-signing key.
func (a *API) uploadSignatures(ctx context.Context, by *httpapi.Caller, in *signaturesRequest) (*signaturesResponse, error) {
	var signed map[string]map[string]json.RawMessage
	if err := json.Unmarshal(in.Body, &signed); err != nil {
		return nil, mxerr.BadJSON("The body must be a map from user to key to signed object").With(err)
	}
	users := []string{by.UserID}
	total := 0
	for user, objects := range signed {
		if total += len(objects); total > maxSignatures {
			return nil, mxerr.TooLarge("These are too many signatures at once")
		}
		if user != by.UserID {
			users = append(users, user)
		}
	}
	known, err := a.signable(ctx, by.UserID, users)
	if err != nil {
		return nil, err
	}
	out := &signaturesResponse{Failures: map[string]map[string]signatureError{}}
	s := &signatureUpload{by: by.UserID, own: known[by.UserID]}
	for user, objects := range signed {
		for target, object := range objects {
			if err := s.take(user, target, object, known[user]); err != nil {
				out.fail(user, target, err)
			}
		}
	}
	if len(s.accepted) == 0 {
		return out, nil
	}
	if err := a.db.Write(ctx, s.write); err != nil {
		return nil, fmt.Errorf("store signatures: %w", err)
	}
	return out, nil
}

// signable finds the keys that are to be signed, also of users of other servers who are not followed.
func (a *API) signable(ctx context.Context, reader string, users []string) (map[string]*identity, error) {
	known, err := a.identitiesOf(ctx, users)
	if err != nil {
		return nil, err
	}
	current, err := a.current(ctx, known)
	if err != nil {
		return nil, err
	}
	elsewhere := map[string]queriedDevices{}
	for user := range known {
		server, ok := serverOf(user)
		if !ok || a.isLocal(user) || current[user] {
			continue
		}
		if elsewhere[server] == nil {
			elsewhere[server] = queriedDevices{}
		}
		elsewhere[server][user] = nil
	}
	if a.remote == nil {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, usualPatience)
	defer cancel()
	for server, wanted := range elsewhere {
		found, err := a.queryServer(ctx, server, wanted)
		if err != nil {
			a.log.WithError(err).WithField("server", server).Debug("keys to be signed could not be had")
		}
		for user, i := range found {
			known[user] = i
		}
	}
	return known, nil
}

// signatureUpload is the signatures of one user's request.
type signatureUpload struct {
	by       string
	own      *identity
	accepted []signature
}

// take checks a signed object and accepts its new signatures.
func (s *signatureUpload) take(user, target string, object json.RawMessage, i *identity) error {
	if len(object) > maxDeviceKeys {
		return mxerr.TooLarge("The object is too large")
	}
	canon, err := canonicalOf(object)
	if err != nil {
		return err
	}
	key, device := i.find(target)
	if key == nil {
		return mxerr.NotFound("There is no such key")
	}
	if !sameSigned(key, canon) {
		return mxerr.New(400, "M_INVALID_SIGNATURE", "The object is not the key that is known")
	}
	found := false
	there := signing.Signatures(canonicaljson.Member(key, "signatures"), s.by)
	for _, made := range signing.Signatures(canonicaljson.Member(canon, "signatures"), s.by) {
		if slices.Contains(there, made) {
			found = found || !device || made.KeyID != signing.Algorithm+target // with the device's own it came
			continue
		}
		signer := s.signer(user, device, made.KeyID)
		if signer == nil {
			return mxerr.New(400, "M_INVALID_SIGNATURE", "That key may not sign this one")
		}
		if signing.VerifyJSON(canon, s.by, made.KeyID, signer) != nil {
			return errBadSignature
		}
		s.accepted = append(s.accepted, signature{user, target, made.KeyID, made.Value})
		found = true
	}
	if !found {
		return mxerr.New(400, "M_INVALID_SIGNATURE", "There is no new signature of yours")
	}
	return nil
}

// find finds a device's keys or the master key.
func (i *identity) find(target string) (key []byte, device bool) {
	if i == nil {
		return nil, false
	}
	if d := i.device(target); d != nil && d.keys != nil {
		return d.keys, true
	}
	if i.master != nil && publicKey(i.master) == target {
		return i.master, false
	}
	return nil, false
}

// signer is the key with which the uploading user may sign: their devices with the self-signing key, their master key
// with a device, another user's master key with the user-signing key. It is nil if keyID is none of these.
func (s *signatureUpload) signer(user string, device bool, keyID string) ed25519.PublicKey {
	var public string
	switch {
	case user != s.by && device:
		return nil
	case user != s.by:
		public = publicKey(s.own.userSigning)
	case device:
		public = publicKey(s.own.selfSigning)
	default:
		d := s.own.device(keyID[len(signing.Algorithm):])
		if d == nil {
			return nil
		}
		return signingKey(d.keys, d.id)
	}
	if public == "" || keyID != signing.Algorithm+public {
		return nil
	}
	return decodeKey(public)
}

func decodeKey(public string) ed25519.PublicKey {
	key, err := signing.DecodeBase64(public)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil
	}
	return key
}

// write stores the signatures. Those of one's own keys are for everybody who knows one's devices; those of others' keys
// for oneself.
func (s *signatureUpload) write(tx *storage.Tx) error {
	pos, err := tx.Position()
	if err != nil {
		return err
	}
	others := false
	news := map[string]bool{}
	for _, made := range s.accepted {
		_, err := tx.Exec(`INSERT INTO key_signatures (signer, user_id, target, key_id, signature, pos) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (signer, user_id, target, key_id) DO UPDATE SET signature = excluded.signature, pos = excluded.pos`,
			s.by, made.user, made.target, made.keyID, made.value, pos)
		if err != nil {
			return err
		}
		if made.user != s.by {
			others = true
			continue
		}
		device := made.target
		if d := s.own.device(device); d == nil {
			device = "" // the master key
		}
		news[device] = true
	}
	for device := range news {
		if err := noteNews(tx, s.by, device); err != nil {
			return err
		}
	}
	if others && len(news) == 0 {
		return noteChange(tx, s.by)
	}
	return nil
}

// signedBetween returns the users whose keys a user signed in (from, to], which none but the user's devices have to know.
func (a *API) signedBetween(ctx context.Context, signer string, from, to int64) (users []string, err error) {
	if a.changes.unchanged(signer, from) { // write notes the signer's change
		return nil, nil
	}
	users, err = storage.ReadList[string](ctx, a.db, `SELECT DISTINCT user_id FROM key_signatures WHERE signer = $1 AND user_id <> $1 AND pos > $2 AND pos <= $3`, signer, from, to)
	if err != nil {
		return nil, fmt.Errorf("read new signatures: %w", err)
	}
	return users, nil
}
