package e2ee

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// Spec: client-server API v1.19, "Server-side key backups".

const (
	// maxBackupBody bounds a request that stores keys, maxSessionData one key and maxAuthData what a backup is described
	// with, in bytes.
	maxBackupBody  = 32 << 20
	maxSessionData = 64 << 10
	maxAuthData    = 64 << 10
	// maxBackupKeys bounds the keys of a backup.
	maxBackupKeys = 2_000_000
)

var errNoBackup = mxerr.NotFound("There is no such backup")

type backupRequest struct {
	Algorithm string          `json:"algorithm" required:"true"`
	AuthData  json.RawMessage `json:"auth_data" required:"true"`
}

func (b *backupRequest) check() error {
	if len(b.AuthData) == 0 || b.AuthData[0] != '{' {
		return mxerr.BadJSON("auth_data must be an object")
	}
	if len(b.AuthData) > maxAuthData || len(b.Algorithm) > maxKeyName {
		return mxerr.TooLarge("The description of the backup is too large")
	}
	return nil
}

type backupVersion struct {
	Version string `json:"version"`
}

// createBackup: POST /room_keys/version.
func (a *API) createBackup(ctx context.Context, by *httpapi.Caller, in *backupRequest) (*backupVersion, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	var version int64
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := tx.Lock("backup " + by.UserID); err != nil {
			return err
		}
		if _, err := tx.Get(`SELECT COALESCE(max(version), 0) + 1 FROM key_backups WHERE user_id = $1`, []any{by.UserID}, &version); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO key_backups (user_id, version, algorithm, auth_data, etag, keys, deleted) VALUES ($1, $2, $3, $4, $5, $5, $6)`,
			by.UserID, version, in.Algorithm, []byte(in.AuthData), int64(0), false)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make backup: %w", err)
	}
	return &backupVersion{strconv.FormatInt(version, 10)}, nil
}

// backup is a row of key_backups.
type backup struct {
	version    int64
	algorithm  string
	authData   []byte
	etag, keys int64
	deleted    bool
}

// parseVersion reads a version; 0 is none that exists.
func parseVersion(s string) int64 {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 1 {
		return 0
	}
	return v
}

// readBackup reads a backup that is not deleted: the one of a version, or the newest if that is nil.
func readBackup(tx *storage.Tx, user string, version *int64) (*backup, error) {
	b := &backup{}
	limit := int64(math.MaxInt64)
	if version != nil {
		limit = *version
	}
	found, err := tx.Get(`SELECT version, algorithm, auth_data, etag, keys, deleted FROM key_backups
		WHERE user_id = $1 AND version <= $2 AND (NOT deleted OR version = $2) ORDER BY version DESC LIMIT 1`,
		[]any{user, limit}, &b.version, &b.algorithm, &b.authData, &b.etag, &b.keys, &b.deleted)
	switch {
	case err != nil:
		return nil, err
	case !found, b.deleted, version != nil && b.version != *version:
		return nil, errNoBackup
	}
	return b, nil
}

type backupResponse struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int64           `json:"count"`
	ETag      string          `json:"etag"`
	Version   string          `json:"version"`
}

func (a *API) showBackup(ctx context.Context, user string, version *int64) (*backupResponse, error) {
	var b *backup
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		b, err = readBackup(tx, user, version)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	return &backupResponse{b.algorithm, b.authData, b.keys, strconv.FormatInt(b.etag, 10), strconv.FormatInt(b.version, 10)}, nil
}

// latestBackup: GET /room_keys/version.
func (a *API) latestBackup(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*backupResponse, error) {
	return a.showBackup(ctx, by.UserID, nil)
}

type versionRequest struct {
	Version string `path:"version"`
}

// getBackup: GET /room_keys/version/{version}.
func (a *API) getBackup(ctx context.Context, by *httpapi.Caller, in *versionRequest) (*backupResponse, error) {
	version := parseVersion(in.Version)
	return a.showBackup(ctx, by.UserID, &version)
}

type putBackupRequest struct {
	versionRequest
	backupRequest
	Same *string `json:"version"`
}

// putBackup: PUT /room_keys/version/{version}.
func (a *API) putBackup(ctx context.Context, by *httpapi.Caller, in *putBackupRequest) (*httpapi.Empty, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if in.Same != nil && *in.Same != in.Version {
		return nil, mxerr.InvalidParam("The versions in path and body differ")
	}
	version := parseVersion(in.Version)
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		b, err := readBackup(tx, by.UserID, &version)
		if err != nil {
			return err
		}
		if b.algorithm != in.Algorithm {
			return mxerr.InvalidParam("The algorithm of a backup cannot change")
		}
		_, err = tx.Exec(`UPDATE key_backups SET auth_data = $3 WHERE user_id = $1 AND version = $2`, by.UserID, version, []byte(in.AuthData))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("change backup: %w", err)
	}
	return nil, nil
}

// deleteBackup: DELETE /room_keys/version/{version}. Its row stays, because versions are not used twice.
func (a *API) deleteBackup(ctx context.Context, by *httpapi.Caller, in *versionRequest) (*httpapi.Empty, error) {
	version := parseVersion(in.Version)
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		n, err := tx.Exec(`UPDATE key_backups SET deleted = $3, keys = 0, auth_data = $4 WHERE user_id = $1 AND version = $2`, by.UserID, version, true, []byte("{}"))
		if err != nil {
			return err
		}
		if n == 0 {
			return errNoBackup
		}
		_, err = tx.Exec(`DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2`, by.UserID, version)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("delete backup: %w", err)
	}
	return nil, nil
}

// currentBackup checks that a version is the newest, the only one that may be written.
func currentBackup(tx *storage.Tx, user, version string) (*backup, error) {
	b, err := readBackup(tx, user, nil)
	if err != nil {
		return nil, err
	}
	if current := strconv.FormatInt(b.version, 10); version != current {
		return nil, mxerr.New(403, "M_WRONG_ROOM_KEYS_VERSION", "That is not the current backup").WithField("current_version", current)
	}
	return b, nil
}
