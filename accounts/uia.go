package accounts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/storage"
)

// The stages of user-interactive authentication that this server offers.
const (
	stagePassword = "m.login.password"
	stageDummy    = "m.login.dummy"
	stageToken    = "m.login.registration_token"
	stageTerms    = "m.login.terms"
	stageEmail    = "m.login.email.identity"
)

const (
	// uiaLifetime is how long a session may take.
	uiaLifetime = 30 * time.Minute
	// maxUIASessions bounds the sessions that are kept; the oldest go first.
	maxUIASessions = 10_000
	// maxUIAParams bounds what is remembered of a request, in bytes. Larger requests must be repeated in full.
	maxUIAParams = 16 << 10
)

// Challenge is an operation that needs user-interactive authentication.
//
// Spec: client-server API v1.19, "User-Interactive Authentication API".
type Challenge struct {
	// Operation names what is done, with what of the path belongs to it: "DELETE /devices/ABC". A session holds for
	// one operation of one user.
	Operation string
	// Auth is the member "auth" of the request.
	Auth json.RawMessage
	// Params points to a struct of the other members, to be written with encoding/json so that an absent member is
	// left out; nil if there are none. A request with "auth" alone gets those of the session's first request, and
	// a request that comes with others than those is refused.
	Params any
}

// Confirm makes a logged-in user prove with their password that it is them. It returns nil once they have; each
// proof serves one operation. Otherwise it returns the 401 that the client answers, or another Matrix error.
// Callers that are application services need no proof and must not be asked.
func (a *API) Confirm(ctx context.Context, by *httpapi.Caller, c Challenge) error {
	flows, err := a.confirmFlows(ctx, by.UserID)
	if err != nil {
		return err
	}
	i := interaction{Challenge: c, by: by.UserID, addr: by.Addr, flows: flows, bound: true}
	proof, err := a.interact(ctx, &i)
	if err != nil || proof.session == nil {
		return err
	}
	return a.db.Write(ctx, proof.consume)
}

// confirmFlows returns how a user can prove that it is them; nobody stands for callers that are not logged in, who
// name the user together with the password.
func (a *API) confirmFlows(ctx context.Context, userID string) ([][]string, error) {
	if userID == "" {
		return [][]string{{stagePassword}}, nil
	}
	var kind int64
	var hasPassword bool
	_, err := a.db.Get(ctx, `SELECT kind, password_hash IS NOT NULL FROM accounts WHERE user_id = $1`, []any{userID}, &kind, &hasPassword)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up password: %w", err)
	case hasPassword:
		return [][]string{{stagePassword}}, nil
	case kind == kindAppservice:
		// Its tokens come from the application service, which needs no proof.
		return [][]string{{stageDummy}}, nil
	}
	return nil, mxerr.Forbidden("This account has no password, so that this cannot be confirmed")
}

// interaction is one request with user-interactive authentication.
type interaction struct {
	Challenge
	by    string         // who asks; empty: someone not logged in
	addr  string         // from where
	flows [][]string     // the ways to get through
	info  map[string]any // "params" of the answer: what clients need to know for a stage
	bound bool           // a request may not change in the course of its session
	// tokenOK checks a registration token, where flows have that stage.
	tokenOK func(ctx context.Context, token string) (bool, error)
	// email is for what an address has to be confirmed, where flows have that stage.
	email int64
}

// uiaSession is the state of a session. Its zero value is the start.
type uiaSession struct {
	id        string // empty until it has to be remembered
	verified  string // who gave the right password
	regToken  string
	emailSID  string // of the session in which an e-mail address was confirmed
	completed []string
	params    []byte // sealed; nil: none yet
}

// proof is what a completed interaction has shown.
type proof struct {
	session  *tokenHash // the stored session, nil if it took one request
	verified string     // who gave the right password; empty without that stage
	regToken string     // the registration token shown
	emailSID string     // the session in which an e-mail address was confirmed
	terms    bool       // the terms were accepted
}

// errSpent rolls back the second use of a session.
var errSpent = mxerr.Forbidden("This authentication session was used already")

// consume ends the session, in the transaction of what it allowed or before it. It fails if that happened already.
func (p *proof) consume(tx *storage.Tx) error {
	if p.session == nil {
		return nil
	}
	n, err := tx.Exec(`DELETE FROM uia_sessions WHERE hash = $1`, p.session.bytes())
	if err == nil && n == 0 {
		return errSpent
	}
	return err
}

