package pdu

import (
	"encoding/json"
	"strings"
	"testing"
)

// benchProto is a message whose event has about 1.2 KB.
func benchProto() (*Version, *Proto) {
	v := Versions()[10]
	p := proto(v)
	p.Content = json.RawMessage(`{"body":"` + strings.Repeat("The quick brown fox jumps over the lazy dog. ", 14) + `","msgtype":"m.text"}`)
	return v, p
}

func BenchmarkBuild(b *testing.B) {
	v, p := benchProto()
	key := testKey(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Build(p, "example.org", "ed25519:1", key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	v, p := benchProto()
	raw := build(b, v, p).JSON()
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(v, raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFromStore(b *testing.B) {
	v, p := benchProto()
	e := build(b, v, p)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromStore(v, e.JSON(), e.ID, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifySignature(b *testing.B) {
	v, p := benchProto()
	e, key := build(b, v, p), publicKey(testKey(b))
	b.ReportAllocs()
	for b.Loop() {
		if err := e.VerifySignature("example.org", "ed25519:1", key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendClient(b *testing.B) {
	v, p := benchProto()
	e := build(b, v, p)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = e.AppendClient(dst[:0])
	}
}
