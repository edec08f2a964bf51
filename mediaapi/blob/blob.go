// Package blob stores files by name: on the local disk or in a bucket that speaks the S3 protocol.
//
// What arrives is first a Spool, a temporary file that is hashed while it is written; nothing of it stands in memory.
// A complete spool is put into a Store under a key that begins with its SHA-256. Between Seal and Close, the spool
// carries that key as its name, so that after a crash the next start knows which keys may be in the store without
// anybody having written down that they are.
//
// The package knows nothing of Matrix or of tables: who refers to a key, and when it may be removed, is the caller's.
package blob

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"regexp"
	"time"
)

// ErrNotFound is returned for keys that the store does not have.
var ErrNotFound = errors.New("blob: not found")

// Object is an open blob.
type Object interface {
	io.ReadSeekCloser
	io.ReaderAt
}

// Link is how a blob is to be served by a URL that anybody may fetch for a while.
type Link struct {
	// Type and Disposition are the headers of the answer.
	Type, Disposition string
	// For is how long the URL works.
	For time.Duration
}

// Store keeps blobs. Its methods may be called at the same time.
type Store interface {
	// Put makes a sealed spool durable under its key.
	Put(ctx context.Context, s *Spool) error
	// Open returns a blob, or an error that wraps ErrNotFound.
	Open(ctx context.Context, key string) (Object, error)
	// Remove removes a blob; a missing one is no error.
	Remove(ctx context.Context, key string) error
	// URL returns a URL from which clients fetch the blob themselves, or nothing if the store has none.
	URL(ctx context.Context, key string, link Link) (string, error)
}

// keys begin with the SHA-256 of the content. The rest is random, so that content which is removed and comes again at
// the same time has two names, and removing the old one cannot hit the new one.
var keys = regexp.MustCompile(`^[0-9a-f]{64}-[0-9a-f]{16}$`)

// NewKey makes a key for content with a SHA-256.
func NewKey(hash []byte) string {
	var random [8]byte
	rand.Read(random[:])
	return hex.EncodeToString(hash) + "-" + hex.EncodeToString(random[:])
}

// ValidKey tells whether something has the form of a key.
func ValidKey(key string) bool { return keys.MatchString(key) }
