package httpapi

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/mxerr"
)

// maxParams bounds the wildcards of one path.
const maxParams = 6

// node is a place in the tree of path segments. Fixed segments go before wildcards; if the way
// behind a fixed one ends nowhere, the wildcard beside it is tried.
type node struct {
	fixed map[string]*node
	any   *node
	// empty lets the wildcard that leads here match an empty segment.
	empty bool
	// routes are the endpoints that end here, one per method.
	routes []*route
}

// add puts a route into the tree. It fails if the same path and method are there already,
// whatever the wildcards are called.
func (n *node) add(rt *route) error {
	params := 0
	at := n
	segments := strings.Split(rt.Path[1:], "/")
	for i, seg := range segments {
		name, isParam := wildcard(seg)
		if !isParam {
			if at.fixed == nil {
				at.fixed = make(map[string]*node)
			}
			if at.fixed[seg] == nil {
				at.fixed[seg] = &node{}
			}
			at = at.fixed[seg]
			continue
		}
		if params++; params > maxParams {
			return fmt.Errorf("more than %d wildcards", maxParams)
		}
		if at.any == nil {
			at.any = &node{}
		}
		if name == "stateKey" && i == len(segments)-1 {
			// An empty state key may stand there without the slash, too.
			// spec: client-server-api v1.19, PUT /rooms/{roomId}/state/{eventType}/{stateKey}
			if err := at.end(rt); err != nil {
				return err
			}
			at.any.empty = true
		}
		at = at.any
	}
	return at.end(rt)
}

func (n *node) end(rt *route) error {
	for _, other := range n.routes {
		if other.Method == rt.Method {
			return fmt.Errorf("declared twice (the other is %s)", other.Path)
		}
	}
	n.routes = append(n.routes, rt)
	return nil
}

// match finds where path (without its first slash) ends, and fills in the wildcards of the way;
// taken of them are filled in already. It returns nil, or a node with routes.
// A segment is percent-decoded once, if escaped is set; "%2F" stays within its segment.
func (n *node) match(path string, escaped bool, params *[maxParams]string, taken int) *node {
	seg, rest, more := strings.Cut(path, "/")
	if escaped && strings.IndexByte(seg, '%') >= 0 {
		var err error
		if seg, err = url.PathUnescape(seg); err != nil {
			return nil
		}
	}
	if next := n.fixed[seg]; next != nil {
		if !more && len(next.routes) > 0 {
			clear(params[taken:])
			return next
		}
		if more {
			if end := next.match(rest, escaped, params, taken); end != nil {
				return end
			}
		}
	}
	if n.any == nil || seg == "" && (more || !n.any.empty) {
		return nil
	}
	params[taken] = seg
	if more {
		return n.any.match(rest, escaped, params, taken+1)
	}
	if len(n.any.routes) == 0 {
		return nil
	}
	clear(params[taken+1:])
	return n.any
}

// route returns the endpoint for a method; HEAD is served by GET.
func (n *node) route(method string) *route {
	for _, rt := range n.routes {
		if rt.Method == method || method == "HEAD" && rt.Method == "GET" {
			return rt
		}
	}
	return nil
}

// allow is the Allow header of a 405.
func (n *node) allow() string {
	names := []string{"OPTIONS"}
	for _, rt := range n.routes {
		names = append(names, rt.Method)
		if rt.Method == "GET" {
			names = append(names, "HEAD")
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// rawPath is the path to match, without the first slash, and whether its segments are still escaped.
// Without RawPath net/url found nothing in the path that decoding could confuse with a slash.
func rawPath(u *url.URL) (path string, escaped bool) {
	if u.RawPath != "" {
		return strings.TrimPrefix(u.RawPath, "/"), true
	}
	return strings.TrimPrefix(u.Path, "/"), false
}

// paramCheck returns what a wildcard of a known name must look like, or nil.
// The grammar is the tolerant one that must be accepted of rooms' histories, not the one for new identifiers.
// spec: appendices v1.19 "Identifier Grammar"
func paramCheck(name string) func(string) error {
	switch name {
	case "userId":
		return checkUserID
	case "roomId":
		return checkRoomID
	case "eventId":
		return checkEventID
	case "roomAlias":
		return checkRoomAlias
	case "roomIdOrAlias":
		return func(s string) error {
			switch {
			case strings.HasPrefix(s, "#"):
				return checkRoomAlias(s)
			case strings.HasPrefix(s, "!"):
				return checkRoomID(s)
			}
			return errors.New("must begin with ! or #")
		}
	case "serverName":
		return checkServerName
	}
	return checkText
}

// maxIDLength bounds user IDs, room IDs, event IDs and aliases, in bytes.
const maxIDLength = 255

// maxTextLength bounds any other wildcard, in bytes.
const maxTextLength = 2048

func checkText(s string) error {
	switch {
	case len(s) > maxTextLength:
		return errors.New("is too long")
	case !utf8.ValidString(s):
		return errors.New("is not valid UTF-8")
	}
	return nil
}

// checkID checks what all identifiers have in common.
func checkID(s, sigil string) error {
	switch {
	case !strings.HasPrefix(s, sigil) || len(s) < 2:
		return errors.New("must begin with " + sigil)
	case len(s) > maxIDLength:
		return errors.New("is longer than 255 bytes")
	case strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s):
		return errors.New("has characters that are not allowed")
	}
	return nil
}

// checkDomain checks the server name after the first colon.
func checkDomain(s string) error {
	if _, domain, ok := strings.Cut(s, ":"); ok {
		return checkServerName(domain)
	}
	return errors.New("has no server name")
}

func checkUserID(s string) error {
	if err := checkID(s, "@"); err != nil {
		return err
	}
	return checkDomain(s)
}

func checkRoomAlias(s string) error {
	if err := checkID(s, "#"); err != nil {
		return err
	}
	return checkDomain(s)
}

// checkRoomID leaves the rest to the room's version: a domain, a hash, or neither of them in old rooms.
func checkRoomID(s string) error { return checkID(s, "!") }

func checkEventID(s string) error { return checkID(s, "$") }

// checkServerName checks the characters of a server name; whether it resolves is another matter.
func checkServerName(s string) error {
	if s == "" || len(s) > maxIDLength {
		return errors.New("has no valid server name")
	}
	for i := range len(s) {
		c := s[i]
		if !isDigit(c) && !('a' <= c|0x20 && c|0x20 <= 'z') && strings.IndexByte("-.:[]", c) < 0 {
			return errors.New("has no valid server name")
		}
	}
	return nil
}

// checkParams checks the wildcards whose syntax is known.
func checkParams(e *route, req *request) error {
	for i, check := range e.checks {
		if err := check(req.params[i]); err != nil {
			return mxerr.InvalidParam(e.params[i] + " " + err.Error())
		}
	}
	return nil
}
