package filter

import "strings"

// set is a list of identifiers that may be absent, which is not the same as empty.
type set struct {
	given bool
	list  []string
	index map[string]struct{} // of list, where it is long
}

// shortList is up to where walking a list is faster than hashing.
const shortList = 8

func newSet(list []string) set {
	s := set{given: true, list: list}
	if len(list) > shortList {
		s.index = make(map[string]struct{}, len(list))
		for _, v := range list {
			s.index[v] = struct{}{}
		}
	}
	return s
}

func (s *set) has(v string) bool {
	if s.index != nil {
		_, ok := s.index[v]
		return ok
	}
	for _, w := range s.list {
		if v == w {
			return true
		}
	}
	return false
}

// patterns is a list of event types, of which some have wildcards.
type patterns struct {
	given bool
	all   bool // one of them is "*"
	exact set
	globs []glob
}

func newPatterns(list []string) patterns {
	p := patterns{given: true}
	var exact []string
	for _, v := range list {
		switch {
		case v == "*":
			p.all = true
		case strings.Contains(v, "*"):
			p.globs = append(p.globs, newGlob(v))
		default:
			exact = append(exact, v)
		}
	}
	p.exact = newSet(exact)
	return p
}

func (p *patterns) empty() bool { return !p.all && len(p.exact.list) == 0 && len(p.globs) == 0 }

func (p *patterns) match(v string) bool {
	if p.all || p.exact.has(v) {
		return true
	}
	for i := range p.globs {
		if p.globs[i].match(v) {
			return true
		}
	}
	return false
}

// glob is a pattern in which each * stands for any sequence of characters. It is cut at its stars, so that matching
// takes one pass and cannot be made to backtrack.
type glob struct {
	prefix, suffix string
	between        []string
}

func newGlob(pattern string) glob {
	parts := strings.Split(pattern, "*")
	g := glob{prefix: parts[0], suffix: parts[len(parts)-1]}
	for _, part := range parts[1 : len(parts)-1] {
		if part != "" {
			g.between = append(g.between, part)
		}
	}
	return g
}

func (g *glob) match(v string) bool {
	if len(v) < len(g.prefix)+len(g.suffix) || !strings.HasPrefix(v, g.prefix) || !strings.HasSuffix(v, g.suffix) {
		return false
	}
	v = v[len(g.prefix) : len(v)-len(g.suffix)]
	for _, part := range g.between {
		i := strings.Index(v, part)
		if i < 0 {
			return false
		}
		v = v[i+len(part):]
	}
	return true
}
