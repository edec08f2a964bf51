package accounts

import (
	"github.com/myelin-im/myelin/storage"
)

// Guests returns the user ids of guests in order: those after a user, at most limit.
func Guests(tx *storage.Tx, after string, limit int) (users []string, err error) {
	// The kind is not a parameter, so that the index of guests can be used.
	return storage.List[string](tx, `SELECT user_id FROM accounts WHERE kind = 1 AND user_id > $1 AND deactivated_ts IS NULL ORDER BY user_id LIMIT $2`, after, limit)
}

// GuestsAmong returns which of some users, at most 1000, are guests.
func GuestsAmong(tx *storage.Tx, users []string) (guests []string, err error) {
	args := []any{kindGuest}
	for _, u := range users {
		args = append(args, u)
	}
	return storage.List[string](tx, `SELECT user_id FROM accounts WHERE kind = $1 AND user_id IN `+storage.In(len(users), 2), args...)
}
