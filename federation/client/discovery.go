package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/myelin-im/myelin/internal/cache"
)

const (
	// defaultPort is where servers listen that do not say otherwise.
	defaultPort = 8448
	// maxWellKnown bounds a .well-known answer, in bytes.
	maxWellKnown = 50 << 10
	// wellKnownTimeout bounds the request for one, with its redirects.
	wellKnownTimeout = 15 * time.Second
	// maxRedirects bounds those redirects.
	maxRedirects = 10
	// maxNames bounds how many servers' answers are remembered.
	maxNames = 10_000
)

// How long answers of /.well-known/matrix/server are remembered (server-server API v1.19, "Resolving server names", 3).
const (
	defaultFresh = 24 * time.Hour
	minFresh     = 5 * time.Minute // a server that forbids caching would be asked before each connection
	maxFresh     = 48 * time.Hour
	firstFailure = time.Minute // doubles with each failure
	maxFailure   = time.Hour
)

// delegation is what is known of a server's .well-known file.
type delegation struct {
	mu        sync.Mutex // held while asking, so that many who want to connect ask once
	to        string     // the delegated name; empty: none
	known     time.Time  // when to was read
	until     time.Time  // when to ask again
	failures  int        // since the last answer
	lastError error
}

// discovery finds out where servers delegate their federation traffic to.
type discovery struct {
	http  *http.Client
	names *cache.Cache[string, *delegation]
	now   func() time.Time
}

func newDiscovery(transport http.RoundTripper) *discovery {
	return &discovery{names: cache.New[string, *delegation](maxNames), now: time.Now, http: &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return errors.New("too many redirects")
		}
		if r.URL.Scheme != "https" {
			return errors.New("redirect to something else than https")
		}
		return nil
	}}}
}

// delegated returns the name to use in place of a server name: the same, or what the server delegates to. Every step of
// the resolution that follows, and the Host header and the certificate, are those of that name.
//
// spec: server-server-api v1.19 "Resolving server names" 1 to 3
func (d *discovery) delegated(ctx context.Context, server string) (string, error) {
	name, ok := ParseName(server)
	if !ok {
		return "", fmt.Errorf("%q: %w", server, ErrBadName)
	}
	if name.IP.IsValid() || name.Port != 0 {
		return server, nil
	}
	known, ok := d.names.Get(server)
	if !ok {
		known = d.names.GetOrPut(strings.Clone(server), new(delegation), 1)
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if now := d.now(); !now.Before(known.until) {
		d.refresh(ctx, server, known)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if known.to == "" {
		return server, nil
	}
	return known.to, nil
}

// refresh asks the server and notes what it says. known.mu is held.
func (d *discovery) refresh(ctx context.Context, server string, known *delegation) {
	to, fresh, err := d.ask(ctx, server)
	now := d.now()
	switch {
	case err == nil:
		known.to, known.known, known.until, known.failures, known.lastError = to, now, now.Add(fresh), 0, nil
	case ctx.Err() != nil: // says nothing about the server
	default:
		known.failures++
		known.until = now.Add(min(firstFailure<<min(known.failures-1, 10), maxFailure))
		// A web server that is down for a moment must not move the homeserver elsewhere.
		if known.lastError = err; !temporary(err) || now.Sub(known.known) > maxFresh {
			known.to = ""
		}
	}
}

// errAnswer is an answer that says that there is no delegation, in contrast to no answer.
type errAnswer struct{ error }

func temporary(err error) bool {
	var answer errAnswer
	return !errors.As(err, &answer)
}

// ask reads the .well-known file of a host.
func (d *discovery) ask(ctx context.Context, host string) (to string, fresh time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, wellKnownTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/matrix/server", nil)
	if err != nil {
		return "", 0, errAnswer{err}
	}
	req.Header.Set("User-Agent", userAgent)
	res, err := d.http.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	if res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests {
		return "", 0, fmt.Errorf("status %d", res.StatusCode)
	}
	if res.StatusCode != http.StatusOK {
		return "", 0, errAnswer{fmt.Errorf("status %d", res.StatusCode)}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxWellKnown+1))
	if err != nil {
		return "", 0, err
	}
	if len(body) > maxWellKnown || !validJSON(body) {
		return "", 0, errAnswer{errors.New("not a JSON document of a sensible size")}
	}
	to = asciiName(gjson.GetBytes(body, `m\.server`).Str)
	if _, ok := ParseName(to); !ok {
		return "", 0, errAnswer{errors.New("no valid m.server")}
	}
	return strings.Clone(to), freshness(res.Header, d.now()), nil
}

// freshness is how long an answer may be remembered (RFC 9111, sections 4.2 and 5.2.2).
func freshness(h http.Header, now time.Time) time.Duration {
	fresh := defaultFresh
	directives := strings.ToLower(strings.Join(h.Values("Cache-Control"), ","))
	found := false
	for directive := range strings.SplitSeq(directives, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-store", "no-cache":
			return minFresh
		case "max-age":
			if seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32); err == nil && !found {
				fresh, found = time.Duration(seconds)*time.Second, true
				if age, err := strconv.ParseInt(h.Get("Age"), 10, 32); err == nil && age > 0 {
					fresh -= time.Duration(age) * time.Second
				}
			}
		}
	}
	if expires := h.Get("Expires"); !found && expires != "" {
		fresh = 0 // what is no date, such as "0", has expired
		if at, err := http.ParseTime(expires); err == nil {
			fresh = at.Sub(now)
		}
	}
	return min(max(fresh, minFresh), maxFresh)
}

// place is something to connect to: a DNS name or an IP address, and a port.
type place struct {
	host string
	port int
}

func (p place) String() string { return net.JoinHostPort(p.host, strconv.Itoa(p.port)) }

// places lists where a (delegated) name may be connected to, the preferred ones first.
//
// spec: server-server-api v1.19 "Resolving server names" 1, 2, 3.1 to 3.5, 4 to 6
func (c *Client) places(ctx context.Context, name Name) ([]place, error) {
	switch {
	case name.Port != 0:
		return []place{{name.Host, name.Port}}, nil
	case name.IP.IsValid():
		return []place{{name.Host, defaultPort}}, nil
	}
	for _, service := range []string{"matrix-fed", "matrix"} {
		_, records, err := c.lookupSRV(ctx, service, "tcp", name.Host)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil && len(records) == 0 {
			continue
		}
		if len(records) == 1 && strings.Trim(records[0].Target, ".") == "" {
			// RFC 2782: a target of "." says that the service is not available.
			return nil, fmt.Errorf("%s says that it does not take part in federation", name.Host)
		}
		var list []place
		for _, r := range records {
			if host := strings.TrimSuffix(r.Target, "."); host != "" && r.Port != 0 {
				list = append(list, place{host, int(r.Port)})
			}
		}
		if len(list) > 0 {
			return list[:min(len(list), maxPlaces)], nil
		}
	}
	return []place{{name.Host, defaultPort}}, nil
}

// maxPlaces bounds how many targets of SRV records are tried.
const maxPlaces = 8
