package accounts

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
)

// The prefixes of tokens. They tell people and secret scanners what they have found.
const (
	accessPrefix  = "mat_"
	refreshPrefix = "mar_"
	loginPrefix   = "mlt_"
	openIDPrefix  = "mot_"
	emailPrefix   = "met_"
)

// maxToken is the length above which nothing can be a token of ours.
const maxToken = 128

// tokenHash is what stands in the database for a token.
type tokenHash [sha256.Size]byte

// newToken makes a token of 32 random bytes.
func newToken(prefix string) string {
	var b [32]byte
	rand.Read(b[:])
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// hashToken returns the hash of a token, and false for what is too long to be one. It does not allocate.
func hashToken(token string) (h tokenHash, ok bool) {
	var b [maxToken]byte
	n := copy(b[:], token)
	return sha256.Sum256(b[:n]), n == len(token)
}

// bytes is the hash as a parameter of a query.
func (h *tokenHash) bytes() []byte { return h[:] }

// randomName makes n random characters of a set of up to 256.
func randomName(set string, n int) string {
	b := make([]byte, n)
	most := byte(256 - 256%len(set) - 1) // beyond it, some characters would come up more often
	for i := 0; i < n; {
		var r [32]byte
		rand.Read(r[:])
		for _, v := range r {
			if v <= most && i < n {
				b[i] = set[int(v)%len(set)]
				i++
			}
		}
	}
	return string(b)
}
