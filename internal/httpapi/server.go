package httpapi

import (
	"net/http"
	"time"
)

// NewServer makes an HTTP server for handlers that may take long to answer: it bounds how long a
// request may take to arrive and how long an idle connection is kept, but not how long an answer takes:
// net/http lifts ReadTimeout when the body is there. A Router sets bounds of its own for uploads and
// for answers that are large enough to wait for their reader.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 20 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
}
