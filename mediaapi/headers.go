package mediaapi

import (
	"bytes"
	"mime"
	"net/http"
	"strings"
)

const octets = "application/octet-stream"

// inline are the types that a browser only shows and never runs.
// spec: client-server-api v1.19 "Serving inline content"
var inline = map[string]bool{
	"text/css": true, "text/plain": true, "text/csv": true, "application/json": true, "application/ld+json": true,
	"image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true, "audio/wave": true,
	"audio/wav": true, "audio/x-wav": true, "audio/x-pn-wav": true, "audio/flac": true, "audio/x-flac": true,
}

// contentType is what an upload is served as: what its uploader says, unless that cannot be sent or is obviously
// wrong, as for an encrypted file that claims to be an image.
// spec: client-server-api v1.19, GET /download, Content-Type
func contentType(claimed string, head []byte) string {
	typ, _, err := mime.ParseMediaType(claimed)
	if err != nil || !strings.Contains(typ, "/") || len(claimed) > 255 || strings.ContainsFunc(claimed, func(r rune) bool { return r < ' ' || r > '~' }) {
		return octets
	}
	switch typ {
	case "image/jpeg", "image/png", "image/gif", "image/webp", "image/apng":
		if !looksLikeImage(head) {
			return octets
		}
	}
	return claimed
}

// looksLikeImage tells whether content begins like one of the formats that contentType checks.
func looksLikeImage(head []byte) bool {
	for _, magic := range []string{"\xff\xd8\xff", "\x89PNG\r\n\x1a\n", "GIF87a", "GIF89a"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 12 && string(head[:4]) == "RIFF" && string(head[8:12]) == "WEBP" || len(head) >= 12 && string(head[4:8]) == "ftyp"
}

// disposition is the Content-Disposition of content with a type and perhaps a name, in any script (RFC 6266, RFC 8187).
func disposition(typ string, name *string) string {
	base, _, err := mime.ParseMediaType(typ)
	how := "attachment"
	if err == nil && inline[base] {
		how = "inline"
	}
	if name == nil || *name == "" {
		return how
	}
	if full := mime.FormatMediaType(how, map[string]string{"filename": *name}); full != "" {
		return full
	}
	return how
}

// protect sets the headers that keep content from doing anything in a browser.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Access-Control-Expose-Headers", "Content-Length, Content-Range, Accept-Ranges, Content-Disposition, ETag")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Robots-Tag", "noindex, nofollow, noarchive, noimageindex")
}
