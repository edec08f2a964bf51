// Package canonicaljson brings JSON into the one form that Matrix hashes and
// signs.
//
// Canonical form has no white space, object members sorted by the code points
// of their names, every string in its shortest UTF-8 encoding, and integers
// between -(2^53)+1 and (2^53)-1.
//
// spec: appendices v1.19 "Canonical JSON"
package canonicaljson

import (
	"errors"
	"fmt"
)

// MaxDepth is how deeply arrays and objects may be nested. The specification
// names no bound; this one keeps recursion harmless while not refusing events
// that the most widespread servers (whose parsers stop at about a thousand
// levels) take, because an event refused by one server alone splits a room.
const MaxDepth = 1000

// maxInput bounds the input so that offsets fit in 32 bits.
const maxInput = 1 << 30

// Mode says what is done with numbers that canonical JSON does not know.
type Mode uint8

const (
	// Strict refuses fractions, exponents and integers beyond ±(2^53-1), as
	// room versions 6 and later demand. Negative zero becomes zero.
	Strict Mode = iota
	// Lax keeps them, as room versions 1 to 5 need for events that were hashed
	// with such numbers in them: integers keep all their digits; a number with
	// an exponent whose value is an integer within ±(2^53-1) is written as that
	// integer; any other is written as the shortest decimal that names the same
	// IEEE double ("1.0", "0.5", "1e+16"), which is how the servers that made
	// those events write them.
	Lax
)

var (
	// ErrSyntax is wrapped by every error about input that is not JSON, is not
	// UTF-8, names half of a surrogate pair, or is nested too deeply.
	ErrSyntax = errors.New("not JSON")
	// ErrNumber is wrapped by errors about numbers that have no canonical form.
	ErrNumber = errors.New("number not allowed in canonical JSON")
)

// Canonical returns the canonical form of one JSON value. If raw already has
// that form, raw itself is returned and nothing is allocated. Of object members
// with the same name the last one counts and the others are removed. The error
// wraps ErrSyntax or ErrNumber.
func Canonical(raw []byte, mode Mode) ([]byte, error) {
	if isCanonical(raw, mode) {
		return raw, nil
	}
	if len(raw) > maxInput {
		return nil, fmt.Errorf("%w: %d bytes are too many", ErrSyntax, len(raw))
	}
	// Room for an ordinary event, lest they grow step by step.
	var pending [24]node
	var nodes [48]node
	p := parser{in: raw, mode: mode, pending: pending[:0], nodes: nodes[:0]}
	root, err := p.document()
	if err != nil {
		return nil, err
	}
	return p.append(make([]byte, 0, len(raw)), root), nil
}
