package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

func (a *API) loginEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("GET", "/_matrix/client/v3/login", httpapi.Anyone, ratelimit.Read, a.loginFlows),
		httpapi.New("POST", "/_matrix/client/v3/login", httpapi.Anyone, ratelimit.Login, a.login),
		httpapi.New("POST", "/_matrix/client/v1/login/get_token", httpapi.User, ratelimit.Login, a.getLoginToken),
		httpapi.New("POST", "/_matrix/client/v3/refresh", httpapi.Anyone, ratelimit.Account, a.refresh),
		httpapi.New("POST", "/_matrix/client/v3/logout", httpapi.User, ratelimit.Account, a.logout).EvenLocked(),
		httpapi.New("POST", "/_matrix/client/v3/logout/all", httpapi.User, ratelimit.Account, a.logoutAll).EvenLocked(),
		httpapi.New("GET", "/_matrix/client/v3/account/whoami", httpapi.User|httpapi.Guest, ratelimit.Read, a.whoami),
	}
}

// The ways to log in.
const (
	loginPassword   = "m.login.password"
	loginByToken    = "m.login.token"
	loginAppservice = "m.login.application_service"
)

// loginTokenLifetime is how long a token for m.login.token is good, as the specification recommends.
const loginTokenLifetime = 2 * time.Minute

type loginFlow struct {
	Type          string `json:"type"`
	GetLoginToken bool   `json:"get_login_token,omitempty"`
}

type loginFlowsResponse struct {
	Flows []loginFlow `json:"flows"`
}

func (a *API) loginFlows(context.Context, *httpapi.Caller, *httpapi.Empty) (*loginFlowsResponse, error) {
	flows := []loginFlow{{Type: loginPassword}, {Type: loginByToken, GetLoginToken: true}}
	if len(a.services.All()) > 0 {
		flows = append(flows, loginFlow{Type: loginAppservice})
	}
	return &loginFlowsResponse{flows}, nil
}

type loginRequest struct {
	credentials
	Type  string `json:"type" required:"true"`
	Token string `json:"token"`
	passwordLogin
	sessionParams
}

// passwordLogin names a user and shows their password; user, medium and address stand for the identifier in old clients.
type passwordLogin struct {
	Identifier *userIdentifier `json:"identifier"`
	User       string          `json:"user"`
	Medium     string          `json:"medium"`
	Address    string          `json:"address"`
	Password   *string         `json:"password"`
}

// userIdentifier names a user.
//
// Spec: client-server API v1.19, "Identifier types".
type userIdentifier struct {
	Type    string `json:"type"`
	User    string `json:"user"`
	Medium  string `json:"medium"`
	Address string `json:"address"`
}

// loginResponse answers registration and login.
type loginResponse struct {
	UserID       string           `json:"user_id"`
	AccessToken  string           `json:"access_token,omitempty"`
	DeviceID     string           `json:"device_id,omitempty"`
	RefreshToken string           `json:"refresh_token,omitempty"`
	ExpiresInMS  int64            `json:"expires_in_ms,omitempty"`
	HomeServer   string           `json:"home_server"`
	WellKnown    *clientWellKnown `json:"well_known,omitempty"`
}

func (a *API) login(ctx context.Context, by *httpapi.Caller, in *loginRequest) (*loginResponse, error) {
	var userID, hash string
	var err error
	switch in.Type {
	case loginPassword:
		userID, hash, err = a.checkLogin(ctx, &in.passwordLogin, by.Addr)
	case loginByToken:
		userID, err = a.useLoginToken(ctx, in.Token)
	case loginAppservice:
		userID, err = a.checkAppserviceLogin(ctx, in)
	default:
		err = mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "This login type is not supported")
	}
	if err != nil {
		return nil, err
	}
	s, err := a.prepareSession(ctx, userID, in.sessionParams, by.Addr)
	if err != nil {
		return nil, err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := mayLogIn(tx, userID, hash); err != nil {
			return err
		}
		if err := a.checkName(tx, userID, s.deviceID); err != nil {
			return err
		}
		return s.write(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("log in: %w", err)
	}
	a.cache.forget(userID) // the device may have had a token
	return a.loggedIn(s), nil
}

