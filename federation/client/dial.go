package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/publicnet"
)

const (
	// connectTimeout bounds connecting to one place, with all its addresses; handshakeTimeout TLS after that.
	connectTimeout   = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	// idleTimeout is how long a connection is kept for the next request.
	idleTimeout = 90 * time.Second
	// maxIdle and maxIdlePerServer bound those connections; each holds about 20 kB.
	maxIdle          = 512
	maxIdlePerServer = 8
	// maxPerServer bounds the requests to one server that are under way. Others to the same server wait.
	maxPerServer = 64
)

func newDialer(allowPrivate bool) *net.Dialer {
	d := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}
	if !allowPrivate {
		d.Control = publicnet.Control
	}
	return d
}

// newTransport makes the transport for requests to servers. Connections are shared by everything that is delegated to
// the same name; the URL's host is that name, with port 0 if it has none (poolHost).
func (c *Client) newTransport() *http.Transport {
	t := &http.Transport{
		DialTLSContext: c.dialTLS,
		// HTTP/1.1 only: one request that hangs holds up its own connection and no other request.
		Protocols:              new(http.Protocols),
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerServer,
		MaxConnsPerHost:        maxPerServer,
		IdleConnTimeout:        idleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// newWebTransport makes the transport for .well-known files: ordinary https.
func (c *Client) newWebTransport() *http.Transport {
	t := &http.Transport{
		DialContext:            func(ctx context.Context, network, addr string) (net.Conn, error) { return c.dial(ctx, network, addr) },
		TLSClientConfig:        c.tls.Clone(),
		TLSHandshakeTimeout:    handshakeTimeout,
		Protocols:              new(http.Protocols),
		DisableKeepAlives:      true, // each server is asked once a day
		MaxResponseHeaderBytes: 64 << 10,
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// poolHost is the host of a URL that stands for a delegated name. It tells "a.org", which has SRV records, from
// "a.org:443", which has not, where net/http would add a default port to the former.
func poolHost(delegated string, name Name) string {
	if name.Port == 0 {
		return strings.ToLower(delegated) + ":0"
	}
	return strings.ToLower(delegated)
}

// dialTLS connects to a server: to each of its places in turn, until one presents a valid certificate for the name.
func (c *Client) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	name := Name{Host: host}
	if name.Port, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	if parsed, ok := ParseName(addrHost(host)); ok {
		name.IP = parsed.IP
	}
	places, err := c.places(ctx, name)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range places {
		conn, err := c.dialPlace(ctx, network, p, host)
		if err == nil {
			c.failures.forget(strings.ToLower(addr))
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", p, err))
		if ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() == nil {
		c.failures.note(strings.ToLower(addr))
	}
	return nil, errors.Join(errs...)
}

// addrHost puts the brackets round an IPv6 address.
func addrHost(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// dialPlace connects to one place and does the handshake with the name whose certificate it has to present.
func (c *Client) dialPlace(ctx context.Context, network string, p place, name string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, p.String())
	if err != nil {
		return nil, err
	}
	settings := c.tls.Clone()
	settings.ServerName = name // no SNI is sent for an IP address, but the certificate is checked for it
	secure := tls.Client(conn, settings)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}
