package rules

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestPatternMatchesWholeValue(t *testing.T) {
	for _, c := range []struct {
		glob, value string
		want        bool
	}{
		// The examples of the specification for event_match.
		{"lunc?*", "Lunch plans", true},
		{"lunc?*", "LUNCH", true},
		{"lunc?*", " lunch", false},
		{"lunc?*", "lunc", false},

		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"*", "anything\nat all", true},
		{"**", "x", true},
		{"?", "", false},
		{"?", "é", true},
		{"?", "ab", false},
		{"???", "äöü", true},
		{"a?c", "ABC", true},
		{"m.room.message", "m.room.message", true},
		{"m.room.message", "mxroom.message", false},
		{"m.room.*", "m.room.topic", true},
		{"*.topic", "m.room.topic", true},
		{"a*a", "a", false},
		{"a*a", "aa", true},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "a-c-b", false},
		{"*b?", "abcbd", true},
		{"[a-z]", "a", false},
		{"[a-z]", "[A-Z]", true},
		{`\*`, `*`, false},
	} {
		budget := evaluationBudget
		if got := compilePattern(c.glob).matchAll(strings.ToLower(c.value), &budget); got != c.want {
			t.Errorf("pattern %q, value %q: matches = %v, want %v", c.glob, c.value, got, c.want)
		}
	}
}

func TestPatternMatchesWords(t *testing.T) {
	for _, c := range []struct {
		glob, body string
		want       bool
	}{
		// The examples of the specification for event_match of content.body.
		{"ex*ple", "An example event.", true},
		{"ex*ple", "exple", true},
		{"ex*ple", "An exciting triple-whammy", true},

		{"tea", "It's time for tea", true},
		{"tea", "It's time for TEA!", true},
		{"tea", "team", false},
		{"tea", "steal the tea", true},
		{"tea", "green_tea", false},
		{"tea", "tea_", false},
		{"tea", "tea2", false},
		{"tea", "théâtea", true}, // a letter outside A-Z is a boundary
		{"tea", "tea\nparty", true},
		{"te?", "tea", true},
		{"te?", "te", false},
		{"te?", "team", false},
		{"@room", "hello@room", true},
		{"@room", "@rooms", false},
		{"#", "a#b", true},
		{"cake*lie", "the cake is a lie", true},
		{"cake*lie", "the cake is a belief", false},
		{"cake*lie", "a lie about cake", false},
		{"*tea", "steal green-tea", true},
		{"*tea", "steamy", false},
		{"tea*", "xtea", false},
		{"tea*", "teapot", true},
		{"*", "", true},
		{"", "anything", true},
		{"ex ple", "an ex ple", true},
	} {
		budget := evaluationBudget
		if got := compilePattern(c.glob).matchWords(strings.ToLower(c.body), &budget); got != c.want {
			t.Errorf("pattern %q, body %q: matches = %v, want %v", c.glob, c.body, got, c.want)
		}
	}
}

// naive is the definition of glob-style matching, as a regular expression.
func naive(glob string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for _, c := range glob {
		switch c {
		case '*':
			b.WriteString(`.*`)
		case '?':
			b.WriteString(`.`)
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}

// naiveWords tries every part of the text between boundaries.
func naiveWords(re *regexp.Regexp, text string) bool {
	at := func(i int) bool {
		word := func(c byte) bool {
			return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		}
		return i == 0 || i == len(text) || !word(text[i-1]) || !word(text[i])
	}
	for i := 0; i <= len(text); i++ {
		for j := i; j <= len(text); j++ {
			whole := (i == len(text) || utf8.RuneStart(text[i])) && (j == len(text) || utf8.RuneStart(text[j]))
			if whole && at(i) && at(j) && re.MatchString(text[i:j]) {
				return true
			}
		}
	}
	return false
}

func TestPatternAgreesWithDefinition(t *testing.T) {
	alphabet := []rune("ab-é ")
	rapid.Check(t, func(t *rapid.T) {
		glob := rapid.StringOfN(rapid.RuneFrom(append([]rune("**??"), alphabet...)), 0, 7, -1).Draw(t, "glob")
		text := rapid.StringOfN(rapid.RuneFrom(alphabet), 0, 10, -1).Draw(t, "text")
		p, re, budget := compilePattern(glob), naive(glob), evaluationBudget
		if got, want := p.matchAll(text, &budget), re.MatchString(text); got != want {
			t.Fatalf("whole: got %v, want %v", got, want)
		}
		if got, want := p.matchWords(text, &budget), naiveWords(re, text); got != want {
			t.Fatalf("words: got %v, want %v", got, want)
		}
	})
}

// A user may choose patterns that are dear to match; the time one evaluation takes is bounded.
func TestPatternsEndAtBudget(t *testing.T) {
	text := strings.Repeat("a", 60000)
	for _, glob := range []string{
		strings.Repeat("?a", 5000) + "b",
		strings.Repeat("a*", 5000) + "b",
		strings.Repeat("a", 5000) + "b",
		strings.Repeat("a?*", 3000) + "b",
	} {
		p, budget := compilePattern(glob), evaluationBudget
		start := time.Now()
		if p.matchAll(text, &budget) || p.matchWords(text, &budget) {
			t.Errorf("%.20q… matches", glob)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%.20q… took %v", glob, took)
		}
	}
}
