package canonicaljson

import (
	"fmt"
	"strings"
	"testing"
)

// sampleCanonical is an event of about 1.2 KB, sampleLoose the same in another
// order and with white space.
var (
	sampleBody      = strings.Repeat("The quick brown fox jumps over the lazy dog. ", 14)
	sampleCanonical = fmt.Sprintf(`{"auth_events":["$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg","$X7GhHPJbkwbcpqpGqyjq1n4lVjDdYmZMXSCaf3ZSLEw"],"content":{"body":"%s\n","m.mentions":{"user_ids":["@alice:example.org"]},"msgtype":"m.text"},"depth":1234,"hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},"origin_server_ts":1700000000000,"prev_events":["$acR1l0raoZnm60CBwAVgqbZqoO_mYU81xysh1u7XcJk"],"room_id":"!abc123:example.org","sender":"@bob:example.org","signatures":{"example.org":{"ed25519:1":"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}},"type":"m.room.message"}`, sampleBody)
	sampleLoose     = fmt.Sprintf(`{"type": "m.room.message", "sender": "@bob:example.org", "room_id": "!abc123:example.org", "content": {"msgtype": "m.text", "body": "%s\u000a", "m.mentions": {"user_ids": ["@alice:example.org"]}}, "depth": 1234, "auth_events": ["$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg", "$X7GhHPJbkwbcpqpGqyjq1n4lVjDdYmZMXSCaf3ZSLEw"], "prev_events": ["$acR1l0raoZnm60CBwAVgqbZqoO_mYU81xysh1u7XcJk"], "hashes": {"sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"}, "origin_server_ts": 1700000000000, "signatures": {"example.org": {"ed25519:1": "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}}}`, sampleBody)
)

func TestSamples(t *testing.T) {
	if !isCanonical([]byte(sampleCanonical), Strict) || isCanonical([]byte(sampleLoose), Strict) {
		t.Fatal("the samples are not what they are named")
	}
	if got, err := Canonical([]byte(sampleLoose), Strict); err != nil || string(got) != sampleCanonical {
		t.Errorf("Canonical(loose sample) = %s, %v", got, err)
	}
}

func BenchmarkCanonical(b *testing.B) {
	for _, c := range []struct{ name, in string }{{"already", sampleCanonical}, {"loose", sampleLoose}} {
		b.Run(c.name, func(b *testing.B) {
			in := []byte(c.in)
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Canonical(in, Strict); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
