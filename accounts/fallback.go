package accounts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// Pages for clients that do not know a stage of user-interactive authentication, or no way to log in.
//
// Spec: client-server API v1.19, "Fallback", "Login Fallback".

const loginPath = "/_matrix/static/client/login/"

func (a *API) fallbackEndpoints() []httpapi.Endpoint {
	const path = v3 + "/auth/{authType}/fallback/web"
	return []httpapi.Endpoint{
		httpapi.NewRaw("GET", path, httpapi.Anyone, ratelimit.Read, a.showStage),
		httpapi.NewRaw("POST", path, httpapi.Anyone, ratelimit.Register, a.submitStage).WithMaxBody(maxForm),
		httpapi.NewRaw("GET", loginPath, httpapi.Anyone, ratelimit.Read, a.showLogin),
	}
}

// showLogin is a page on which somebody logs in.
func (a *API) showLogin(_ context.Context, _ *httpapi.Caller, w http.ResponseWriter, _ *http.Request) error {
	nonce := newNonce()
	var body bytes.Buffer
	if err := a.texts.login.Execute(&body, &page{AppName: a.appName(), Nonce: nonce}); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	pageHeaders(w.Header(), nonce, "'self'")
	_, err := w.Write(body.Bytes())
	return err
}

// stageAt is a session that waits for a stage which is done on a page.
type stageAt struct {
	i       *interaction
	session *uiaSession
	stage   string
	action  string // where the page's form goes
}

// findStage finds the session of a fallback page; it is nil if there is none.
func (a *API) findStage(ctx context.Context, by *httpapi.Caller, r *http.Request) (*stageAt, error) {
	id := r.URL.Query().Get("session")
	if id == "" || len(id) > maxToken {
		return nil, nil
	}
	h := sha256.Sum256([]byte(id))
	var operation, userID string
	found, err := a.db.Get(ctx, `SELECT operation, user_id FROM uia_sessions WHERE hash = $1 AND expires_ts > $2`,
		[]any{h[:], a.nowMS()}, &operation, &userID)
	if err != nil {
		return nil, fmt.Errorf("look up authentication session: %w", err)
	}
	if !found {
		return nil, nil
	}
	at := &stageAt{stage: r.PathValue("authType")}
	at.action = v3 + "/auth/" + url.PathEscape(at.stage) + "/fallback/web?" + url.Values{"session": {id}}.Encode()
	if at.i, err = a.interactionOf(ctx, operation, userID); err != nil {
		return nil, err
	}
	at.i.addr = by.Addr
	at.session, _, err = a.loadUIA(ctx, at.i, id)
	return at, err
}

// interactionOf is the interaction that a session belongs to.
func (a *API) interactionOf(ctx context.Context, operation, userID string) (*interaction, error) {
	if operation != registerOperation {
		return a.ownerInteraction(ctx, userID, Challenge{Operation: operation})
	}
	flows, tokenOK, err := a.registerFlows(ctx)
	if err != nil {
		return nil, err
	}
	return &interaction{Challenge: Challenge{Operation: operation}, flows: flows, tokenOK: tokenOK, email: emailToRegister}, nil
}

// ask is the page for a stage, or nil if there is none. problem says why it is shown again.
func (a *API) ask(at *stageAt, problem string) *page {
	p := &page{Error: problem, Action: at.action}
	switch at.stage {
	case stageDummy:
		p.Title, p.Text, p.Button = "Continue", "Nothing more is needed.", "Continue"
	case stageTerms:
		p.Title, p.Text, p.Button = "Terms", "To go on, read and accept:", "Accept"
		for _, policy := range a.cfg.Registration.Policies {
			for _, t := range policy.Translations {
				p.Links = append(p.Links, link(t))
			}
		}
	case stageToken:
		p.Title, p.Button, p.Ask = "Registration token", "Continue", &question{"token", "text", "Registration token"}
		p.Text = "Registration here needs a token. Ask whoever runs this server for one."
	case stagePassword:
		if at.i.by == "" {
			return nil
		}
		p.Title, p.Text, p.Button = "Confirm that it is you", at.i.by, "Continue"
		p.Ask = &question{"password", "password", "Your password"}
	case stageEmail:
		p.Title, p.Button, p.Ask = "Confirm your e-mail address", "Send e-mail", &question{"email", "email", "Your e-mail address"}
	default:
		return nil
	}
	return p
}

