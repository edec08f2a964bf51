package accounts

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// maxThreePIDs bounds the identifiers of one account.
const maxThreePIDs = 50

func (a *API) threePIDEndpoints() []httpapi.Endpoint {
	const path = v3 + "/account/3pid"
	return []httpapi.Endpoint{
		httpapi.New("GET", path, httpapi.User, ratelimit.Read, a.listThreePIDs),
		httpapi.New("POST", path, httpapi.User, ratelimit.Account, a.bindThreePIDOld),
		httpapi.New("POST", path+"/add", httpapi.User, ratelimit.Account, a.addThreePID),
		httpapi.New("POST", path+"/bind", httpapi.User, ratelimit.Account, a.bindThreePID),
		httpapi.New("POST", path+"/delete", httpapi.User, ratelimit.Account, a.deleteThreePID).UnlessSuspended(),
		httpapi.New("POST", path+"/unbind", httpapi.User, ratelimit.Account, a.unbindThreePID).UnlessSuspended(),
	}
}

type threePID struct {
	Medium      string `json:"medium"`
	Address     string `json:"address"`
	ValidatedAt int64  `json:"validated_at"` // milliseconds
	AddedAt     int64  `json:"added_at"`     // milliseconds
}

type threePIDsResponse struct {
	ThreePIDs []threePID `json:"threepids"`
}

func (a *API) listThreePIDs(ctx context.Context, by *httpapi.Caller, _ *httpapi.Empty) (*threePIDsResponse, error) {
	out := &threePIDsResponse{}
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		out.ThreePIDs = []threePID{}
		rows := tx.Query(`SELECT medium, address, validated_ts, added_ts FROM account_threepids WHERE user_id = $1 ORDER BY added_ts, address`, by.UserID)
		for rows.Next() {
			var t threePID
			rows.Scan(&t.Medium, &t.Address, &t.ValidatedAt, &t.AddedAt)
			out.ThreePIDs = append(out.ThreePIDs, t)
		}
		return rows.Close()
	})
	if err != nil {
		return nil, fmt.Errorf("list identifiers: %w", err)
	}
	return out, nil
}

type addThreePIDRequest struct {
	Auth json.RawMessage `json:"auth"`
	addThreePIDParams
}

type addThreePIDParams struct {
	SID          string `json:"sid,omitempty"`
	ClientSecret string `json:"client_secret,omitempty"`
}

var errThreePIDAuth = mxerr.New(http.StatusForbidden, "M_THREEPID_AUTH_FAILED", "The e-mail address has not been confirmed")

// addThreePID gives the caller an address that was confirmed with /account/3pid/email/requestToken.
func (a *API) addThreePID(ctx context.Context, by *httpapi.Caller, in *addThreePIDRequest) (*httpapi.Empty, error) {
	missing := func() error {
		switch {
		case in.SID == "":
			return mxerr.MissingParam("Missing parameter sid")
		case in.ClientSecret == "":
			return mxerr.MissingParam("Missing parameter client_secret")
		}
		return nil
	}
	if len(in.Auth) == 0 {
		if err := missing(); err != nil {
			return nil, err
		}
	}
	if by.Appservice == nil {
		if err := a.Confirm(ctx, by, Challenge{Operation: "POST /account/3pid/add", Auth: in.Auth, Params: &in.addThreePIDParams}); err != nil {
			return nil, err
		}
	}
	if err := missing(); err != nil {
		return nil, err
	}
	address, err := a.confirmedEmail(ctx, &emailCredentials{in.SID, in.ClientSecret}, emailToAdd)
	if err != nil {
		return nil, err
	}
	if address == "" {
		return nil, errThreePIDAuth
	}
	now := a.nowMS()
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		var count int64
		if _, err := tx.Get(`SELECT COUNT(*) FROM account_threepids WHERE user_id = $1`, []any{by.UserID}, &count); err != nil {
			return err
		}
		if count >= maxThreePIDs {
			return mxerr.New(http.StatusForbidden, "M_THREEPID_DENIED", "The account has too many addresses")
		}
		return attachEmail(tx, by.UserID, in.SID, now)
	})
	if err != nil {
		return nil, fmt.Errorf("add e-mail address: %w", err)
	}
	return nil, nil
}

type bindRequest struct {
	ClientSecret  string `json:"client_secret" required:"true"`
	IDServer      string `json:"id_server" required:"true"`
	IDAccessToken string `json:"id_access_token" required:"true"`
	SID           string `json:"sid" required:"true"`
}

type oldBindRequest struct {
	Credentials *struct {
		ClientSecret string `json:"client_secret"`
		IDServer     string `json:"id_server"`
		SID          string `json:"sid"`
	} `json:"three_pid_creds" required:"true"`
}

// errIdentityServer is the answer to all that would need an identity server: this server trusts none.
var errIdentityServer = mxerr.New(http.StatusBadRequest, "M_SERVER_NOT_TRUSTED", "This server does not trust that identity server")

func (a *API) bindThreePID(context.Context, *httpapi.Caller, *bindRequest) (*httpapi.Empty, error) {
	return nil, errIdentityServer
}

// bindThreePIDOld is bind under its former name.
func (a *API) bindThreePIDOld(_ context.Context, _ *httpapi.Caller, in *oldBindRequest) (*httpapi.Empty, error) {
	if c := in.Credentials; c == nil || c.ClientSecret == "" || c.IDServer == "" || c.SID == "" {
		return nil, mxerr.MissingParam("three_pid_creds must have client_secret, id_server and sid")
	}
	return nil, errIdentityServer
}

type threePIDRequest struct {
	Medium  string `json:"medium" required:"true" enum:"email|msisdn"`
	Address string `json:"address" required:"true"`
	// IDServer is an identity server to ask as well. None is asked.
	IDServer string `json:"id_server"`
}

type unbindResponse struct {
	// Result is no-support, as no identity server is known.
	Result string `json:"id_server_unbind_result"`
}

func (a *API) deleteThreePID(ctx context.Context, by *httpapi.Caller, in *threePIDRequest) (*unbindResponse, error) {
	address := in.Address
	if in.Medium == mediumEmail {
		var err error
		if address, err = canonicalEmail(address); err != nil {
			return nil, err
		}
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		n, err := tx.Exec(`DELETE FROM account_threepids WHERE medium = $1 AND address = $2 AND user_id = $3`, in.Medium, address, by.UserID)
		if err != nil || n == 0 {
			return err
		}
		// What was begun with it must not end after it.
		_, err = tx.Exec(`DELETE FROM email_sessions WHERE address = $1 AND purpose = $2`, address, emailToReset)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("delete identifier: %w", err)
	}
	return &unbindResponse{"no-support"}, nil
}

func (a *API) unbindThreePID(context.Context, *httpapi.Caller, *threePIDRequest) (*unbindResponse, error) {
	return &unbindResponse{"no-support"}, nil
}
