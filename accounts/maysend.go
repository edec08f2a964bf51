package accounts

import (
	"net/http"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// MaySend tells why a local user may not send events at present, although nobody has shown a token: the account has
// ended, is locked or suspended. It is nil for a user who may.
func MaySend(tx *storage.Tx, userID string) (refusal, err error) {
	var active, locked, suspended bool
	found, err := tx.Get(`SELECT deactivated_ts IS NULL, locked, suspended FROM accounts WHERE user_id = $1`, []any{userID}, &active, &locked, &suspended)
	switch {
	case err != nil:
		return nil, err
	case !found || !active:
		return errDeactivated, nil
	case locked:
		return mxerr.New(http.StatusForbidden, "M_USER_LOCKED", "This account is locked"), nil
	case suspended:
		return mxerr.New(http.StatusForbidden, "M_USER_SUSPENDED", "This account is suspended"), nil
	}
	return nil, nil
}
