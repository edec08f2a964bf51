// Package client makes requests to other servers: it finds them, checks their certificates, signs the requests and
// bounds their answers. It knows nothing of rooms, users or the database.
//
// Who may be connected to is decided in three places: Config.Allowed by name, the address ranges (internal/publicnet)
// just before a socket connects, and the certificate, which must be valid for the name and not for what DNS says.
//
// spec: server-server-api v1.19 "Server discovery", "Request Authentication"
package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"github.com/tidwall/gjson"
)

const userAgent = "Myelin"

const (
	// defaultTimeout bounds a request that names no time of its own.
	defaultTimeout = 30 * time.Second
	// defaultMaxBytes bounds an answer that names no size of its own, in bytes.
	defaultMaxBytes = 8 << 20
	// maxErrorBytes is how much of an error's body is read.
	maxErrorBytes = 64 << 10
	// stallTimeout is how long a streamed answer may bring nothing.
	stallTimeout = 30 * time.Second
)

var (
	// ErrBadName is wrapped by errors about server names that do not follow the grammar.
	ErrBadName = errors.New("not a server name")
	// ErrNotAllowed is wrapped by errors about servers that the operator excludes.
	ErrNotAllowed = errors.New("federation with this server is not allowed here")
	// ErrTooLarge is wrapped by errors about answers that exceed their bound.
	ErrTooLarge = errors.New("the answer is too large")
	// ErrMalformed is wrapped by errors about answers that are not JSON.
	ErrMalformed = errors.New("the answer is not JSON")
	// ErrUnreachable is wrapped by errors about servers to which connecting failed a moment ago.
	ErrUnreachable = errors.New("connecting to the server has just failed")
	// ErrSelf is wrapped by errors about requests that this server would make to itself.
	ErrSelf = errors.New("this is our own name")
)

// Config is what a Client needs to know.
type Config struct {
	// ServerName is our own name; KeyID and Key sign requests.
	ServerName string
	KeyID      string
	Key        ed25519.PrivateKey
	// CA are the authorities that are trusted; nil for the system's.
	CA *x509.CertPool
	// AllowPrivate lets it connect to loopback and private addresses.
	AllowPrivate bool
	// Allowed tells whether a server may be talked to; nil for all.
	Allowed func(server string) bool
	// Log gets failures at debug level; nil for none.
	Log *logrus.Entry
}

// Client makes requests to other servers. It is safe for concurrent use.
type Client struct {
	cfg       Config
	tls       *tls.Config
	discovery *discovery
	transport *http.Transport
	failures  *failures

	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	lookupSRV func(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// New makes a Client.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg, dial: newDialer(cfg.AllowPrivate).DialContext, lookupSRV: net.DefaultResolver.LookupSRV}
	if c.cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		c.cfg.Log = logrus.NewEntry(silent)
	}
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.CA, NextProtos: []string{"http/1.1"}, ClientSessionCache: tls.NewLRUClientSessionCache(maxIdle)}
	c.transport = c.newTransport()
	c.discovery = newDiscovery(c.newWebTransport())
	c.failures = newFailures()
	return c, nil
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Request is a request to another server.
type Request struct {
	// Server is its server name, Method the HTTP method.
	Server, Method string
	// Path is the escaped path, from /_matrix/ on, with the query. Path makes one.
	Path string
	// Body is a JSON object, nil for none.
	Body json.RawMessage
	// Timeout bounds the request; 0 takes 30 s. For Stream it bounds the wait for the answer's headers.
	Timeout time.Duration
	// MaxBytes bounds the answer, unpacked; 0 takes 8 MiB.
	MaxBytes int64
	// Unsigned requests carry no X-Matrix header: those for keys.
	Unsigned bool
	// Try makes the request even if connecting to the server has just failed, for callers who space their tries
	// themselves. Unsigned requests are always made.
	Try bool
}

// Error is an answer with another status than 2xx.
type Error struct {
	// Server is who answered.
	Server string
	// Status is the HTTP status, Code and Text are errcode and error, if the answer has them.
	Status     int
	Code, Text string
	// RetryAfter is when to come again, 0 if the server does not say.
	RetryAfter time.Duration
	// Body is the answer if it is JSON of at most 64 KiB, else nil.
	Body json.RawMessage
}

// Error says who answered what.
func (e *Error) Error() string {
	return fmt.Sprintf("%s answered %d %s: %.200q", e.Server, e.Status, e.Code, e.Text)
}

// Path builds a path: each argument is escaped and takes the place of a %s.
func Path(format string, args ...string) string {
	escaped := make([]any, len(args))
	for i, a := range args {
		escaped[i] = url.PathEscape(a)
	}
	return fmt.Sprintf(format, escaped...)
}

// Do makes a request and returns the answer's body, valid JSON. An answer with another status than 2xx is an *Error.
func (c *Client) Do(ctx context.Context, r Request) (json.RawMessage, error) {
	timeout := r.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	res, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	limit := r.MaxBytes
	if limit <= 0 {
		limit = defaultMaxBytes
	}
	body, err := readBody(res, limit)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", r.Server, err)
	}
	return body, nil
}

