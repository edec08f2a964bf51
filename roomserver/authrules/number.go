package authrules

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

// numberForm says how a room version lets power levels be written.
type numberForm uint8

const (
	// integersOnly: integers of canonical JSON (room versions 10 and later).
	integersOnly numberForm = iota
	// integersOrStrings: also strings that hold an integer (versions 6 to 9).
	integersOrStrings
	// anyNumber: also floats, which are cut off at the decimal point (versions 1 to 5).
	anyNumber
)

func formOf(v *pdu.Version) numberForm {
	switch {
	case v.IntegerPowerLevels:
		return integersOnly
	case v.StrictJSON:
		return integersOrStrings
	}
	return anyNumber
}

// maxInteger is the largest integer of canonical JSON; the smallest is its negative.
//
// spec: appendices "Canonical JSON"
const maxInteger = 1<<53 - 1

// level reads a power level from a token of canonical JSON. ok is false where the value is no level
// in this form. Levels beyond 64 bits, which only the older forms allow, are cut to the
// nearest 64-bit number.
//
// spec: rooms/v1 "m.room.power_levels events accept values as strings", "… as floats"
func (f numberForm) level(token []byte) (level int64, ok bool) {
	if len(token) == 0 {
		return 0, false
	}
	switch c := token[0]; {
	case c == '"' && f != integersOnly:
		text, ok := canonicaljson.DecodeString(token)
		if !ok {
			return 0, false
		}
		return parseInteger(strings.TrimSpace(string(text)))
	case c == '-' || '0' <= c && c <= '9':
		number := string(token)
		if strings.ContainsAny(number, ".eE") {
			if f != anyNumber {
				return 0, false
			}
			return truncate(number)
		}
		level, ok = parseInteger(number)
		if f == integersOnly && (level > maxInteger || level < -maxInteger) {
			return 0, false
		}
		return level, ok
	}
	return 0, false
}

// parseInteger reads a decimal integer with an optional sign and any number of leading zeros.
func parseInteger(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		// ParseInt has cut it to the nearest. What not even a double can hold is no level.
		_, err = strconv.ParseFloat(s, 64)
	}
	return n, err == nil
}

// truncate reads a float and drops what follows the decimal point.
func truncate(s string) (int64, bool) {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil:
		return 0, false
	case f >= math.MaxInt64:
		return math.MaxInt64, true
	case f <= math.MinInt64:
		return math.MinInt64, true
	}
	return int64(f), true
}
