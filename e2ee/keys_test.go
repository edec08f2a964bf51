package e2ee

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A refused upload stores nothing of what it brought.
func TestUploadRefused(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		d, other := newDevice(t, a, "@alice:hs", "ONE"), newDevice(t, a, "@alice:hs", "TWO")
		many := map[string]json.RawMessage{}
		for i := range maxOneTimeKeys + 1 {
			many[fmt.Sprint("signed_curve25519:", i)] = json.RawMessage(`{"key":"x"}`)
		}
		forged := map[string]json.RawMessage{"signed_curve25519:a": other.sign("@alice:hs", "ONE", `{"key":"x"}`)}
		for what, c := range map[string]struct {
			in   uploadRequest
			code string
		}{
			"no object":                              {uploadRequest{DeviceKeys: json.RawMessage(`[]`)}, "M_BAD_JSON"},
			"without its parts":                      {uploadRequest{DeviceKeys: json.RawMessage(`{}`)}, "M_BAD_JSON"},
			"of another user":                        {uploadRequest{DeviceKeys: d.sign("@bob:hs", "ONE", d.described("@bob:hs", "ONE"))}, "M_INVALID_PARAM"},
			"of another device":                      {uploadRequest{DeviceKeys: other.identity()}, "M_INVALID_PARAM"},
			"signed by another device":               {uploadRequest{DeviceKeys: other.sign("@alice:hs", "ONE", d.described("@alice:hs", "ONE"))}, "M_INVALID_SIGNATURE"},
			"changed after it was signed":            {uploadRequest{DeviceKeys: json.RawMessage(strings.Replace(string(d.identity()), "megolm", "olm", 1))}, "M_INVALID_SIGNATURE"},
			"one-time keys signed by another device": {uploadRequest{DeviceKeys: d.identity(), OneTimeKeys: forged}, "M_INVALID_SIGNATURE"},
			"fallback keys signed by another device": {uploadRequest{DeviceKeys: d.identity(), FallbackKeys: forged}, "M_INVALID_SIGNATURE"},
			"a name without an algorithm":            {uploadRequest{DeviceKeys: d.identity(), OneTimeKeys: map[string]json.RawMessage{"a": d.signed(`{"key":"x"}`)}}, "M_INVALID_PARAM"},
			"a key that is none":                     {uploadRequest{DeviceKeys: d.identity(), OneTimeKeys: map[string]json.RawMessage{"signed_curve25519:a": d.signed(`{}`)}}, "M_BAD_JSON"},
			"two fallback keys":                      {uploadRequest{DeviceKeys: d.identity(), FallbackKeys: d.keys("a", "b")}, "M_INVALID_PARAM"},
			"many one-time keys":                     {uploadRequest{DeviceKeys: d.identity(), OneTimeKeys: many}, "M_TOO_LARGE"},
		} {
			if _, err := d.upload(&c.in); codeOf(err) != c.code {
				t.Errorf("%s: %v, want %s", what, err, c.code)
			}
		}
		d.has("after refusals", `{"signed_curve25519":0}`, `[]`)
		published(t, a, "@alice:hs", 0)
		if _, err := stranger(t, a, "@alice:hs", "").upload(&uploadRequest{}); codeOf(err) != "M_INVALID_PARAM" {
			t.Errorf("a token without a device: %v", err)
		}
		gone := stranger(t, a, "@alice:hs", "GONE")
		if _, err := gone.upload(&uploadRequest{DeviceKeys: gone.identity()}); codeOf(err) != "M_UNKNOWN_TOKEN" {
			t.Errorf("a device that is not there: %v", err)
		}
		published(t, a, "@alice:hs", 0)
	})
}

// claims claims one key of each of some devices and returns their names, empty for none.
func claims(t *testing.T, a *API, algorithm string, devices ...*device) (names []string) {
	t.Helper()
	in := &claimRequest{OneTimeKeys: wantedKeys{}}
	for _, d := range devices {
		if in.OneTimeKeys[d.by.UserID] == nil {
			in.OneTimeKeys[d.by.UserID] = map[string]string{}
		}
		in.OneTimeKeys[d.by.UserID][d.by.DeviceID] = algorithm
	}
	out, err := a.claim(t.Context(), stranger(t, a, "@claimer:hs", "X").by, in)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		name := ""
		for name = range out.OneTimeKeys[d.by.UserID][d.by.DeviceID] {
			name = strings.TrimPrefix(name, algorithm+":")
		}
		names = append(names, name)
	}
	return names
}

