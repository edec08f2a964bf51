package accounts

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

func (a *API) registerEndpoints() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		httpapi.New("POST", "/_matrix/client/v3/register", httpapi.Anyone, ratelimit.Register, a.register),
		httpapi.New("GET", "/_matrix/client/v3/register/available", httpapi.Anyone, ratelimit.Register, a.available),
		httpapi.New("GET", "/_matrix/client/v1/register/m.login.registration_token/validity", httpapi.Anyone, ratelimit.Register, a.tokenValidity),
		httpapi.New("GET", "/_synapse/admin/v1/register", httpapi.Anyone, ratelimit.Register, a.sharedSecretNonce),
		httpapi.New("POST", "/_synapse/admin/v1/register", httpapi.Anyone, ratelimit.Register, a.sharedSecretRegister),
	}
}

const registerOperation = "POST /register"

type registerRequest struct {
	credentials
	Kind string          `query:"kind" default:"user" enum:"user|guest"`
	Type string          `json:"type"`
	Auth json.RawMessage `json:"auth"`
	registerParams
}

// registerParams are the members of a registration that its first request fixes.
type registerParams struct {
	Username     string `json:"username,omitempty"`
	Password     string `json:"password,omitempty"`
	GuestToken   string `json:"guest_access_token,omitempty"`
	InhibitLogin bool   `json:"inhibit_login,omitempty"`
	sessionParams
}

// sessionParams are the members of requests that log in.
type sessionParams struct {
	DeviceID     string `json:"device_id,omitempty"`
	DisplayName  string `json:"initial_device_display_name,omitempty"`
	RefreshToken bool   `json:"refresh_token,omitempty"`
}

func (a *API) register(ctx context.Context, by *httpapi.Caller, in *registerRequest) (*loginResponse, error) {
	if in.Kind == "guest" {
		return a.registerGuest(ctx, by, in.DisplayName)
	}
	if in.Type == loginAppservice {
		return a.registerAppservice(ctx, by, in)
	}
	flows, tokenOK, err := a.registerFlows(ctx)
	if err != nil {
		return nil, err
	}
	// What is wrong with the request is told before the client is led through the stages.
	userID := ""
	if in.Username != "" {
		if userID, err = a.checkUsername(ctx, &in.registerParams); err != nil {
			return nil, err
		}
	}
	if in.Password != "" {
		if err := a.checkPassword(in.Password); err != nil {
			return nil, err
		}
	}
	i := interaction{Challenge: Challenge{Operation: registerOperation, Auth: in.Auth, Params: &in.registerParams},
		addr: by.Addr, flows: flows, info: a.registerInfo(), tokenOK: tokenOK, email: emailToRegister}
	proof, err := a.interact(ctx, &i)
	if err != nil {
		return nil, err
	}
	if in.Password == "" {
		return nil, mxerr.MissingParam("Missing parameter password")
	}
	if err := a.checkPassword(in.Password); err != nil {
		return nil, err
	}
	if in.Username == "" {
		in.Username = randomName("abcdefghijkmnpqrstuvwxyz23456789", 12)
	}
	if userID == "" { // it stood in the session's first request, or was just made up
		if userID, err = a.checkUsername(ctx, &in.registerParams); err != nil {
			return nil, err
		}
	}
	hash, err := a.hasher.hash(ctx, in.Password)
	if err != nil {
		return nil, err
	}
	acc := newAccount{userID: userID, kind: kindPerson, passwordHash: hash, now: a.nowMS(), upgradesGuest: in.GuestToken != ""}
	return a.create(ctx, by, acc, proof, &in.registerParams)
}

// registerFlows returns the ways to register, or M_FORBIDDEN if there are none. As long as the server has no
// administrator, showing the token that makes one is a way.
func (a *API) registerFlows(ctx context.Context) (flows [][]string, tokenOK func(context.Context, string) (bool, error), err error) {
	reg := &a.cfg.Registration
	firstAdmin, err := a.db.Get(ctx, `SELECT 1 FROM registration_tokens WHERE makes_admin AND uses = 0 AND `+noAdmin, nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("look up registration tokens: %w", err)
	}
	switch {
	case !reg.Open && !firstAdmin:
		return nil, nil, mxerr.Forbidden("Registration is disabled")
	case !reg.Open || reg.RequireToken:
		flows = [][]string{{stageToken}}
	case firstAdmin:
		flows = [][]string{{stageDummy}, {stageToken}}
	default:
		flows = [][]string{{stageDummy}}
	}
	flows = a.withEmail(flows)
	if len(reg.Policies) > 0 {
		for n, flow := range flows {
			if flow[0] == stageDummy {
				flow = nil
			}
			flows[n] = append(slices.Clip(flow), stageTerms)
		}
	}
	return flows, a.registrationTokenOK, nil
}

