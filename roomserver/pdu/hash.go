package pdu

import (
	"crypto/sha256"
	"encoding/base64"
	"sync"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// buffer is scratch space for bytes that are only hashed or signed.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 4096)} }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) put() {
	b.b = b.b[:0]
	buffers.Put(b)
}

// appendMember appends a member as a Walker yields it, after a comma unless it
// is the first of the object that begins at dst[start].
func appendMember(dst []byte, start int, name, value []byte) []byte {
	if len(dst) > start+1 {
		dst = append(dst, ',')
	}
	dst = append(append(append(dst, '"'), name...), '"', ':')
	return append(dst, value...)
}

// appendWithout appends a canonical object without one member.
func appendWithout(dst, obj []byte, drop string) []byte {
	start := len(dst)
	dst = append(dst, '{')
	for w := canonicaljson.Walk(obj); w.Next(); {
		if string(w.Name) != drop {
			dst = appendMember(dst, start, w.Name, w.Value)
		}
	}
	return append(dst, '}')
}

// contentHash covers the complete event but unsigned, signatures and hashes.
//
// spec: server-server-api v1.19 "Calculating the content hash for an event"
func contentHash(event []byte) [sha256.Size]byte {
	buf := getBuffer()
	defer buf.put()
	buf.b = append(buf.b, '{')
	for w := canonicaljson.Walk(event); w.Next(); {
		switch string(w.Name) {
		case "unsigned", "signatures", "hashes":
			continue
		}
		buf.b = appendMember(buf.b, 0, w.Name, w.Value)
	}
	buf.b = append(buf.b, '}')
	return sha256.Sum256(buf.b)
}

// referenceHash is the hash of the redacted event without signatures.
//
// spec: server-server-api v1.19 "Calculating the reference hash for an event"
func (e *Event) referenceHash() [sha256.Size]byte {
	buf := getBuffer()
	defer buf.put()
	buf.b = e.appendSigned(buf.b)
	return sha256.Sum256(buf.b)
}

// eventID names an event of format 2 or 3 by what its signatures cover.
func eventID(v *Version, signed []byte) string {
	hash := sha256.Sum256(signed)
	encoding := base64.RawStdEncoding
	if v.URLSafeIDs {
		encoding = base64.RawURLEncoding
	}
	var id [1 + 43]byte
	id[0] = '$'
	encoding.Encode(id[1:], hash[:])
	return string(id[:])
}

// Ref is how an event is cited in prev_events and auth_events.
type Ref struct {
	ID string
	// SHA256 is the unpadded base64 of the cited event's reference hash. Only
	// versions 1 and 2 need it; later the ID holds it.
	SHA256 string
}

// Ref returns how other events cite this one.
func (e *Event) Ref() Ref {
	if e.version.EventFormat != 1 {
		return Ref{ID: e.ID}
	}
	hash := e.referenceHash()
	return Ref{ID: e.ID, SHA256: base64.RawStdEncoding.EncodeToString(hash[:])}
}
