package canonicaljson

import (
	"bytes"
	"fmt"
	"slices"
	"unicode/utf8"
)

// parser reads arbitrary JSON into a tree that refers to the input, so that
// every byte is written once, in its final place. Sorting nested objects by
// moving their output about would cost depth times size.
type parser struct {
	in   []byte
	pos  int
	mode Mode

	nodes   []node // finished containers' children, each container's in a row
	pending []node // children of containers still being read
	side    []byte // decoded names and rewritten numbers
}

type kind uint8

const (
	verbatim kind = iota // copied as it stands
	escaped              // a string whose escapes must be rewritten
	object
	array
)

// text is a run of bytes in the input, or in parser.side.
type text struct {
	lo, hi int32
	side   bool
}

type node struct {
	name     text // decoded, without quotes; of object members only
	value    text // of scalars
	kind     kind
	from, to int32 // children in parser.nodes; of containers
}

func (p *parser) bytes(t text) []byte {
	if t.side {
		return p.side[t.lo:t.hi]
	}
	return p.in[t.lo:t.hi]
}

func (p *parser) fail(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrSyntax, p.pos, fmt.Sprintf(format, args...))
}

// document reads the one value of the input.
func (p *parser) document() (node, error) {
	root, err := p.value(0)
	if err != nil {
		return node{}, err
	}
	if p.space(); p.pos < len(p.in) {
		return node{}, p.fail("data after the value")
	}
	return root, nil
}

