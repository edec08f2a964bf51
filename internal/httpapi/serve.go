package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// call is a request being handled: its context and its caller in one allocation, which is all that
// a waiting request keeps here.
type call struct {
	context.Context
	by Caller
	id string
}

type callKey struct{}

// Value finds the call itself and what the request's own context carries.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func newRequestIDs() requestIDs {
	var b [5]byte
	rand.Read(b[:])
	return requestIDs{strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:5] + "-", new(atomic.Uint64)}
}

func (ids requestIDs) next() string {
	b := make([]byte, 0, 24)
	b = append(b, ids.prefix...)
	return string(strconv.AppendUint(b, ids.last.Add(1), 36))
}

// Headers that are the same on all answers; shared, so that setting them allocates nothing.
// spec: client-server-api v1.19 "Web Browser Clients"
var (
	corsOrigin  = []string{"*"}
	corsMethods = []string{"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
	// The first three are the specification's, the others are for parts of media and uploads that go on (tus).
	corsHeaders  = []string{"X-Requested-With, Content-Type, Authorization, Range, If-Range, If-None-Match, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata"}
	corsMaxAge   = []string{"86400"}
	noStore      = []string{"no-store"}
	noSniff      = []string{"nosniff"}
	jsonType     = []string{"application/json"}
	exposeRetry  = []string{"Retry-After"}
	gzipEncoding = []string{"gzip"}
	varyEncoding = []string{"Accept-Encoding"}
)

// serve answers a request to the table of endpoints.
func (rt *Router) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := &call{Context: r.Context(), id: rt.ids.next()}
	h := w.Header()
	h["Access-Control-Allow-Origin"] = corsOrigin
	h["Access-Control-Allow-Methods"] = corsMethods
	h["Access-Control-Allow-Headers"] = corsHeaders
	h["X-Content-Type-Options"] = noSniff
	h["X-Request-Id"] = []string{c.id}
	if r.Method == http.MethodOptions {
		// Answered for every path, so that a browser learns of a missing endpoint by its errcode
		// and not by a failed preflight.
		h["Access-Control-Max-Age"] = corsMaxAge
		w.WriteHeader(http.StatusNoContent)
		return
	}
	req := requestPool.Get().(*request)
	req.http = r
	path, escaped := rawPath(r.URL)
	end := rt.tree.match(path, escaped, &req.params, 0)
	var found *route
	if end != nil {
		found = end.route(r.Method)
	}
	if found == nil {
		req.release()
		status := http.StatusNotFound
		if end != nil {
			status = http.StatusMethodNotAllowed
			h.Set("Allow", end.allow())
		}
		rt.writeError(w, r, mxerr.Unrecognized(status))
		rt.finish(c, nil, r, status, start)
		return
	}
	status := rt.run(c, found, w, r, req)
	rt.finish(c, found, r, status, start)
}

// finish counts and logs a request.
func (rt *Router) finish(c *call, found *route, r *http.Request, status int, start time.Time) {
	took := time.Since(start)
	m, pattern := rt.other, ""
	if found != nil {
		m, pattern = found.metrics, found.Path
	}
	m.observe(status, took)
	if rt.cfg.Log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		rt.cfg.Log.WithFields(logrus.Fields{"request": c.id, "method": r.Method, "route": pattern, "status": status,
			"took": took, "user": c.by.UserID, "origin": c.by.Origin, "addr": c.by.Addr}).Debug("request served")
	}
}

// statusClientGone is what metrics and logs call a request whose client hung up.
const statusClientGone = 499