// authData is the member "auth" of a request, with the members of all stages.
type authData struct {
	Type    string `json:"type"`
	Session string `json:"session"`
	Token   string `json:"token"`
	passwordLogin
	// Email names the session of m.login.email.identity; OldEmail is how clients of r0 called it.
	Email    *emailCredentials `json:"threepid_creds"`
	OldEmail *emailCredentials `json:"threepidCreds"`
}

// interact takes one request through its session: it reads the session, tries the stage, and either returns the
// proof that all of a flow is done or the 401 that says what is missing.
func (a *API) interact(ctx context.Context, i *interaction) (*proof, error) {
	var auth authData
	if len(i.Auth) > 0 && !bytes.Equal(i.Auth, []byte("null")) {
		if err := json.Unmarshal(i.Auth, &auth); err != nil {
			return nil, mxerr.BadJSON("auth is not as it should be").With(err)
		}
	}
	s, stored, err := a.loadUIA(ctx, i, auth.Session)
	if err != nil {
		return nil, err
	}
	if err := i.bindParams(s); err != nil {
		return nil, err
	}
	advanced, failure := false, (*mxerr.Error)(nil)
	if auth.Type != "" && !slices.Contains(s.completed, auth.Type) {
		err := a.tryStage(ctx, i, s, &auth)
		if failure = mxerr.As(err); failure == nil && err != nil {
			return nil, err
		}
		if failure != nil && failure.Status != http.StatusUnauthorized {
			return nil, failure
		}
		advanced = failure == nil
	}
	if i.done(s.completed) {
		p := &proof{verified: s.verified, regToken: s.regToken, emailSID: s.emailSID, terms: slices.Contains(s.completed, stageTerms)}
		if stored {
			h := sha256.Sum256([]byte(s.id))
			p.session = (*tokenHash)(&h)
		}
		return p, nil
	}
	if err := a.saveUIA(ctx, i, s, stored, advanced); err != nil {
		return nil, err
	}
	return nil, i.answer(s, failure)
}

// done tells whether the stages complete a flow.
func (i *interaction) done(completed []string) bool {
	return slices.ContainsFunc(i.flows, func(flow []string) bool { return slices.Equal(flow, completed) })
}

// answer is the 401 that says what is to be done, and what went wrong.
func (i *interaction) answer(s *uiaSession, failure *mxerr.Error) *mxerr.Error {
	e := &mxerr.Error{Status: http.StatusUnauthorized}
	if failure != nil {
		e.Code, e.Text, e.Cause = failure.Code, failure.Text, failure.Cause
	}
	type flow struct {
		Stages []string `json:"stages"`
	}
	flows := make([]flow, len(i.flows))
	for n, stages := range i.flows {
		flows[n].Stages = stages
	}
	e.Fields = map[string]any{"flows": flows, "session": s.id, "params": i.info}
	if i.info == nil {
		e.Fields["params"] = struct{}{}
	}
	if len(s.completed) > 0 {
		e.Fields["completed"] = s.completed
	}
	return e
}

// tryStage tries to complete a stage. A 401 means that the client may try again.
func (a *API) tryStage(ctx context.Context, i *interaction, s *uiaSession, auth *authData) error {
	next := append(slices.Clip(s.completed), auth.Type)
	if !slices.ContainsFunc(i.flows, func(flow []string) bool { return len(flow) >= len(next) && slices.Equal(flow[:len(next)], next) }) {
		return unauthorized("M_FORBIDDEN", "This is not the next stage of any flow")
	}
	switch auth.Type {
	case stagePassword:
		userID, _, err := a.checkLogin(ctx, &auth.passwordLogin, i.addr)
		if e := mxerr.As(err); e != nil && e.Status == http.StatusForbidden {
			return unauthorized("M_FORBIDDEN", e.Text)
		}
		if err != nil {
			return err
		}
		if i.by != "" && userID != i.by {
			return mxerr.Forbidden("That is not your own account")
		}
		s.verified = userID
	case stageToken:
		ok, err := i.tokenOK(ctx, auth.Token)
		if err != nil {
			return err
		}
		if !ok {
			return unauthorized("M_UNAUTHORIZED", "This registration token is not valid")
		}
		s.regToken = auth.Token
	case stageEmail:
		if err := a.tryEmail(ctx, i, s, auth); err != nil {
			return err
		}
	}
	s.completed = next
	return nil
}

