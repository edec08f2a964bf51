package signingkey

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKeyIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "signing.key")
	if _, err := Load(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before there is one: %v", err)
	}
	if _, err := Rotate(file, time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("rotated before there is one: %v", err)
	}
	first, err := Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over another: %v", err)
	}
	second, err := Load(file)
	if err != nil || first.ID != second.ID || !bytes.Equal(first.Private, second.Private) {
		t.Fatalf("made %s, then read %s, %v", first.ID, second.ID, err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if rest, _ := os.ReadDir(filepath.Dir(file)); len(rest) != 1 {
		t.Errorf("%d files instead of one", len(rest))
	}
	if _, err := parse([]byte("ed25519 " + strings.TrimPrefix(first.ID, "ed25519:") + " x")); err == nil {
		t.Error("a short seed is accepted")
	}
	other, err := Create(filepath.Join(t.TempDir(), "signing.key"))
	if err != nil || other.ID == first.ID || bytes.Equal(other.Private, first.Private) {
		t.Errorf("two servers have the same key %s, %v", other.ID, err)
	}
}

// TestSpecificationKey reads the key of the specification's test vectors (appendices, "Cryptographic Test Vectors").
func TestSpecificationKey(t *testing.T) {
	const seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"
	for _, text := range []string{
		"ed25519 1 " + seed,
		"\n# carried over\ned25519 1 " + seed + "=\r\nmore lines\n",
	} {
		key, err := parse([]byte(text))
		if err != nil || key.ID != "ed25519:1" {
			t.Errorf("%q gives %s, %v", text, key.ID, err)
			continue
		}
		const signed = "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
		signature, _ := base64.RawStdEncoding.DecodeString(signed)
		if !bytes.Equal(ed25519.Sign(key.Private, []byte("{}")), signature) || !ed25519.Verify(key.Public(), []byte("{}"), signature) {
			t.Errorf("%q: the signature of {} differs from the specification's", text)
		}
	}
}

func TestBadFilesAreRefusedAndNotRepeated(t *testing.T) {
	for _, text := range []string{
		"", "# only a comment\n", "secret", "rsa 1 secret", "ed25519 a:b secret", "ed25519 1 secret", "ed25519 1", "ed25519 1 secret secret",
	} {
		file := filepath.Join(t.TempDir(), "signing.key")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
		if after, _ := os.ReadFile(file); string(after) != text {
			t.Errorf("%q has been overwritten", text)
		}
	}
	if _, err := Create(filepath.Join(t.TempDir(), "missing", "signing.key")); err == nil {
		t.Error("a key was made in a folder that does not exist")
	}
}

func TestRotate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "signing.key")
	first, err := Create(file)
	if err != nil {
		t.Fatal(err)
	}
	now := time.UnixMilli(1_700_000_000_000)
	second, err := Rotate(file, now)
	if err != nil {
		t.Fatal(err)
	}
	third, err := Rotate(file, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	read, err := Load(file)
	if err != nil || read.ID != third.ID || !bytes.Equal(read.Private, third.Private) || first.ID == second.ID || second.ID == third.ID {
		t.Errorf("%s, then %s, then %s; read %s, %v", first.ID, second.ID, third.ID, read.ID, err)
	}
	if len(read.Old) != 2 || read.Old[0].ID != second.ID || read.Old[1].ID != first.ID || !bytes.Equal(read.Old[1].Public, first.Public()) ||
		read.Old[0].Expired != now.Add(time.Hour).UnixMilli() || read.Old[1].Expired != now.UnixMilli() {
		t.Errorf("old keys: %+v", read.Old)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, line := range []string{"old", "old ed25519 1 AAAA 5", "old rsa 1 " + strings.Repeat("A", 43) + " 5", "old ed25519 1 " + strings.Repeat("A", 43) + " soon"} {
		if _, err := parse([]byte(third.text() + line + "\n")); err == nil {
			t.Errorf("%q is accepted", line)
		}
	}
}
