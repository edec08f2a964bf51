package accounts

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// Hashing is the cost of argon2id. Zero values take the defaults.
type Hashing struct {
	// MemoryKiB is the memory of one hash in KiB; default 19 MiB, with 2 iterations a minimum that OWASP recommends.
	MemoryKiB uint32
	// Iterations are the passes over that memory; default 2.
	Iterations uint32
	// Parallel is how many hashes are computed at the same time; default one per processor.
	Parallel int
}

const (
	maxPassword = 512 // bytes
	saltLength  = 16
	hashLength  = 32
	// maxWaiting bounds the requests that wait for their hash: some seconds of work.
	maxWaiting = 256
)

// checkPassword refuses passwords that cannot be set.
func (a *API) checkPassword(password string) error {
	least := max(a.cfg.MinPassword, 1)
	switch {
	case password == "":
		return mxerr.New(http.StatusBadRequest, "M_WEAK_PASSWORD", "The password is empty")
	case utf8.RuneCountInString(password) < least:
		return mxerr.Newf(http.StatusBadRequest, "M_WEAK_PASSWORD", "The password is shorter than %d characters", least)
	case len(password) > maxPassword:
		return mxerr.InvalidParam("The password is longer than 512 bytes")
	}
	return nil
}

// hasher computes password hashes, as many at a time as there are slots.
type hasher struct {
	cost    Hashing
	slots   chan struct{}
	waiting atomic.Int64
}

func newHasher(cost Hashing) *hasher {
	if cost.MemoryKiB == 0 {
		cost.MemoryKiB = 19 << 10
	}
	if cost.Iterations == 0 {
		cost.Iterations = 2
	}
	if cost.Parallel <= 0 {
		cost.Parallel = runtime.GOMAXPROCS(0)
	}
	return &hasher{cost: cost, slots: make(chan struct{}, cost.Parallel)}
}

// key computes a hash when it is its turn.
func (h *hasher) key(ctx context.Context, password string, salt []byte, cost Hashing) ([]byte, error) {
	if h.waiting.Add(1) > maxWaiting {
		h.waiting.Add(-1)
		return nil, mxerr.LimitExceeded(2 * time.Second)
	}
	defer h.waiting.Add(-1)
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a password hash: %w", ctx.Err())
	}
	return argon2.IDKey([]byte(password), salt, cost.Iterations, cost.MemoryKiB, 1, hashLength), nil
}

// hash returns the PHC string for a new password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltLength)
	rand.Read(salt)
	key, err := h.key(ctx, password, salt, h.cost)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, h.cost.MemoryKiB, h.cost.Iterations, b64(salt), b64(key)), nil
}

// verify tells whether a password belongs to a PHC string, and whether that was made at another cost than the
// configured one.
func (h *hasher) verify(ctx context.Context, phc, password string) (ok, outdated bool, err error) {
	cost, salt, want, err := parsePHC(phc)
	if err != nil {
		return false, false, err
	}
	got, err := h.key(ctx, password, salt, cost)
	if err != nil {
		return false, false, err
	}
	ok = subtle.ConstantTimeCompare(got, want) == 1
	return ok, cost.MemoryKiB != h.cost.MemoryKiB || cost.Iterations != h.cost.Iterations, nil
}

// waste takes the time that verify takes, so that the answer's delay does not tell which accounts exist.
func (h *hasher) waste(ctx context.Context, password string) error {
	_, err := h.key(ctx, password, make([]byte, saltLength), h.cost)
	return err
}

var errPHC = errors.New("stored password hash is malformed")

// parsePHC reads a PHC string (the format of the password hashing competition) as hash writes it.
func parsePHC(phc string) (cost Hashing, salt, key []byte, err error) {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return cost, nil, nil, errPHC
	}
	var version, lanes int
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return cost, nil, nil, errPHC
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &cost.MemoryKiB, &cost.Iterations, &lanes); err != nil || lanes != 1 || cost.Iterations == 0 {
		return cost, nil, nil, errPHC
	}
	if salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil {
		return cost, nil, nil, errPHC
	}
	if key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(key) != hashLength {
		return cost, nil, nil, errPHC
	}
	return cost, salt, key, nil
}
