package httpapi

import (
	"io"
	"net/http"
	"sync"

	"github.com/myelin-im/myelin/internal/mxerr"
)

var requestPool = sync.Pool{New: func() any { return new(request) }}

// maxPooled bounds the buffers that are kept for reuse, in bytes.
const maxPooled = 64 << 10

// release ends the use of req. Nothing a handler holds points into it.
func (req *request) release() {
	buf := req.buf
	if cap(buf) > maxPooled {
		buf = nil
	}
	*req = request{buf: buf[:0]}
	requestPool.Put(req)
}

// readBody reads and checks the body, if the endpoint does not do so itself.
func (rt *Router) readBody(e *route, r *http.Request, req *request) error {
	if r.ContentLength != 0 {
		if e.Body == NoBody || e.Body == StreamBody {
			return nil
		}
		if err := req.read(r, e.maxBody); err != nil {
			return err
		}
	}
	if len(req.body) == 0 {
		if e.Body == RequiredBody {
			return mxerr.NotJSON("The request has no body")
		}
		return nil
	}
	server := e.Who&Server != 0
	depth := clientDepth
	if server {
		depth = serverDepth
	}
	if err := checkObject(req.body, depth); err != nil {
		return err
	}
	if server { // what is strange in a transaction must not spoil the rest of it
		return nil
	}
	return CheckLegible(req.body)
}

// read reads the body into the request's buffer, which grows with what really arrives.
func (req *request) read(r *http.Request, limit int64) error {
	if r.ContentLength > limit {
		return errTooLarge
	}
	buf := req.buf[:0]
	if need := min(r.ContentLength, maxPooled); int64(cap(buf)) < need+1 {
		buf = make([]byte, 0, need+1)
	}
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Body.Read(buf[len(buf):min(int64(cap(buf)), limit+1)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return errTooLarge
		}
		if err == io.EOF {
			req.buf, req.body = buf, buf
			return nil
		}
		if err != nil {
			return errBodyLost{err}
		}
	}
}

// errTooLarge refuses a body. Whether the rest is worth reading to keep the connection, net/http decides.
var errTooLarge = mxerr.TooLarge("The request body is too large")

// errBodyLost is a body that ended too early or came too slowly.
type errBodyLost struct{ error }
