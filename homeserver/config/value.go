package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-im/myelin/internal/ratelimit"
)

// A value reads and writes one field of Config as text: the one form that a YAML scalar, a variable of the
// environment and the printed sample share.
type value struct {
	allowed    string // what is accepted, for people: the end of "allowed: …"
	separators string // if any: a list, a YAML sequence; otherwise set gets, and get returns, exactly one item
	set        func(items []string) error
	get        func() []string
}

// scalar is a value with one item, read by parse and written by format.
func scalar[T any](field *T, allowed string, parse func(string) (T, error), format func(T) string) value {
	return value{
		allowed: allowed,
		set: func(items []string) error {
			v, err := parse(items[0])
			if err == nil {
				*field = v
			}
			return err
		},
		get: func() []string { return []string{format(*field)} },
	}
}

// text is a string that check accepts; a nil check accepts everything.
func text(field *string, allowed string, check func(string) error) value {
	return scalar(field, allowed, func(s string) (string, error) {
		if check == nil {
			return s, nil
		}
		return s, check(s)
	}, func(s string) string { return s })
}

// optional is text that may also be empty.
func optional(field *string, allowed string, check func(string) error) value {
	return text(field, allowed+", or empty", func(s string) error {
		if s == "" || check == nil {
			return nil
		}
		return check(s)
	})
}

// choice is one of the words.
func choice(field *string, words ...string) value {
	return text(field, strings.Join(words, ", "), func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("%q is none of them", s)
		}
		return nil
	})
}

// truth is true or false, and none of YAML's other words for them.
func truth(field *bool) value {
	return scalar(field, "true, false", func(s string) (bool, error) {
		switch s {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		return false, fmt.Errorf("%q is neither", s)
	}, strconv.FormatBool)
}

// number is an integer from low to high.
func number(field *int, low, high int) value {
	return scalar(field, fmt.Sprintf("a number from %d to %d", low, high), func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0, fmt.Errorf("%q is not a whole number", s)
		}
		if n < low || n > high {
			return 0, fmt.Errorf("%d is out of range", n)
		}
		return n, nil
	}, strconv.Itoa)
}

// duration is a time span from low to high.
func duration(field *time.Duration, low, high time.Duration) value {
	allowed := fmt.Sprintf("a time from %s to %s, in ms, s, m, h or d (such as 90s, 36h, 7d)",
		formatDuration(low), formatDuration(high))
	return scalar(field, allowed, func(s string) (time.Duration, error) {
		d, err := parseDuration(s)
		if err != nil {
			return 0, err
		}
		if d < low || d > high {
			return 0, fmt.Errorf("%s is out of range", s)
		}
		return d, nil
	}, formatDuration)
}

const day = 24 * time.Hour

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * day, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a time with a unit", s)
	}
	return d, nil
}

