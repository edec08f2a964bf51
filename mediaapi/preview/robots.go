package preview

import (
	"bufio"
	"bytes"
	"strings"
)

// Robots are the rules of a site for one robot.
type Robots struct {
	rules []rule
}

type rule struct {
	path  string
	allow bool
}

// maxRules bounds the rules of a site.
const maxRules = 1000

// ParseRobots reads a robots.txt (RFC 9309): the rules of the groups that name the robot, or else of those for all.
func ParseRobots(body []byte, robot string) *Robots {
	var named, general []rule
	found, inNamed, inGeneral, heading := false, false, false, false
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "user-agent":
			if !heading {
				inNamed, inGeneral = false, false
			}
			heading = true
			inNamed = inNamed || strings.EqualFold(value, robot)
			inGeneral = inGeneral || value == "*"
			found = found || inNamed
		case "allow", "disallow":
			heading = false
			r := rule{value, strings.EqualFold(strings.TrimSpace(key), "allow")}
			if value == "" {
				continue
			}
			if inNamed && len(named) < maxRules {
				named = append(named, r)
			}
			if inGeneral && len(general) < maxRules {
				general = append(general, r)
			}
		}
	}
	if found {
		return &Robots{named}
	}
	return &Robots{general}
}

// Allowed tells whether a path, with its query, may be fetched: the longest rule that fits decides, and allows if two
// are as long.
func (r *Robots) Allowed(path string) bool {
	allowed, length := true, -1
	for _, rule := range r.rules {
		if n := len(rule.path); (n > length || n == length && rule.allow) && fits(rule.path, path) {
			allowed, length = rule.allow, n
		}
	}
	return allowed
}

// fits compares a path with a pattern, in which * is any characters and a $ at the end the end.
func fits(pattern, path string) bool {
	pattern, whole := strings.CutSuffix(pattern, "$")
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(path, parts[0])
	if !ok {
		return false
	}
	for i, part := range parts[1:] {
		if whole && i == len(parts)-2 {
			return strings.HasSuffix(rest, part)
		}
		at := strings.Index(rest, part)
		if at < 0 {
			return false
		}
		rest = rest[at+len(part):]
	}
	return !whole || rest == ""
}
