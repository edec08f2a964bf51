package accounts

import (
	"context"
	"fmt"
	"sync"

	"github.com/myelin-im/myelin/storage"
)

// erasedUsers remembers which local users asked for erasure, since every event that is shown asks. There are few.
type erasedUsers struct {
	mu    sync.RWMutex
	users map[string]struct{} // nil until loaded
}

// Erased tells whether a local user asked for erasure of their content: who had no part in a room when their events
// were sent gets them redacted (client-server API v1.19, "Account deactivation", erase).
func (a *API) Erased(ctx context.Context, userID string) (bool, error) {
	e := &a.erased
	e.mu.RLock()
	loaded := e.users != nil
	_, erased := e.users[userID]
	e.mu.RUnlock()
	if loaded {
		return erased, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users == nil {
		users, err := readErased(ctx, a.db)
		if err != nil {
			return false, fmt.Errorf("read erased users: %w", err)
		}
		e.users = users
	}
	_, erased = e.users[userID]
	return erased, nil
}

func readErased(ctx context.Context, db *storage.DB) (map[string]struct{}, error) {
	users := map[string]struct{}{}
	err := db.Read(ctx, func(tx *storage.Tx) error {
		clear(users)
		rows := tx.Query(`SELECT user_id FROM accounts WHERE erased`)
		var user string
		for rows.Next() {
			if err := rows.Scan(&user); err != nil {
				break
			}
			users[user] = struct{}{}
		}
		return rows.Close()
	})
	return users, err
}

// add notes a user whose erasure has been committed.
func (e *erasedUsers) add(userID string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users != nil {
		e.users[userID] = struct{}{}
	}
}
