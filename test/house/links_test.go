package house

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var link = regexp.MustCompile(`\]\(([^)\s#]+)(#[^)]*)?\)`)

func TestLinksInDocumentationLeadSomewhere(t *testing.T) {
	found := 0
	textFiles(t, func(name, text string) {
		if !strings.HasSuffix(name, ".md") {
			return
		}
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(match[1], ":") { // elsewhere
				continue
			}
			found++
			if _, err := os.Stat(filepath.Join(root(), filepath.Dir(name), match[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", name, match[1])
			}
		}
	})
	if found == 0 {
		t.Error("no links were found")
	}
}
