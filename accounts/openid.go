package accounts

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

const (
	// openIDLifetime is how long an OpenID token is good. Services ask about it at once.
	openIDLifetime = time.Hour
	// maxOpenIDTokens bounds the tokens of one user; the oldest go first.
	maxOpenIDTokens = 100
)

func (a *API) openIDEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("POST", v3+"/user/{userId}/openid/request_token", httpapi.User, ratelimit.Account, a.requestOpenID),
		// Not by servers alone: bridges and call services ask without signing.
		httpapi.New("GET", "/_matrix/federation/v1/openid/userinfo", httpapi.Anyone, ratelimit.Read, a.openIDUserInfo),
	}
}

type openIDResponse struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	Server      string `json:"matrix_server_name"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
}

// requestOpenID makes a token with which the user proves to another service who they are.
//
// Spec: client-server API v1.19, "OpenID".
func (a *API) requestOpenID(ctx context.Context, by *httpapi.Caller, in *accountRequest) (*openIDResponse, error) {
	if err := own(by, in.UserID); err != nil {
		return nil, err
	}
	token := newToken(openIDPrefix)
	h, _ := hashToken(token)
	now := a.nowMS()
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`DELETE FROM openid_tokens WHERE user_id = $1 AND (expires_ts <= $2 OR hash IN (
			SELECT hash FROM openid_tokens WHERE user_id = $1 ORDER BY expires_ts DESC LIMIT $4 OFFSET $3))`,
			by.UserID, now, maxOpenIDTokens-1, maxOpenIDTokens)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO openid_tokens (hash, user_id, expires_ts) VALUES ($1, $2, $3)`,
			h.bytes(), by.UserID, now+openIDLifetime.Milliseconds())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write OpenID token: %w", err)
	}
	return &openIDResponse{token, "Bearer", a.cfg.ServerName, int64(openIDLifetime / time.Second)}, nil
}

type userInfoRequest struct {
	AccessToken string `query:"access_token"`
}

type userInfoResponse struct {
	Sub string `json:"sub"`
}

// openIDUserInfo tells a service whose token it was shown.
//
// Spec: server-server API v1.19, "OpenID".
func (a *API) openIDUserInfo(ctx context.Context, _ *httpapi.Caller, in *userInfoRequest) (*userInfoResponse, error) {
	if in.AccessToken == "" {
		return nil, mxerr.MissingToken()
	}
	userID, err := a.openIDUser(ctx, in.AccessToken)
	if err != nil {
		return nil, err
	}
	return &userInfoResponse{userID}, nil
}

// openIDUser returns the user of an OpenID token. Error: M_UNKNOWN_TOKEN if it is none, has expired, or belongs to an
// account that is locked or has ended.
func (a *API) openIDUser(ctx context.Context, token string) (userID string, err error) {
	unknown := mxerr.New(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Access token unknown or expired")
	h, ok := hashToken(token)
	if !ok {
		return "", unknown
	}
	found, err := a.db.Get(ctx, `SELECT t.user_id FROM openid_tokens t JOIN accounts a ON a.user_id = t.user_id
		WHERE t.hash = $1 AND t.expires_ts > $2 AND NOT a.locked AND a.deactivated_ts IS NULL`, []any{h.bytes(), a.nowMS()}, &userID)
	switch {
	case err != nil:
		return "", fmt.Errorf("look up OpenID token: %w", err)
	case !found:
		return "", unknown
	}
	return userID, nil
}