func formatDuration(d time.Duration) string {
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String() // "5m0s"
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// The units of sizes, largest first, so that the first that divides a size is the shortest way to write it.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// size is a number of bytes from low to high.
func size(field *int64, low, high int64) value {
	allowed := fmt.Sprintf("a size from %s to %s, in B, KiB, MiB or GiB", formatSize(low), formatSize(high))
	return scalar(field, allowed, func(s string) (int64, error) {
		n, err := parseSize(s)
		if err != nil {
			return 0, err
		}
		if n < low || n > high {
			return 0, fmt.Errorf("%s is out of range", s)
		}
		return n, nil
	}, formatSize)
}

func parseSize(s string) (int64, error) {
	for _, unit := range sizeUnits {
		digits, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/unit.bytes {
			break
		}
		return n * unit.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size with a unit", s)
}

func formatSize(n int64) string {
	for _, unit := range sizeUnits {
		if n%unit.bytes == 0 && n >= unit.bytes {
			return strconv.FormatInt(n/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// rate is a budget of a rate limiter, or off.
func rate(field *ratelimit.Rate) value {
	return scalar(field, "a rate and a burst such as 10/s burst 50, in /s, /m or /h, or off", parseRate, formatRate)
}

// The units of rates, so that the first that gives at least one is the natural way to write it.
var rateUnits = []struct {
	name    string
	seconds float64
}{{"/s", 1}, {"/m", 60}, {"/h", 3600}}

func parseRate(s string) (ratelimit.Rate, error) {
	if s == "off" {
		return ratelimit.Rate{}, nil
	}
	wrong := fmt.Errorf("%q is not a rate and a burst", s)
	fields := strings.Fields(s)
	if len(fields) != 3 || fields[1] != "burst" {
		return ratelimit.Rate{}, wrong
	}
	burst, err := strconv.ParseUint(fields[2], 10, 20)
	if err != nil || burst == 0 {
		return ratelimit.Rate{}, wrong
	}
	for _, unit := range rateUnits {
		digits, ok := strings.CutSuffix(fields[0], unit.name)
		if !ok {
			continue
		}
		if n, err := strconv.ParseFloat(digits, 64); err == nil && n > 0 && n <= 1e6 {
			return ratelimit.Rate{PerSecond: n / unit.seconds, Burst: int(burst)}, nil
		}
	}
	return ratelimit.Rate{}, wrong
}

func formatRate(r ratelimit.Rate) string {
	if r.PerSecond <= 0 {
		return "off"
	}
	unit := rateUnits[0]
	for _, unit = range rateUnits {
		if r.PerSecond*unit.seconds >= 1 {
			break
		}
	}
	return fmt.Sprintf("%s%s burst %d", strconv.FormatFloat(r.PerSecond*unit.seconds, 'g', -1, 64), unit.name, max(r.Burst, 1))
}

// list is any number of items, which separators keep apart in the environment.
func list[T any](field *[]T, allowed, separators string, parse func(string) (T, error), format func(T) string) value {
	return value{
		allowed:    allowed,
		separators: separators,
		set: func(items []string) error {
			var parsed []T
			var bad []error
			for _, item := range items {
				v, err := parse(item)
				parsed, bad = append(parsed, v), append(bad, err)
			}
			if err := errors.Join(bad...); err != nil {
				return err
			}
			*field = parsed
			return nil
		},
		get: func() []string {
			items := make([]string, len(*field))
			for i, v := range *field {
				items[i] = format(v)
			}
			return items
		},
	}
}

// patterns are names of servers with wildcards. Digits may stand for them everywhere: in host names, addresses and ports.
func patterns(field *[]string) value {
	return list(field, "server names, in which * and ? are wildcards", ",", func(pattern string) (string, error) {
		return pattern, checkServerName(strings.NewReplacer("*", "11", "?", "1").Replace(pattern))
	}, func(pattern string) string { return pattern })
}

// serverNames are names of servers.
func serverNames(field *[]string) value {
	return list(field, "server names", ",", func(name string) (string, error) { return name, checkServerName(name) },
		func(name string) string { return name })
}

// files are paths of files that can be read.
func files(field *[]string) value {
	return list(field, "paths of readable files", ":,", func(path string) (string, error) {
		f, err := os.Open(path) // #nosec G304: the operator names the file
		if err != nil {
			return "", errors.New(strings.TrimPrefix(err.Error(), "open "))
		}
		return path, f.Close()
	}, func(path string) string { return path })
}

// networks are addresses and address ranges.
func networks(field *[]netip.Prefix) value {
	return list(field, "IP addresses, and ranges such as 10.0.0.0/8", ",", func(s string) (netip.Prefix, error) {
		if addr, err := netip.ParseAddr(s); err == nil {
			return netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		network, err := netip.ParsePrefix(s)
		if err != nil {
			return network, fmt.Errorf("%q is neither", s)
		}
		return network, nil
	}, func(network netip.Prefix) string {
		if network.IsSingleIP() {
			return network.Addr().String()
		}
		return network.String()
	})
}

// split takes the text of a variable of the environment, or of a default, apart.
func (v *value) split(text string) []string {
	if v.separators == "" {
		return []string{text}
	}
	items := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(v.separators, r) })
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}