// run takes a request from its route to its written answer and returns the status.
// A panic becomes a 500, or breaks the connection if an answer has begun.
func (rt *Router) run(c *call, e *route, w http.ResponseWriter, r *http.Request, req *request) (status int) {
	var raw *rawWriter
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		rt.logger(c, e).WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
		if raw != nil && raw.status != 0 {
			panic(http.ErrAbortHandler)
		}
		status = rt.writeError(w, r, errInternal)
	}()
	if err := rt.admit(c, e, r, req); err != nil {
		req.release()
		return rt.fail(c, e, w, r, err)
	}
	if e.Raw {
		raw = newRawWriter(w, r, e.maxBody)
		for i, name := range e.params {
			r.SetPathValue(name, req.params[i])
		}
		req.release()
		err := e.raw(c, &c.by, raw, r)
		raw.finish()
		if err != nil {
			if raw.status != 0 {
				rt.logger(c, e).WithError(err).Warn("error after the answer had begun")
				panic(http.ErrAbortHandler)
			}
			return rt.fail(c, e, w, r, err)
		}
		if raw.status == 0 {
			raw.WriteHeader(http.StatusOK)
		}
		return raw.status
	}
	out, err := e.typed(c, &c.by, req)
	if err != nil {
		return rt.fail(c, e, w, r, err)
	}
	status = http.StatusOK
	if s, ok := out.(interface{ HTTPStatus() int }); ok {
		status = s.HTTPStatus()
	}
	if err := rt.writeJSON(w, r, status, out); err != nil {
		return rt.fail(c, e, w, r, err)
	}
	return status
}

// admit is everything before the handler: who calls, whether they may and how often, and a
// request that can be decoded.
func (rt *Router) admit(c *call, e *route, r *http.Request, req *request) error {
	c.by.Addr = rt.clientAddr(r)
	if e.Who&Server != 0 {
		// The signature covers the body, so it is read before anything is known of the caller.
		if err := rt.readBody(e, r, req); err != nil {
			return err
		}
		if err := rt.authenticateServer(c, r, req.body); err != nil {
			return err
		}
		if err := rt.limit(c, e); err != nil {
			return err
		}
		return checkParams(e, req)
	}
	if e.Who&token != 0 {
		if err := rt.authenticate(c, e, r); err != nil {
			return err
		}
	}
	if err := rt.limit(c, e); err != nil {
		return err
	}
	if err := checkParams(e, req); err != nil {
		return err
	}
	return rt.readBody(e, r, req)
}

var (
	errClientGone = mxerr.New(statusClientGone, "M_UNKNOWN", "The client closed the request")
	errInternal   = mxerr.New(http.StatusInternalServerError, "M_UNKNOWN", "Internal server error")
	// errUnavailable has clients try again, when the server has tried itself.
	errUnavailable = &mxerr.Error{Status: http.StatusServiceUnavailable, Code: "M_UNKNOWN", Text: "The server can store nothing at the moment", RetryAfter: time.Second}
)

// logger is the log with the request's marks.
func (rt *Router) logger(c *call, e *route) *logrus.Entry {
	return rt.cfg.Log.WithFields(logrus.Fields{"request": c.id, "method": e.Method, "route": e.Path,
		"user": c.by.UserID, "origin": c.by.Origin})
}

// fail answers with an error: a Matrix error as it is, anything else as a logged 500 that tells the
// client nothing. A client that hung up is not logged.
func (rt *Router) fail(c *call, e *route, w http.ResponseWriter, r *http.Request, err error) int {
	var lost errBodyLost
	if errors.As(err, &lost) {
		w.Header().Set("Connection", "close")
		return rt.writeError(w, r, mxerr.New(http.StatusRequestTimeout, "M_UNKNOWN", "The request body did not arrive"))
	}
	if c.Err() != nil && errors.Is(err, context.Canceled) {
		// Were nothing written, net/http would answer 200 to a client that only closed its sending half.
		return rt.writeError(w, r, errClientGone)
	}
	me := mxerr.As(err)
	if me == nil && rt.cfg.Unavailable != nil && rt.cfg.Unavailable(err) {
		return rt.writeError(w, r, errUnavailable)
	}
	if me == nil {
		rt.logger(c, e).WithError(err).Error("request failed")
		return rt.writeError(w, r, errInternal)
	}
	if me.Status >= http.StatusInternalServerError {
		rt.logger(c, e).WithError(err).Warn("request failed")
	}
	return rt.writeError(w, r, me)
}
