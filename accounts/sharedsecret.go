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
	"net/http"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
)

// Registration with a shared secret, as Synapse's register_new_matrix_user and tools of its kind do it: they ask
// for a nonce and send with it a MAC, keyed with the secret, over the nonce and the account.

// nonceLifetime is how long a tool may take.
const nonceLifetime = time.Minute

// nonces makes and checks nonces. They need not be remembered, as they carry their own proof; one that is shown
// twice does no harm, because its MAC holds for one user name, which is then taken.
type nonces struct {
	key []byte // nil: registration with a shared secret is off
	now func() time.Time
}

func newNonces(secret string, now func() time.Time) nonces {
	if secret == "" {
		return nonces{}
	}
	key := sha256.Sum256([]byte("myelin: nonces of registration\x00" + secret))
	return nonces{key[:], now}
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

// check tells whether a nonce was issued and has not expired.
func (n *nonces) check(nonce string) bool {
	b, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil || len(b) != 16+sha256.Size || !hmac.Equal(b, n.mac(b[:16:16])) {
		return false
	}
	return n.now().UnixMilli() < int64(binary.BigEndian.Uint64(b))
}

var errNoSharedSecret = mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "Registration with a shared secret is disabled")

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
	if !a.nonces.check(in.Nonce) {
		return nil, mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "The nonce is unknown or has expired")
	}
	mac, err := hex.DecodeString(in.MAC)
	if err != nil || !hmac.Equal(mac, in.mac(a.cfg.Registration.SharedSecret)) {
		return nil, mxerr.Forbidden("The MAC is wrong")
	}
	user := NewUser{Username: in.Username, Password: in.Password, Admin: in.Admin, DisplayName: in.DisplayName}
	if in.UserType != nil {
		user.Type = *in.UserType
	}
	return a.createUser(ctx, by, user, !in.InhibitLogin)
}
