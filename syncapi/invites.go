package syncapi

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/storage"
)

// hidesInvite tells whether the user is not to see an invite: one of somebody they ignore, or any if they block invites
// (client-server API v1.19, "Ignoring users", "Invite permission").
func (l *look) hidesInvite(ctx context.Context, sender string) (bool, error) {
	ignored, err := l.ignored(ctx)
	if err != nil || ignored[sender] {
		return true, err
	}
	var blocked bool
	err = l.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
		blocked, err = accounts.BlocksInvites(tx, l.user)
		return err
	})
	if err != nil {
		return true, fmt.Errorf("invite permission of %s: %w", l.user, err)
	}
	return blocked, nil
}