// One-time keys are handed out once each, in the order in which they came (MSC4225), then the fallback key again and again
// (MSC2732).
func TestClaims(t *testing.T) {
	eachAPI(t, func(t *testing.T, a *API) {
		d, other := newDevice(t, a, "@alice:hs", "ONE"), newDevice(t, a, "@bob:hs", "ONE")
		d.uploads(&uploadRequest{DeviceKeys: d.identity(), OneTimeKeys: d.keys("c", "b"), FallbackKeys: d.keys("fall")})
		d.uploads(&uploadRequest{OneTimeKeys: d.keys("a")})
		d.uploads(&uploadRequest{OneTimeKeys: d.keys("b")}) // once more: a lost answer
		d.has("after uploading", `{"signed_curve25519":3}`, `["signed_curve25519"]`)
		other.uploads(&uploadRequest{DeviceKeys: other.identity(), OneTimeKeys: other.keys("z")})

		nobody := stranger(t, a, "@nobody:hs", "ONE")
		if got, want := claims(t, a, signedCurve25519, d, other, nobody), []string{"b", "z", ""}; !slices.Equal(got, want) {
			t.Errorf("claimed %q, want %q", got, want)
		}
		if got := claims(t, a, "curve25519", d); got[0] != "" {
			t.Errorf("a key of another algorithm: %q", got)
		}
		for _, want := range []string{"c", "a", "fall", "fall"} {
			if got := claims(t, a, signedCurve25519, d); got[0] != want {
				t.Errorf("claimed %q, want %q", got, want)
			}
		}
		if got := claims(t, a, signedCurve25519, other); got[0] != "" {
			t.Errorf("claimed %q of a device without keys", got)
		}
		d.has("after all claims", `{"signed_curve25519":0}`, `[]`)
		// What was handed out is not handed out again, whatever comes under its name.
		changed := map[string]json.RawMessage{"signed_curve25519:a": d.signed(`{"key":"another"}`)}
		if _, err := d.upload(&uploadRequest{OneTimeKeys: changed}); codeOf(err) != "M_INVALID_PARAM" {
			t.Errorf("another key under the name of one that was claimed: %v", err)
		}
		d.uploads(&uploadRequest{OneTimeKeys: d.keys("a", "c")})
		d.has("after uploading claimed keys", `{"signed_curve25519":0}`, `[]`)
		d.uploads(&uploadRequest{FallbackKeys: d.keys("fallen")})
		d.has("with another fallback key", `{"signed_curve25519":0}`, `["signed_curve25519"]`)
		if got := claims(t, a, signedCurve25519, d); got[0] != "fallen" {
			t.Errorf("claimed %q", got)
		}
	})
}

// changeLog forgets, and knows what it has forgotten.
func TestChangeLog(t *testing.T) {
	c := newChangeLog(10)
	for i, user := range []string{"a", "b", "a", "c"} {
		c.add(int64(11+i), user, user == "c")
	}
	for _, r := range []struct {
		from, to int64
		want     []string
	}{
		{10, 14, []string{"a", "b"}}, {11, 12, []string{"b"}}, {12, 14, []string{"a"}}, {13, 14, nil}, {14, 20, nil}, {10, 10, nil},
	} {
		if got, known := c.between(r.from, r.to); !known || !slices.Equal(got, r.want) {
			t.Errorf("in (%d, %d] %v, known: %t; want %v", r.from, r.to, got, known, r.want)
		}
	}
	if _, known := c.between(9, 14); known {
		t.Error("it claims to know of what was before it")
	}
	for user, since := range map[string]int64{"a": 13, "b": 12, "c": 14, "nobody": 10} {
		if !c.unchanged(user, since) || since > 10 && c.unchanged(user, since-1) {
			t.Errorf("%s has not changed since %d", user, since)
		}
	}
	for i := range int64(3 * maxRecentChanges) {
		c.add(100+i, fmt.Sprint("user", i%7), false)
	}
	if len(c.recent) > maxRecentChanges || len(c.last) > 7 {
		t.Errorf("it holds %d changes of %d users", len(c.recent), len(c.last))
	}
	if _, known := c.between(100, 200); known || c.unchanged("a", 50) {
		t.Error("it claims to know of what it has forgotten")
	}
	if got, known := c.between(99+3*maxRecentChanges-3, 1<<40); !known || len(got) != 3 {
		t.Errorf("the last three changes are of %v, known: %t", got, known)
	}
}
