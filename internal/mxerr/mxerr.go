// Package mxerr is the error that Matrix APIs answer with: an errcode, an HTTP status,
// a text that is safe to show, and a private cause for the log.
//
// Services return it where the specification names the error. Any other error reaches
// the client as 500 M_UNKNOWN (see internal/httpapi), with its text in the log only.
package mxerr

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Error is a Matrix standard error response (client-server API v1.19, "Standard error response").
type Error struct {
	// Status is the HTTP status of the answer.
	Status int
	// Code is the errcode, for example M_FORBIDDEN.
	Code string
	// Text is the human-readable message; clients and remote servers see it.
	Text string
	// Fields are further top-level members of the answer, for example soft_logout.
	Fields map[string]any
	// RetryAfter, if positive, is sent as the Retry-After header and as retry_after_ms.
	RetryAfter time.Duration
	// Cause goes to the log and never to the client.
	Cause error
}

// New makes an error of the given status, errcode and client-visible text.
func New(status int, code, text string) *Error {
	return &Error{Status: status, Code: code, Text: text}
}

// Newf is New with a formatted text.
func Newf(status int, code, format string, args ...any) *Error {
	return New(status, code, fmt.Sprintf(format, args...))
}

// Error is the message for logs: errcode, text and cause.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Code + ": " + e.Text + ": " + e.Cause.Error()
	}
	return e.Code + ": " + e.Text
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Cause }

// With returns a copy of e that carries cause for the log.
func (e *Error) With(cause error) *Error {
	c := *e
	c.Cause = cause
	return &c
}

// WithField returns a copy of e whose answer has a further top-level member.
func (e *Error) WithField(name string, value any) *Error {
	c := *e
	c.Fields = make(map[string]any, len(e.Fields)+1)
	for k, v := range e.Fields {
		c.Fields[k] = v
	}
	c.Fields[name] = value
	return &c
}

// As returns the Error in err's chain, or nil.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Forbidden is 403 M_FORBIDDEN.
func Forbidden(text string) *Error { return New(http.StatusForbidden, "M_FORBIDDEN", text) }

// NotFound is 404 M_NOT_FOUND.
func NotFound(text string) *Error { return New(http.StatusNotFound, "M_NOT_FOUND", text) }

// BadJSON is 400 M_BAD_JSON: valid JSON of the wrong shape.
func BadJSON(text string) *Error { return New(http.StatusBadRequest, "M_BAD_JSON", text) }

// NotJSON is 400 M_NOT_JSON: no valid JSON at all.
func NotJSON(text string) *Error { return New(http.StatusBadRequest, "M_NOT_JSON", text) }

// InvalidParam is 400 M_INVALID_PARAM.
func InvalidParam(text string) *Error { return New(http.StatusBadRequest, "M_INVALID_PARAM", text) }

// MissingParam is 400 M_MISSING_PARAM.
func MissingParam(text string) *Error { return New(http.StatusBadRequest, "M_MISSING_PARAM", text) }

// TooLarge is 413 M_TOO_LARGE.
func TooLarge(text string) *Error {
	return New(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", text)
}

// Unrecognized is M_UNRECOGNIZED with status 404 (unknown path) or 405 (unknown method).
func Unrecognized(status int) *Error {
	return New(status, "M_UNRECOGNIZED", "Unrecognized request")
}

// MissingToken is 401 M_MISSING_TOKEN.
func MissingToken() *Error {
	return New(http.StatusUnauthorized, "M_MISSING_TOKEN", "Missing access token")
}

// UnknownToken is 401 M_UNKNOWN_TOKEN; soft tells the client that it may log in again
// and keep its device (client-server API v1.19, "Soft logout").
func UnknownToken(soft bool) *Error {
	return New(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown or expired access token").WithField("soft_logout", soft)
}

// Locked is 401 M_USER_LOCKED, for accounts that an administrator has locked. The client keeps its
// session for when that is over (client-server API v1.19, "Account locking").
func Locked() *Error {
	return New(http.StatusUnauthorized, "M_USER_LOCKED", "This account is locked").WithField("soft_logout", true)
}

// Suspended is 403 M_USER_SUSPENDED, for what a suspended account may not do
// (client-server API v1.19, "Account suspension").
func Suspended() *Error {
	return New(http.StatusForbidden, "M_USER_SUSPENDED", "You cannot perform this action while suspended")
}

// LimitExceeded is 429 M_LIMIT_EXCEEDED; the client may try again after the given time.
func LimitExceeded(after time.Duration) *Error {
	e := New(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "Too many requests")
	e.RetryAfter = max(after, time.Millisecond)
	return e
}