// mayLogIn refuses accounts that have ended or are locked, and a password that was changed since it was shown: hashes
// wait for each other, and who is logged out by the change must not come back in behind it. hash is what the password
// was compared with; empty: anything.
func mayLogIn(tx *storage.Tx, userID, hash string) error {
	var deactivated, locked bool
	var now sql.NullString
	found, err := tx.Get(`SELECT deactivated_ts IS NOT NULL, locked, password_hash FROM accounts WHERE user_id = $1`, []any{userID}, &deactivated, &locked, &now)
	switch {
	case err != nil:
		return fmt.Errorf("look up account: %w", err)
	case !found:
		return mxerr.Forbidden("The user is not registered")
	case deactivated:
		return errDeactivated
	case locked:
		return mxerr.Locked()
	case hash != "" && hash != now.String:
		return errBadLogin
	}
	return nil
}

var (
	errBadLogin    = mxerr.Forbidden("Wrong user name or password")
	errDeactivated = mxerr.New(http.StatusForbidden, "M_USER_DEACTIVATED", "This account has been deactivated")
)

// namedUser returns the user id that a login names; empty: there is no such account.
func (a *API) namedUser(ctx context.Context, l *passwordLogin) (string, error) {
	id := l.Identifier
	switch {
	case id == nil && l.User != "":
		return a.knownUserID(l.User), nil
	case id == nil && l.Address != "":
		return a.userByAddress(ctx, l.Medium, l.Address)
	case id == nil:
		return "", mxerr.MissingParam("Missing parameter identifier")
	}
	switch id.Type {
	case "m.id.user":
		if id.User == "" {
			return "", mxerr.MissingParam("Missing parameter identifier.user")
		}
		return a.knownUserID(id.User), nil
	case "m.id.thirdparty":
		if id.Medium == "" || id.Address == "" {
			return "", mxerr.MissingParam("identifier must have medium and address")
		}
		return a.userByAddress(ctx, id.Medium, id.Address)
	case "m.id.phone":
		// The specification wants 403 where an address is not known, and none is.
		return "", mxerr.Forbidden("No account has this number")
	case "":
		return "", mxerr.MissingParam("Missing parameter identifier.type")
	}
	return "", mxerr.InvalidParam("This identifier type is not supported")
}

// userByAddress returns whose account has an address; empty: nobody's.
func (a *API) userByAddress(ctx context.Context, medium, address string) (string, error) {
	if medium != mediumEmail {
		return "", nil
	}
	address, err := canonicalEmail(address)
	if err != nil {
		return "", nil //nolint:nilerr // it is nobody's
	}
	return a.emailOwner(ctx, address)
}

// checkLogin returns the user whose password is shown and the hash that it was compared with (empty if that is being
// renewed), or M_FORBIDDEN, M_USER_DEACTIVATED or M_LIMIT_EXCEEDED. Attempts are counted by account here and by address
// at the endpoint, or by account alone where somebody who is logged in confirms an operation.
func (a *API) checkLogin(ctx context.Context, l *passwordLogin, addr string) (userID, hash string, err error) {
	userID, err = a.namedUser(ctx, l)
	if err != nil {
		return "", "", err
	}
	if l.Password == nil {
		return "", "", mxerr.MissingParam("Missing parameter password")
	}
	if len(*l.Password) > maxPassword {
		return "", "", errBadLogin
	}
	limited := userID
	if limited == "" && l.Identifier != nil { // as if there were an account, so that waiting tells nothing
		limited = strings.ToLower(l.Identifier.Address)
	}
	if ok, after := a.limiter.Allow(ratelimit.LoginAccount, limited); !ok {
		return "", "", mxerr.LimitExceeded(after)
	}
	var stored sql.NullString
	var deactivated bool
	found, err := a.db.Get(ctx, `SELECT password_hash, deactivated_ts IS NOT NULL FROM accounts WHERE user_id = $1`, []any{userID}, &stored, &deactivated)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("look up password: %w", err)
	case found && deactivated:
		return "", "", errDeactivated
	case !found || !stored.Valid:
		if err := a.hasher.waste(ctx, *l.Password); err != nil {
			return "", "", err
		}
		return "", "", errBadLogin
	}
	ok, outdated, err := a.hasher.verify(ctx, stored.String, *l.Password)
	if err != nil {
		return "", "", err
	}
	if !ok {
		a.log.WithField("user", userID).WithField("addr", addr).Info("wrong password")
		return "", "", errBadLogin
	}
	if outdated { // another login may renew it at the same time, so that there is no telling which hash will stay
		a.rehash(ctx, userID, stored.String, *l.Password)
		return userID, "", nil
	}
	return userID, stored.String, nil
}

