// Package outbound fetches what strangers name: pages that are previewed, places to which other servers redirect.
//
// Whoever can make a server fetch a URL would like it to fetch http://169.254.169.254/ or a printer. So schemes, ports
// and names are checked for the URL and for each redirect, and the address on the socket just before it connects: what
// was resolved is what is connected to, and a name that resolves differently the second time gains nothing.
package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/publicnet"
)

// ErrRefused is wrapped by errors about URLs that are not to be fetched.
var ErrRefused = errors.New("outbound: this URL is not fetched")

// Config says what may be fetched.
type Config struct {
	// AllowPrivate allows loopback and private addresses, and every port.
	AllowPrivate bool
	// Deny are patterns of host names that are never fetched; Allow, unless empty, of the only ones that are. In them, *
	// stands for any characters.
	Deny, Allow []string
	// UserAgent is sent.
	UserAgent string
	// Resolver resolves names; nil: the system's.
	Resolver *net.Resolver
}

const (
	maxRedirects = 5
	dialTimeout  = 10 * time.Second
	maxHeader    = 64 << 10
	maxURL       = 4096
)

// Client fetches URLs. It is safe for concurrent use.
type Client struct {
	cfg  Config
	http *http.Client
}

// New makes a Client.
func New(cfg Config) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout, Resolver: cfg.Resolver}
	if !cfg.AllowPrivate {
		dialer.Control = publicnet.Control
	}
	c := &Client{cfg: cfg}
	c.http = &http.Client{
		Transport: &http.Transport{
			Proxy: nil, DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: dialTimeout,
			MaxResponseHeaderBytes: maxHeader, MaxIdleConns: 20, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("%w: too many redirects", ErrRefused)
			}
			r.Header.Del("Referer")
			return c.Check(r.URL)
		},
	}
	return c
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Check tells whether a URL may be fetched, as far as can be told without resolving it.
func (c *Client) Check(u *url.URL) error {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	refused := func(why string) error { return fmt.Errorf("%w: %s", ErrRefused, why) }
	switch port := u.Port(); {
	case u.Scheme != "http" && u.Scheme != "https":
		return refused("the scheme is neither http nor https")
	case host == "" || len(u.String()) > maxURL:
		return refused("it has no host or is too long")
	case u.User != nil:
		return refused("it has a user")
	case !c.cfg.AllowPrivate && port != "" && port != "80" && port != "443" && port != "8080" && port != "8443":
		return refused("the port is none of the web's")
	case matches(c.cfg.Deny, host):
		return refused("the host is denied")
	case len(c.cfg.Allow) > 0 && !matches(c.cfg.Allow, host):
		return refused("the host is not allowed")
	}
	return nil
}

func matches(patterns []string, host string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(strings.ToLower(p), host); ok && err == nil {
			return true
		}
	}
	return false
}

// Get fetches a URL. The caller bounds and closes the body. Errors wrap ErrRefused or publicnet.ErrNotPublic where it is
// not to be fetched.
func (c *Client) Get(ctx context.Context, address string, header http.Header) (*http.Response, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("%w: it is no URL", ErrRefused)
	}
	if err := c.Check(u); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: it is no URL", ErrRefused)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("User-Agent", c.cfg.UserAgent)
	return c.http.Do(r)
}
