package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

// Body says what an endpoint does with the body of a request.
type Body uint8

const (
	// NoBody ignores it (GET).
	NoBody Body = iota
	// OptionalBody is a JSON object; an empty body counts as {}.
	OptionalBody
	// RequiredBody is a JSON object that must be sent, even if it is {}.
	RequiredBody
	// StreamBody is read by the handler itself (NewRaw).
	StreamBody
)

// Endpoint is one row of the table of routes. Make it with New or NewRaw.
type Endpoint struct {
	// Method is the HTTP method; GET serves HEAD too.
	Method string
	// Path is the pattern as the specification writes it, with {wildcards} for whole segments.
	Path string
	// Who may call it.
	Who Access
	// Class is whose budget it spends.
	Class ratelimit.Class
	// MaxBody bounds the body in bytes; 0 takes the router's bound.
	MaxBody int64
	// Locked lets in locked accounts.
	Locked bool
	// Unsuspended refuses suspended accounts.
	Unsuspended bool
	// Body says what the endpoint reads.
	Body Body
	// Raw endpoints write their answer themselves.
	Raw bool

	typed typedFunc
	raw   RawFunc
	err   error // what is wrong with the declaration; NewRouter reports it
}

// RawFunc handles what is not JSON in and JSON out: media, redirects, pages. Wildcards are read with
// r.PathValue. It returns an error before it has written anything, or writes the answer and returns nil.
type RawFunc func(ctx context.Context, by *Caller, w http.ResponseWriter, r *http.Request) error

// typedFunc decodes a request, calls the handler and returns its answer (a non-nil pointer).
type typedFunc func(ctx context.Context, by *Caller, req *request) (any, error)

// Empty is the answer {} and a request without parameters.
type Empty struct{}

// AppendJSON appends {}.
func (Empty) AppendJSON(dst []byte) ([]byte, error) { return append(dst, '{', '}'), nil }

// New declares an endpoint that takes In and answers with Out.
//
// In is a struct whose exported fields are all tagged. `path:"roomId"` takes a wildcard,
// `query:"limit"` a query parameter, `header:"If-None-Match"` a header, `json:"name"` a member of the
// body and `body:"raw"` (json.RawMessage) the whole body, a valid JSON object. See the package
// documentation for types, further tags and errors.
//
// Out is marshalled as JSON without HTML escaping, or appends itself with
// AppendJSON(dst []byte) ([]byte, error). A nil *Out without an error answers {}. The status is 200,
// unless Out has a method HTTPStatus() int that says otherwise.
func New[In, Out any](method, path string, who Access, class ratelimit.Class,
	fn func(ctx context.Context, by *Caller, in *In) (*Out, error)) Endpoint {
	e := Endpoint{Method: method, Path: path, Who: who, Class: class}
	p, err := newPlan[In](path)
	if err != nil {
		e.err = err
		return e
	}
	e.Body = p.bodyOf(method)
	if e.Body == NoBody && (p.raw != nil || len(p.members) > 0) {
		e.err = fmt.Errorf("%s takes no body, but the request type has fields for one", method)
	}
	e.typed = func(ctx context.Context, by *Caller, req *request) (any, error) {
		in := new(In)
		err := p.decode(in, req)
		req.release() // the handler may wait long
		if err != nil {
			return nil, err
		}
		out, err := fn(ctx, by, in)
		if err != nil {
			return nil, err
		}
		if out == nil {
			return Empty{}, nil
		}
		return out, nil
	}
	return e
}

// NewRaw declares an endpoint that reads and writes HTTP itself. Its body is bounded like any other
// (WithMaxBody) but not read or checked.
func NewRaw(method, path string, who Access, class ratelimit.Class, fn RawFunc) Endpoint {
	return Endpoint{Method: method, Path: path, Who: who, Class: class, Body: StreamBody, Raw: true, raw: fn}
}

// WithMaxBody returns a copy of e that takes bodies of up to n bytes.
func (e Endpoint) WithMaxBody(n int64) Endpoint {
	e.MaxBody = n
	return e
}

// EvenLocked returns a copy of e that locked accounts may call: the logout endpoints
// (client-server API v1.19, "Account locking").
func (e Endpoint) EvenLocked() Endpoint {
	e.Locked = true
	return e
}

// UnlessSuspended returns a copy of e that suspended accounts may not call
// (client-server API v1.19, "Account suspension").
func (e Endpoint) UnlessSuspended() Endpoint {
	e.Unsuspended = true
	return e
}

// Params are the names of the wildcards in the order of the path.
func (e Endpoint) Params() []string {
	var names []string
	for seg := range strings.SplitSeq(e.Path, "/") {
		if name, ok := wildcard(seg); ok {
			names = append(names, name)
		}
	}
	return names
}

// wildcard returns the name in "{name}".
func wildcard(segment string) (string, bool) {
	if len(segment) > 2 && segment[0] == '{' && segment[len(segment)-1] == '}' {
		return segment[1 : len(segment)-1], true
	}
	return "", false
}

var methods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch}

// check reports what is wrong with the declaration.
func (e *Endpoint) check() error {
	switch {
	case e.err != nil:
		return e.err
	case !slices.Contains(methods, e.Method):
		return errors.New("no method that is served")
	case !strings.HasPrefix(e.Path, "/"):
		return errors.New("the path must begin with /")
	case e.Who == 0:
		return errors.New("it does not say who may call")
	case e.Who&Anyone != 0 && e.Who != Anyone:
		return errors.New("anyone cannot be joined with other callers; use Optional")
	case e.Who&Server != 0 && e.Who != Server:
		return errors.New("servers sign where users show tokens; an endpoint cannot serve both")
	case !e.Class.Valid():
		return errors.New("it has no rate-limit class")
	case e.typed == nil && e.raw == nil:
		return errors.New("it has no handler; declare it with New or NewRaw")
	}
	return nil
}

// Row is a line of the table of routes.
type Row struct {
	Method, Path, Who, Class string
	// Raw endpoints answer with something else than JSON.
	Raw bool
	// MaxBody bounds the body in bytes; 0: the router's bound.
	MaxBody int64
}

// Table lists endpoints sorted by path and method.
func Table(endpoints []Endpoint) []Row {
	rows := make([]Row, len(endpoints))
	for i, e := range endpoints {
		rows[i] = Row{e.Method, e.Path, e.Who.String(), e.Class.String(), e.Raw, e.MaxBody}
	}
	slices.SortFunc(rows, func(a, b Row) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(a.Method, b.Method)
	})
	return rows
}