// readBody reads a whole answer.
func readBody(res *http.Response, limit int64) (json.RawMessage, error) {
	if res.ContentLength > limit {
		return nil, ErrTooLarge
	}
	var body bytes.Buffer
	if res.ContentLength > 0 {
		body.Grow(int(min(res.ContentLength, 1<<20)) + bytes.MinRead) // a claim; memory for more comes with the bytes
	}
	if _, err := body.ReadFrom(io.LimitReader(res.Body, limit+1)); err != nil {
		return nil, err
	}
	if int64(body.Len()) > limit {
		return nil, ErrTooLarge
	}
	if !validJSON(body.Bytes()) {
		return nil, ErrMalformed
	}
	return body.Bytes(), nil
}

// validJSON tells whether something is JSON in UTF-8, not nested too deep to be read.
func validJSON(b []byte) bool { return utf8.Valid(b) && json.Valid(b) }

// Stream makes a request and returns the answer as it comes, with a status of 2xx. The caller bounds and closes the
// body; reading fails when nothing comes for 30 seconds or ctx ends.
func (c *Client) Stream(ctx context.Context, r Request) (*http.Response, error) {
	timeout := r.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(timeout, func() { cancel(context.DeadlineExceeded) })
	res, err := c.send(ctx, r)
	if err != nil {
		watch.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		cancel(nil)
		return nil, err
	}
	watch.Reset(stallTimeout)
	res.Body = &stream{res.Body, ctx, cancel, watch}
	return res, nil
}

// stream is a body that must keep coming.
type stream struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer
}

// Read reads, and gives the next part as long as this one had. The time of the reader itself does not count.
func (s *stream) Read(p []byte) (int, error) {
	s.watch.Reset(stallTimeout)
	n, err := s.ReadCloser.Read(p)
	s.watch.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(s.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Close ends the request.
func (s *stream) Close() error {
	s.watch.Stop()
	s.cancel(nil)
	return s.ReadCloser.Close()
}

// send makes a request and returns an answer with a status of 2xx.
func (c *Client) send(ctx context.Context, r Request) (*http.Response, error) {
	res, err := c.roundTrip(ctx, r)
	if err != nil {
		c.cfg.Log.WithError(err).WithFields(logrus.Fields{"server": r.Server, "method": r.Method}).Debug("request to another server failed")
		return nil, fmt.Errorf("ask %s: %w", r.Server, err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, answerError(r.Server, res)
}

func (c *Client) roundTrip(ctx context.Context, r Request) (*http.Response, error) {
	switch {
	case r.Server == c.cfg.ServerName:
		return nil, ErrSelf
	case c.cfg.Allowed != nil && !c.cfg.Allowed(r.Server):
		return nil, ErrNotAllowed
	case !strings.HasPrefix(r.Path, "/_matrix/") || !validTarget(r.Path):
		return nil, fmt.Errorf("%.100q is no path", r.Path)
	}
	delegated, err := c.discovery.delegated(ctx, r.Server)
	if err != nil {
		return nil, err
	}
	name, ok := ParseName(delegated)
	if !ok {
		return nil, ErrBadName
	}
	if !r.Try && !r.Unsigned && c.failures.recent(poolHost(delegated, name)) {
		return nil, ErrUnreachable
	}
	req := &http.Request{
		Method: r.Method,
		// Opaque is sent as it is: the signature covers the path as it is escaped here.
		URL:    &url.URL{Scheme: "https", Host: poolHost(delegated, name), Opaque: r.Path},
		Host:   delegated,
		Header: http.Header{"User-Agent": {userAgent}},
	}
	content, err := canonicalBody(r.Body)
	if err != nil {
		return nil, err
	}
	if content != nil {
		req.Header["Content-Type"] = []string{"application/json"}
		req.ContentLength = int64(len(content))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
		if req.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}
	if r.Method == http.MethodPut {
		// PUT may be repeated on a new connection if an idle one turns out to be closed. net/http wants to be told; an
		// empty list is not sent.
		req.Header["Idempotency-Key"] = []string{}
	}
	if !r.Unsigned {
		req.Header["Authorization"] = []string{c.authorization(r.Server, r.Method, r.Path, content)}
	}
	return c.transport.RoundTrip(req.WithContext(ctx))
}

// validTarget tells whether a path can stand in a request line as it is.
func validTarget(path string) bool {
	for i := range len(path) {
		if c := path[i]; c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}

// answerError reads an answer with a status that is not 2xx.
func answerError(server string, res *http.Response) error {
	e := &Error{Server: server, Status: res.StatusCode}
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(min(seconds, 24*3600)) * time.Second
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBytes+1))
	if err != nil || len(body) > maxErrorBytes || !validJSON(body) {
		return e
	}
	e.Body = body
	answer := gjson.ParseBytes(body)
	e.Code, e.Text = answer.Get("errcode").Str, answer.Get("error").Str
	if ms := answer.Get("retry_after_ms").Int(); e.RetryAfter == 0 && ms > 0 {
		e.RetryAfter = time.Duration(min(ms, 24*3600*1000)) * time.Millisecond
	}
	return e
}
