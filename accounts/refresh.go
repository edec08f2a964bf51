package accounts

import (
	"context"
	"fmt"
	"math"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// keptGenerations is how many generations of revoked refresh tokens are remembered to notice their reuse.
const keptGenerations = 8

type refreshRequest struct {
	RefreshToken string `json:"refresh_token" required:"true"`
}

type refreshResponse struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	ExpiresInMS  int64  `json:"expires_in_ms"`
}

// rotation is a refresh about to be written.
type rotation struct {
	shown, access, refresh tokenHash
	tokenID, expires       int64

	// What the transaction found.
	userID, deviceID string
	found, reused    bool
}

// refresh makes the next generation of a session's tokens.
//
// Spec: client-server API v1.19, "Refreshing access tokens".
func (a *API) refresh(ctx context.Context, _ *httpapi.Caller, in *refreshRequest) (*refreshResponse, error) {
	access, refresh := newToken(accessPrefix), newToken(refreshPrefix)
	lifetime := a.cfg.AccessTokenLifetime.Milliseconds()
	r := &rotation{expires: a.nowMS() + lifetime}
	r.access, _ = hashToken(access)
	r.refresh, _ = hashToken(refresh)
	var ok bool
	if r.shown, ok = hashToken(in.RefreshToken); !ok {
		return nil, mxerr.UnknownToken(false)
	}
	// A guess costs a read, not a write.
	var locked bool
	known, err := a.db.Get(ctx, `SELECT a.locked FROM refresh_tokens r JOIN accounts a ON a.user_id = r.user_id WHERE r.hash = $1`,
		[]any{r.shown.bytes()}, &locked)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up refresh token: %w", err)
	case !known:
		return nil, mxerr.UnknownToken(false)
	case locked: // the token stays good for when the account is unlocked
		return nil, mxerr.Locked()
	}
	if r.tokenID, err = a.tokenIDs.Next(ctx); err != nil {
		return nil, err
	}
	if err := a.db.Write(ctx, r.write); err != nil {
		return nil, fmt.Errorf("refresh tokens: %w", err)
	}
	if !r.found {
		return nil, mxerr.UnknownToken(false)
	}
	a.cache.forget(r.userID)
	if r.reused {
		a.log.WithField("user", r.userID).WithField("device", r.deviceID).Warn("a revoked refresh token was used; the session has ended")
		return nil, mxerr.UnknownToken(true)
	}
	return &refreshResponse{access, refresh, lifetime}, nil
}

func (r *rotation) write(tx *storage.Tx) error {
	var generation int64
	var err error
	r.found, err = tx.Get(`SELECT user_id, device_id, generation, revoked FROM refresh_tokens WHERE hash = $1`,
		[]any{r.shown.bytes()}, &r.userID, &r.deviceID, &generation, &r.reused)
	switch {
	case err != nil || !r.found:
		return err
	case r.reused:
		// Its successor has been used, so two hold it, and which of them is the user nobody can tell: the session
		// ends for both, and the user logs in again with the device they have.
		return endGenerations(tx, r.userID, r.deviceID, math.MaxInt64)
	}
	// Showing this token proves that the answer which brought it arrived: what came before it is over.
	if err := endGenerations(tx, r.userID, r.deviceID, generation); err != nil {
		return err
	}
	// If it was shown before, that answer was lost, and the tokens in it with it.
	if _, err := tx.Exec(`DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2 AND (generation > $3 OR generation < $3 - 1)`, r.userID, r.deviceID, generation); err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2 AND (generation > $3 OR generation <= $4)`, r.userID, r.deviceID, generation, generation-keptGenerations)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO refresh_tokens (hash, user_id, device_id, generation, revoked) VALUES ($1, $2, $3, $4, FALSE)`,
		r.refresh.bytes(), r.userID, r.deviceID, generation+1)
	if err != nil {
		return err
	}
	return insertAccessToken(tx, &r.access, r.tokenID, r.userID, r.deviceID, generation+1, false, r.expires)
}

// firstUse notes that the access token of a refresh has arrived, which ends the generations before it.
func (a *API) firstUse(ctx context.Context, h *tokenHash, userID, deviceID string, generation int64) error {
	var alive int64
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		alive, err = tx.Exec(`UPDATE access_tokens SET used = TRUE WHERE hash = $1`, h.bytes())
		if err != nil || alive == 0 {
			return err
		}
		return endGenerations(tx, userID, deviceID, generation)
	})
	if err != nil {
		return fmt.Errorf("note first use of access token: %w", err)
	}
	a.cache.forget(userID)
	if alive == 0 {
		return mxerr.UnknownToken(false)
	}
	return nil
}

// endGenerations ends the tokens of a device before a generation. Access tokens are made to expire instead of being
// deleted, so that a request which is on its way with one is answered with soft_logout.
func endGenerations(tx *storage.Tx, userID, deviceID string, before int64) error {
	if _, err := tx.Exec(`UPDATE refresh_tokens SET revoked = TRUE WHERE user_id = $1 AND device_id = $2 AND generation < $3`, userID, deviceID, before); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE access_tokens SET expires_ts = 1 WHERE user_id = $1 AND device_id = $2 AND generation < $3`, userID, deviceID, before)
	return err
}
