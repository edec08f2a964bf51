package accounts

import (
	"context"
	"fmt"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// What administrators do to accounts and ask of them through the client-server API.
//
// Spec: client-server API v1.19, "Server Administration", "Account moderation"; MSC4323 for the path before v1.18.

func (a *API) moderationEndpoints() []httpapi.Endpoint {
	all := []httpapi.Endpoint{
		httpapi.New("GET", v3+"/admin/whois/{userId}", httpapi.User, ratelimit.Admin, a.whois),
	}
	for _, prefix := range []string{"/_matrix/client/v1", "/_matrix/client/unstable/uk.timedout.msc4323"} {
		lock, suspend := prefix+"/admin/lock/{userId}", prefix+"/admin/suspend/{userId}"
		all = append(all,
			httpapi.New("GET", lock, httpapi.Admin, ratelimit.Admin, a.getLocked),
			httpapi.New("PUT", lock, httpapi.Admin, ratelimit.Admin, a.putLocked),
			httpapi.New("GET", suspend, httpapi.Admin, ratelimit.Admin, a.getSuspended),
			httpapi.New("PUT", suspend, httpapi.Admin, ratelimit.Admin, a.putSuspended),
		)
	}
	return all
}

type accountRequest struct {
	UserID string `path:"userId"`
}

type lockedStatus struct {
	Locked bool `json:"locked"`
}

type suspendedStatus struct {
	Suspended bool `json:"suspended"`
}

type putLockedRequest struct {
	accountRequest
	Locked bool `json:"locked" required:"true"`
}

type putSuspendedRequest struct {
	accountRequest
	Suspended bool `json:"suspended" required:"true"`
}

// moderated reads the account that an administrator asks about: a local one that exists, and not another
// administrator's.
func (a *API) moderated(ctx context.Context, by *httpapi.Caller, userID string) (locked, suspended bool, err error) {
	if _, local := a.localpart(userID); !local {
		return false, false, mxerr.InvalidParam("The user does not belong to this server")
	}
	var admin bool
	found, err := a.db.Get(ctx, `SELECT admin, locked, suspended FROM accounts WHERE user_id = $1 AND deactivated_ts IS NULL`,
		[]any{userID}, &admin, &locked, &suspended)
	switch {
	case err != nil:
		return false, false, fmt.Errorf("look up account: %w", err)
	case !found:
		return false, false, mxerr.NotFound("There is no such account")
	case admin && userID != by.UserID:
		return false, false, mxerr.Forbidden("This user is an administrator, too")
	}
	return locked, suspended, nil
}

// mayModerate is moderated for changes, which nobody makes to their own account.
func (a *API) mayModerate(ctx context.Context, by *httpapi.Caller, userID string) error {
	if userID == by.UserID {
		return mxerr.Forbidden("This is your own account")
	}
	_, _, err := a.moderated(ctx, by, userID)
	return err
}

func (a *API) getLocked(ctx context.Context, by *httpapi.Caller, in *accountRequest) (*lockedStatus, error) {
	locked, _, err := a.moderated(ctx, by, in.UserID)
	if err != nil {
		return nil, err
	}
	return &lockedStatus{locked}, nil
}

func (a *API) putLocked(ctx context.Context, by *httpapi.Caller, in *putLockedRequest) (*lockedStatus, error) {
	if err := a.mayModerate(ctx, by, in.UserID); err != nil {
		return nil, err
	}
	if err := a.setLocked(ctx, in.UserID, in.Locked); err != nil {
		return nil, err
	}
	return &lockedStatus{in.Locked}, nil
}

func (a *API) getSuspended(ctx context.Context, by *httpapi.Caller, in *accountRequest) (*suspendedStatus, error) {
	_, suspended, err := a.moderated(ctx, by, in.UserID)
	if err != nil {
		return nil, err
	}
	return &suspendedStatus{suspended}, nil
}

func (a *API) putSuspended(ctx context.Context, by *httpapi.Caller, in *putSuspendedRequest) (*suspendedStatus, error) {
	if err := a.mayModerate(ctx, by, in.UserID); err != nil {
		return nil, err
	}
	if err := a.setSuspended(ctx, in.UserID, in.Suspended); err != nil {
		return nil, err
	}
	return &suspendedStatus{in.Suspended}, nil
}

type connection struct {
	IP       string `json:"ip,omitempty"`
	LastSeen int64  `json:"last_seen,omitempty"` // milliseconds
}

type connections struct {
	Connections []connection `json:"connections"`
}

type deviceSessions struct {
	Sessions []connections `json:"sessions"`
}

type whoisResponse struct {
	UserID  string                    `json:"user_id"`
	Devices map[string]deviceSessions `json:"devices"`
}

// whois tells users and administrators from where the devices of an account were last seen.
func (a *API) whois(ctx context.Context, by *httpapi.Caller, in *accountRequest) (*whoisResponse, error) {
	if in.UserID != by.UserID && !by.Admin {
		return nil, mxerr.Forbidden("You are not a server administrator")
	}
	if _, local := a.localpart(in.UserID); !local {
		return nil, mxerr.InvalidParam("The user does not belong to this server")
	}
	var exists bool
	var devices []Device
	err := a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		if exists, err = Exists(tx, in.UserID); err != nil || !exists {
			return err
		}
		devices, err = devicesOf(tx, in.UserID)
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read devices: %w", err)
	case !exists:
		return nil, mxerr.NotFound("There is no such account")
	}
	out := &whoisResponse{in.UserID, make(map[string]deviceSessions, len(devices))}
	for _, d := range devices {
		var c connection
		if d.LastSeenIP != nil {
			c.IP = *d.LastSeenIP
		}
		if d.LastSeenTS != nil {
			c.LastSeen = *d.LastSeenTS
		}
		out.Devices[d.ID] = deviceSessions{[]connections{{[]connection{c}}}}
	}
	return out, nil
}
