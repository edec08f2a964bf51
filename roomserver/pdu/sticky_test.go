package pdu

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestSticky(t *testing.T) {
	for _, c := range []struct {
		token string
		ms    int64
		ok    bool
	}{
		{``, 0, false},
		{`{}`, 0, false},
		{`[1]`, 0, false},
		{`{"duration_ms":"1"}`, 0, false},
		{`{"duration_ms":-1}`, 0, false},
		{`{"duration_ms":3600001}`, 0, false},
		{`{"duration_ms":0}`, 0, true},
		{`{"duration_ms":3600000,"more":1}`, 3600000, true},
	} {
		e := &Event{sticky: stickyOf([]byte(c.token)), OriginServerTS: 5000}
		if ms, ok := e.Sticky(); ok != c.ok || ok && ms != c.ms {
			t.Errorf("%s: %d %t", c.token, ms, ok)
		}
		want, late := int64(0), int64(0)
		if c.ok {
			want, late = 5000+c.ms, 3000+c.ms
		}
		if got := e.StickyUntil(9000); got != want {
			t.Errorf("%s: sticky until %d, want %d", c.token, got, want)
		}
		// An event from the future is sticky from when it was received.
		if got := e.StickyUntil(3000); got != late {
			t.Errorf("%s, received before it was sent: sticky until %d, want %d", c.token, got, late)
		}
	}
}

// Stickiness is signed and shown, and redaction ends it.
func TestStickyBuilt(t *testing.T) {
	for _, v := range Versions() {
		p := proto(v)
		ms := int64(1000)
		p.StickyMS = &ms
		e := build(t, v, p)
		again, err := Parse(v, e.JSON())
		if err != nil {
			t.Fatalf("version %s: %v", v.ID, err)
		}
		if got, ok := again.Sticky(); !ok || got != ms || again.Redacted || again.ID != e.ID {
			t.Errorf("version %s: parsed as %d %t", v.ID, got, ok)
		}
		client := string(again.AppendClient(nil)) + "}"
		if !json.Valid([]byte(client)) || !strings.Contains(client, `"msc4354_sticky":{"duration_ms":1000}`) {
			t.Errorf("version %s: %s", v.ID, client)
		}
		if _, ok := again.Redact().Sticky(); ok {
			t.Errorf("version %s: sticky after redaction", v.ID)
		}
		for _, bad := range []int64{-1, MaxStickyMS + 1} {
			p.StickyMS = &bad
			if _, err := v.Build(p, "example.org", "ed25519:1", testKey(t)); err == nil {
				t.Errorf("version %s: sticky for %d ms", v.ID, bad)
			}
		}
	}
}
