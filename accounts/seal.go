package accounts

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"sync/atomic"
)

// The parameters of a request that waits for its authentication may hold a password. They are encrypted with a key
// that is derived from the session id; the database holds only the id's hash, so that it alone reveals nothing.

// seal encrypts data for the session.
func seal(sessionID string, data []byte) []byte {
	return sessionCipher(sessionID).Seal(nil, nil, data, nil)
}

func unseal(sessionID string, sealed []byte) ([]byte, error) {
	data, err := sessionCipher(sessionID).Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("decrypt request of authentication session: %w", err)
	}
	return data, nil
}

// sessionCipher cannot fail: all lengths are right.
func sessionCipher(sessionID string) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, []byte(sessionID), nil, "myelin: request of an authentication session", 32)
	if err != nil {
		panic(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// pruner says at each how manieth write old rows are to be looked for.
type pruner struct{ writes atomic.Uint64 }

func (p *pruner) due() bool { return p.writes.Add(1)%64 == 1 }
