package filter

import (
	"strings"

	"github.com/tidwall/gjson"
)

// Fields is a choice of event fields (event_fields). It is a tree of property names.
type Fields struct {
	children map[string]*Fields
	whole    bool // this property, with all it holds
}

// maxFieldDepth bounds the nesting of one path; what lies deeper comes along whole.
const maxFieldDepth = 32

func newFields(paths []string) *Fields {
	root := &Fields{}
	for _, path := range paths {
		at := root
		for _, name := range splitPath(path) {
			if at.children == nil {
				at.children = map[string]*Fields{}
			}
			next := at.children[name]
			if next == nil {
				next = &Fields{}
				at.children[name] = next
			}
			at = next
		}
		at.whole = true
	}
	return root
}

// splitPath cuts a path at its dots. Only "\." and "\\" are escapes; any other backslash stands for itself.
//
// Spec: appendices, "Dot-separated property paths".
func splitPath(path string) []string {
	var names []string
	var name strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			name.WriteByte(path[i])
		case c == '.':
			names = append(names, name.String())
			name.Reset()
			if len(names) == maxFieldDepth {
				return names
			}
		default:
			name.WriteByte(c)
		}
	}
	return append(names, name.String())
}

// Project appends to dst the JSON object event with only the chosen fields and returns the extended slice.
// Properties keep their order and their bytes. A nil Fields appends event as it is.
func (f *Fields) Project(dst, event []byte) []byte {
	if f == nil {
		return append(dst, event...)
	}
	return f.project(dst, gjson.ParseBytes(event))
}

func (f *Fields) project(dst []byte, object gjson.Result) []byte {
	dst = append(dst, '{')
	start := len(dst)
	object.ForEach(func(key, value gjson.Result) bool {
		child := f.children[key.Str]
		if child == nil || !child.whole && !value.IsObject() {
			return true
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(append(dst, key.Raw...), ':')
		if child.whole {
			dst = append(dst, value.Raw...)
		} else {
			dst = child.project(dst, value)
		}
		return true
	})
	return append(dst, '}')
}
