package signing

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// specKey is the key of the specification's test vectors.
func specKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	seed, err := DecodeBase64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

func publicKey(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// spec: appendices v1.19 "Cryptographic Test Vectors", "JSON Signing"
func TestSpecificationVectors(t *testing.T) {
	key := specKey(t)
	for _, c := range []struct{ in, want string }{
		{
			`{}`,
			`{"signatures":{"domain":{"ed25519:1":"K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}`,
		},
		{
			`{"one": 1, "two": "Two"}`,
			`{"one":1,"signatures":{"domain":{"ed25519:1":"KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},"two":"Two"}`,
		},
	} {
		got, err := SignJSON([]byte(c.in), "domain", "ed25519:1", key)
		if err != nil || string(got) != c.want {
			t.Errorf("SignJSON(%s) = %s, %v; want %s", c.in, got, err, c.want)
		}
		if err := VerifyJSON(got, "domain", "ed25519:1", publicKey(key)); err != nil {
			t.Errorf("VerifyJSON(%s): %v", got, err)
		}
	}
}

// Signatures are those of the standard library, bit by bit: the algorithm is deterministic.
func TestSignaturesOfTheStandardLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.SliceOfN(rapid.Byte(), ed25519.SeedSize, ed25519.SeedSize).Draw(t, "seed")
		message := rapid.SliceOf(rapid.Byte()).Draw(t, "message")
		key := ed25519.NewKeyFromSeed(seed)
		if got, want := Bytes(message, key), ed25519.Sign(key, message); !bytes.Equal(got, want) {
			t.Fatalf("got %x, want %x", got, want)
		}
	})
}

// BenchmarkBytes signs a message as long as what is signed of a short one in a room.
func BenchmarkBytes(b *testing.B) {
	key, message := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), make([]byte, 600)
	b.ReportAllocs()
	for b.Loop() {
		Bytes(message, key)
	}
}

