package httpapi

import (
	"net/http"
	"strings"

	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/ratelimit"
)

// authenticate finds the caller by access token and checks that the endpoint is for them.
func (rt *Router) authenticate(c *call, e *route, r *http.Request) error {
	tok := accessToken(r)
	if tok == "" {
		if e.Who&Optional != 0 {
			return nil
		}
		return mxerr.MissingToken()
	}
	by, err := rt.cfg.Authenticate(c, tok, r)
	if err != nil {
		return err
	}
	if by == nil {
		return mxerr.UnknownToken(false)
	}
	addr := c.by.Addr
	c.by = *by
	c.by.Addr = addr
	switch {
	case by.Locked && !e.Locked:
		return mxerr.Locked()
	case e.Who.admits(by) && by.Suspended && e.Unsuspended:
		return mxerr.Suspended()
	case e.Who.admits(by):
		return nil
	case by.Guest && e.Who&(User|Guest) != 0:
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guests cannot do this")
	case e.Who&Appservice != 0:
		return mxerr.Forbidden("Only application services can do this")
	}
	return mxerr.Forbidden("You are not a server administrator")
}

// authenticateServer finds the homeserver that signed the request.
func (rt *Router) authenticateServer(c *call, r *http.Request, body []byte) error {
	by, err := rt.cfg.AuthenticateServer(c, r, body)
	if err != nil {
		return err
	}
	if by == nil || by.Origin == "" {
		return mxerr.New(http.StatusUnauthorized, "M_UNAUTHORIZED", "The request is not signed by a server")
	}
	addr := c.by.Addr
	c.by = *by
	c.by.Addr = addr
	return nil
}

// accessToken is the token of a request. The query parameter, deprecated in v1.11, left the
// specification in v1.20, after the versions that we advertise.
// spec: client-server-api v1.19 "Using access tokens"
func accessToken(r *http.Request) string {
	const scheme = "Bearer "
	if auth := r.Header.Get("Authorization"); auth != "" {
		if len(auth) > len(scheme) && strings.EqualFold(auth[:len(scheme)], scheme) {
			return strings.TrimSpace(auth[len(scheme):])
		}
		return ""
	}
	return queryValue(r.URL.RawQuery, "access_token")
}

// limit spends one request of the caller's budget.
func (rt *Router) limit(c *call, e *route) error {
	l := rt.cfg.Limiter
	if l == nil || e.Class == ratelimit.None {
		return nil
	}
	by := &c.by
	var key string
	switch {
	case by.Appservice != nil && !by.Appservice.RateLimited, by.Admin && l.ExemptAdmins():
		return nil
	case by.UserID != "":
		key = by.UserID
	case by.Origin != "":
		key = by.Origin
	default:
		key = ratelimit.AddrKey(by.Addr)
	}
	if ok, after := l.Allow(e.Class, key); !ok {
		return mxerr.LimitExceeded(after)
	}
	return nil
}
