package httpapi

import (
	"bufio"
	"io"
	"math"
	"net"
	"net/http"
	"time"
)

// minBytesPerSecond is how slow a client may send or read before it is given up.
const minBytesPerSecond = 4 << 10

// rawWriter is the answer of a raw endpoint: it notes the status and lets neither the sending nor the
// reading client take forever. It unwraps for http.ResponseController.
type rawWriter struct {
	http.ResponseWriter
	status int
	pace   pace
}

// pace moves a connection's deadline on with the bytes that pass, where the connection has deadlines.
type pace struct {
	set   func(time.Time)
	free  int64 // bytes that may pass without a deadline
	bytes int64
	start time.Time // of the first deadline
}

// before allows time for n more bytes.
func (p *pace) before(n int) {
	if p.bytes += int64(n); p.bytes < p.free {
		return
	}
	if p.start.IsZero() {
		p.start = time.Now()
	}
	p.set(p.start.Add(writeTime(p.bytes)))
}

// newRawWriter wraps the answer and bounds the body of a raw request.
func newRawWriter(w http.ResponseWriter, r *http.Request, maxBody int64) *rawWriter {
	control := http.NewResponseController(w)
	if r.ContentLength != 0 && r.Body != nil {
		r.Body = &rawBody{body: r.Body, left: maxBody, pace: pace{set: func(at time.Time) { _ = control.SetReadDeadline(at) }}}
	}
	return &rawWriter{ResponseWriter: w, pace: pace{set: func(at time.Time) { _ = control.SetWriteDeadline(at) }, free: patientWrite}}
}

// Unwrap gives http.ResponseController the connection.
func (w *rawWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands the connection over, for WebSockets.
func (w *rawWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, buf, err
}

// WriteHeader sends the status.
func (w *rawWriter) WriteHeader(status int) {
	if w.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// finish lifts the deadline, which would stand for the connection's next answer.
func (w *rawWriter) finish() {
	if w.pace.start.IsZero() {
		return
	}
	http.NewResponseController(w.ResponseWriter).Flush() // what is buffered belongs to the deadline, too
	w.pace.set(time.Time{})
}

// Write sends a part of the answer.
func (w *rawWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.pace.before(len(p))
	return w.ResponseWriter.Write(p)
}

// readFromChunk is how much is handed to sendfile at once: the steps in which the deadline moves.
const readFromChunk = 1 << 20

// ReadFrom lets files go to the socket without passing through the process.
func (w *rawWriter) ReadFrom(src io.Reader) (n int64, err error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	// sendfile looks through one LimitedReader and not two; http.ServeContent brings one.
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	for {
		part := io.LimitedReader{R: limited.R, N: min(limited.N, readFromChunk)}
		asked := part.N
		w.pace.before(int(asked))
		sent, err := to.ReadFrom(&part)
		limited.N -= sent
		if n += sent; err != nil || sent < asked || limited.N <= 0 {
			return n, err
		}
	}
}

// rawBody bounds the body of a raw request in size and time.
type rawBody struct {
	body io.ReadCloser
	left int64
	pace pace
}

// Read answers 413 M_TOO_LARGE as its error when the bound is passed.
func (b *rawBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	b.pace.before(0)
	n, err := b.body.Read(p)
	b.pace.bytes += int64(n)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLarge
	}
	if err == io.EOF {
		b.pace.set(time.Time{})
	}
	return n, err
}

// Close closes the body.
func (b *rawBody) Close() error { return b.body.Close() }
