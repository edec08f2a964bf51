package homeserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
	"github.com/myelin-im/myelin/storage"
)

func keyFile(cfg *config.Config) string { return filepath.Join(cfg.Server.DataDir, "signing.key") }

// openKey reads the signing key. A server gets one that nobody has used yet; to others, whose events in other servers'
// rooms are signed with the one that is missing, it is for the operator to give another.
func openKey(ctx context.Context, cfg *config.Config, db *storage.DB) (signingkey.Key, error) {
	key, err := signingkey.Load(keyFile(cfg))
	if errors.Is(err, fs.ErrPermission) {
		return key, adviseFiles(cfg, err)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	used := db.Head() > 0
	if !used {
		used, err = db.Get(ctx, `SELECT 1 FROM accounts LIMIT 1`, nil, nil)
		if err != nil {
			return key, fmt.Errorf("look up an account: %w", err)
		}
	}
	if used {
		return key, fmt.Errorf("the signing key %s is missing, but the database has been in use with one. Restore it from a backup. "+
			"If it is lost for good, \"myelin key create\" makes a new one: other servers that have not seen the lost key "+
			"will not be able to check what was signed with it", keyFile(cfg))
	}
	return signingkey.Create(keyFile(cfg))
}

// stopped fails if the server is running: it would go on to sign with the key that it knows.
func stopped(ctx context.Context, cfg *config.Config) error {
	if dialControl(ctx, cfg.Server.DataDir) != nil {
		return errors.New("the server is running: stop it first")
	}
	return nil
}

// RotateKey gives the stopped server another signing key and returns the ids of the new one and of the one before, which
// the server goes on to publish as an old key.
func RotateKey(ctx context.Context, cfg *config.Config) (newID, oldID string, err error) {
	if err := stopped(ctx, cfg); err != nil {
		return "", "", err
	}
	key, err := signingkey.Rotate(keyFile(cfg), time.Now())
	if errors.Is(err, fs.ErrNotExist) {
		err = firstStart(cfg, err)
	}
	if err != nil {
		return "", "", err
	}
	return key.ID, key.Old[0].ID, nil
}

// CreateKey gives the stopped server, which has lost its signing key, a new one and returns its id. A key that is still
// there is an error, fs.ErrExist.
func CreateKey(ctx context.Context, cfg *config.Config) (id string, err error) {
	if err := stopped(ctx, cfg); err != nil {
		return "", err
	}
	key, err := signingkey.Create(keyFile(cfg))
	if errors.Is(err, fs.ErrNotExist) {
		err = firstStart(cfg, err)
	}
	return key.ID, err
}