func TestSignatureCoversAllButUnsigned(t *testing.T) {
	key := specKey(t)
	signed, err := SignJSON([]byte(`{"b":[1.5,{"x":"é"}],"a":"\n","unsigned":{"age":1}}`), "domain", "ed25519:1", key)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(obj []byte) error { return VerifyJSON(obj, "domain", "ed25519:1", publicKey(key)) }
	if !bytes.Contains(signed, []byte(`"unsigned":{"age":1}`)) {
		t.Errorf("unsigned is lost: %s", signed)
	}
	if err := verify(bytes.Replace(signed, []byte(`"age":1`), []byte(`"age":2`), 1)); err != nil {
		t.Errorf("changed unsigned: %v", err)
	}
	other, err := SignJSON(signed, "other", "ed25519:x", ed25519.NewKeyFromSeed(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(other); err != nil {
		t.Errorf("second signature: %v", err)
	}
	if err := verify(bytes.Replace(signed, []byte("é"), []byte("e"), 1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("changed text: %v", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	key := specKey(t)
	signed, _ := SignJSON([]byte(`{"a":1}`), "domain", "ed25519:1", key)
	sig := Signatures(signed[len(`{"a":1,"signatures":`):len(signed)-1], "")[0].Value
	for _, c := range []struct {
		name, obj string
		key       ed25519.PublicKey
		want      error
	}{
		{"no signatures", `{"a":1}`, publicKey(key), ErrMissing},
		{"signatures of another type", `{"a":1,"signatures":[]}`, publicKey(key), ErrMissing},
		{"another entity", `{"a":1,"signatures":{"other":{"ed25519:1":"` + sig + `"}}}`, publicKey(key), ErrMissing},
		{"another key ID", `{"a":1,"signatures":{"domain":{"ed25519:2":"` + sig + `"}}}`, publicKey(key), ErrMissing},
		{"no string", `{"a":1,"signatures":{"domain":{"ed25519:1":1}}}`, publicKey(key), ErrMissing},
		{"entity of another type", `{"a":1,"signatures":{"domain":"` + sig + `"}}`, publicKey(key), ErrMissing},
		{"empty", `{"a":1,"signatures":{"domain":{"ed25519:1":""}}}`, publicKey(key), ErrInvalid},
		{"no base64", `{"a":1,"signatures":{"domain":{"ed25519:1":"!!"}}}`, publicKey(key), ErrInvalid},
		{"short", `{"a":1,"signatures":{"domain":{"ed25519:1":"` + sig[:80] + `"}}}`, publicKey(key), ErrInvalid},
		{"other content", `{"a":2,"signatures":{"domain":{"ed25519:1":"` + sig + `"}}}`, publicKey(key), ErrInvalid},
		{"other key", string(signed), publicKey(ed25519.NewKeyFromSeed(make([]byte, 32))), ErrInvalid},
		{"malformed key", string(signed), publicKey(key)[:31], ErrInvalid},
		{"no key", string(signed), nil, ErrInvalid},
	} {
		if err := VerifyJSON([]byte(c.obj), "domain", "ed25519:1", c.key); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, obj := range []string{``, `[]`, `1`, `{"a":1`, `null`} {
		if err := VerifyJSON([]byte(obj), "domain", "ed25519:1", publicKey(key)); err == nil {
			t.Errorf("VerifyJSON(%q) succeeds", obj)
		}
		if _, err := SignJSON([]byte(obj), "domain", "ed25519:1", key); err == nil {
			t.Errorf("SignJSON(%q) succeeds", obj)
		}
	}
}

func TestAddSignature(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"first", `{"a":1}`, `{"a":1,"signatures":{"b":{"ed25519:1":"x"}}}`},
		{"into nothing", `{}`, `{"signatures":{"b":{"ed25519:1":"x"}}}`},
		{"empty", `{"signatures":{}}`, `{"signatures":{"b":{"ed25519:1":"x"}}}`},
		{"another entity", `{"signatures":{"a":{"ed25519:1":"y"},"c":{}}}`, `{"signatures":{"a":{"ed25519:1":"y"},"b":{"ed25519:1":"x"},"c":{}}}`},
		{"another key", `{"signatures":{"b":{"ed25519:2":"y"}}}`, `{"signatures":{"b":{"ed25519:1":"x","ed25519:2":"y"}}}`},
		{"the same key", `{"signatures":{"b":{"ed25519:1":"y"}},"z":0}`, `{"signatures":{"b":{"ed25519:1":"x"}},"z":0}`},
		{"malformed entity", `{"signatures":{"b":[]}}`, `{"signatures":{"b":{"ed25519:1":"x"}}}`},
		{"malformed", `{"signatures":"b"}`, `{"signatures":{"b":{"ed25519:1":"x"}}}`},
	} {
		got, err := AddSignature([]byte(c.in), "b", "ed25519:1", "x")
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestSignatures(t *testing.T) {
	obj := []byte(`{"a\"":{"ed25519:1":"v"},"b":{"ed25519:1":"w","ed25519:2":"x","rsa:1":"y"},"c":[],"d":{"ed25519:1":{}}}`)
	all := []Signature{{`a"`, "ed25519:1", "v"}, {"b", "ed25519:1", "w"}, {"b", "ed25519:2", "x"}}
	if got := Signatures(obj, ""); !reflect.DeepEqual(got, all) {
		t.Errorf("all: %v", got)
	}
	if got := Signatures(obj, "b"); !reflect.DeepEqual(got, all[1:]) {
		t.Errorf("of b: %v", got)
	}
	if got := Signatures(nil, ""); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

// spec: appendices v1.19 "Unpadded Base64"
func TestBase64(t *testing.T) {
	for _, c := range []struct{ text, encoded string }{
		{"", ""}, {"f", "Zg"}, {"fo", "Zm8"}, {"foo", "Zm9v"}, {"foob", "Zm9vYg"}, {"fooba", "Zm9vYmE"}, {"foobar", "Zm9vYmFy"}, {"\xfb\xff", "+/8"},
	} {
		if got := EncodeBase64([]byte(c.text)); got != c.encoded {
			t.Errorf("EncodeBase64(%q) = %s, want %s", c.text, got, c.encoded)
		}
		padded := c.encoded + strings.Repeat("=", (4-len(c.encoded)%4)%4)
		urlSafe := strings.NewReplacer("+", "-", "/", "_").Replace(c.encoded)
		for _, in := range []string{c.encoded, padded, urlSafe} {
			if got, err := DecodeBase64(in); err != nil || string(got) != c.text {
				t.Errorf("DecodeBase64(%s) = %q, %v; want %q", in, got, err, c.text)
			}
		}
	}
	for _, in := range []string{"Z", "Zg=g", "!", "+-", "Z g"} {
		if got, err := DecodeBase64(in); err == nil {
			t.Errorf("DecodeBase64(%q) = %q", in, got)
		}
	}
}