// withEmail adds the ways to register with an e-mail address, or puts them in the place of those without where an
// address is required. The address comes first, so that no way is the beginning of another.
func (a *API) withEmail(flows [][]string) [][]string {
	if a.mail == nil {
		return flows
	}
	var with [][]string
	for _, flow := range flows {
		if flow[0] == stageDummy {
			flow = nil
		}
		with = append(with, append([]string{stageEmail}, flow...))
	}
	if a.cfg.Email.Required {
		return with
	}
	return append(flows, with...)
}

// registerInfo is what clients need to know for the stages.
func (a *API) registerInfo() map[string]any {
	if len(a.cfg.Registration.Policies) == 0 {
		return nil
	}
	policies := make(map[string]any, len(a.cfg.Registration.Policies))
	for id, p := range a.cfg.Registration.Policies {
		policy := map[string]any{"version": p.Version}
		for language, t := range p.Translations {
			policy[language] = t
		}
		policies[id] = policy
	}
	return map[string]any{stageTerms: map[string]any{"policies": policies}}
}

// acceptTerms notes that a user has accepted all policies as they are now.
func (a *API) acceptTerms(tx *storage.Tx, userID string, now int64) error {
	for id, policy := range a.cfg.Registration.Policies {
		_, err := tx.Exec(`INSERT INTO accepted_terms (user_id, policy, version, accepted_ts) VALUES ($1, $2, $3, $4)
			ON CONFLICT (user_id, policy, version) DO NOTHING`, userID, id, policy.Version, now)
		if err != nil {
			return err
		}
	}
	return nil
}

// errInUse is the answer for user names that are taken.
var errInUse = mxerr.New(http.StatusBadRequest, "M_USER_IN_USE", "This user name is taken")

// checkUsername returns the user id for a user name that is free, or belongs to the guest who asks for it.
func (a *API) checkUsername(ctx context.Context, in *registerParams) (string, error) {
	if in.GuestToken != "" {
		return a.checkGuest(ctx, in)
	}
	userID, err := a.newPersonID(in.Username)
	if err != nil {
		return "", err
	}
	taken, err := a.exists(ctx, userID)
	if err == nil && taken {
		err = errInUse
	}
	return userID, err
}

