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

func (a *API) passwordEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("POST", "/_matrix/client/v3/account/password", httpapi.Optional, ratelimit.Login, a.changePassword),
		httpapi.New("POST", "/_matrix/client/v3/account/deactivate", httpapi.Optional, ratelimit.Login, a.deactivate),
	}
}

// confirmOwner is Confirm for endpoints that may be called without a token. It returns the user: the caller, or who
// gave the password.
func (a *API) confirmOwner(ctx context.Context, by *httpapi.Caller, c Challenge) (userID string, p *proof, err error) {
	if by.Guest {
		return "", nil, mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guests cannot do this")
	}
	if by.Appservice != nil {
		return by.UserID, &proof{}, nil
	}
	i, err := a.ownerInteraction(ctx, by.UserID, c)
	if err != nil {
		return "", nil, err
	}
	i.addr = by.Addr
	p, err = a.interact(ctx, i)
	if err != nil {
		return "", nil, err
	}
	if by.UserID != "" {
		return by.UserID, p, nil
	}
	err = a.db.Read(ctx, func(tx *storage.Tx) error { return mayLogIn(tx, p.verified, "") })
	return p.verified, p, err
}

// setPasswordOperation is the one that a confirmed e-mail address allows, too.
const setPasswordOperation = "POST /account/password"

// ownerInteraction is how a user, or whoever names one, proves that an account is theirs.
func (a *API) ownerInteraction(ctx context.Context, userID string, c Challenge) (*interaction, error) {
	i := &interaction{Challenge: c, by: userID, bound: true, email: emailToReset}
	reset := c.Operation == setPasswordOperation && a.mail != nil
	flows, err := a.confirmFlows(ctx, userID)
	if reset && mxerr.As(err) != nil {
		flows, err = nil, nil // without a password, an e-mail address is the only way to one
	}
	if reset {
		flows = append(flows, []string{stageEmail})
	}
	i.flows = flows
	return i, err
}

type passwordRequest struct {
	Auth json.RawMessage `json:"auth"`
	passwordParams
}

type passwordParams struct {
	NewPassword   string `json:"new_password,omitempty"`
	LogoutDevices *bool  `json:"logout_devices,omitempty"`
}

func (a *API) changePassword(ctx context.Context, by *httpapi.Caller, in *passwordRequest) (*httpapi.Empty, error) {
	if by.Appservice != nil {
		return nil, mxerr.Forbidden("Application services do not change passwords")
	}
	if in.NewPassword != "" {
		if err := a.checkPassword(in.NewPassword); err != nil {
			return nil, err
		}
	}
	userID, p, err := a.confirmOwner(ctx, by, Challenge{Operation: setPasswordOperation, Auth: in.Auth, Params: &in.passwordParams})
	if err != nil {
		return nil, err
	}
	if in.NewPassword == "" {
		return nil, mxerr.MissingParam("Missing parameter new_password")
	}
	logout := in.LogoutDevices == nil || *in.LogoutDevices
	if err := a.setPassword(ctx, userID, in.NewPassword, logout, by.DeviceID, p); err != nil {
		return nil, err
	}
	return nil, nil
}

// setPassword changes a password and, if asked to, logs out all devices but one.
func (a *API) setPassword(ctx context.Context, userID, password string, logout bool, keep string, p *proof) error {
	if err := a.checkPassword(password); err != nil {
		return err
	}
	hash, err := a.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := p.consume(tx); err != nil {
			return err
		}
		if err := spendEmail(tx, p.emailSID); err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE accounts SET password_hash = $2 WHERE user_id = $1 AND deactivated_ts IS NULL`, userID, hash)
		switch {
		case err != nil:
			return err
		case n == 0:
			return mxerr.NotFound("There is no such account")
		}
		// What was begun with the old password must not end after it.
		if err := dropPending(tx, userID); err != nil {
			return err
		}
		if !logout {
			return nil
		}
		return a.removeOtherDevices(tx, userID, keep)
	})
	if err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	return nil
}

// dropPending deletes login tokens, OpenID tokens and authentication sessions of a user, by e-mail as well.
func dropPending(tx *storage.Tx, userID string) error {
	for _, sql := range []string{
		`DELETE FROM login_tokens WHERE user_id = $1`,
		`DELETE FROM openid_tokens WHERE user_id = $1`,
		`DELETE FROM uia_sessions WHERE user_id = $1`,
		`DELETE FROM email_sessions WHERE address IN (SELECT address FROM account_threepids WHERE user_id = $1)`,
	} {
		if _, err := tx.Exec(sql, userID); err != nil {
			return err
		}
	}
	return nil
}

type deactivateRequest struct {
	Auth json.RawMessage `json:"auth"`
	deactivateParams
}

// deactivateParams tells false from absent, so that whoever thinks better of erasing is not taken at their first word.
type deactivateParams struct {
	Erase *bool `json:"erase,omitempty"`
}

type deactivateResponse struct {
	// UnbindResult is always success: no identifiers are bound.
	UnbindResult string `json:"id_server_unbind_result"`
}

func (a *API) deactivate(ctx context.Context, by *httpapi.Caller, in *deactivateRequest) (*deactivateResponse, error) {
	userID, p, err := a.confirmOwner(ctx, by, Challenge{Operation: "POST /account/deactivate", Auth: in.Auth, Params: &in.deactivateParams})
	if err != nil {
		return nil, err
	}
	if err := a.end(ctx, userID, in.Erase != nil && *in.Erase, p); err != nil {
		return nil, err
	}
	return &deactivateResponse{"success"}, nil
}

// end ends an account: nobody can log in again, its devices and tokens are gone, and it leaves its rooms, the last
// in the background. With erase, everything of it that is not an event is deleted as well.
func (a *API) end(ctx context.Context, userID string, erase bool, p *proof) error {
	job, err := a.jobs.prepare(ctx, userID, jobLeaveAll, nil)
	if err != nil {
		return err
	}
	now := a.nowMS()
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		if err := p.consume(tx); err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE accounts SET password_hash = NULL, admin = FALSE, erased = erased OR $3,
			deactivated_ts = COALESCE(deactivated_ts, $2) WHERE user_id = $1`, userID, now, erase)
		switch {
		case err != nil:
			return err
		case n == 0:
			return mxerr.NotFound("There is no such account")
		}
		if err := a.removeOtherDevices(tx, userID, ""); err != nil {
			return err
		}
		if err := dropPending(tx, userID); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM account_threepids WHERE user_id = $1`, userID); err != nil {
			return err
		}
		if erase {
			if err := eraseData(tx, userID); err != nil {
				return err
			}
		}
		for _, h := range a.hooks {
			if h.Deactivated == nil {
				continue
			}
			if err := h.Deactivated(tx, userID, erase); err != nil {
				return err
			}
		}
		return job.write(tx)
	})
	if err != nil {
		return fmt.Errorf("deactivate account: %w", err)
	}
	a.cache.forget(userID)
	if erase {
		a.erased.add(userID)
	}
	a.jobs.wake()
	return nil
}

// eraseData deletes what accounts keep of a user beyond the account itself.
func eraseData(tx *storage.Tx, userID string) error {
	if err := noteProfileEnd(tx, userID); err != nil {
		return err
	}
	for _, sql := range []string{
		`DELETE FROM account_data WHERE user_id = $1`,
		`DELETE FROM profiles WHERE user_id = $1`,
		`DELETE FROM filters WHERE user_id = $1`,
		`DELETE FROM accepted_terms WHERE user_id = $1`,
	} {
		if _, err := tx.Exec(sql, userID); err != nil {
			return err
		}
	}
	return nil
}
