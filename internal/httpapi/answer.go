package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// appender is an answer that writes its own JSON.
type appender interface {
	AppendJSON(dst []byte) ([]byte, error)
}

// Built is an answer that is JSON already. It is sent as it is, without another copy, and must not be changed any more.
type Built []byte

// encoder is reused memory for an answer.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
}

var encoderPool = sync.Pool{New: func() any {
	e := &encoder{}
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false)
	return e
}}

// maxEncoder bounds the encoders that are kept, in bytes of their buffers.
const maxEncoder = 256 << 10

func (e *encoder) release() {
	if e.buf.Cap() <= maxEncoder {
		e.buf.Reset()
		encoderPool.Put(e)
	}
}

// encode returns out as JSON; it is valid until release.
func (e *encoder) encode(out any) ([]byte, error) {
	if b, ok := out.(*Built); ok {
		return *b, nil
	}
	if a, ok := out.(appender); ok {
		b, err := a.AppendJSON(e.buf.AvailableBuffer())
		if err != nil {
			return nil, err
		}
		e.buf = *bytes.NewBuffer(b)
		return b, nil
	}
	if err := e.json.Encode(out); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(e.buf.Bytes(), []byte{'\n'}), nil
}

// writeJSON answers with out. An error means that nothing was written.
func (rt *Router) writeJSON(w http.ResponseWriter, r *http.Request, status int, out any) error {
	e := encoderPool.Get().(*encoder)
	defer e.release()
	body, err := e.encode(out)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	rt.write(w, r, status, body)
	return nil
}

// writeError answers with a Matrix error and returns its status.
// spec: client-server-api v1.19 "Standard error response", "Rate limiting"
func (rt *Router) writeError(w http.ResponseWriter, r *http.Request, e *mxerr.Error) int {
	h := w.Header()
	members := make([]string, 0, len(e.Fields))
	for name := range e.Fields {
		members = append(members, name)
	}
	slices.Sort(members)
	body := []byte{'{'}
	member := func(name string, value any) {
		v, err := json.Marshal(value)
		if err != nil {
			return // a field that cannot be encoded must not hide the error
		}
		if len(body) > 1 {
			body = append(body, ',')
		}
		body = append(strconv.AppendQuote(body, name), ':')
		body = append(body, v...)
	}
	// User-interactive authentication answers 401 without an errcode until a stage has failed.
	if e.Code != "" {
		member("errcode", e.Code)
		member("error", e.Text)
	}
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
		h["Access-Control-Expose-Headers"] = exposeRetry
		member("retry_after_ms", int64((e.RetryAfter+time.Millisecond-1)/time.Millisecond))
	}
	for _, name := range members {
		member(name, e.Fields[name])
	}
	rt.write(w, r, e.Status, append(body, '}'))
	return e.Status
}

// write sends a JSON answer.
func (rt *Router) write(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
	if rt.cfg.GzipMin > 0 && len(body) >= rt.cfg.GzipMin {
		h["Vary"] = varyEncoding
		if acceptsGzip(r.Header["Accept-Encoding"]) {
			packed := encoderPool.Get().(*encoder)
			defer packed.release()
			rt.gzip.compress(&packed.buf, body)
			h["Content-Encoding"] = gzipEncoding
			body = packed.buf.Bytes()
		}
	}
	if len(body) >= ownLength {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	if len(body) < patientWrite || r.ProtoMajor != 1 {
		w.WriteHeader(status)
		w.Write(body)
		return
	}
	writeWithin(w, writeTime(int64(len(body))), func() {
		w.WriteHeader(status)
		w.Write(body)
	})
}

const (
	// ownLength is from where on net/http no longer counts an answer's length itself.
	ownLength = 2 << 10
	// patientWrite is from how many bytes on an answer may not fit into the socket's buffers, so that a
	// client that does not read could keep it forever.
	patientWrite = 32 << 10
)

// writeTime is how long the slowest client may take to send or read n bytes.
func writeTime(n int64) time.Duration {
	return time.Minute + time.Duration(n/minBytesPerSecond)*time.Second
}

// writeWithin runs write under a deadline for the connection.
func writeWithin(w http.ResponseWriter, limit time.Duration, write func()) {
	c := http.NewResponseController(w)
	if c.SetWriteDeadline(time.Now().Add(limit)) != nil {
		write()
		return
	}
	write()
	c.Flush() // what is left in net/http's buffer belongs to the deadline, too
	c.SetWriteDeadline(time.Time{})
}

// acceptsGzip reads Accept-Encoding (RFC 9110 section 12.5.3).
func acceptsGzip(headers []string) bool {
	for _, header := range headers {
		for coding := range strings.SplitSeq(header, ",") {
			name, q, _ := strings.Cut(strings.TrimSpace(coding), ";")
			if name = strings.TrimSpace(name); name != "gzip" && name != "*" {
				continue
			}
			q = strings.TrimPrefix(strings.ReplaceAll(q, " ", ""), "q=")
			weight, err := strconv.ParseFloat(q, 64)
			return q == "" || err == nil && weight > 0
		}
	}
	return false
}

// gzipPool keeps a few compressors: each holds hundreds of kilobytes, and more than there are
// processors would not compress faster.
type gzipPool chan *gzip.Writer

func newGzipPool() gzipPool { return make(gzipPool, runtime.GOMAXPROCS(0)) }

func (p gzipPool) compress(dst *bytes.Buffer, body []byte) {
	var z *gzip.Writer
	select {
	case z = <-p:
		z.Reset(dst)
	default:
		z, _ = gzip.NewWriterLevel(dst, gzip.BestSpeed) // fails for unknown levels only
	}
	_, _ = z.Write(body) // into memory: it does not fail
	_ = z.Close()
	select {
	case p <- z:
	default:
	}
}
