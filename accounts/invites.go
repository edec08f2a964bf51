package accounts

import (
	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/storage"
)

// BlocksInvites tells whether a local user refuses all invites.
//
// Spec: client-server API v1.19, "Invite permission".
func BlocksInvites(tx *storage.Tx, userID string) (bool, error) {
	content, err := AccountDatum(tx, userID, "", "m.invite_permission_config")
	if err != nil {
		return false, err
	}
	return gjson.GetBytes(content, "default_action").Str == "block", nil
}
