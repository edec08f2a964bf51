// Package words cuts text into the terms by which it is searched: the same for what is stored and for what is asked, and
// the same on every database. It is pure.
//
// Case, compatibility forms (full-width letters, ligatures) and, in Latin and Greek script, accents make no difference.
// Scripts that do not put spaces between words, and Korean, which glues particles to them, are cut into overlapping pairs
// of characters, so that any two neighbours are found, whatever the words are.
package words

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

const (
	// MaxTerms bounds the terms that are taken from one text; what follows is not found.
	MaxTerms = 2000
	// maxLetters is where long words (hashes, encoded data) are cut off.
	maxLetters = 40
)

// class is what a character is part of.
type class uint8

const (
	gap     class = iota
	spaced        // a word that others are separated from by spaces
	paired        // a run to be cut into pairs
	symbol        // stands for itself: emoji and the like
	joining       // belongs to what is before it, or to nothing
)

var pairedScripts = []*unicode.RangeTable{
	unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul, unicode.Bopomofo,
	unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar,
}

func classOf(r rune) class {
	switch {
	case 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9':
		return spaced
	case r == '\'' || r == '’':
		return joining
	case r < 0xaa:
		return gap
	case r == 'ー' || r == 'ｰ' || r == 'ﾞ' || r == 'ﾟ': // parts of Katakana words, but not of that script alone
		return paired
	case r >= 0xe00 && (unicode.IsLetter(r) || unicode.IsMark(r)) && unicode.IsOneOf(pairedScripts, r):
		return paired
	case unicode.IsMark(r):
		return joining
	case unicode.IsLetter(r) || unicode.IsNumber(r):
		return spaced
	case unicode.Is(unicode.So, r) && r != utf8.RuneError:
		return symbol
	}
	return gap
}

// run is a part of a text that makes terms of its own.
type run struct {
	class   class
	surface string // as in the text
	folded  string
}

// runs calls yield with each run of a text until it returns false.
func runs(text string, yield func(run) bool) {
	start, current := 0, gap
	flush := func(end int) bool {
		if current == gap {
			return true
		}
		surface := text[start:end]
		folded := fold(surface)
		return folded == "" || yield(run{current, surface, folded})
	}
	for i, r := range text {
		c := classOf(r)
		if c == joining {
			if current != gap && current != symbol {
				continue
			}
			c = gap
		}
		if c == current && c != symbol {
			continue
		}
		if !flush(i) {
			return
		}
		start, current = i, c
	}
	flush(len(text))
}

// fold gives the form of a run that is compared.
func fold(s string) string {
	ascii := true
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			ascii = false
			break
		}
	}
	if ascii {
		return strings.ReplaceAll(strings.ToLower(s), "'", "")
	}
	s = norm.NFD.String(cases.Fold().String(norm.NFKC.String(s)))
	var b strings.Builder
	b.Grow(len(s))
	bare := false // marks are dropped after the letter before
	for _, r := range s {
		switch {
		case unicode.Is(unicode.Mn, r):
			if bare {
				continue
			}
			if r == '\u0308' && strings.HasSuffix(b.String(), "е") { // ё is mostly written without its dots
				continue
			}
		case unicode.IsLetter(r):
			bare = unicode.In(r, unicode.Latin, unicode.Greek)
		case !unicode.IsMark(r) && !unicode.IsNumber(r) && !unicode.Is(unicode.So, r):
			continue
		}
		b.WriteRune(r)
	}
	return norm.NFC.String(b.String())
}

// cut shortens a word.
func cut(s string) string {
	if len(s) <= maxLetters {
		return s
	}
	n := 0
	for i := range s {
		if n++; n > maxLetters {
			return s[:i]
		}
	}
	return s
}

// Append appends the terms of a text. Each run of paired characters ends with a term of its last one alone, so that every
// character begins a term.
func Append(terms []string, text string) []string {
	limit := len(terms) + MaxTerms
	runs(text, func(r run) bool {
		if r.class == paired {
			terms = appendPairs(terms, r.folded, true)
		} else {
			terms = append(terms, cut(r.folded))
		}
		return len(terms) < limit
	})
	return terms[:min(len(terms), limit)]
}

// appendPairs appends each pair of neighbours, and the last character alone if asked for or if there is no other.
func appendPairs(terms []string, s string, last bool) []string {
	previous := 0
	for i := range s {
		if i == 0 {
			continue
		}
		_, size := utf8.DecodeRuneInString(s[i:])
		terms = append(terms, s[previous:i+size])
		previous = i
	}
	if last || previous == 0 {
		terms = append(terms, s[previous:])
	}
	return terms
}

// Word is a part of what is searched for.
type Word struct {
	// Surface is the word as it was written, in lower case.
	Surface string
	// Terms are those that a text has to have, one right after the other.
	Terms []string
	// Prefix tells that the last term may be the beginning of one.
	Prefix bool
}

// MaxWords bounds the words that are searched for at once.
const MaxWords = 32

// Query cuts what is searched for into words, each only once.
func Query(text string) []Word {
	var words []Word
	seen := map[string]bool{}
	runs(text, func(r run) bool {
		if seen[r.folded] {
			return true
		}
		seen[r.folded] = true
		w := Word{Surface: strings.ToLower(r.surface)}
		if r.class == paired {
			w.Terms = appendPairs(nil, r.folded, false)
			w.Terms = w.Terms[:min(len(w.Terms), MaxWords)]
			w.Prefix = utf8.RuneCountInString(r.folded) == 1
		} else {
			w.Terms = []string{cut(r.folded)}
		}
		words = append(words, w)
		return len(words) < MaxWords
	})
	return words
}

// Surfaces calls yield with the single words of a text: the term and, in lower case, how the text writes it. Runs that
// are cut into pairs are left out.
func Surfaces(text string, yield func(term, surface string)) {
	n := 0
	runs(text, func(r run) bool {
		if r.class != paired {
			yield(cut(r.folded), strings.ToLower(r.surface))
		}
		n++
		return n < MaxTerms
	})
}