// exists tells whether a user id was ever given out.
func (a *API) exists(ctx context.Context, userID string) (found bool, err error) {
	err = a.db.Read(ctx, func(tx *storage.Tx) (err error) {
		found, err = Exists(tx, userID)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look up account: %w", err)
	}
	return found, nil
}

// Exists tells whether a user id was ever given out, to someone who may have left since.
func Exists(tx *storage.Tx, userID string) (bool, error) {
	var one int64
	return tx.Get(`SELECT 1 FROM accounts WHERE user_id = $1`, []any{userID}, &one)
}

// checkGuest returns the user id of a guest who upgrades to an account: it stays what it was.
//
// Spec: client-server API v1.19, "Guest Access".
func (a *API) checkGuest(ctx context.Context, in *registerParams) (string, error) {
	by, err := a.authenticateUser(ctx, in.GuestToken)
	if err != nil {
		return "", err
	}
	if by.Locked {
		return "", mxerr.Locked()
	}
	if !by.Guest || lowerASCII(in.Username) != by.Localpart {
		return "", mxerr.Forbidden("guest_access_token is not of a guest with this user name")
	}
	return by.UserID, nil
}

// newAccount is an account about to be made.
type newAccount struct {
	userID        string
	kind          int64
	passwordHash  string // empty: none
	appserviceID  string
	userType      string
	admin         bool
	displayName   json.RawMessage // nil: see firstName
	now           int64
	upgradesGuest bool
}

// firstName is the display name that an account starts with: the one asked for, else for a person the localpart, so that
// clients have something shorter to show than the user id. Who was a guest keeps the name that they had.
func (acc *newAccount) firstName() json.RawMessage {
	if acc.displayName != nil || acc.kind != kindPerson || acc.upgradesGuest {
		return acc.displayName
	}
	localpart, _, _ := strings.Cut(acc.userID[1:], ":")
	return json.RawMessage(strconv.Quote(localpart)) // nothing in a new localpart needs other escapes than JSON's
}

// insert writes the account and tells whether it was free to be made.
func (acc *newAccount) insert(tx *storage.Tx) (bool, error) {
	if acc.upgradesGuest {
		n, err := tx.Exec(`UPDATE accounts SET kind = $2, password_hash = $3, admin = admin OR $4
			WHERE user_id = $1 AND kind = $5 AND deactivated_ts IS NULL`,
			acc.userID, acc.kind, acc.passwordHash, acc.admin, kindGuest)
		return n == 1, err
	}
	n, err := tx.Exec(`INSERT INTO accounts (user_id, kind, password_hash, appservice_id, user_type, admin, locked, suspended, erased, created_ts)
		VALUES ($1, $2, $3, $4, $5, $6, FALSE, FALSE, FALSE, $7) ON CONFLICT (user_id) DO NOTHING`,
		acc.userID, acc.kind, nullable(acc.passwordHash), nullable(acc.appserviceID), nullable(acc.userType), acc.admin, acc.now)
	return n == 1, err
}

// nullable is s, or NULL if it is empty.
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// create makes an account and logs in, all in one transaction with the use of its proof and registration token.
func (a *API) create(ctx context.Context, by *httpapi.Caller, acc newAccount, p *proof, in *registerParams) (*loginResponse, error) {
	var login *newSession
	if !in.InhibitLogin {
		var err error
		if login, err = a.prepareSession(ctx, acc.userID, in.sessionParams, by.Addr); err != nil {
			return nil, err
		}
	}
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		acc := acc
		if p.regToken != "" {
			makesAdmin, err := useRegistrationToken(tx, p.regToken, acc.now)
			if err != nil {
				return err
			}
			acc.admin = acc.admin || makesAdmin
		}
		switch made, err := acc.insert(tx); {
		case err != nil:
			return err
		case !made:
			return errInUse
		}
		if err := p.consume(tx); err != nil {
			return err
		}
		if p.emailSID != "" {
			if err := attachEmail(tx, acc.userID, p.emailSID, acc.now); err != nil {
				return err
			}
		}
		if p.terms {
			if err := a.acceptTerms(tx, acc.userID, acc.now); err != nil {
				return err
			}
		}
		if name := acc.firstName(); name != nil {
			if _, err := writeField(tx, acc.userID, fieldDisplayName, name); err != nil {
				return err
			}
		}
		if login == nil {
			return nil
		}
		return login.write(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("make account: %w", err)
	}
	a.cache.forget(acc.userID)
	if login == nil {
		return &loginResponse{UserID: acc.userID, HomeServer: a.cfg.ServerName}, nil
	}
	return a.loggedIn(login), nil
}

// registerGuest makes an account with a name of its own and few rights.
func (a *API) registerGuest(ctx context.Context, by *httpapi.Caller, displayName string) (*loginResponse, error) {
	if !a.cfg.Registration.Guests {
		return nil, mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guest accounts are disabled")
	}
	acc := newAccount{userID: a.userID("guest-" + randomName("abcdefghijkmnpqrstuvwxyz23456789", 16)), kind: kindGuest, now: a.nowMS()}
	return a.create(ctx, by, acc, &proof{}, &registerParams{sessionParams: sessionParams{DisplayName: displayName}})
}

// registerAppservice makes an account without a password for an application service.
//
// Spec: application-service API v1.19, "Server admin style permissions".
func (a *API) registerAppservice(ctx context.Context, by *httpapi.Caller, in *registerRequest) (*loginResponse, error) {
	as, err := in.appservice(a.services)
	if err != nil {
		return nil, err
	}
	if in.Username == "" {
		return nil, mxerr.MissingParam("Missing parameter username")
	}
	userID, err := a.newUserID(in.Username)
	if err != nil {
		return nil, err
	}
	if !a.services.Owns(as, userID) {
		return nil, mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "This user name is not in the application service's namespaces")
	}
	acc := newAccount{userID: userID, kind: kindAppservice, appserviceID: as.ID, now: a.nowMS()}
	return a.create(ctx, by, acc, &proof{}, &in.registerParams)
}

type availableRequest struct {
	Username string `query:"username" required:"true"`
}

type availableResponse struct {
	Available bool `json:"available"`
}

func (a *API) available(ctx context.Context, _ *httpapi.Caller, in *availableRequest) (*availableResponse, error) {
	if _, err := a.checkUsername(ctx, &registerParams{Username: in.Username}); err != nil {
		return nil, err
	}
	return &availableResponse{true}, nil
}
