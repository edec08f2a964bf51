package accounts

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	netmail "net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// Email is what the server says in e-mails and on its pages.
type Email struct {
	// AppName is what the service is called; empty takes the server name.
	AppName string
	// BaseURL is where users reach this server, for links in e-mails.
	BaseURL string
	// Templates is a folder with templates that replace the built-in ones; empty: none.
	Templates string
	// Required asks for a confirmed address at registration.
	Required bool
}

const (
	// emailLifetime is how long an address can be confirmed and the confirmation used, from the last e-mail on.
	emailLifetime = 4 * time.Hour
	// maxEmailSessions bounds the sessions that are kept; the oldest go first.
	maxEmailSessions = 10_000
	// maxAddress bounds an e-mail address, in bytes (RFC 5321, section 4.5.3.1).
	maxAddress = 254
	// maxNextLink bounds the address to which a confirmation leads on, in bytes.
	maxNextLink = 2000

	mediumEmail = "email"
)

// For what an address is confirmed, as stored.
const (
	emailToRegister = 1
	emailToReset    = 2
	emailToAdd      = 3
)

func (a *API) emailEndpoints() []httpapi.Endpoint {
	request := func(path string, fn func(context.Context, *httpapi.Caller, *emailRequest) (*emailResponse, error)) httpapi.Endpoint {
		return httpapi.New("POST", v3+path+"/email/requestToken", httpapi.Anyone, ratelimit.Register, fn)
	}
	phone := func(path string) httpapi.Endpoint {
		return httpapi.New("POST", v3+path+"/msisdn/requestToken", httpapi.Anyone, ratelimit.Register, a.refusePhone)
	}
	return []httpapi.Endpoint{
		request("/register", a.emailForRegistration), phone("/register"),
		request("/account/password", a.emailForReset), phone("/account/password"),
		request("/account/3pid", a.emailForAccount), phone("/account/3pid"),
	}
}

// emailRequest asks for an e-mail. id_server and its token are ignored, as the server confirms addresses itself.
type emailRequest struct {
	ClientSecret string `json:"client_secret" required:"true"`
	Email        string `json:"email" required:"true"`
	SendAttempt  int64  `json:"send_attempt" required:"true"`
	NextLink     string `json:"next_link"`
}

type emailResponse struct {
	SID string `json:"sid"`
}

var errMedium = mxerr.New(http.StatusBadRequest, "M_THREEPID_MEDIUM_NOT_SUPPORTED", "This server does not confirm such identifiers")

func (a *API) refusePhone(context.Context, *httpapi.Caller, *httpapi.Empty) (*httpapi.Empty, error) {
	return nil, errMedium
}

func (a *API) emailForRegistration(ctx context.Context, _ *httpapi.Caller, in *emailRequest) (*emailResponse, error) {
	return a.requestEmail(ctx, in, emailToRegister)
}

func (a *API) emailForReset(ctx context.Context, _ *httpapi.Caller, in *emailRequest) (*emailResponse, error) {
	return a.requestEmail(ctx, in, emailToReset)
}

func (a *API) emailForAccount(ctx context.Context, _ *httpapi.Caller, in *emailRequest) (*emailResponse, error) {
	return a.requestEmail(ctx, in, emailToAdd)
}

// canonicalEmail checks an e-mail address and writes it as it is compared: in small letters.
//
// Spec: appendices v1.19, "3PID Types".
func canonicalEmail(address string) (string, error) {
	parsed, err := netmail.ParseAddress(address)
	if err != nil || parsed.Address != address || len(address) > maxAddress {
		return "", mxerr.InvalidParam("This is not an e-mail address")
	}
	return strings.ToLower(address), nil
}

// check refuses malformed requests.
func (in *emailRequest) check() error {
	if in.ClientSecret == "" || len(in.ClientSecret) > 255 || !consistsOf(in.ClientSecret, tokenCharacters[:62]+".=_-") {
		return mxerr.InvalidParam("client_secret must be 1 to 255 of the characters 0-9, a-z, A-Z and . = _ -")
	}
	if in.NextLink == "" {
		return nil
	}
	u, err := url.Parse(in.NextLink)
	if err != nil || len(in.NextLink) > maxNextLink || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return mxerr.InvalidParam("next_link must be an http or https URL")
	}
	return nil
}

