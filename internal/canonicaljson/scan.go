package canonicaljson

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// scanDepth is the nesting that isCanonical follows without allocating. Deeper
// values take the slow path, which produces the same bytes.
const scanDepth = 48

// level is what the scan remembers of one open array or object: the name of the
// object's previous member, so that order and duplicates can be judged.
type level struct {
	lo, hi int
	object bool
	named  bool
}

// isCanonical reports whether raw is known to have the form that Canonical
// would give it. It is one pass without allocation. It may answer false for
// rare canonical values (member names with escapes, very deep nesting); it
// never answers true wrongly.
func isCanonical(raw []byte, mode Mode) bool {
	var open [scanDepth]level
	depth, i := 0, 0
	for {
		// A value, or the end of a container that has just been opened, or the
		// next member's name.
		if depth > 0 && open[depth-1].object {
			if i = scanName(raw, i, &open[depth-1]); i < 0 {
				return false
			}
		}
		if i >= len(raw) {
			return false
		}
		switch c := raw[i]; {
		case c == '{' || c == '[':
			if i+1 < len(raw) && raw[i+1] == c+2 { // '{'+2 is '}', '['+2 is ']'
				i += 2
				break
			}
			if depth == scanDepth {
				return false
			}
			open[depth] = level{object: c == '{'}
			depth++
			i++
			continue
		case c == '"':
			i, _ = scanString(raw, i)
		case c == '-' || '0' <= c && c <= '9':
			i = scanInteger(raw, i, mode)
		default:
			i = scanWord(raw, i)
		}
		if i < 0 {
			return false
		}
		// What follows a value: closing brackets, then a comma or the end.
		for depth > 0 && i < len(raw) && raw[i] == closing(open[depth-1].object) {
			depth--
			i++
		}
		if depth == 0 {
			return i == len(raw)
		}
		if i >= len(raw) || raw[i] != ',' {
			return false
		}
		i++
	}
}

func closing(object bool) byte {
	if object {
		return '}'
	}
	return ']'
}

// scanName reads a member name and its colon and returns the index after it, or
// -1 if the name is not canonical, has escapes (whose bytes do not sort like
// what they stand for) or does not sort after the previous one.
func scanName(b []byte, i int, in *level) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	end, escaped := scanString(b, i)
	if end < 0 || escaped || end >= len(b) || b[end] != ':' {
		return -1
	}
	// Bytewise order of UTF-8 is the order of code points.
	if in.named && bytes.Compare(b[in.lo:in.hi], b[i+1:end-1]) >= 0 {
		return -1
	}
	in.lo, in.hi, in.named = i+1, end-1, true
	return end + 1
}

// scanString returns the index after the string token that starts at b[i], or
// -1 if the token is not in canonical form.
func scanString(b []byte, i int) (end int, escaped bool) {
	for j := i + 1; ; {
		j += plainPrefix(b[j:])
		if j >= len(b) {
			return -1, false
		}
		switch c := b[j]; {
		case c == '"':
			return j + 1, escaped
		case c == '\\':
			n := canonicalEscape(b[j:])
			if n == 0 {
				return -1, false
			}
			escaped = true
			j += n
		case c < ' ':
			return -1, false
		default:
			r, n := utf8.DecodeRune(b[j:])
			if r == utf8.RuneError && n == 1 {
				return -1, false
			}
			j += n
		}
	}
}

// plainPrefix returns how many bytes at the start of b are ASCII that stands for
// itself inside a string, eight at a time.
func plainPrefix(b []byte) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	n := 0
	for ; len(b)-n >= 8; n += 8 {
		x := binary.LittleEndian.Uint64(b[n:])
		quote := x ^ '"'*ones
		slash := x ^ '\\'*ones
		// Each term sets the high bit of the bytes it looks for: control
		// characters, quotes, backslashes, and all bytes from 0x80 up. A borrow
		// may set further bits, but only above the first true one.
		hit := ((x - ' '*ones) &^ x) | ((quote - ones) &^ quote) | ((slash - ones) &^ slash) | x
		if hit &= highs; hit != 0 {
			return n + bits.TrailingZeros64(hit)/8
		}
	}
	for ; n < len(b); n++ {
		if c := b[n]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return n
		}
	}
	return n
}

// canonicalEscape returns the length of the escape sequence at the start of b if
// it is the shortest one for its character and the character needs one, else 0.
func canonicalEscape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 || b[2] != '0' || b[3] != '0' || b[4] != '0' && b[4] != '1' {
			return 0
		}
		lo, ok := hexDigit(b[5])
		if !ok || 'A' <= b[5] && b[5] <= 'F' {
			return 0
		}
		if c := (b[4]-'0')<<4 | lo; shortEscape[c] != 0 {
			return 0
		}
		return 6
	}
	return 0
}

// scanInteger returns the index after the canonical integer at b[i], or -1.
func scanInteger(b []byte, i int, mode Mode) int {
	j := i
	if b[j] == '-' {
		j++
	}
	digits := j
	for j < len(b) && '0' <= b[j] && b[j] <= '9' {
		j++
	}
	switch {
	case j == digits, b[digits] == '0' && (j > digits+1 || digits > i):
		return -1 // no digits, a leading zero, or "-0"
	case j < len(b) && (b[j] == '.' || b[j] == 'e' || b[j] == 'E'):
		return -1
	case mode == Strict && !safeDigits(b[digits:j]):
		return -1
	}
	return j
}

func scanWord(b []byte, i int) int {
	for _, word := range [...]string{"true", "false", "null"} {
		if len(b)-i >= len(word) && string(b[i:i+len(word)]) == word {
			return i + len(word)
		}
	}
	return -1
}
