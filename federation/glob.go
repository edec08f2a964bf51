package federation

import "strings"

// glob matches a name with a pattern, both in lower case, in which * stands for any characters and ? for one. It takes
// no more than len(pattern)·len(name) steps, whatever the pattern.
//
// spec: appendices v1.19 "glob-style matching"
func glob(pattern, name string) bool {
	p, n := 0, 0
	star, from := -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0: // let the last star take one more
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