var donePage = page{Title: "Thank you", Text: "You can close this page and go on where you began.", Done: true}

// showStage shows the page of a stage.
func (a *API) showStage(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	at, err := a.findStage(ctx, by, r)
	switch {
	case err != nil:
		return err
	case at == nil:
		return a.showExpired(w)
	case slices.Contains(at.session.completed, at.stage):
		done := donePage
		return a.show(w, http.StatusOK, &done)
	}
	return a.showQuestion(w, http.StatusOK, at, "")
}

func (a *API) showExpired(w http.ResponseWriter) error {
	return a.show(w, http.StatusBadRequest, &page{Title: "This page is not valid any more", Text: "Begin again where you came from."})
}

func (a *API) showQuestion(w http.ResponseWriter, status int, at *stageAt, problem string) error {
	p := a.ask(at, problem)
	if p == nil {
		return a.show(w, http.StatusNotFound, &page{Title: "This cannot be done here", Text: "There is no page for this way of confirming who you are."})
	}
	return a.show(w, status, p)
}

// submitStage tries a stage with what was filled in.
func (a *API) submitStage(ctx context.Context, by *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	at, err := a.findStage(ctx, by, r)
	switch {
	case err != nil:
		return err
	case at == nil || r.ParseForm() != nil:
		return a.showExpired(w)
	case a.ask(at, "") == nil:
		return a.showQuestion(w, http.StatusNotFound, at, "")
	case slices.Contains(at.session.completed, at.stage):
		done := donePage
		return a.show(w, http.StatusOK, &done)
	case at.stage == stageEmail && r.PostForm.Get("sid") == "":
		return a.startEmailStage(ctx, w, r, at)
	}
	auth := authData{Type: at.stage, Token: r.PostForm.Get("token")}
	switch at.stage {
	case stagePassword:
		password := r.PostForm.Get("password")
		auth.passwordLogin = passwordLogin{User: at.i.by, Password: &password}
	case stageEmail:
		auth.Email = &emailCredentials{r.PostForm.Get("sid"), r.PostForm.Get("secret")}
	}
	err = a.tryStage(ctx, at.i, at.session, &auth)
	if e := mxerr.As(err); e != nil && e.Status < http.StatusInternalServerError {
		if at.stage == stageEmail {
			return a.show(w, http.StatusOK, waitForEmail(at, auth.Email, e.Text))
		}
		return a.showQuestion(w, http.StatusOK, at, e.Text)
	}
	if err != nil {
		return err
	}
	if err := a.saveUIA(ctx, at.i, at.session, true, true); err != nil {
		return err
	}
	done := donePage
	return a.show(w, http.StatusOK, &done)
}

// startEmailStage sends the e-mail and shows a page that waits for its link to be opened.
func (a *API) startEmailStage(ctx context.Context, w http.ResponseWriter, r *http.Request, at *stageAt) error {
	secret := randomName(tokenCharacters[:62], 32)
	sent, err := a.requestEmail(ctx, &emailRequest{ClientSecret: secret, Email: r.PostForm.Get("email"), SendAttempt: 1}, at.i.email)
	if e := mxerr.As(err); e != nil {
		return a.showQuestion(w, http.StatusOK, at, e.Text)
	}
	if err != nil {
		return err
	}
	return a.show(w, http.StatusOK, waitForEmail(at, &emailCredentials{sent.SID, secret}, ""))
}

func waitForEmail(at *stageAt, session *emailCredentials, problem string) *page {
	return &page{
		Title: "Look into your mail", Text: "Open the link in the e-mail that was sent to you. Then come back here.", Error: problem,
		Button: "Continue", Action: at.action, Hidden: []hidden{{"sid", session.SID}, {"secret", session.ClientSecret}},
	}
}
