package accounts

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// NewUser is an account that an administrator makes.
type NewUser struct {
	// Username is the localpart; capitals are made small.
	Username string
	// Password may be empty: then nobody can log in with one.
	Password string
	// Admin makes them a server administrator.
	Admin bool
	// Type marks accounts for the administrator's own use, for example "bot"; empty for people.
	Type string
	// DisplayName may be empty; then it is the localpart.
	DisplayName string
}

// User is what there is to know of an account.
type User struct {
	UserID                             string
	Guest, Admin, Locked, Suspended    bool
	Deactivated, Erased                bool
	AppserviceID, Type                 string
	CreatedMS, DeactivatedMS, LastSeen int64 // milliseconds since 1970; 0: never
}

// CreateUser makes an account and returns its user id. Errors: M_INVALID_USERNAME, M_USER_IN_USE, M_EXCLUSIVE,
// M_WEAK_PASSWORD, M_INVALID_PARAM.
func (a *API) CreateUser(ctx context.Context, u NewUser) (userID string, err error) {
	out, err := a.createUser(ctx, &httpapi.Caller{}, u, false)
	if err != nil {
		return "", err
	}
	return out.UserID, nil
}

// createUser is CreateUser that may log in at the same time.
func (a *API) createUser(ctx context.Context, by *httpapi.Caller, u NewUser, login bool) (*loginResponse, error) {
	userID, err := a.newPersonID(u.Username)
	if err != nil {
		return nil, err
	}
	acc := newAccount{userID: userID, kind: kindPerson, userType: u.Type, admin: u.Admin, now: a.nowMS()}
	if u.Password != "" {
		if err := a.checkPassword(u.Password); err != nil {
			return nil, err
		}
		if acc.passwordHash, err = a.hasher.hash(ctx, u.Password); err != nil {
			return nil, err
		}
	}
	if u.DisplayName != "" {
		value, err := json.Marshal(u.DisplayName)
		if err == nil {
			_, err = checkText(fieldDisplayName, value)
		}
		if err != nil {
			return nil, err
		}
		acc.displayName = value
	}
	return a.create(ctx, by, acc, &proof{}, &registerParams{InhibitLogin: !login})
}

// SetPassword sets a user's password and logs out all their devices. Errors: M_NOT_FOUND, M_WEAK_PASSWORD, M_INVALID_PARAM.
func (a *API) SetPassword(ctx context.Context, userID, password string) error {
	return a.setPassword(ctx, userID, password, true, "", &proof{})
}

// Deactivate ends an account: nobody can log in to it again, its user id stays taken, and it leaves its rooms. With
// erase, everything of it that is not an event is deleted. Ending it again does no harm. Error: M_NOT_FOUND.
func (a *API) Deactivate(ctx context.Context, userID string, erase bool) error {
	return a.end(ctx, userID, erase, &proof{})
}

// SetAdmin makes a user a server administrator, or no longer. Error: M_NOT_FOUND.
func (a *API) SetAdmin(ctx context.Context, userID string, admin bool) error {
	return a.setFlag(ctx, `UPDATE accounts SET admin = $2 WHERE user_id = $1 AND deactivated_ts IS NULL`, userID, admin)
}

// setLocked locks an account, so that its sessions can do nothing but log out, or unlocks it. Error: M_NOT_FOUND.
//
// Spec: client-server API v1.19, "Account locking".
func (a *API) setLocked(ctx context.Context, userID string, locked bool) error {
	return a.setFlag(ctx, `UPDATE accounts SET locked = $2 WHERE user_id = $1 AND deactivated_ts IS NULL`, userID, locked)
}

// setSuspended suspends an account, so that it can only read, or lifts that. Error: M_NOT_FOUND.
//
// Spec: client-server API v1.19, "Account suspension".
func (a *API) setSuspended(ctx context.Context, userID string, suspended bool) error {
	return a.setFlag(ctx, `UPDATE accounts SET suspended = $2 WHERE user_id = $1 AND deactivated_ts IS NULL`, userID, suspended)
}

func (a *API) setFlag(ctx context.Context, sql, userID string, value bool) error {
	var n int64
	err := a.db.Write(ctx, func(tx *storage.Tx) (err error) {
		n, err = tx.Exec(sql, userID, value)
		return err
	})
	if err != nil {
		return fmt.Errorf("change account: %w", err)
	}
	a.cache.forget(userID)
	if n == 0 {
		return mxerr.NotFound("There is no such account")
	}
	return nil
}

// maxUsersPage bounds the accounts of one page.
const maxUsersPage = 1000

// Users returns up to limit (at most 1000) accounts, by user id, after the one given; empty starts at the first.
func (a *API) Users(ctx context.Context, after string, limit int) ([]User, error) {
	var list []User
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		list = nil
		rows := tx.Query(`SELECT a.user_id, a.kind, a.admin, a.locked, a.suspended, a.erased, a.appservice_id, a.user_type, a.created_ts, a.deactivated_ts,
				(SELECT MAX(d.last_seen_ts) FROM devices d WHERE d.user_id = a.user_id)
			FROM accounts a WHERE a.user_id > $1 ORDER BY a.user_id LIMIT $2`, after, min(max(limit, 0), maxUsersPage))
		for rows.Next() {
			var u User
			var kind int64
			var appserviceID, userType sql.NullString
			var deactivated, seen sql.NullInt64
			rows.Scan(&u.UserID, &kind, &u.Admin, &u.Locked, &u.Suspended, &u.Erased, &appserviceID, &userType, &u.CreatedMS, &deactivated, &seen)
			u.Guest, u.AppserviceID, u.Type = kind == kindGuest, appserviceID.String, userType.String
			u.Deactivated, u.DeactivatedMS, u.LastSeen = deactivated.Valid, deactivated.Int64, seen.Int64
			list = append(list, u)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	return list, nil
}
