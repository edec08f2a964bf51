package clientapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/storage"
)

// mayInvite refuses a sender's invites to local users who block them (client-server API v1.19, "Invite permission").
func (a *API) mayInvite(ctx context.Context, sender string, users ...string) error {
	blocked := ""
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		blocked = ""
		for _, u := range users {
			if !a.rooms.IsLocal(u) {
				continue
			}
			permission, err := accounts.InvitePermissionOf(tx, u)
			if err != nil {
				return err
			}
			if permission.Of(sender) == accounts.InviteBlocked {
				blocked = u
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("permission to invite: %w", err)
	}
	if blocked != "" {
		return mxerr.New(http.StatusForbidden, "M_INVITE_BLOCKED", blocked+" does not accept invites")
	}
	return nil
}

// mayPutState is mayInvite for invites that are sent as state.
func (a *API) mayPutState(ctx context.Context, sender string, in *putStateRequest) error {
	if in.Type == "m.room.member" && gjson.GetBytes(in.Content, "membership").Str == roomserver.Invite {
		return a.mayInvite(ctx, sender, in.StateKey)
	}
	return nil
}
