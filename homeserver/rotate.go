package homeserver

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/myelin-im/myelin/homeserver/config"
	"github.com/myelin-im/myelin/homeserver/signingkey"
)

// RotateKey gives the stopped server another signing key and returns the ids of the new one and of the one before, which
// the server goes on to publish as an old key. A running server would sign with a key that it has given up.
func RotateKey(ctx context.Context, cfg *config.Config) (newID, oldID string, err error) {
	if running := dialControl(ctx, cfg.Server.DataDir); running != nil {
		return "", "", errors.New("the server is running: stop it first")
	}
	key, err := signingkey.Rotate(filepath.Join(cfg.Server.DataDir, "signing.key"), time.Now())
	if err != nil {
		return "", "", err
	}
	return key.ID, key.Old[0].ID, nil
}
