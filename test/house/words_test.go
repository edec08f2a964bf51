package house

import (
	"regexp"
	"strings"
	"testing"
)

// forbidden are words that have no place in the tree. They are put together here so that this file has none of them.
var forbidden = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`), "finish it, or write down the limit as a fact"},
	{regexp.MustCompile(`(?i)\bfor ` + `now\b`), "say what is, not what may come"},
	{regexp.MustCompile(`(?i)\bnot (yet )?imple` + `mented\b`), "leave it out until it works"},
	{regexp.MustCompile(`(?i)(proxy\.golang|sum\.golang|registry\.` + `npmjs|deb\.deb` + `ian|py` + `pi)\.org`), "a mirror may stand in for a registry; name packages only"},
	{regexp.MustCompile(`/wo` + `rk/|/ro` + `ot/`), "paths of one machine mean nothing on another"},
}

func TestForbiddenWords(t *testing.T) {
	textFiles(t, func(name, text string) {
		if name == "go.sum" {
			return
		}
		for number, line := range strings.Split(text, "\n") {
			for _, word := range forbidden {
				if found := word.pattern.FindString(line); found != "" {
					t.Errorf("%s:%d: %q: %s", name, number+1, found, word.reason)
				}
			}
		}
	})
}
