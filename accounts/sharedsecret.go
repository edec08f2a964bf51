package accounts

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // #nosec G505: what the tools compute; HMAC-SHA1 is not broken
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
)

// Registration with a shared secret, as Synapse's register_new_matrix_user and tools of its kind do it: they ask
// for a nonce and send with it a MAC, keyed with the secret, over the nonce and the account.

// nonceLifetime is how long a tool may take.
const nonceLifetime = time.Minute

// nonces makes and checks nonces. They carry their own proof, so that strangers who ask for many cost no memory; only
// those with which the secret was proven are remembered, until they expire, since each is good for one registration.
type nonces struct {
	key []byte // nil: registration with a shared secret is off
	now func() time.Time

	mu    sync.Mutex
	spent map[string]int64 // when they expire, in milliseconds; guarded by mu
}

func newNonces(secret string, now func() time.Time) *nonces {
	if secret == "" {
		return &nonces{}
	}
	key := sha256.Sum256([]byte("myelin: nonces of registration\x00" + secret))
	return &nonces{key: key[:], now: now, spent: map[string]int64{}}
}

// issue makes a nonce: when it expires, random bytes, and a MAC over both.
func (n *nonces) issue() string {
	b := make([]byte, 16, 16+sha256.Size)
	binary.BigEndian.PutUint64(b, uint64(n.now().Add(nonceLifetime).UnixMilli()))
	rand.Read(b[8:])
	return base64.RawURLEncoding.EncodeToString(n.mac(b))
}

// mac appends the MAC over b to b.
func (n *nonces) mac(b []byte) []byte {
	m := hmac.New(sha256.New, n.key)
	m.Write(b)
	return m.Sum(b)
}

// check returns when a nonce expires, in milliseconds; ok is false if it was not issued, or is over.
func (n *nonces) check(nonce string) (expires int64, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil || len(b) != 16+sha256.Size || !hmac.Equal(b, n.mac(b[:16:16])) {
		return 0, false
	}
	expires = int64(binary.BigEndian.Uint64(b))
	return expires, n.now().UnixMilli() < expires
}

// spend uses a nonce up; it returns false if that happened already.
func (n *nonces) spend(nonce string, expires int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now().UnixMilli()
	maps.DeleteFunc(n.spent, func(_ string, expires int64) bool { return expires <= now })
	if _, twice := n.spent[nonce]; twice {
		return false
	}
	n.spent[nonce] = expires
	return true
}

var (
	errNoSharedSecret = mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "Registration with a shared secret is disabled")
	errNonce          = mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "The nonce is unknown, was used, or has expired")
)

type nonceResponse struct {
	Nonce string `json:"nonce"`
}

func (a *API) sharedSecretNonce(context.Context, *httpapi.Caller, *httpapi.Empty) (*nonceResponse, error) {
	if a.nonces.key == nil {
		return nil, errNoSharedSecret
	}
	return &nonceResponse{a.nonces.issue()}, nil
}

type sharedSecretRequest struct {
	Nonce        string  `json:"nonce" required:"true"`
	Username     string  `json:"username" required:"true"`
	Password     string  `json:"password" required:"true"`
	Admin        bool    `json:"admin"`
	UserType     *string `json:"user_type"`
	DisplayName  string  `json:"displayname"`
	MAC          string  `json:"mac" required:"true"`
	InhibitLogin bool    `json:"inhibit_login"`
}

// mac is the MAC that a tool with the secret sends.
func (r *sharedSecretRequest) mac(secret string) []byte {
	parts := []string{r.Nonce, r.Username, r.Password, "notadmin"}
	if r.Admin {
		parts[3] = "admin"
	}
	if r.UserType != nil {
		parts = append(parts, *r.UserType)
	}
	m := hmac.New(sha1.New, []byte(secret))
	m.Write([]byte(strings.Join(parts, "\x00")))
	return m.Sum(nil)
}

func (a *API) sharedSecretRegister(ctx context.Context, by *httpapi.Caller, in *sharedSecretRequest) (*loginResponse, error) {
	if a.nonces.key == nil {
		return nil, errNoSharedSecret
	}
	if strings.ContainsRune(in.Username+in.Password, 0) {
		return nil, mxerr.InvalidParam("User name and password cannot hold NUL")
	}
	expires, ok := a.nonces.check(in.Nonce)
	if !ok {
		return nil, errNonce
	}
	mac, err := hex.DecodeString(in.MAC)
	if err != nil || !hmac.Equal(mac, in.mac(a.cfg.Registration.SharedSecret)) {
		return nil, mxerr.Forbidden("The MAC is wrong")
	}
	if !a.nonces.spend(in.Nonce, expires) {
		return nil, errNonce
	}
	user := NewUser{Username: in.Username, Password: in.Password, Admin: in.Admin, DisplayName: in.DisplayName}
	if in.UserType != nil {
		user.Type = *in.UserType
	}
	return a.createUser(ctx, by, user, !in.InhibitLogin)
}
