package rules

import (
	"strings"
	"unicode/utf8"
)

// evaluationBudget bounds the work of matching patterns in one evaluation, in units of about a
// nanosecond. A user may store thousands of patterns, and a body has up to 64 KiB; what a user's
// rules may cost the server for one event has to end somewhere. Patterns do not match once the
// budget is used up. Ordinary rules use less than a thousandth of it.
const evaluationBudget = 2 << 20

// pattern is a glob, folded to lower case: pieces with stars between them. '*' stands for any
// number of characters, '?' for one.
//
// spec: appendices v1.19 "Glob-style matching"
type pattern struct {
	pieces []piece // the first is bound to the start, the last to the end; never empty
}

// piece is a part of a glob without stars.
type piece struct {
	text string
	wild bool // text has '?'
	size int  // characters
}

func compilePattern(glob string) *pattern {
	parts := strings.Split(strings.ToLower(glob), "*")
	p := &pattern{pieces: make([]piece, 0, len(parts))}
	for i, text := range parts {
		if text == "" && i > 0 && i < len(parts)-1 {
			continue // ** is *
		}
		p.pieces = append(p.pieces, piece{text: text, wild: strings.Contains(text, "?"), size: utf8.RuneCountInString(text)})
	}
	return p
}

// literalPattern matches text itself, stars and question marks included.
func literalPattern(text string) *pattern {
	text = strings.ToLower(text)
	return &pattern{pieces: []piece{{text: text, size: utf8.RuneCountInString(text)}}}
}

// matchAll tells whether the whole of text, in lower case, matches.
func (p *pattern) matchAll(text string, budget *int) bool {
	first := &p.pieces[0]
	if len(p.pieces) == 1 && !first.wild {
		return text == first.text
	}
	at := first.matchAt(text, 0, budget)
	if at < 0 || len(p.pieces) == 1 {
		return at == len(text)
	}
	last := &p.pieces[len(p.pieces)-1]
	end := last.startBefore(text)
	if end < at || last.matchAt(text, end, budget) != len(text) {
		return false
	}
	return p.middle(text[:end], at, budget) >= 0
}

// matchWords tells whether some part of text, in lower case, that starts and ends at word
// boundaries matches. As a star stands for anything, the leftmost place is as good as any for
// every piece but the last, so that the text is passed once for each piece.
func (p *pattern) matchWords(text string, budget *int) bool {
	first := &p.pieces[0]
	if len(p.pieces) == 1 {
		return first.findBounded(text, 0, true, true, budget) >= 0
	}
	at := first.findBounded(text, 0, true, false, budget)
	if at < 0 {
		return false
	}
	if at = p.middle(text, at, budget); at < 0 {
		return false
	}
	last := &p.pieces[len(p.pieces)-1]
	return last.text == "" || last.findBounded(text, at, false, true, budget) >= 0
}

// middle finds the pieces between the first and the last in text from at on and returns where the
// last one found ends, or -1.
func (p *pattern) middle(text string, at int, budget *int) int {
	for i := 1; i < len(p.pieces)-1; i++ {
		if at = p.pieces[i].findBounded(text, at, false, false, budget); at < 0 {
			return -1
		}
	}
	return at
}

// findBounded finds the leftmost place of s in text from at on whose start or end, where asked
// for, is a word boundary, and returns where it ends, or -1.
func (s *piece) findBounded(text string, at int, boundStart, boundEnd bool, budget *int) int {
	for {
		start, end := s.find(text, at, budget)
		if start < 0 {
			return -1
		}
		if (!boundStart || boundary(text, start)) && (!boundEnd || boundary(text, end)) {
			return end
		}
		if start == len(text) {
			return -1
		}
		_, width := utf8.DecodeRuneInString(text[start:])
		at = start + width
	}
}

// find finds the leftmost place of s in text from at on, and gives its bounds or -1.
func (s *piece) find(text string, at int, budget *int) (start, end int) {
	if !s.wild {
		i := strings.Index(text[at:], s.text)
		cost := len(text) - at
		if i >= 0 {
			cost = i
		}
		if *budget -= cost/8 + 16; i < 0 || *budget < 0 {
			return -1, -1
		}
		return at + i, at + i + len(s.text)
	}
	for ; at <= len(text) && *budget > 0; at++ {
		*budget--
		if at < len(text) && !utf8.RuneStart(text[at]) {
			continue
		}
		if end := s.matchAt(text, at, budget); end >= 0 {
			return at, end
		}
	}
	return -1, -1
}

// matchAt returns where s ends in text if it stands at the given place, else -1.
func (s *piece) matchAt(text string, at int, budget *int) int {
	if !s.wild {
		if !strings.HasPrefix(text[at:], s.text) {
			return -1
		}
		return at + len(s.text)
	}
	for i := 0; i < len(s.text); i++ {
		if at == len(text) || *budget <= 0 {
			return -1
		}
		*budget--
		switch {
		case s.text[i] == '?':
			_, width := utf8.DecodeRuneInString(text[at:])
			at += width
		case s.text[i] == text[at]:
			at++
		default:
			return -1
		}
	}
	return at
}

// startBefore returns where s starts if it ends with text, or -1 if text is too short.
func (s *piece) startBefore(text string) int {
	if !s.wild {
		return len(text) - len(s.text)
	}
	end := len(text)
	for range s.size {
		if end == 0 {
			return -1
		}
		_, width := utf8.DecodeLastRuneInString(text[:end])
		end -= width
	}
	return end
}

// boundary tells whether a word can start or end at i: at the ends of text and at any character
// outside A-Z, a-z, 0-9 and _, letters of other scripts among them.
//
// spec: client-server-api v1.19 "Conditions", event_match of content.body
func boundary(text string, i int) bool {
	return i == 0 || i == len(text) || !wordByte[text[i-1]] || !wordByte[text[i]]
}

var wordByte = func() (t [256]bool) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") {
		t[c] = true
	}
	return t
}()
