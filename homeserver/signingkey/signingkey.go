// Package signingkey keeps the server's signing key on disk, in the one-line form homeservers share:
//
//	ed25519 a_Xk3v 32 bytes of seed, base64 without padding
//
// so that a key can be carried over from another homeserver. Whoever has the file can speak for the server; losing
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
	"strings"
)

// Key signs events and requests of this server.
type Key struct {
	ID      string // "ed25519:" and the key's version, as signatures name it
	Private ed25519.PrivateKey
}

// Public is the key that others check signatures with.
func (k Key) Public() ed25519.PublicKey {
	return k.Private.Public().(ed25519.PublicKey)
}

// LoadOrCreate reads the key in file. If there is no such file, it makes a key and the file, readable by its owner
// only, and returns once the file is on disk: nothing may be signed with a key that a power cut could take away.
// Only one process at a time may do so in a folder.
func LoadOrCreate(file string) (Key, error) {
	data, err := os.ReadFile(file) // #nosec G304: the operator names the folder
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return create(file)
	case err != nil:
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

// parse reads the first key of a file; empty lines and comments are skipped. Its errors never repeat the file.
func parse(data []byte) (Key, error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 || fields[0] != "ed25519" || !version.MatchString(fields[1]) {
			return Key{}, errors.New("a line must be: ed25519 VERSION SEED, with letters, digits and underscores in VERSION")
		}
		seed, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(fields[2], "="))
		if err != nil || len(seed) != ed25519.SeedSize {
			return Key{}, fmt.Errorf("the seed of %s is not %d bytes of base64", fields[1], ed25519.SeedSize)
		}
		return Key{ID: "ed25519:" + fields[1], Private: ed25519.NewKeyFromSeed(seed)}, nil
	}
	return Key{}, errors.New("it holds no key")
}

func create(file string) (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make signing key: %w", err)
	}
	// A random version keeps the key of a server that lost its data apart from the one it had before.
	key := Key{ID: "ed25519:a_" + rand.Text()[:6], Private: private}
	line := "ed25519 " + strings.TrimPrefix(key.ID, "ed25519:") + " " + base64.RawStdEncoding.EncodeToString(private.Seed()) + "\n"
	if err := writeDurably(file, line); err != nil {
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