// emailSession is a row of email_sessions about to be written.
type emailSession struct {
	sid, address, owner string
	purpose, attempt    int64
	before              int64     // the attempt before this one
	secret              tokenHash // of the client
	token               string    // empty: there is nothing to confirm
	nextLink            string
}

// requestEmail sends an e-mail that lets whoever reads it confirm the address. Whether an account has the address is
// told in the e-mail alone: the answer is the same.
func (a *API) requestEmail(ctx context.Context, in *emailRequest, purpose int64) (*emailResponse, error) {
	if a.mail == nil {
		return nil, errMedium
	}
	address, err := canonicalEmail(in.Email)
	if err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	s := &emailSession{address: address, purpose: purpose, attempt: in.SendAttempt, nextLink: in.NextLink, secret: sha256.Sum256([]byte(in.ClientSecret))}
	known, err := a.db.Get(ctx, `SELECT sid, attempt FROM email_sessions WHERE purpose = $1 AND address = $2 AND secret = $3 AND expires_ts > $4`,
		[]any{purpose, address, s.secret.bytes(), a.nowMS()}, &s.sid, &s.before)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look up e-mail session: %w", err)
	case known && s.before >= in.SendAttempt:
		return &emailResponse{s.sid}, nil // a repeated request
	case !known:
		s.sid = randomName(tokenCharacters[:62], 32)
	}
	if ok, after := a.limiter.Allow(ratelimit.Mail, address); !ok {
		return nil, mxerr.LimitExceeded(after)
	}
	if s.owner, err = a.emailOwner(ctx, address); err != nil {
		return nil, err
	}
	if (s.owner == "") != (purpose == emailToReset) {
		s.token = newToken(emailPrefix)
	}
	if err := a.saveEmailSession(ctx, s); err != nil {
		return nil, err
	}
	if err := a.sendEmail(ctx, s); err != nil {
		a.withdrawEmail(ctx, s)
		return nil, err
	}
	return &emailResponse{s.sid}, nil
}

// HasEmail tells whether an account has an e-mail address.
func HasEmail(tx *storage.Tx, userID, address string) (bool, error) {
	address, err := canonicalEmail(address)
	if err != nil {
		return false, nil // nobody has what is none
	}
	var one int64
	has, err := tx.Get(`SELECT 1 FROM account_threepids WHERE medium = $1 AND address = $2 AND user_id = $3`, []any{mediumEmail, address, userID}, &one)
	if err != nil {
		return false, fmt.Errorf("look up e-mail address: %w", err)
	}
	return has, nil
}

// emailOwner returns whose account has an address; empty: nobody's.
func (a *API) emailOwner(ctx context.Context, address string) (userID string, err error) {
	_, err = a.db.Get(ctx, `SELECT t.user_id FROM account_threepids t JOIN accounts a ON a.user_id = t.user_id
		WHERE t.medium = $1 AND t.address = $2 AND a.deactivated_ts IS NULL`, []any{mediumEmail, address}, &userID)
	if err != nil {
		return "", fmt.Errorf("look up e-mail address: %w", err)
	}
	return userID, nil
}

