package accounts

import (
	"context"
	"fmt"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// maxRegistrationToken is the length of the longest registration token.
const maxRegistrationToken = 64

type tokenValidityRequest struct {
	Token string `query:"token" required:"true"`
}

type tokenValidityResponse struct {
	Valid bool `json:"valid"`
}

func (a *API) tokenValidity(ctx context.Context, _ *httpapi.Caller, in *tokenValidityRequest) (*tokenValidityResponse, error) {
	if _, _, err := a.registerFlows(ctx); err != nil {
		return nil, err
	}
	ok, err := a.registrationTokenOK(ctx, in.Token)
	return &tokenValidityResponse{ok}, err
}

const (
	// noAdmin is the condition that nobody runs the server yet.
	noAdmin = `NOT EXISTS (SELECT 1 FROM accounts WHERE admin)`
	// usableToken is the condition for a registration token $1 to be good at time $2.
	usableToken = `token = $1 AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires_ts IS NULL OR expires_ts > $2)
		AND (NOT makes_admin OR ` + noAdmin + `)`
)

// registrationTokenOK tells whether somebody may register with a token now. Where registration is closed, only the
// token that makes the first administrator is good.
func (a *API) registrationTokenOK(ctx context.Context, token string) (bool, error) {
	if token == "" || len(token) > maxRegistrationToken {
		return false, nil
	}
	ok, err := a.db.Get(ctx, `SELECT 1 FROM registration_tokens WHERE `+usableToken+` AND (makes_admin OR $3)`,
		[]any{token, a.nowMS(), a.cfg.Registration.Open}, nil)
	if err != nil {
		return false, fmt.Errorf("look up registration token: %w", err)
	}
	return ok, nil
}

// useRegistrationToken counts one use of a token, which may have become invalid since it was shown, and tells
// whether it makes an administrator.
func useRegistrationToken(tx *storage.Tx, token string, now int64) (makesAdmin bool, err error) {
	found, err := tx.Get(`UPDATE registration_tokens SET uses = uses + 1 WHERE `+usableToken+` RETURNING makes_admin`, []any{token, now}, &makesAdmin)
	if err == nil && !found {
		err = mxerr.Forbidden("This registration token is no longer valid")
	}
	return makesAdmin, err
}

// RegistrationToken is a secret that lets people register.
type RegistrationToken struct {
	// Token is up to 64 of the characters A-Z, a-z, 0-9 and . _ ~ -; empty: one is made up.
	Token string
	// UsesAllowed is how many accounts may be made with it; 0: any number.
	UsesAllowed int64
	// ExpiresMS is when it ceases to be valid, in milliseconds since 1970; 0: never.
	ExpiresMS int64
}

const tokenCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-"

// CreateRegistrationToken stores a token and returns it. Errors: M_INVALID_PARAM if it is malformed or exists.
func (a *API) CreateRegistrationToken(ctx context.Context, t RegistrationToken) (string, error) {
	if t.Token == "" {
		t.Token = randomName(tokenCharacters[:62], 16)
	}
	if len(t.Token) > maxRegistrationToken || !consistsOf(t.Token, tokenCharacters) {
		return "", mxerr.InvalidParam("Registration tokens are up to 64 of the characters A-Z, a-z, 0-9 and . _ ~ -")
	}
	made := int64(0)
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		made, err = tx.Exec(`INSERT INTO registration_tokens (token, uses_allowed, uses, expires_ts, makes_admin, created_ts)
			VALUES ($1, $2, 0, $3, FALSE, $4) ON CONFLICT (token) DO NOTHING`,
			t.Token, nullableInt(t.UsesAllowed), nullableInt(t.ExpiresMS), a.nowMS())
		return err
	})
	if err != nil {
		return "", fmt.Errorf("write registration token: %w", err)
	}
	if made == 0 {
		return "", mxerr.InvalidParam("This registration token exists already")
	}
	return t.Token, nil
}

// FirstAdminToken returns the token with which somebody who registers becomes an administrator, whether registration
// is open or not. It is the same until it is used. Once the server has an administrator, there is none: empty.
func (a *API) FirstAdminToken(ctx context.Context) (string, error) {
	fresh, now := randomName(tokenCharacters[:62], 24), a.nowMS()
	var token string
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		token = ""
		if err := tx.Lock("first admin token"); err != nil {
			return err
		}
		hasAdmin, err := tx.Get(`SELECT 1 FROM accounts WHERE admin LIMIT 1`, nil, nil)
		if err != nil {
			return err
		}
		if hasAdmin {
			_, err := tx.Exec(`DELETE FROM registration_tokens WHERE makes_admin AND uses = 0`)
			return err
		}
		found, err := tx.Get(`SELECT token FROM registration_tokens WHERE makes_admin AND uses = 0`, nil, &token)
		if err != nil || found {
			return err
		}
		token = fresh
		_, err = tx.Exec(`INSERT INTO registration_tokens (token, uses_allowed, uses, expires_ts, makes_admin, created_ts)
			VALUES ($1, 1, 0, NULL, TRUE, $2)`, token, now)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make token for the first administrator: %w", err)
	}
	return token, nil
}

// consistsOf tells whether s is made of the characters of an ASCII set.
func consistsOf(s, set string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(set, r) })
}

// nullableInt is n, or NULL if it is 0.
func nullableInt(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}