func (p *parser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// next skips white space and reports whether c follows, and takes it.
func (p *parser) next(c byte) bool {
	p.space()
	if p.pos < len(p.in) && p.in[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

func (p *parser) value(depth int) (node, error) {
	p.space()
	if p.pos >= len(p.in) {
		return node{}, p.fail("value expected")
	}
	switch c := p.in[p.pos]; {
	case c == '{' || c == '[':
		if depth == MaxDepth {
			return node{}, p.fail("nested more than %d deep", MaxDepth)
		}
		p.pos++
		if c == '{' {
			return p.object(depth + 1)
		}
		return p.array(depth + 1)
	case c == '"':
		t, esc, err := p.string()
		n := node{value: t}
		if esc {
			n.kind = escaped
		}
		return n, err
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	}
	end := scanWord(p.in, p.pos)
	if end < 0 {
		return node{}, p.fail("value expected")
	}
	n := node{value: text{lo: int32(p.pos), hi: int32(end)}}
	p.pos = end
	return n, nil
}

func (p *parser) array(depth int) (node, error) {
	base := len(p.pending)
	if p.next(']') {
		return p.close(array, base), nil
	}
	for {
		n, err := p.value(depth)
		if err != nil {
			return node{}, err
		}
		p.pending = append(p.pending, n)
		if p.next(']') {
			return p.close(array, base), nil
		}
		if !p.next(',') {
			return node{}, p.fail("comma or end of array expected")
		}
	}
}

func (p *parser) object(depth int) (node, error) {
	base := len(p.pending)
	if p.next('}') {
		return p.close(object, base), nil
	}
	for {
		p.space()
		name, err := p.name()
		if err != nil {
			return node{}, err
		}
		if !p.next(':') {
			return node{}, p.fail("colon expected")
		}
		n, err := p.value(depth)
		if err != nil {
			return node{}, err
		}
		n.name = name
		p.pending = append(p.pending, n)
		if p.next('}') {
			p.sortMembers(base)
			return p.close(object, base), nil
		}
		if !p.next(',') {
			return node{}, p.fail("comma or end of object expected")
		}
	}
}

// close moves the children of a finished container to their final place.
func (p *parser) close(k kind, base int) node {
	from := len(p.nodes)
	p.nodes = append(p.nodes, p.pending[base:]...)
	p.pending = p.pending[:base]
	return node{kind: k, from: int32(from), to: int32(len(p.nodes))}
}

// sortMembers orders the members read since base and drops all but the last of
// those with the same name.
func (p *parser) sortMembers(base int) {
	members := p.pending[base:]
	slices.SortStableFunc(members, func(a, b node) int {
		return bytes.Compare(p.bytes(a.name), p.bytes(b.name))
	})
	kept := members[:0]
	for i, m := range members {
		if i+1 < len(members) && bytes.Equal(p.bytes(m.name), p.bytes(members[i+1].name)) {
			continue
		}
		kept = append(kept, m)
	}
	p.pending = p.pending[:base+len(kept)]
}

// string reads a string token and returns it with its quotes.
func (p *parser) string() (t text, esc bool, err error) {
	start := p.pos
	for p.pos++; ; {
		p.pos += plainPrefix(p.in[p.pos:])
		if p.pos >= len(p.in) {
			return text{}, false, p.fail("string without end")
		}
		switch c := p.in[p.pos]; {
		case c == '"':
			p.pos++
			return text{lo: int32(start), hi: int32(p.pos)}, esc, nil
		case c == '\\':
			_, n := escapeAt(p.in[p.pos:])
			if n == 0 {
				return text{}, false, p.fail("bad escape sequence")
			}
			esc = true
			p.pos += n
		case c < ' ':
			return text{}, false, p.fail("control character in string")
		default:
			r, n := utf8.DecodeRune(p.in[p.pos:])
			if r == utf8.RuneError && n == 1 {
				return text{}, false, p.fail("not UTF-8")
			}
			p.pos += n
		}
	}
}

// name reads a member name and returns its text.
func (p *parser) name() (text, error) {
	if p.pos >= len(p.in) || p.in[p.pos] != '"' {
		return text{}, p.fail("member name expected")
	}
	t, esc, err := p.string()
	if err != nil {
		return text{}, err
	}
	inner := text{lo: t.lo + 1, hi: t.hi - 1}
	if !esc {
		return inner, nil
	}
	from := len(p.side)
	p.side, _ = unescape(p.side, p.bytes(inner)) // string has checked the escapes
	return text{lo: int32(from), hi: int32(len(p.side)), side: true}, nil
}

func (p *parser) number() (node, error) {
	end, fraction, exponent := numberEnd(p.in, p.pos)
	if end < 0 {
		return node{}, p.fail("malformed number")
	}
	if !fraction && !exponent && safeDigits(p.in[p.pos:end]) && p.in[p.pos] != '-' {
		n := node{value: text{lo: int32(p.pos), hi: int32(end)}}
		p.pos = end
		return n, nil
	}
	from := len(p.side)
	side, err := appendNumber(p.side, p.in[p.pos:end], fraction, exponent, p.mode)
	if err != nil {
		return node{}, fmt.Errorf("at byte %d: %w", p.pos, err)
	}
	p.side = side
	p.pos = end
	return node{value: text{lo: int32(from), hi: int32(len(p.side)), side: true}}, nil
}

// append writes n in canonical form.
func (p *parser) append(dst []byte, n node) []byte {
	switch n.kind {
	case escaped:
		inner := p.in[n.value.lo+1 : n.value.hi-1]
		return appendRewritten(append(dst, '"'), inner)
	case object:
		dst = append(dst, '{')
		for i, m := range p.nodes[n.from:n.to] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, '"')
			dst = append(appendText(dst, p.bytes(m.name)), '"', ':')
			dst = p.append(dst, m)
		}
		return append(dst, '}')
	case array:
		dst = append(dst, '[')
		for i, m := range p.nodes[n.from:n.to] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = p.append(dst, m)
		}
		return append(dst, ']')
	}
	return append(dst, p.bytes(n.value)...)
}

// appendRewritten appends the inside of a checked string token with shortest
// escapes, and the closing quote.
func appendRewritten(dst, inner []byte) []byte {
	for len(inner) > 0 {
		n := bytes.IndexByte(inner, '\\')
		if n < 0 {
			break
		}
		dst = append(dst, inner[:n]...)
		r, size := escapeAt(inner[n:])
		if r < ' ' || r == '"' || r == '\\' {
			dst = appendEscaped(dst, byte(r))
		} else {
			dst = utf8.AppendRune(dst, r)
		}
		inner = inner[n+size:]
	}
	return append(append(dst, inner...), '"')
}

// appendText appends decoded, valid text with escapes where it needs them.
func appendText(dst, s []byte) []byte {
	start := 0
	for i, c := range s {
		if c < ' ' || c == '"' || c == '\\' {
			dst = appendEscaped(append(dst, s[start:i]...), c)
			start = i + 1
		}
	}
	return append(dst, s[start:]...)
}
