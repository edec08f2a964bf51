package httpapi

import (
	"iter"
	"net/url"
	"strings"
)

// queryPairs yields the undecoded names and values of a query string in order. Unlike url.ParseQuery
// it builds no map, and a semicolon is an ordinary character.
func queryPairs(raw string) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for raw != "" {
			var pair string
			pair, raw, _ = strings.Cut(raw, "&")
			if pair == "" {
				continue
			}
			name, value, _ := strings.Cut(pair, "=")
			if !yield(name, value) {
				return
			}
		}
	}
}

// queryValue returns the first decodable value of a parameter whose name needs no escaping.
func queryValue(raw, name string) string {
	if !strings.Contains(raw, name) {
		return ""
	}
	for n, v := range queryPairs(raw) {
		if n == name {
			if v, err := unescapeQuery(v); err == nil {
				return v
			}
		}
	}
	return ""
}

// unescapeQuery decodes a name or value; it allocates only if there is something to decode.
func unescapeQuery(s string) (string, error) {
	if !strings.ContainsAny(s, "%+") {
		return s, nil
	}
	return url.QueryUnescape(s)
}
