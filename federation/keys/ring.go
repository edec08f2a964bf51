// Package keys knows the signing keys of servers: our own, which it publishes, and those of others, which it fetches
// from them or from notaries, keeps in table federation_keys, and passes on as a notary itself.
//
// # What is believed
//
// A key document counts only if its server_name is the name of the server that it was asked for and it is signed with
// one of its own current keys; one that a notary hands over must be signed by the notary as well. A document is believed
// for as long as it says, but for no more than seven days after it was read. Keys that a newer document no longer names
// remain known for what they signed while they were valid, of the newest maxStored keys of a server; Prune forgets servers
// that nobody has to do with any more.
//
// # What it costs
//
// What was asked of late is in memory (at most maxServers servers). Many who ask for the same server at once wait for
// one request. A server that does not answer, or lacks the key, is left alone for a while that doubles up to
// maxBackoff, so that unknown key ids in hostile requests do not make us send requests.
//
// spec: server-server-api v1.19 "Retrieving server keys", room versions 5 and later "Signing key validity period"
package keys

import (
	"context"
	"crypto/ed25519"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/cache"
	"github.com/myelin-im/myelin/storage"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the part of the database that belongs to this package.
var Schema = storage.Schema{Feature: "federation_keys", FS: migrations}

const (
	// Now stands for the time of asking and demands a key that is valid for requests.
	Now int64 = 0
	// Whenever demands nothing of the time: events of room versions 1 to 4.
	Whenever int64 = -1
)

const (
	maxServers = 20_000 // in memory
	maxFetches = 64     // requests for keys at the same time
	maxFlights = 2000   // those and what waits for them: strangers cause them
)

var (
	// ErrUnknownKey is wrapped by errors about keys that could not be had: the server does not answer, or has no such key.
	ErrUnknownKey = errors.New("unknown key")
	// ErrNotValid is wrapped by errors about keys that were not valid at the time in question.
	ErrNotValid = errors.New("the key was not valid then")
)

// Old is a key that this server used to sign with.
type Old struct {
	ID      string
	Key     ed25519.PublicKey
	Expired int64 // when it was used last, in milliseconds
}

// Config is what a Ring stands on.
type Config struct {
	// ServerName is our own name, KeyID and Key what we sign with, Old what we signed with before.
	ServerName string
	KeyID      string
	Key        ed25519.PrivateKey
	Old        []Old
	// Notaries are servers that are asked for keys of others who do not answer.
	Notaries []string
	// DB must have been opened with Schema.
	DB *storage.DB
	// Client asks other servers.
	Client *client.Client
	// Log gets what operators should know; nil for nothing.
	Log *logrus.Entry
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Ring is the keys of all servers. It is safe for concurrent use.
type Ring struct {
	cfg   Config
	known *cache.Cache[string, map[string]publicKey] // by server, then by key id; the maps are never changed

	mu      sync.Mutex
	flights map[string]*flight // fetches under way, by server
	waits   *cache.Cache[string, backoff]
	slots   chan struct{} // bounds the fetches that ask somebody

	ownMu   sync.Mutex
	own     json.RawMessage
	ownFrom int64
}

// New makes a Ring.
func New(cfg Config) (*Ring, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		cfg.Log = logrus.NewEntry(silent)
	}
	r := &Ring{cfg: cfg, flights: make(map[string]*flight), slots: make(chan struct{}, maxFetches)}
	r.known = cache.New[string, map[string]publicKey](maxServers)
	r.waits = cache.New[string, backoff](maxServers)
	return r, nil
}

func (r *Ring) now() int64 { return r.cfg.Now().UnixMilli() }

// Key returns a server's key that was valid at a time in milliseconds, Now or Whenever. Keys that are not known are
// fetched. The error wraps ErrUnknownKey or ErrNotValid.
func (r *Ring) Key(ctx context.Context, server, id string, at int64) (ed25519.PublicKey, error) {
	if server == r.cfg.ServerName {
		return r.ownKey(id, at)
	}
	if _, ok := client.ParseName(server); !ok || !isKeyID(id) {
		return nil, fmt.Errorf("%.100q of %.100q: %w", id, server, ErrUnknownKey)
	}
	key, _, err := r.look(ctx, server, id, at)
	if err != nil || key != nil {
		return key, err
	}
	fetchErr := r.fetch(ctx, server, need{id, at})
	key, found, err := r.look(ctx, server, id, at)
	switch {
	case err != nil || key != nil:
		return key, err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case found:
		return nil, fmt.Errorf("%s of %s: %w", id, server, ErrNotValid)
	case fetchErr != nil:
		return nil, fmt.Errorf("%s of %s: %w: %w", id, server, ErrUnknownKey, fetchErr)
	}
	return nil, fmt.Errorf("%s of %s: %w", id, server, ErrUnknownKey)
}

// look finds a key among those that are known; key is nil if it is not there or not valid, found tells which.
func (r *Ring) look(ctx context.Context, server, id string, at int64) (key ed25519.PublicKey, found bool, err error) {
	known, err := r.keysOf(ctx, server)
	if err != nil {
		return nil, false, err
	}
	k, found := known[id]
	if found && k.validAt(at, r.now()) {
		return k.key, true, nil
	}
	return nil, found, nil
}

// ownKey is Key for this server.
func (r *Ring) ownKey(id string, at int64) (ed25519.PublicKey, error) {
	if id == r.cfg.KeyID {
		return r.cfg.Key.Public().(ed25519.PublicKey), nil
	}
	for _, old := range r.cfg.Old {
		if old.ID == id {
			if at == Now || at > old.Expired {
				return nil, fmt.Errorf("our old key %s: %w", id, ErrNotValid)
			}
			return old.Key, nil
		}
	}
	return nil, fmt.Errorf("our own %.100q: %w", id, ErrUnknownKey)
}
