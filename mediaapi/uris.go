package mediaapi

import (
	"bytes"
	"strings"
)

var scheme = []byte("mxc://")

// eachURI finds the mxc:// URIs in JSON, in strings of any depth. It looks at bytes and not at members, because any of
// them may name media.
func eachURI(text []byte, found func(uri)) {
	text = bytes.ReplaceAll(text, []byte(`\/`), []byte("/")) // how JSON may write a slash
	for {
		at := bytes.Index(text, scheme)
		if at < 0 {
			return
		}
		text = text[at+len(scheme):]
		end := bytes.IndexFunc(text, func(r rune) bool { return r <= ' ' || strings.ContainsRune(`"'\<>()#?`, r) })
		if end < 0 {
			end = len(text)
		}
		origin, id, ok := strings.Cut(string(text[:end]), "/")
		if ok && origin != "" && len(origin) <= 255 && isMediaID(id) {
			found(uri{origin, id})
		}
	}
}
