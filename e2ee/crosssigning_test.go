package e2ee

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/myelin-im/myelin/internal/signing"
	"github.com/myelin-im/myelin/storage"
)

// signer is a cross-signing key.
type signer struct {
	key    ed25519.PrivateKey
	public string
}

func newSigner(name string) signer {
	seed := sha256.Sum256([]byte(name))
	key := ed25519.NewKeyFromSeed(seed[:])
	return signer{key, signing.EncodeBase64(key.Public().(ed25519.PublicKey))}
}

// object is a key for a usage, signed by another one.
func (s signer) object(t *testing.T, user, usage string, by *signer) json.RawMessage {
	t.Helper()
	object := []byte(fmt.Sprintf(`{"user_id":%q,"usage":[%q],"keys":{"ed25519:%s":%q}}`, user, usage, s.public, s.public))
	if by == nil {
		return object
	}
	signed, err := signing.SignJSON(object, user, "ed25519:"+by.public, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestCheckCrossSigningKey(t *testing.T) {
	k := newSigner("master")
	good := string(k.object(t, "@alice:hs", usageMaster, nil))
	for what, c := range map[string]struct{ key, code string }{
		"good":              {good, ""},
		"two usages":        {`{"user_id":"@alice:hs","usage":["x","master"],"keys":{"ed25519:` + k.public + `":"` + k.public + `"}}`, ""},
		"of another user":   {string(k.object(t, "@bob:hs", usageMaster, nil)), "M_INVALID_PARAM"},
		"for another usage": {string(k.object(t, "@alice:hs", usageSelfSigning, nil)), "M_INVALID_PARAM"},
		"without a key":     {`{"user_id":"@alice:hs","usage":["master"],"keys":{}}`, "M_INVALID_PARAM"},
		"two keys":          {`{"user_id":"@alice:hs","usage":["master"],"keys":{"ed25519:a":"a","ed25519:b":"b"}}`, "M_INVALID_PARAM"},
		"another name":      {`{"user_id":"@alice:hs","usage":["master"],"keys":{"ed25519:a":"` + k.public + `"}}`, "M_INVALID_PARAM"},
		"not Ed25519":       {`{"user_id":"@alice:hs","usage":["master"],"keys":{"curve25519:` + k.public + `":"` + k.public + `"}}`, "M_INVALID_PARAM"},
		"a short key":       {`{"user_id":"@alice:hs","usage":["master"],"keys":{"ed25519:abcd":"abcd"}}`, "M_INVALID_PARAM"},
		"wrong types":       {`{"user_id":"@alice:hs","usage":"master","keys":{}}`, "M_BAD_JSON"},
		"no object":         {`"x"`, "M_BAD_JSON"},
	} {
		if _, err := checkCrossSigningKey([]byte(c.key), "@alice:hs", usageMaster); codeOf(err) != c.code {
			t.Errorf("%s: %v, want %q", what, err, c.code)
		}
	}
}

// The rules about which keys a user may have, step by step.
func TestCrossSigningRules(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		const user = "@alice:hs"
		master, next, self, other, users := newSigner("master"), newSigner("next"), newSigner("self"), newSigner("other"), newSigner("users")
		newDevice(t, a, user, newSigner("taken").public)
		taken := newSigner("taken")
		params := func(m, s, u json.RawMessage) *crossSigningParams {
			return &crossSigningParams{Master: m, SelfSigning: s, UserSigning: u}
		}
		proof := func(err error) string {
			if errors.Is(err, errNeedsProof) {
				return "proof"
			}
			return codeOf(err)
		}
		for _, c := range []struct {
			what      string
			keys      *crossSigningParams
			confirmed bool
			code      string
			want      []string // the usages that there are then
		}{
			{"no master key", params(nil, self.object(t, user, usageSelfSigning, &self), nil), false, "M_MISSING_PARAM", nil},
			{"a key that a device is named by", params(taken.object(t, user, usageMaster, nil), nil, nil), false, "M_FORBIDDEN", nil},
			{"one key that is not signed", params(master.object(t, user, usageMaster, nil), self.object(t, user, usageSelfSigning, nil), nil), false, "M_INVALID_SIGNATURE", nil},
			{"the first", params(master.object(t, user, usageMaster, nil), self.object(t, user, usageSelfSigning, &master), nil), false, "", []string{usageMaster, usageSelfSigning}},
			{"the same", params(master.object(t, user, usageMaster, nil), nil, nil), false, "", []string{usageMaster, usageSelfSigning}},
			{"one more", params(nil, nil, users.object(t, user, usageUserSigning, &master)), false, "proof", []string{usageMaster, usageSelfSigning}},
			{"one more, confirmed", params(nil, nil, users.object(t, user, usageUserSigning, &master)), true, "", []string{usageMaster, usageSelfSigning, usageUserSigning}},
			{"one signed by another key", params(nil, other.object(t, user, usageSelfSigning, &next), nil), true, "M_INVALID_SIGNATURE", []string{usageMaster, usageSelfSigning, usageUserSigning}},
			{"another master key", params(next.object(t, user, usageMaster, nil), nil, nil), false, "proof", []string{usageMaster, usageSelfSigning, usageUserSigning}},
			{"another master key, confirmed", params(next.object(t, user, usageMaster, nil), other.object(t, user, usageSelfSigning, &next), nil), true, "", []string{usageMaster, usageSelfSigning}},
			{"the old master key's", params(nil, self.object(t, user, usageSelfSigning, &master), nil), true, "M_INVALID_SIGNATURE", []string{usageMaster, usageSelfSigning}},
		} {
			keys, err := c.keys.parse(user)
			if err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			var known map[string]crossSigningKey
			err = a.db.Write(t.Context(), func(tx *storage.Tx) error { return writeCrossSigning(tx, user, keys, c.confirmed) })
			if got := proof(err); got != c.code {
				t.Errorf("%s: %v, want %q", c.what, err, c.code)
			}
			err = a.db.Read(t.Context(), func(tx *storage.Tx) (err error) {
				known, err = crossSigningKeys(tx, user)
				return err
			})
			var got []string
			for usage := range known {
				got = append(got, usage)
			}
			if slices.Sort(got); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s: there are %v, %v; want %v", c.what, got, err, c.want)
			}
		}
	})
}
