package canonicaljson

import "bytes"

// Walker steps through the members of an object or the items of an array in
// canonical form. It allocates nothing. On bytes that Canonical did not produce
// it stops early or yields nonsense, but does not panic.
//
//	for w := canonicaljson.Walk(obj); w.Next(); {
//		use(w.Name, w.Value)
//	}
type Walker struct {
	// Name is the member's name without quotes and with its escapes; nil in
	// arrays. Names without quotes, backslashes and control characters, which
	// is all that the specification defines, have none.
	Name []byte
	// Value is the value's bytes.
	Value []byte

	b      []byte
	object bool
}

// Walk starts before the first member or item of a container. For anything
// else there is nothing to step through.
func Walk(container []byte) Walker {
	if len(container) < 2 || container[0] != '{' && container[0] != '[' {
		return Walker{}
	}
	return Walker{b: container[1 : len(container)-1], object: container[0] == '{'}
}

// Next goes to the next member or item and reports whether there is one.
func (w *Walker) Next() bool {
	b := w.b
	if len(b) == 0 {
		return false
	}
	w.b = nil // stop if the bytes are not what they should be
	if w.object {
		n := skipString(b)
		if n >= len(b) || b[n] != ':' {
			return false
		}
		w.Name = b[1 : n-1]
		b = b[n+1:]
	}
	n := skipValue(b)
	if n == 0 {
		return false
	}
	w.Value = b[:n]
	if n < len(b) {
		w.b = b[n+1:] // without the comma
	}
	return true
}

// DecodedName returns the member's name without escapes. Where it had none, it
// is Name itself. ok is false if the escapes are malformed.
func (w *Walker) DecodedName() (name []byte, ok bool) {
	if bytes.IndexByte(w.Name, '\\') < 0 {
		return w.Name, true
	}
	return unescape(nil, w.Name)
}

// Member returns the value of the named member of a canonical object, or nil.
func Member(obj []byte, name string) []byte {
	for w := Walk(obj); w.Next(); {
		if string(w.Name) == name {
			return w.Value
		}
	}
	return nil
}

// skipValue returns the length of the value at the start of b, 0 if there is
// none.
func skipValue(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	switch b[0] {
	case '"':
		return skipString(b)
	case '{', '[':
		return skipContainer(b)
	}
	n := 0
	for n < len(b) && b[n] != ',' && b[n] != ']' && b[n] != '}' {
		n++
	}
	return n
}

// skipContainer returns the length of the array or object at the start of b.
func skipContainer(b []byte) int {
	depth := 0
	for i := 0; i < len(b); {
		switch b[i] {
		case '"':
			i += skipString(b[i:])
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
	return len(b)
}

// skipString returns the length of the string token at the start of b.
func skipString(b []byte) int {
	if b[0] != '"' {
		return len(b)
	}
	for i := 1; i < len(b); {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			break
		}
		i += n
		// The quote ends the string if an even number of backslashes precede it.
		slashes := 0
		for b[i-1-slashes] == '\\' {
			slashes++
		}
		i++
		if slashes%2 == 0 {
			return i
		}
	}
	return len(b)
}
