package syncapi

import (
	"context"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/storage"
)

// hidesInvite tells whether the user is not to see an invite: one of somebody they ignore, or whose invites they do not want
// (client-server API v1.19, "Ignoring users", "Invite permission").
func (l *look) hidesInvite(ctx context.Context, sender string) (bool, error) {
	ignored, err := l.ignored(ctx)
	if err != nil || ignored[sender] {
		return true, err
	}
	var permission accounts.InvitePermission
	err = l.api.db.Read(ctx, func(tx *storage.Tx) (err error) {
		permission, err = accounts.InvitePermissionOf(tx, l.user)
		return err
	})
	return err != nil || permission.Of(sender) != accounts.InviteAllowed, err
}