// tryEmail completes the stage of a confirmed e-mail address. Where a password is to be reset, the address tells whose.
func (a *API) tryEmail(ctx context.Context, i *interaction, s *uiaSession, auth *authData) error {
	shown := auth.Email
	if shown == nil {
		shown = auth.OldEmail
	}
	if shown == nil || shown.SID == "" || shown.ClientSecret == "" {
		return mxerr.MissingParam("threepid_creds must have sid and client_secret")
	}
	address, err := a.confirmedEmail(ctx, shown, i.email)
	if err != nil {
		return err
	}
	if address == "" {
		return unauthorized("M_UNAUTHORIZED", "The e-mail address has not been confirmed")
	}
	if i.email == emailToReset {
		owner, err := a.emailOwner(ctx, address)
		switch {
		case err != nil:
			return err
		case owner == "":
			return unauthorized("M_UNAUTHORIZED", "No account has this e-mail address")
		case i.by != "" && owner != i.by:
			return mxerr.Forbidden("That is not your own account")
		}
		s.verified = owner
	}
	s.emailSID = shown.SID
	return nil
}

func unauthorized(code, text string) *mxerr.Error {
	return mxerr.New(http.StatusUnauthorized, code, text)
}

// bindParams compares the request with the one that began the session, or fills it in from there.
func (i *interaction) bindParams(s *uiaSession) error {
	if i.Params == nil || s.params == nil {
		return nil
	}
	first, err := unseal(s.id, s.params)
	if err != nil {
		return err
	}
	now, err := json.Marshal(i.Params)
	switch {
	case err != nil:
		return fmt.Errorf("encode request: %w", err)
	case string(now) == "{}":
		if err := json.Unmarshal(first, i.Params); err != nil {
			return fmt.Errorf("restore request: %w", err)
		}
	case i.bound && !bytes.Equal(now, first):
		return mxerr.Forbidden("The request has changed since its authentication began")
	}
	return nil
}

// loadUIA reads a session. One that is unknown, expired or of another operation is answered as a new one, so that a
// client that kept its request open for too long has to start again but not to fail.
func (a *API) loadUIA(ctx context.Context, i *interaction, id string) (s *uiaSession, stored bool, err error) {
	s = &uiaSession{}
	if id == "" || len(id) > maxToken {
		return s, false, nil
	}
	h := sha256.Sum256([]byte(id))
	var completed string
	var emailSID sql.NullString
	stored, err = a.db.Get(ctx, `SELECT verified, reg_token, completed, params, email_sid FROM uia_sessions
		WHERE hash = $1 AND operation = $2 AND user_id = $3 AND expires_ts > $4`,
		[]any{h[:], i.Operation, i.by, a.nowMS()}, &s.verified, &s.regToken, &completed, &s.params, &emailSID)
	if err != nil {
		return nil, false, fmt.Errorf("look up authentication session: %w", err)
	}
	if stored {
		s.id, s.completed, s.emailSID = id, strings.Fields(completed), emailSID.String
	}
	return s, stored, nil
}

// saveUIA writes a session that is not done: the first time, and when it got further or saw the request's
// parameters for the first time.
func (a *API) saveUIA(ctx context.Context, i *interaction, s *uiaSession, stored, advanced bool) error {
	if !stored {
		s.id = newToken("")
	}
	learned := false
	if s.params == nil && i.Params != nil {
		params, err := json.Marshal(i.Params)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		if learned = string(params) != "{}" && len(params) <= maxUIAParams; learned {
			s.params = seal(s.id, params)
		}
	}
	if stored && !advanced && !learned {
		return nil
	}
	h, now, prune := sha256.Sum256([]byte(s.id)), a.nowMS(), a.prune.due()
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		if prune {
			if err := pruneUIA(tx, now); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO uia_sessions (hash, operation, user_id, verified, reg_token, completed, params, expires_ts, email_sid)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (hash) DO UPDATE
			SET verified = excluded.verified, reg_token = excluded.reg_token, completed = excluded.completed, params = excluded.params, email_sid = excluded.email_sid`,
			h[:], i.Operation, i.by, s.verified, s.regToken, strings.Join(s.completed, " "), s.params, now+uiaLifetime.Milliseconds(), nullable(s.emailSID))
		return err
	})
	if err != nil {
		return fmt.Errorf("write authentication session: %w", err)
	}
	return nil
}

// pruneUIA deletes sessions that are over, and the oldest if there are too many.
func pruneUIA(tx *storage.Tx, now int64) error {
	var bound *int64
	if _, err := tx.Get(`SELECT expires_ts FROM uia_sessions ORDER BY expires_ts DESC LIMIT 1 OFFSET $1`, []any{maxUIASessions}, &bound); err != nil {
		return err
	}
	if bound != nil {
		now = max(now, *bound)
	}
	_, err := tx.Exec(`DELETE FROM uia_sessions WHERE expires_ts <= $1`, now)
	return err
}