// rehash hashes a password again at the cost that is configured now. The old hash stays good if that fails.
func (a *API) rehash(ctx context.Context, userID, old, password string) {
	hash, err := a.hasher.hash(ctx, password)
	if err == nil {
		err = a.db.Write(ctx, func(tx *storage.Tx) error {
			_, err := tx.Exec(`UPDATE accounts SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2`, userID, old, hash)
			return err
		})
	}
	if err != nil {
		a.log.WithError(err).WithField("user", userID).Warn("cannot renew a password's hash")
	}
}

// checkAppserviceLogin returns the user as whom an application service logs in.
//
// Spec: client-server API v1.19, "Appservice Login".
func (a *API) checkAppserviceLogin(ctx context.Context, in *loginRequest) (string, error) {
	as, err := in.appservice(a.services)
	if err != nil {
		return "", err
	}
	userID, err := a.namedUser(ctx, &in.passwordLogin)
	if err != nil {
		return "", err
	}
	if !a.services.Owns(as, userID) {
		return "", mxerr.New(http.StatusForbidden, "M_EXCLUSIVE", "This user is not in the application service's namespaces")
	}
	return userID, nil
}

// newSession is a login about to be written.
type newSession struct {
	userID, deviceID, displayName string
	access, refresh               string // refresh is empty for sessions that cannot
	accessHash, refreshHash       tokenHash
	tokenID, now, expires         int64
	addr                          string
}

const (
	maxDeviceID    = 255 // bytes
	maxDisplayName = 256 // bytes of a device's name
)

