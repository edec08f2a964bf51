package accounts

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// Active tells whether a local user has an account that has not ended.
func (a *API) Active(ctx context.Context, userID string) (bool, error) {
	found, err := a.db.Get(ctx, `SELECT 1 FROM accounts WHERE user_id = $1 AND deactivated_ts IS NULL`, []any{userID}, nil)
	if err != nil {
		return false, fmt.Errorf("look up account: %w", err)
	}
	return found, nil
}

// EnsureServerUser makes the account with which the server itself speaks, or gives it another profile; empty values
// are left out. Nobody can log in to it. Error: M_EXCLUSIVE if the name belongs to somebody else.
func (a *API) EnsureServerUser(ctx context.Context, localpart, displayName, avatarURL string) error {
	userID := a.userID(localpart)
	wanted := map[string]string{fieldDisplayName: displayName, fieldAvatarURL: avatarURL}
	var kind int64
	var name, avatar string
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		kind = -1
		if _, err = tx.Get(`SELECT kind FROM accounts WHERE user_id = $1`, []any{userID}, &kind); err == nil {
			name, avatar, err = MemberProfile(tx, userID)
		}
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("look up the server's user: %w", err)
	case kind != -1 && kind != kindServer:
		return mxerr.New(http.StatusConflict, "M_EXCLUSIVE", userID+" belongs to somebody and cannot be the server's own user")
	case kind == kindServer && name == displayName && avatar == avatarURL:
		return nil
	}
	acc := newAccount{userID: userID, kind: kindServer, now: a.nowMS()}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if _, err := acc.insert(tx); err != nil {
			return err
		}
		for field, text := range wanted {
			var value json.RawMessage
			if text != "" {
				var err error
				if value, err = json.Marshal(text); err != nil {
					return err
				}
			}
			if _, err := writeField(tx, userID, field, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make the server's user: %w", err)
	}
	return nil
}
