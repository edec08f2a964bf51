package canonicaljson

import (
	"fmt"
	"math"
	"strconv"
)

// maxSafe is the largest integer of canonical JSON: 2^53-1.
const maxSafe = 9007199254740991

const maxSafeDigits = "9007199254740991"

// safeDigits reports whether a run of digits without leading zeros is at most
// 2^53-1.
func safeDigits(digits []byte) bool {
	if len(digits) != len(maxSafeDigits) {
		return len(digits) < len(maxSafeDigits)
	}
	return string(digits) <= maxSafeDigits
}

// numberEnd checks the grammar of the JSON number at b[i] and returns the index
// after it, and whether it has a fraction and an exponent. end is -1 if there
// is no number.
func numberEnd(b []byte, i int) (end int, fraction, exponent bool) {
	digits := func(j int) int {
		for j < len(b) && '0' <= b[j] && b[j] <= '9' {
			j++
		}
		return j
	}
	if b[i] == '-' {
		i++
	}
	end = digits(i)
	if end == i || b[i] == '0' && end > i+1 {
		return -1, false, false
	}
	if end < len(b) && b[end] == '.' {
		fraction = true
		from := end + 1
		if end = digits(from); end == from {
			return -1, false, false
		}
	}
	if end < len(b) && (b[end] == 'e' || b[end] == 'E') {
		exponent = true
		from := end + 1
		if from < len(b) && (b[from] == '+' || b[from] == '-') {
			from++
		}
		if end = digits(from); end == from {
			return -1, false, false
		}
	}
	return end, fraction, exponent
}

// appendNumber appends the canonical form of a number whose grammar has been
// checked.
func appendNumber(dst, token []byte, fraction, exponent bool, mode Mode) ([]byte, error) {
	if !fraction && !exponent {
		if string(token) == "-0" {
			return append(dst, '0'), nil
		}
		digits := token
		if digits[0] == '-' {
			digits = digits[1:]
		}
		if mode == Strict && !safeDigits(digits) {
			return nil, fmt.Errorf("%w: integer beyond ±(2^53-1)", ErrNumber)
		}
		return append(dst, token...), nil
	}
	if mode == Strict {
		return nil, fmt.Errorf("%w: fraction or exponent", ErrNumber)
	}
	f, err := strconv.ParseFloat(string(token), 64)
	if err != nil {
		return nil, fmt.Errorf("%w: beyond the range of a double", ErrNumber)
	}
	return appendDouble(dst, f, exponent), nil
}

// appendDouble writes a double as described at Lax.
func appendDouble(dst []byte, f float64, exponent bool) []byte {
	abs := math.Abs(f)
	if exponent && abs <= maxSafe && f == math.Trunc(f) {
		return strconv.AppendInt(dst, int64(f), 10)
	}
	if abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if f == math.Trunc(f) {
		dst = append(dst, ".0"...)
	}
	return dst
}
