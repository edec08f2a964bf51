package client

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/myelin-im/myelin/internal/canonicaljson"
	"github.com/myelin-im/myelin/internal/signing"
)

// canonicalBody is a body as it is signed and sent.
func canonicalBody(body json.RawMessage) ([]byte, error) {
	if body == nil {
		return nil, nil
	}
	content, err := canonicaljson.Canonical(body, canonicaljson.Lax)
	if err != nil {
		return nil, fmt.Errorf("request body: %w", err)
	}
	return content, nil
}

// RequestBytes is what the signature of a request covers: the canonical JSON of its origin, destination (left out if
// empty), method, target and body, which is canonical or nil.
//
// spec: server-server-api v1.19 "Request Authentication", step 1
func RequestBytes(origin, destination, method, target string, content []byte) []byte {
	b := make([]byte, 0, len(content)+len(target)+len(origin)+len(destination)+96)
	b = append(b, '{')
	if content != nil {
		b = append(append(append(b, `"content":`...), content...), ',')
	}
	member := func(name, value string) {
		b = append(append(append(b, '"'), name...), `":`...)
		b = canonicaljson.AppendString(b, value)
	}
	if destination != "" {
		member("destination", destination)
		b = append(b, ',')
	}
	member("method", method)
	b = append(b, ',')
	member("origin", origin)
	b = append(b, ',')
	member("uri", target)
	return append(b, '}')
}

// authorization is the header of a signed request, in the form that older servers can read.
func (c *Client) authorization(destination, method, target string, content []byte) string {
	signature := signing.Sign(RequestBytes(c.cfg.ServerName, destination, method, target, content), c.cfg.Key)
	var h strings.Builder
	h.WriteString(`X-Matrix origin="`)
	h.WriteString(c.cfg.ServerName)
	h.WriteString(`",destination="`)
	h.WriteString(destination)
	h.WriteString(`",key="`)
	h.WriteString(c.cfg.KeyID)
	h.WriteString(`",sig="`)
	h.WriteString(signature)
	h.WriteString(`"`)
	return h.String()
}
