package accounts

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/ratelimit"
	"github.com/myelin-im/myelin/storage"
)

// submitPath is the page to which e-mails lead. It lies where reverse proxies pass requests of clients on.
const submitPath = "/_matrix/client/unstable/im.myelin/email/submit_token"

// maxForm bounds the body of a form, in bytes.
const maxForm = 16 << 10

func (a *API) emailPages() []httpapi.Endpoint {
	return []httpapi.Endpoint{
		// Not of the class Register, which a client at the same address spends that waits for the confirmation.
		httpapi.NewRaw("GET", submitPath, httpapi.Anyone, ratelimit.Read, a.askToConfirm),
		httpapi.NewRaw("POST", submitPath, httpapi.Anyone, ratelimit.Read, a.confirmEmail).WithMaxBody(maxForm),
	}
}

// submission is a link of an e-mail that was opened.
type submission struct {
	sid, token string
	nextLink   string
	purpose    int64
}

// findSubmission looks up a link of an e-mail; it is nil if it holds no longer.
func (a *API) findSubmission(ctx context.Context, values url.Values) (*submission, error) {
	s := &submission{sid: values.Get("sid"), token: values.Get("token")}
	h, ok := hashToken(s.token)
	if !ok || len(s.sid) > maxToken {
		return nil, nil
	}
	found, err := a.db.Get(ctx, `SELECT next_link, purpose FROM email_sessions WHERE sid = $1 AND token = $2 AND expires_ts > $3`,
		[]any{s.sid, h.bytes(), a.nowMS()}, &s.nextLink, &s.purpose)
	if err != nil {
		return nil, fmt.Errorf("look up e-mail session: %w", err)
	}
	if !found {
		return nil, nil
	}
	return s, nil
}

func (a *API) showBadLink(w http.ResponseWriter) error {
	return a.show(w, http.StatusBadRequest, &page{Title: "This link is not valid", Text: "It has expired, or a newer e-mail has another one. Ask for a new e-mail where you began."})
}

// askToConfirm shows a button. Confirming takes a press of it, because programs that look for viruses in e-mails open
// every link in them.
func (a *API) askToConfirm(ctx context.Context, _ *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	s, err := a.findSubmission(ctx, r.URL.Query())
	if err != nil {
		return err
	}
	if s == nil {
		return a.showBadLink(w)
	}
	p := &page{Title: "Confirm your e-mail address", Button: "Confirm", Action: submitPath, Hidden: []hidden{{"sid", s.sid}, {"token", s.token}}}
	if s.purpose == emailToReset {
		p.Title, p.Text, p.Button = "Reset your password", "Confirm that you want to set a new password.", "Confirm"
	}
	if u, err := url.Parse(s.nextLink); err == nil && s.nextLink != "" {
		p.formTarget = u.Scheme + "://" + u.Host
	}
	return a.show(w, http.StatusOK, p)
}

// confirmEmail notes that whoever reads the e-mail of an address has confirmed it.
func (a *API) confirmEmail(ctx context.Context, _ *httpapi.Caller, w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return a.showBadLink(w)
	}
	s, err := a.findSubmission(ctx, r.PostForm)
	if err != nil {
		return err
	}
	if s == nil {
		return a.showBadLink(w)
	}
	now := a.nowMS()
	err = a.db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(`UPDATE email_sessions SET validated_ts = COALESCE(validated_ts, $2) WHERE sid = $1`, s.sid, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("confirm e-mail address: %w", err)
	}
	if s.nextLink != "" {
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Location", s.nextLink)
		w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	return a.show(w, http.StatusOK, &page{Title: "Thank you", Text: "Your e-mail address is confirmed. You can close this page and go on where you began."})
}
