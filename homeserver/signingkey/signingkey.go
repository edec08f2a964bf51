// Package signingkey keeps the server's signing key on disk, in the one-line form homeservers share:
//
//	ed25519 a_Xk3v 32 bytes of seed, base64 without padding
//
// so that a key can be carried over from another homeserver. Lines behind it name the keys that were used before, by
// their public half and the time, in milliseconds, at which they were given up:
//
//	old ed25519 a_Jw2q 32 bytes of public key 1700000000000
//
// Whoever has the file can speak for the server; losing
// it makes other servers doubt everything the server signs next.
package signingkey

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Key signs events and requests of this server.
type Key struct {
	ID      string // "ed25519:" and the key's version, as signatures name it
	Private ed25519.PrivateKey
	// Old are the keys that the server signed with before.
	Old []Old
}

// Old is a key that is no longer used. What it signed remains valid.
type Old struct {
	ID      string
	Public  ed25519.PublicKey
	Expired int64 // when it was given up, in milliseconds
}

// OldPublic are the old keys by their ids.
func (k Key) OldPublic() map[string]ed25519.PublicKey {
	keys := make(map[string]ed25519.PublicKey, len(k.Old))
	for _, old := range k.Old {
		keys[old.ID] = old.Public
	}
	return keys
}

// Public is the key that others check signatures with.
func (k Key) Public() ed25519.PublicKey {
	return k.Private.Public().(ed25519.PublicKey)
}

// Load reads the key in file. Its error is fs.ErrNotExist if there is no such file.
func Load(file string) (Key, error) {
	data, err := os.ReadFile(file) // #nosec G304: the operator names the folder
	if err != nil {
		return Key{}, fmt.Errorf("read signing key: %w", err)
	}
	key, err := parse(data)
	if err != nil {
		return Key{}, fmt.Errorf("signing key %s: %w", file, err)
	}
	return key, nil
}

// version is what the specification allows after "ed25519:" (server-server API, "Publishing Keys").
var version = regexp.MustCompile(`^[a-zA-Z0-9_]+$`)

// parse reads the first key of a file and the old ones; empty lines, comments and further keys are skipped. Its errors
// never repeat the file.
func parse(data []byte) (key Key, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
		case fields[0] == "old":
			old, err := parseOld(fields)
			if err != nil {
				return Key{}, err
			}
			key.Old = append(key.Old, old)
		case key.Private == nil:
			if len(fields) != 3 || fields[0] != "ed25519" || !version.MatchString(fields[1]) {
				return Key{}, errors.New("a line must be: ed25519 VERSION SEED, with letters, digits and underscores in VERSION")
			}
			seed, err := decode(fields[2])
			if err != nil || len(seed) != ed25519.SeedSize {
				return Key{}, fmt.Errorf("the seed of %s is not %d bytes of base64", fields[1], ed25519.SeedSize)
			}
			key.ID, key.Private = "ed25519:"+fields[1], ed25519.NewKeyFromSeed(seed)
		}
	}
	if key.Private == nil {
		return Key{}, errors.New("it holds no key")
	}
	return key, nil
}

func decode(text string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
}

// parseOld reads the line of an old key.
func parseOld(fields []string) (Old, error) {
	wrong := errors.New("a line of an old key must be: old ed25519 VERSION PUBLICKEY EXPIRED, with EXPIRED in milliseconds")
	if len(fields) != 5 || fields[1] != "ed25519" || !version.MatchString(fields[2]) {
		return Old{}, wrong
	}
	public, err := decode(fields[3])
	expired, timeErr := strconv.ParseInt(fields[4], 10, 64)
	if err != nil || len(public) != ed25519.PublicKeySize || timeErr != nil || expired <= 0 {
		return Old{}, wrong
	}
	return Old{"ed25519:" + fields[2], public, expired}, nil
}

// Rotate gives the server another key and makes the one in file an old one, given up at now. It must not be running: what
// it signs with the key that it knows would not be valid.
func Rotate(file string, now time.Time) (Key, error) {
	before, err := Load(file)
	if err != nil {
		return Key{}, err
	}
	after, err := generate()
	if err != nil {
		return Key{}, err
	}
	after.Old = append([]Old{{before.ID, before.Public(), now.UnixMilli()}}, before.Old...)
	if err := writeDurably(file, after.text()); err != nil {
		return Key{}, fmt.Errorf("write signing key: %w", err)
	}
	return after, nil
}

// text is the key as it stands in its file.
func (k Key) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ed25519 %s %s\n", strings.TrimPrefix(k.ID, "ed25519:"), base64.RawStdEncoding.EncodeToString(k.Private.Seed()))
	for _, old := range k.Old {
		fmt.Fprintf(&b, "old ed25519 %s %s %d\n", strings.TrimPrefix(old.ID, "ed25519:"), base64.RawStdEncoding.EncodeToString(old.Public), old.Expired)
	}
	return b.String()
}

// generate makes a key. A random version keeps the key of a server that lost its data apart from the one it had before.
func generate() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make signing key: %w", err)
	}
	return Key{ID: "ed25519:a_" + rand.Text()[:6], Private: private}, nil
}

// Create makes a key and the file, readable by its owner only, and returns once the file is on disk: nothing may be signed
// with a key that a power cut could take away. A file that is there already is an error, fs.ErrExist. Only one process at a
// time may do so in a folder.
func Create(file string) (Key, error) {
	if _, err := os.Lstat(file); err == nil {
		return Key{}, fmt.Errorf("make signing key: %s: %w", file, fs.ErrExist)
	}
	key, err := generate()
	if err != nil {
		return Key{}, err
	}
	if err := writeDurably(file, key.text()); err != nil {
		return Key{}, fmt.Errorf("write signing key: %w", err)
	}
	return key, nil
}

// writeDurably makes a file that either has all of text or does not exist, whenever the machine stops.
func writeDurably(file, text string) error {
	folder := filepath.Dir(file)
	draft, err := os.CreateTemp(folder, ".signing-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(draft.Name()) }() // gone already if all went well
	_, err = draft.WriteString(text)
	if err := errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return err
	}
	if err := os.Rename(draft.Name(), file); err != nil {
		return err
	}
	dir, err := os.Open(folder) // #nosec G304: the operator names the folder
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
