package federation

import (
	"strings"

	"github.com/myelin-im/myelin/federation/client"
)

// Policy is which servers the operator lets this one talk to, in both directions. The zero value allows all.
type Policy struct {
	allow, deny []string
}

// NewPolicy makes a Policy of patterns in which * and ? are wildcards: servers that match a pattern of deny are refused,
// and where allow is not empty, so are those that match none of it. A pattern is compared with the host of a name and
// with the whole name, port included.
func NewPolicy(allow, deny []string) *Policy {
	return &Policy{lower(allow), lower(deny)}
}

func lower(patterns []string) []string {
	out := make([]string, len(patterns))
	for i, p := range patterns {
		out[i] = strings.ToLower(p)
	}
	return out
}

// Allows tells whether a server may be talked to.
func (p *Policy) Allows(server string) bool {
	if len(p.allow)+len(p.deny) == 0 {
		return true
	}
	server = strings.ToLower(server)
	name, ok := client.ParseName(server)
	if !ok {
		return false
	}
	matches := func(patterns []string) bool {
		for _, pattern := range patterns {
			if glob(pattern, server) || glob(pattern, name.Host) {
				return true
			}
		}
		return false
	}
	return !matches(p.deny) && (len(p.allow) == 0 || matches(p.allow))
}
