package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

// Config is what a Router needs from the rest of the server.
type Config struct {
	// Authenticate finds the caller for an access token: a user, or an application service and the
	// user it acts as (the query's user_id and device_id). An unknown token is mxerr.UnknownToken.
	// The answer is copied, so it may be shared. Locked accounts are returned, not refused.
	// Required if an endpoint asks for tokens.
	Authenticate func(ctx context.Context, token string, r *http.Request) (*Caller, error)
	// AuthenticateServer checks the X-Matrix signature of a request whose body is given (empty without
	// one) and returns a Caller with Origin. Required if an endpoint is for servers.
	AuthenticateServer func(ctx context.Context, r *http.Request, body []byte) (*Caller, error)
	// Limiter bounds requests; nil sets no limits.
	Limiter *ratelimit.Limiter
	// Unavailable tells errors of a server that can do nothing for a while, which it has told the log itself: they are
	// answered with 503 and Retry-After instead of 500, and not logged once more. Nil knows none.
	Unavailable func(err error) bool
	// Log gets server errors as errors and each request at debug level; nil logs nothing.
	Log *logrus.Entry
	// Registerer takes the metrics; nil takes none. Routers may share one.
	Registerer prometheus.Registerer
	// TrustedProxies are the addresses whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// MaxBody bounds bodies of endpoints without their own bound, in bytes; 0 takes 1 MiB.
	MaxBody int64
	// GzipMin is from how many bytes on answers are compressed for clients that accept it;
	// 0 takes 2 KiB, a negative number never compresses.
	GzipMin int
}

const (
	defaultMaxBody = 1 << 20
	defaultGzipMin = 2 << 10
)

// Router serves endpoints. It is safe for concurrent use once made.
type Router struct {
	cfg     Config
	front   *mux.Router
	tree    node
	metrics *metrics
	other   *routeMetrics // requests for nothing that is served
	ids     requestIDs
	gzip    gzipPool
}

// route is an endpoint as it is served.
type route struct {
	Endpoint
	maxBody int64
	params  []string
	checks  []func(string) error // for params, each
	metrics *routeMetrics
}

// NewRouter makes a Router for all endpoints, or says which declarations are wrong.
func NewRouter(cfg Config, endpoints ...Endpoint) (*Router, error) {
	if cfg.MaxBody <= 0 {
		cfg.MaxBody = defaultMaxBody
	}
	if cfg.GzipMin == 0 {
		cfg.GzipMin = defaultGzipMin
	}
	if cfg.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		silent.SetLevel(logrus.PanicLevel)
		cfg.Log = logrus.NewEntry(silent)
	}
	rt := &Router{cfg: cfg, gzip: newGzipPool(), ids: newRequestIDs()}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register HTTP metrics: %w", err)
	}
	rt.metrics, rt.other = m, m.route("other", "other")
	var errs []error
	for _, e := range endpoints {
		if err := rt.add(e); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s %s: %w", e.Method, e.Path, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	rt.front = newFront(rt, endpoints)
	return rt, nil
}

func (rt *Router) add(e Endpoint) error {
	if err := e.check(); err != nil {
		return err
	}
	if e.Who&token != 0 && rt.cfg.Authenticate == nil {
		return errors.New("it asks for tokens and Config.Authenticate is missing")
	}
	if e.Who&Server != 0 && rt.cfg.AuthenticateServer == nil {
		return errors.New("it is for servers and Config.AuthenticateServer is missing")
	}
	r := &route{Endpoint: e, maxBody: e.MaxBody, params: e.Params(), metrics: rt.metrics.route(e.Method, e.Path)}
	if r.maxBody <= 0 {
		r.maxBody = rt.cfg.MaxBody
	}
	for _, name := range r.params {
		r.checks = append(r.checks, paramCheck(name))
	}
	return rt.tree.add(r)
}

// newFront makes the front door: a prefix for each API, so that whatever else the homeserver mounts
// on it (pages, proxies, other hosts) stands beside the table and not in it. Paths are taken as they
// come: cleaning them would redirect "//" and swallow empty state keys.
func newFront(rt *Router, endpoints []Endpoint) *mux.Router {
	front := mux.NewRouter().SkipClean(true)
	serve := (*table)(rt)
	front.NotFoundHandler = serve
	known := make(map[string]bool)
	for _, prefix := range []string{"/_matrix/client/", "/_matrix/federation/"} { // the busiest first
		known[prefix] = true
		front.PathPrefix(prefix).Handler(serve)
	}
	for _, e := range endpoints {
		first, rest, _ := strings.Cut(e.Path[1:], "/")
		prefix := "/" + first + "/"
		if second, _, ok := strings.Cut(rest, "/"); ok && first == "_matrix" {
			prefix += second + "/"
		}
		if _, isParam := wildcard(first); !isParam && !known[prefix] {
			known[prefix] = true
			front.PathPrefix(prefix).Handler(serve)
		}
	}
	return front
}

// Front is the front door, for what is not an endpoint: pages, proxies, hosts of their own.
// Routes added to it see what no API's prefix claims. It must not be changed once it serves.
func (rt *Router) Front() *mux.Router { return rt.front }

// table is the Router behind its front door.
type table Router

// ServeHTTP serves a request to an endpoint, or answers that there is none.
func (t *table) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*Router)(t).serve(w, r) }

// oldPrefixes are what clients written before v1.1 call the prefixes that replaced them. The endpoints behind them are
// the same (client-server API v1.1 changelog, "Removed legacy r0 prefix").
var oldPrefixes = map[string]string{"/_matrix/client/r0/": "/_matrix/client/v3/", "/_matrix/media/r0/": "/_matrix/media/v3/"}

// modernise lets paths of old clients reach the endpoints of today.
func modernise(u *url.URL) {
	for old, now := range oldPrefixes {
		rest, ok := strings.CutPrefix(u.Path, old)
		if !ok {
			continue
		}
		u.Path = now + rest
		if u.RawPath != "" {
			u.RawPath = now + strings.TrimPrefix(u.RawPath, old)
		}
		return
	}
}

// ServeHTTP serves a request.
func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	modernise(r.URL)
	var m mux.RouteMatch
	if rt.front.Match(r, &m) && m.Handler == http.Handler((*table)(rt)) {
		// mux itself would pass on two copies of the request with contexts of its own, which a
		// long-poll would hold as long as it waits.
		rt.serve(w, r)
		return
	}
	rt.front.ServeHTTP(w, r)
}

// requestIDs makes identifiers that are unique among the logs of a few servers.
type requestIDs struct {
	prefix string
	last   *atomic.Uint64
}