// prepareSession makes the tokens of a login. It does nothing yet.
func (a *API) prepareSession(ctx context.Context, userID string, in sessionParams, addr string) (*newSession, error) {
	if len(in.DeviceID) > maxDeviceID || strings.ContainsRune(in.DeviceID, 0) {
		return nil, mxerr.InvalidParam("device_id is too long or holds NUL")
	}
	if len(in.DisplayName) > maxDisplayName {
		return nil, mxerr.InvalidParam("initial_device_display_name is longer than 256 bytes")
	}
	s := &newSession{userID: userID, deviceID: in.DeviceID, displayName: in.DisplayName, now: a.nowMS(), addr: addr}
	if s.deviceID == "" {
		s.deviceID = randomName("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10)
	}
	s.access = newToken(accessPrefix)
	s.accessHash, _ = hashToken(s.access)
	if in.RefreshToken {
		s.refresh = newToken(refreshPrefix)
		s.refreshHash, _ = hashToken(s.refresh)
		s.expires = s.now + a.cfg.AccessTokenLifetime.Milliseconds()
	}
	var err error
	if s.tokenID, err = a.tokenIDs.Next(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// write makes the device, if there is none, and replaces its tokens.
//
// Spec: client-server API v1.19, "Relationship between access tokens and devices".
func (s *newSession) write(tx *storage.Tx) error {
	_, err := tx.Exec(`INSERT INTO devices (user_id, device_id, display_name, created_ts, last_seen_ts, last_seen_ip)
		VALUES ($1, $2, $3, $4, $4, $5) ON CONFLICT (user_id, device_id) DO UPDATE
		SET last_seen_ts = excluded.last_seen_ts, last_seen_ip = excluded.last_seen_ip`,
		s.userID, s.deviceID, nullable(s.displayName), s.now, s.addr)
	if err != nil {
		return err
	}
	if err := dropTokens(tx, s.userID, s.deviceID); err != nil {
		return err
	}
	generation := int64(0)
	if s.refresh != "" {
		generation = 1
		_, err := tx.Exec(`INSERT INTO refresh_tokens (hash, user_id, device_id, generation, revoked) VALUES ($1, $2, $3, 1, FALSE)`,
			s.refreshHash.bytes(), s.userID, s.deviceID)
		if err != nil {
			return err
		}
	}
	return insertAccessToken(tx, &s.accessHash, s.tokenID, s.userID, s.deviceID, generation, true, s.expires)
}

func insertAccessToken(tx *storage.Tx, h *tokenHash, id int64, userID, deviceID string, generation int64, used bool, expires int64) error {
	_, err := tx.Exec(`INSERT INTO access_tokens (hash, id, user_id, device_id, generation, used, expires_ts) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		h.bytes(), id, userID, deviceID, generation, used, nullableInt(expires))
	return err
}

// dropTokens deletes the access and refresh tokens of a device.
func dropTokens(tx *storage.Tx, userID, deviceID string) error {
	if _, err := tx.Exec(`DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2`, userID, deviceID); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2`, userID, deviceID)
	return err
}

// loggedIn is the answer to a login that has been written.
func (a *API) loggedIn(s *newSession) *loginResponse {
	out := &loginResponse{UserID: s.userID, AccessToken: s.access, DeviceID: s.deviceID, RefreshToken: s.refresh,
		HomeServer: a.cfg.ServerName, WellKnown: a.clientWellKnown()}
	if s.expires != 0 {
		out.ExpiresInMS = s.expires - s.now
	}
	return out
}

type getTokenRequest struct {
	Auth json.RawMessage `json:"auth"`
}

type getTokenResponse struct {
	LoginToken  string `json:"login_token"`
	ExpiresInMS int64  `json:"expires_in_ms"`
}

// getLoginToken makes a token with which another client of the user can log in, once.
func (a *API) getLoginToken(ctx context.Context, by *httpapi.Caller, in *getTokenRequest) (*getTokenResponse, error) {
	if by.Appservice != nil {
		return nil, mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "Application services log in by themselves")
	}
	if err := a.Confirm(ctx, by, Challenge{Operation: "POST /login/get_token", Auth: in.Auth}); err != nil {
		return nil, err
	}
	token := newToken(loginPrefix)
	h, _ := hashToken(token)
	now := a.nowMS()
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Exec(`DELETE FROM login_tokens WHERE user_id = $1 AND expires_ts <= $2`, by.UserID, now); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO login_tokens (hash, user_id, expires_ts) VALUES ($1, $2, $3)`,
			h.bytes(), by.UserID, now+loginTokenLifetime.Milliseconds())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write login token: %w", err)
	}
	return &getTokenResponse{token, loginTokenLifetime.Milliseconds()}, nil
}

// useLoginToken returns the user of a login token and spends it.
func (a *API) useLoginToken(ctx context.Context, token string) (userID string, err error) {
	if token == "" {
		return "", mxerr.MissingParam("Missing parameter token")
	}
	invalid := mxerr.Forbidden("This login token is not valid")
	h, ok := hashToken(token)
	if !ok {
		return "", invalid
	}
	// A guess costs a read, not a write.
	var expires int64
	found, err := a.db.Get(ctx, `SELECT expires_ts FROM login_tokens WHERE hash = $1`, []any{h.bytes()}, &expires)
	if err == nil && found {
		err = a.db.Write(ctx, func(tx *storage.Tx) (err error) {
			found, err = tx.Get(`DELETE FROM login_tokens WHERE hash = $1 RETURNING user_id`, []any{h.bytes()}, &userID)
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("use login token: %w", err)
	}
	if !found || a.nowMS() >= expires {
		return "", invalid
	}
	return userID, nil
}

type whoamiResponse struct {
	UserID   string `json:"user_id"`
	DeviceID string `json:"device_id,omitempty"`
	Guest    bool   `json:"is_guest,omitempty"`
}

func (a *API) whoami(_ context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*whoamiResponse, error) {
	return &whoamiResponse{by.UserID, by.DeviceID, by.Guest}, nil
}