func (a *API) saveEmailSession(ctx context.Context, s *emailSession) error {
	var token []byte
	if s.token != "" {
		h, _ := hashToken(s.token)
		token = h.bytes()
	}
	now, prune := a.nowMS(), a.prune.due()
	err := a.db.Write(ctx, func(tx *storage.Tx) error {
		if prune {
			if err := pruneEmailSessions(tx, now); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO email_sessions (sid, purpose, address, secret, token, attempt, next_link, expires_ts)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (purpose, address, secret) DO UPDATE SET sid = excluded.sid,
			token = excluded.token, attempt = excluded.attempt, next_link = excluded.next_link, expires_ts = excluded.expires_ts,
			validated_ts = CASE WHEN email_sessions.sid = excluded.sid THEN email_sessions.validated_ts END`,
			s.sid, s.purpose, s.address, s.secret.bytes(), token, s.attempt, s.nextLink, now+emailLifetime.Milliseconds())
		return err
	})
	if err != nil {
		return fmt.Errorf("write e-mail session: %w", err)
	}
	return nil
}

// pruneEmailSessions deletes sessions that are over, and the oldest if there are too many.
func pruneEmailSessions(tx *storage.Tx, now int64) error {
	var bound *int64
	if _, err := tx.Get(`SELECT expires_ts FROM email_sessions ORDER BY expires_ts DESC LIMIT 1 OFFSET $1`, []any{maxEmailSessions}, &bound); err != nil {
		return err
	}
	if bound != nil {
		now = max(now, *bound)
	}
	_, err := tx.Exec(`DELETE FROM email_sessions WHERE expires_ts <= $1`, now)
	return err
}

// sendEmail writes and sends the e-mail of a session.
func (a *API) sendEmail(ctx context.Context, s *emailSession) error {
	name := map[int64]string{emailToRegister: mailRegister, emailToReset: mailReset, emailToAdd: mailAdd}[s.purpose]
	switch {
	case s.token == "" && s.purpose == emailToReset:
		name = mailUnknown
	case s.token == "":
		name = mailInUse
	}
	data := mailData{AppName: a.appName(), Server: a.cfg.ServerName, Address: s.address, UserID: s.owner}
	if s.token != "" {
		data.Link = strings.TrimSuffix(a.cfg.Email.BaseURL, "/") + submitPath + "?" + url.Values{"sid": {s.sid}, "token": {s.token}}.Encode()
	}
	message, err := a.texts.mails[name].Compose(s.address, data)
	if err != nil {
		return err
	}
	return a.mail.Send(ctx, message)
}

// withdrawEmail lets a request whose e-mail could not be sent be repeated.
func (a *API) withdrawEmail(ctx context.Context, s *emailSession) {
	err := a.db.Write(context.WithoutCancel(ctx), func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE email_sessions SET attempt = $2 WHERE sid = $1 AND attempt = $3`, s.sid, s.before, s.attempt)
		return err
	})
	if err != nil {
		a.log.WithError(err).Warn("cannot note that an e-mail was not sent")
	}
}

// emailCredentials name a session with which an address was confirmed.
type emailCredentials struct {
	SID          string `json:"sid"`
	ClientSecret string `json:"client_secret"`
}

// confirmedEmail returns the address that was confirmed in a session, empty if it was not.
func (a *API) confirmedEmail(ctx context.Context, c *emailCredentials, purpose int64) (address string, err error) {
	secret := sha256.Sum256([]byte(c.ClientSecret))
	_, err = a.db.Get(ctx, `SELECT address FROM email_sessions WHERE sid = $1 AND secret = $2 AND purpose = $3 AND expires_ts > $4
		AND validated_ts IS NOT NULL`, []any{c.SID, secret[:], purpose, a.nowMS()}, &address)
	if err != nil {
		return "", fmt.Errorf("look up e-mail session: %w", err)
	}
	return address, nil
}

// errAddressInUse refuses an address that has come to belong to somebody else since it was confirmed.
var errAddressInUse = mxerr.New(http.StatusBadRequest, "M_THREEPID_IN_USE", "This e-mail address belongs to an account already")

// attachEmail gives an account the address that was confirmed in a session, and ends that.
func attachEmail(tx *storage.Tx, userID, sid string, now int64) error {
	var address string
	var validated int64
	found, err := tx.Get(`DELETE FROM email_sessions WHERE sid = $1 AND validated_ts IS NOT NULL RETURNING address, validated_ts`,
		[]any{sid}, &address, &validated)
	switch {
	case err != nil:
		return err
	case !found:
		return errSpent
	}
	var owner string
	taken, err := tx.Get(`SELECT user_id FROM account_threepids WHERE medium = $1 AND address = $2`, []any{mediumEmail, address}, &owner)
	switch {
	case err != nil:
		return err
	case taken && owner != userID:
		return errAddressInUse
	}
	_, err = tx.Exec(`INSERT INTO account_threepids (medium, address, user_id, validated_ts, added_ts) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (medium, address) DO UPDATE SET validated_ts = excluded.validated_ts`, mediumEmail, address, userID, validated, now)
	return err
}

// spendEmail ends the session that a proof came from; it serves once.
func spendEmail(tx *storage.Tx, sid string) error {
	if sid == "" {
		return nil
	}
	n, err := tx.Exec(`DELETE FROM email_sessions WHERE sid = $1`, sid)
	if err == nil && n == 0 {
		return errSpent
	}
	return err
}
