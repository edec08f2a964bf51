package accounts

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"net/http"

	"github.com/myelin-im/myelin/appservice"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// The kinds of accounts, as stored.
const (
	kindPerson     = 0
	kindGuest      = 1
	kindAppservice = 2
	kindServer     = 3 // the server's own
)

// Authenticate finds the caller for an access token: a user with their device, or an application service and the
// user it acts as (query parameters user_id and device_id). Errors: M_UNKNOWN_TOKEN, with soft_logout if the session
// goes on after a refresh or login; for application services M_FORBIDDEN and M_UNKNOWN_DEVICE. Locked accounts are
// returned. It has the form of httpapi.Config.Authenticate.
func (a *API) Authenticate(ctx context.Context, token string, r *http.Request) (*httpapi.Caller, error) {
	if as := a.services.ByToken(token); as != nil {
		return a.authenticateAppservice(ctx, as, r)
	}
	return a.authenticateUser(ctx, token)
}

// authenticateUser finds the user and device of an access token.
func (a *API) authenticateUser(ctx context.Context, token string) (*httpapi.Caller, error) {
	h, ok := hashToken(token)
	if !ok {
		return nil, mxerr.UnknownToken(false)
	}
	s := a.cache.get(&h)
	if s == nil {
		var err error
		if s, err = a.loadSession(ctx, &h); err != nil {
			return nil, err
		}
	}
	now := a.nowMS()
	if s.expires != 0 && now >= s.expires {
		return nil, mxerr.UnknownToken(true)
	}
	a.seen.note(s, now, httpapi.ClientAddr(ctx))
	return &s.caller, nil
}

// loadSession reads a session from the database and keeps it.
func (a *API) loadSession(ctx context.Context, h *tokenHash) (*session, error) {
	before := a.cache.before()
	s := &session{}
	c := &s.caller
	var kind, generation int64
	var used bool
	var expires sql.NullInt64
	found, err := a.db.Get(ctx, `
		SELECT t.id, t.user_id, t.device_id, t.generation, t.used, t.expires_ts, a.kind, a.admin, a.locked, a.suspended
		FROM access_tokens t JOIN accounts a ON a.user_id = t.user_id
		WHERE t.hash = $1 AND a.deactivated_ts IS NULL`, []any{h.bytes()},
		&c.TokenID, &c.UserID, &c.DeviceID, &generation, &used, &expires, &kind, &c.Admin, &c.Locked, &c.Suspended)
	if err != nil {
		return nil, fmt.Errorf("look up access token: %w", err)
	}
	if !found {
		return nil, mxerr.UnknownToken(false)
	}
	c.Localpart, _ = a.localpart(c.UserID)
	c.Guest = kind == kindGuest
	s.expires = expires.Int64
	if !used {
		// Not kept: what was read above is older than the write. The next request reads it again.
		return s, a.firstUse(ctx, h, c.UserID, c.DeviceID, generation)
	}
	a.cache.put(h, s, before)
	return s, nil
}

// authenticateAppservice finds the user that an application service acts as.
//
// Spec: application-service API v1.19, "Identity assertion".
func (a *API) authenticateAppservice(ctx context.Context, as *appservice.Registration, r *http.Request) (*httpapi.Caller, error) {
	query := r.URL.Query()
	userID, deviceID := query.Get("user_id"), query.Get("device_id")
	if deviceID == "" {
		deviceID = query.Get("org.matrix.msc3202.device_id")
	}
	if userID == "" {
		userID = a.services.Sender(as)
	}
	h := tokenHash(sha256.Sum256([]byte(as.ID + "\x00" + userID + "\x00" + deviceID)))
	if s := a.cache.get(&h); s != nil {
		return &s.caller, nil
	}
	if !a.services.Owns(as, userID) {
		return nil, mxerr.Forbidden("The application service cannot act as this user")
	}
	before := a.cache.before()
	s, known, err := a.loadAsserted(ctx, as, userID, deviceID)
	if err == nil && !known && userID == a.services.Sender(as) {
		// An application service's own user exists from the start, without being registered.
		if err = a.makeSender(ctx, as); err == nil {
			s, known, err = a.loadAsserted(ctx, as, userID, deviceID)
		}
	}
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, mxerr.Forbidden("The application service has not registered this user")
	}
	a.cache.put(&h, s, before)
	return &s.caller, nil
}

// loadAsserted reads what there is to know of a user that an application service acts as.
func (a *API) loadAsserted(ctx context.Context, as *appservice.Registration, userID, deviceID string) (s *session, known bool, err error) {
	s = &session{}
	c := &s.caller
	*c = httpapi.Caller{UserID: userID, DeviceID: deviceID, Appservice: &httpapi.AppserviceInfo{
		ID: as.ID, RateLimited: as.RateLimited && userID != a.services.Sender(as)}}
	c.Localpart, _ = a.localpart(userID)
	hasDevice := deviceID == ""
	err = a.db.Read(ctx, func(tx *storage.Tx) error {
		var err error
		known, err = tx.Get(`SELECT admin, locked, suspended FROM accounts WHERE user_id = $1 AND deactivated_ts IS NULL`,
			[]any{userID}, &c.Admin, &c.Locked, &c.Suspended)
		if err == nil && known && deviceID != "" {
			hasDevice, err = tx.Get(`SELECT 1 FROM devices WHERE user_id = $1 AND device_id = $2`, []any{userID, deviceID}, nil)
		}
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("look up user of application service: %w", err)
	}
	if known && !hasDevice {
		return nil, false, mxerr.New(http.StatusBadRequest, "M_UNKNOWN_DEVICE", "The user has no such device")
	}
	return s, known, nil
}

// makeSender makes the account of an application service's own user.
func (a *API) makeSender(ctx context.Context, as *appservice.Registration) error {
	acc := newAccount{userID: a.services.Sender(as), kind: kindAppservice, appserviceID: as.ID, now: a.nowMS()}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := acc.insert(tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("make user of application service: %w", err)
	}
	return nil
}

// credentials is where endpoints that anyone may call find the token of an application service. They do not let the
// router authenticate, because clients send their expired token along when they log in again.
type credentials struct {
	Authorization string `header:"Authorization"`
	AccessToken   string `query:"access_token"`
}

// appservice returns the application service that makes a request.
func (c *credentials) appservice(set *appservice.Set) (*appservice.Registration, error) {
	token := c.AccessToken
	if c.Authorization != "" {
		const scheme = "Bearer "
		if token = c.Authorization; len(token) < len(scheme) {
			return nil, mxerr.MissingToken()
		}
		token = token[len(scheme):]
	}
	if token == "" {
		return nil, mxerr.MissingToken()
	}
	as := set.ByToken(token)
	if as == nil {
		return nil, mxerr.UnknownToken(false)
	}
	return as, nil
}
