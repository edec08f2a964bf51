package httpapi

import (
	"bytes"
	"errors"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/myelin-im/myelin/internal/mxerr"
)

const (
	// clientDepth bounds how deep the JSON of clients may be nested. None comes near it, and other
	// servers refuse events that are a few levels deeper.
	clientDepth = 100
	// serverDepth bounds how deep the JSON of servers may be nested: only so far as it takes to be safe,
	// since one strange event must not spoil the transaction around it.
	serverDepth = 10_000
)

var (
	errSyntax = errors.New("syntax error")
	errDepth  = errors.New("nested too deeply")
)

// checkObject checks that body is one JSON object in UTF-8 (RFC 8259), nested at most depth deep:
// M_NOT_JSON if it is no JSON, M_BAD_JSON if it is another value or too deep.
// spec: client-server-api v1.19 "API Standards"
func checkObject(body []byte, depth int) *mxerr.Error {
	if !utf8.Valid(body) {
		return mxerr.NotJSON("The body is not valid UTF-8")
	}
	start := skipSpace(body, 0)
	end, err := skipValue(body, start, depth)
	if err == nil && skipSpace(body, end) != len(body) {
		err = errSyntax
	}
	switch {
	case errors.Is(err, errDepth):
		return mxerr.BadJSON("The body is nested too deeply")
	case err != nil:
		return mxerr.NotJSON("The body is not valid JSON")
	case body[start] != '{':
		return mxerr.BadJSON("The body must be a JSON object")
	}
	return nil
}

// CheckLegible refuses, with M_BAD_JSON, what is JSON by its grammar, and common parsers still stumble over: halves of
// surrogate pairs, and numbers beyond what a double holds. Much of what one client says is passed on as it stands, and
// one such value would cost another client the whole answer around it. The bodies of clients have passed it; value must
// be valid JSON.
//
// Spec: RFC 8259 section 8.2 and section 6.
func CheckLegible(value []byte) error {
	for i := 0; i < len(value); {
		switch c := value[i]; {
		case c == '"':
			end, err := skipString(value, i)
			if err != nil || !paired(value[i:end]) {
				return mxerr.BadJSON("Half of a surrogate pair is no text")
			}
			i = end
		case c == '-' || isDigit(c):
			end, err := skipNumber(value, i)
			if err != nil || !finite(value[i:end]) {
				return mxerr.BadJSON("A number is out of range")
			}
			i = end
		default:
			i++
		}
	}
	return nil
}

// paired tells whether the escapes of a string form whole characters.
func paired(s []byte) bool {
	for {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			return true
		}
		s = s[i:]
		first, size := escapedUnit(s)
		if utf16.IsSurrogate(first) {
			second, more := escapedUnit(s[size:])
			if utf16.DecodeRune(first, second) == utf8.RuneError {
				return false
			}
			size += more
		}
		s = s[size:]
	}
}

// escapedUnit returns the UTF-16 code unit of the escape that s begins with, and the length of the escape; unit is 0
// for those of one character, and for what is no escape.
func escapedUnit(s []byte) (unit rune, size int) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, 2
	}
	n, err := strconv.ParseUint(string(s[2:6]), 16, 16)
	if err != nil {
		return 0, 2
	}
	return rune(n), 6
}

// surelyFinite is how long a number without exponent may be and still fit a double for certain.
const surelyFinite = 300

// finite tells whether a double holds a number, rounded perhaps.
func finite(number []byte) bool {
	if len(number) <= surelyFinite && bytes.IndexByte(number, 'e') < 0 && bytes.IndexByte(number, 'E') < 0 {
		return true
	}
	_, err := strconv.ParseFloat(string(number), 64)
	return err == nil
}

// eachMember calls fn for the members of an object that checkObject has passed. key stands without
// its quotes, escapes untouched.
func eachMember(body []byte, fn func(key, value []byte) error) error {
	i := skipSpace(body, 0) + 1
	for {
		if i = skipSpace(body, i); body[i] == '}' {
			return nil
		}
		end, err := skipString(body, i)
		if err != nil {
			return err
		}
		key := body[i+1 : end-1]
		i = skipSpace(body, skipSpace(body, end)+1) // the colon
		if end, err = skipValue(body, i, serverDepth); err != nil {
			return err
		}
		if err := fn(key, body[i:end]); err != nil {
			return err
		}
		if i = skipSpace(body, end); body[i] == ',' {
			i++
		}
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the end of the JSON value that starts at i and is nested at most depth deep.
func skipValue(b []byte, i, depth int) (int, error) {
	if i >= len(b) {
		return i, errSyntax
	}
	switch c := b[i]; {
	case c == '{' || c == '[':
		if depth == 0 {
			return i, errDepth
		}
		return skipComposite(b, i, depth-1)
	case c == '"':
		return skipString(b, i)
	case c == 't':
		return skipWord(b, i, "true")
	case c == 'f':
		return skipWord(b, i, "false")
	case c == 'n':
		return skipWord(b, i, "null")
	}
	return skipNumber(b, i)
}

// skipComposite returns the end of the object or array that starts at i.
func skipComposite(b []byte, i, depth int) (int, error) {
	object, last := b[i] == '{', b[i]+2 // '}' and ']' stand two after their openings in ASCII
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == last {
		return i + 1, nil
	}
	for {
		var err error
		if object {
			if i >= len(b) || b[i] != '"' {
				return i, errSyntax
			}
			if i, err = skipString(b, i); err != nil {
				return i, err
			}
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return i, errSyntax
			}
			i = skipSpace(b, i+1)
		}
		if i, err = skipValue(b, i, depth); err != nil {
			return i, err
		}
		if i = skipSpace(b, i); i >= len(b) {
			return i, errSyntax
		}
		switch b[i] {
		case last:
			return i + 1, nil
		case ',':
			i = skipSpace(b, i+1)
		default:
			return i, errSyntax
		}
	}
}

func skipWord(b []byte, i int, word string) (int, error) {
	if end := i + len(word); end <= len(b) && string(b[i:end]) == word {
		return end, nil
	}
	return i, errSyntax
}

// skipString returns the end of the string whose opening quote is at i.
func skipString(b []byte, i int) (int, error) {
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1, nil
		case c < ' ':
			return i, errSyntax
		case c == '\\':
			if i++; i >= len(b) {
				return i, errSyntax
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if i++; i >= len(b) || !isHex(b[i]) {
						return i, errSyntax
					}
				}
			default:
				return i, errSyntax
			}
		}
	}
	return i, errSyntax
}

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// skipNumber returns the end of the number that starts at i.
func skipNumber(b []byte, i int) (int, error) {
	if i < len(b) && b[i] == '-' {
		i++
	}
	var ok bool
	if i < len(b) && b[i] == '0' {
		i++
	} else if i, ok = skipDigits(b, i); !ok {
		return i, errSyntax
	}
	if i < len(b) && b[i] == '.' {
		if i, ok = skipDigits(b, i+1); !ok {
			return i, errSyntax
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if i, ok = skipDigits(b, i); !ok {
			return i, errSyntax
		}
	}
	return i, nil
}

// skipDigits skips one digit or more.
func skipDigits(b []byte, i int) (int, bool) {
	start := i
	for i < len(b) && isDigit(b[i]) {
		i++
	}
	return i, i > start
}
