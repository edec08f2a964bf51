package federation

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/myelin-im/myelin/federation/client"
	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/internal/signing"
)

// credentials are the parameters of an X-Matrix header.
type credentials struct {
	origin, destination, key, signature string
}

var errNoCredentials = errors.New("not an X-Matrix header")

// parseCredentials reads the value of an Authorization header.
//
// spec: server-server-api v1.19 "Request Authentication"; RFC 9110 section 11.4
func parseCredentials(header string) (c credentials, err error) {
	const scheme = "X-Matrix"
	if len(header) <= len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) || header[len(scheme)] != ' ' {
		return c, errNoCredentials
	}
	fields := map[string]*string{"origin": &c.origin, "destination": &c.destination, "key": &c.key, "sig": &c.signature}
	seen := map[string]bool{}
	rest := strings.Trim(header[len(scheme):], " \t")
	for rest != "" {
		var name, value string
		if name, value, rest, err = parameter(rest); err != nil {
			return c, err
		}
		if seen[name] {
			return c, errors.New("a parameter is repeated")
		}
		seen[name] = true
		if field := fields[name]; field != nil {
			*field = value
		}
	}
	if c.origin == "" || c.key == "" || c.signature == "" {
		return c, errors.New("origin, key or sig is missing")
	}
	if seen["destination"] && c.destination == "" {
		return c, errors.New("destination is empty")
	}
	return c, nil
}

// parameter takes the first name=value off a list, with the comma behind it.
func parameter(list string) (name, value, rest string, err error) {
	name, rest, ok := strings.Cut(list, "=")
	name = strings.ToLower(strings.TrimRight(name, " \t"))
	if !ok || name == "" || strings.ContainsAny(name, " \t,\"") {
		return "", "", "", errors.New("a parameter is not name=value")
	}
	rest = strings.TrimLeft(rest, " \t")
	if quoted, ok := strings.CutPrefix(rest, `"`); ok {
		if value, rest, ok = unquote(quoted); !ok {
			return "", "", "", errors.New("a quoted value does not end")
		}
	} else {
		end := strings.IndexAny(rest, " \t,")
		if end < 0 {
			end = len(rest)
		}
		value, rest = rest[:end], rest[end:]
		if strings.Contains(value, `"`) {
			return "", "", "", errors.New("a value has a stray quote")
		}
	}
	rest = strings.TrimLeft(rest, " \t")
	if rest != "" && rest[0] != ',' {
		return "", "", "", errors.New("a comma is missing")
	}
	return name, value, strings.TrimLeft(rest, ", \t"), nil
}

// unquote reads a quoted string to its closing quote.
func unquote(s string) (value, rest string, ok bool) {
	if end := strings.IndexAny(s, `"\`); end >= 0 && s[end] == '"' {
		return s[:end], s[end+1:], true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// maxCredentials bounds how many signatures of a request are looked at. A server sends one for each of its keys.
const maxCredentials = 4

func unauthorized(text string) *mxerr.Error {
	return mxerr.New(http.StatusUnauthorized, "M_UNAUTHORIZED", text)
}

// Authenticate finds the server that signed a request with this body, which is empty if there is none. It is
// httpapi.Config.AuthenticateServer.
//
// spec: server-server-api v1.19 "Request Authentication"
func (a *API) Authenticate(ctx context.Context, r *http.Request, body []byte) (*httpapi.Caller, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return nil, unauthorized("The request is not signed")
	}
	var content []byte
	if len(body) > 0 {
		var err error
		if content, err = canonicaljson.Canonical(body, canonicaljson.Lax); err != nil {
			return nil, mxerr.NotJSON("The body is not JSON").With(err)
		}
	}
	var failure error = unauthorized("The request is not signed with X-Matrix")
	origin := ""
	for _, header := range headers[:min(len(headers), maxCredentials)] {
		c, err := parseCredentials(header)
		if errors.Is(err, errNoCredentials) {
			continue
		}
		if err != nil {
			return nil, unauthorized("Malformed X-Matrix header: " + err.Error())
		}
		if origin != "" && origin != c.origin {
			return nil, unauthorized("The request is signed by several servers")
		}
		origin = c.origin
		if failure = a.checkCredentials(ctx, r, c, content); failure == nil {
			a.reached(origin)
			return &httpapi.Caller{Origin: strings.Clone(origin)}, nil
		}
	}
	return nil, failure
}

// checkCredentials checks one signature of a request.
func (a *API) checkCredentials(ctx context.Context, r *http.Request, c credentials, content []byte) error {
	_, valid := client.ParseName(c.origin)
	switch {
	case !valid:
		return unauthorized("The origin is not a server name")
	case c.origin == a.name:
		return unauthorized("The origin is this server itself")
	case c.destination != "" && c.destination != a.name:
		return unauthorized("The request is for another server")
	case !a.policy.Allows(c.origin):
		return mxerr.Forbidden("Federation with this server is not allowed")
	}
	key, err := a.keys.Key(ctx, c.origin, c.key, 0)
	if err != nil {
		return unauthorized("The key of the signature cannot be had").With(err)
	}
	signed := client.RequestBytes(c.origin, c.destination, r.Method, target(r), content)
	if err := signing.Verify(signed, c.signature, key); err != nil {
		return unauthorized("The signature of the request is wrong").With(err)
	}
	return nil
}

// target is the path and query of a request as they were sent.
func target(r *http.Request) string {
	t := r.RequestURI
	if !strings.HasPrefix(t, "/") { // the absolute form, for proxies
		if _, rest, ok := strings.Cut(t, "://"); ok {
			if i := strings.IndexByte(rest, '/'); i >= 0 {
				return rest[i:]
			}
		}
	}
	return t
}
